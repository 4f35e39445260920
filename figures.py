"""Every figure, in the chapter's order.  `python figures.py` makes all of them in plots/.

`python figures.py NAME …` makes those named.  Each figure_… function asks the modules for numbers,
then draws them: theory beside simulation.  Its docstring is the caption.  Where the chapter's text
names a colour, it is that one.
"""
import argparse
import functools
import itertools
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

os.environ["MPLBACKEND"] = "agg"                        # files need no display
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")      # seeds train side by side

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

import langevin
import maxent
import sac_numpy

BLUE, RED, GREEN, PURPLE = "#3B6FB6", "#D62728", "#2E7D32", "#7B1FA2"
DARK_BLUE, SKY, ORANGE, GREY, BLACK = "#00008B", "#9DC3E6", "#E69F00", "#777777", "#000000"
STYLE = {"font.size": 12, "axes.titlesize": 12, "figure.titlesize": 14, "legend.fontsize": 11,
         "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
         "lines.linewidth": 2.2, "axes.xmargin": 0, "savefig.dpi": 130,
         "figure.constrained_layout.use": True}


# --- Langevin dynamics, Boltzmann, Fokker–Planck --------------------------------------------------

CELLS = np.linspace(-2.6, 2.6, 209)                     # 208 cells, with a node in each
X = (CELLS[1:] + CELLS[:-1]) / 2
DX = X[1] - X[0]
V = langevin.double_well(X)
BINS = CELLS[::2]                                       # two cells to a bin


def histogram(x, weights=None):
    """Density of the particles x in each bin.  x (N,) -> (104,)."""
    return np.histogram(x, BINS, density=True, weights=weights)[0]


def binned(p):
    """The mean of a density in each bin.  p (208,) -> (104,)."""
    return p.reshape(-1, 2).mean(axis=1)


def distance(p, q):
    """Total variation between two densities on the bins: half the area between them."""
    return np.abs(p - q).sum() * (BINS[1] - BINS[0]) / 2


def ensemble_and_one_run(kT, rng):
    """Histograms (104,) of 20 000 particles that start evenly over both wells, and of one long run.

    The ensemble is shown at t = 5.  The run starts at 0.5, takes 50 000 steps and drops the first
    10 000.
    """
    well = {"grad_V": langevin.double_well_gradient, "kT": kT, "dt": 0.01, "rng": rng,
            "method": "leimkuhler_matthews"}
    ensemble = langevin.simulate(rng.uniform(-2, 2, 20_000), n_steps=500, **well)
    run = langevin.simulate(np.array([0.5]), n_steps=50_000, record_every=10, **well)
    return histogram(ensemble), histogram(run[1000:, 0])


def figure_langevin_dynamics_temperature_controls(options):
    """An ensemble that starts evenly matches Boltzmann; one run at T = 0.1 stays in its well.

    Up to T = 0.5, t = 5 is too short for the wells to mix: there the even start is what helps.
    """
    rng = np.random.default_rng(0)
    fig, axes = plt.subplots(2, 2, figsize=(8, 7))
    fig.suptitle("Particles that start evenly match Boltzmann; one cold particle is trapped",
                 fontsize=13)
    for ax, kT in zip(axes.flat, (0.1, 0.5, 1.0, 2.0)):
        boltzmann = langevin.boltzmann_density(V, DX, kT)
        ensemble, run = ensemble_and_one_run(kT, rng)
        away = [distance(p, binned(boltzmann)) for p in (ensemble, run)]

        top = max(run.max(), boltzmann.max())
        ax.stairs(ensemble, BINS, fill=True, color=BLUE, alpha=0.6, label="20 000, started evenly")
        ax.stairs(run, BINS, color=ORANGE, lw=2, label="one particle, 40 000 steps")
        ax.plot(X, boltzmann, color=RED, label="Boltzmann, Eq. 2")
        ax.plot(X, top * 0.4 * V, color=GREY, ls=":", label="potential V (scaled)")
        ax.set(title=f"T = {kT:g}   distance: many {away[0]:.2f}, one {away[1]:.2f}",
               xlim=(-2, 2), ylim=(0, 1.08 * top), xlabel="position x", ylabel="density")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def figure_fokker_planck(options):
    """The density of Eq. 3 and 20 000 particles that obey Eq. 1 relax together, while F falls.

    Double well, kT = 0.5, from a normal distribution at 1.  Euler–Maruyama with dt = 1/256.
    """
    kT, dt = 0.5, 1 / 256
    rng = np.random.default_rng(0)
    shown = [0, 1 / 16, 1 / 4, 1, 4, 16]
    p0 = np.exp(-((X - 1) ** 2) / (2 * 0.15**2))
    p0 = p0 / (p0.sum() * DX)
    densities = langevin.fokker_planck_evolve(p0, V, DX, kT, shown)
    x = rng.normal(1, 0.15, (1, 20_000))
    later = langevin.simulate(x[0], langevin.double_well_gradient, kT=kT, dt=dt, rng=rng,
                              n_steps=16 * 256, record_every=16)
    particles = np.concatenate((x, later))[[round(t * 16) for t in shown]]
    times = np.geomspace(1 / 64, 16, 31)
    falling = [langevin.free_energy(p, V, DX, kT)
               for p in langevin.fokker_planck_evolve(p0, V, DX, kT, times)]
    lowest = -kT * np.log(np.sum(np.exp(-V / kT)) * DX)

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4.5))
    fig.suptitle("Fokker–Planck (lines) and 20 000 particles (dots) relax together")
    middle = (BINS[1:] + BINS[:-1]) / 2
    colors = plt.cm.viridis_r(np.linspace(0.1, 1, len(shown)))
    for t, p, x, color in zip(shown, densities, particles, colors):
        left.plot(X, p, color=color, label=f"t = {t:g}")
        left.plot(middle, histogram(x), "o", color=color, ms=3)
        if t > 0:
            F = langevin.free_energy(histogram(x), binned(V), BINS[1] - BINS[0], kT)
            right.plot(t, F, "o", color=color, ms=9, clip_on=False)
    left.plot(X, langevin.boltzmann_density(V, DX, kT), color=RED, ls="--", lw=1.5,
              label="Boltzmann")
    left.set(title="density p(x, t), kT = 0.5", xlabel="position x", xlim=(-1.7, 1.7))
    left.legend()
    right.plot(times, falling, color=GREY, label="F of Eq. 3; dots: of the particles", zorder=0)
    right.axhline(lowest, color=RED, ls="--", lw=1.5, label="−kT log Z")
    right.set(title="free energy F: it never rises", xlabel="time t", xscale="log")
    right.legend()
    return fig


def relaxation_of_particles(kT, guess, rng):
    """Relaxation time of the mean of 10 000 particles between half a guess and a guess of it."""
    half = round(guess / 2 / 0.02)
    x = langevin.simulate(np.ones(10_000), langevin.double_well_gradient, kT=kT, dt=0.02, rng=rng,
                          n_steps=2 * half, record_every=half, method="leimkuhler_matthews")
    early, late = x.mean(axis=1)
    return 0.02 * half / np.log(early / late)


def figure_two_clocks(options):
    """Why a particle at T = 0.1 is trapped: it relaxes fast in a well, slowly between the wells.

    Cold, the slow time is ∝ exp(1/T).  Line: 1/(smallest rate above 0).  Dots: 10 000 particles.
    """
    rng = np.random.default_rng(0)
    inverse_T = np.linspace(0.5, 10, 39)
    exact = [1 / langevin.relaxation_rates(V, DX, 1 / b)[1] for b in inverse_T]
    kramers = [1 / (2 * langevin.kramers_rate(8, -4, 1, 1 / b)) for b in inverse_T]
    dots = (1, 2, 3, 4, 5)
    simulated = [relaxation_of_particles(1 / b, np.interp(b, inverse_T, exact), rng) for b in dots]

    fig, ax = plt.subplots(figsize=(8, 5))
    fig.suptitle("Two clocks: fast inside a well, slow between the wells")
    ax.axhspan(500, 5e4, color=ORANGE, alpha=0.2, lw=0)
    ax.text(0.7, 9000, "longer than 50 000 steps:\none run is trapped", color="#8A5A00")
    ax.plot(inverse_T, exact, color=RED)
    ax.text(5.6, 40, "between wells, from Eq. 3", color=RED, rotation=28)
    ax.plot(inverse_T, kramers, color=BLACK, ls=":", lw=1.8)
    ax.text(6.2, 11, "dotted: Kramers, ∝ exp(1/T)", color=BLACK)
    ax.plot(dots, simulated, "o", color=BLUE, ms=9)
    ax.text(1.1, 0.5, "10 000 particles", color=BLUE)
    ax.axhline(1 / 8, color=GREEN)
    ax.text(6.2, 0.16, "inside a well: 1/V'' = 1/8", color=GREEN)
    temperatures = (2, 1, 0.5, 0.25, 0.15, 0.1)
    ax.set(yscale="log", xlim=(0.3, 10.2), ylim=(0.05, 5e4), ylabel="relaxation time",
           xlabel="temperature T (the axis is linear in 1/T)",
           xticks=[1 / T for T in temperatures], xticklabels=[f"{T:g}" for T in temperatures])
    return fig


# --- Maximum caliber ------------------------------------------------------------------------------

def three_calibers(alpha):
    """P(risky) and the believed P(win | risky) under three readings of Eq. 8.  -> (3, 2).

    Safe pays 1; risky pays 4 with chance 0.1.  Rows: all paths alike; paths as likely as they are;
    causal, where only actions are chosen and the chances stay as they are.
    """
    returns = np.array([1.0, 4.0, 0.0])                 # safe; risky and won; risky and lost
    rows = []
    for measure in (1.0, [1.0, 0.1, 0.9]):
        _, win, lose = maxent.boltzmann_policy(returns, alpha, measure)     # Eq. 8 with λ = 1/α
        rows.append((win + lose, win / (win + lose)))
    world = maxent.MDP(reward=[[1, 0.1 * 4]], successor=[[0, 0]])           # r = E[payment]
    Q = maxent.soft_backup(world, np.zeros(1))[0]
    rows.append((maxent.boltzmann_policy(Q, alpha)[1], 0.1))
    return np.array(rows)


def games_that_paid(alpha, p_risky, p_win, rng, n=40_000):
    """P(risky) and P(win | risky) among random games, each kept with a chance exp((R − 4)/α)."""
    risky = rng.random(n) < p_risky
    win = risky & (rng.random(n) < p_win)
    R = np.where(win, 4, np.where(risky, 0, 1))
    kept = rng.random(n) < np.exp((R - 4) / alpha)
    return risky[kept].mean(), win[kept].sum() / risky[kept].sum()


def figure_three_calibers(options):
    """In a world of chance, "maximise the entropy over paths" can be read in three ways.

    Two of them believe that wanting to win helps to win.  Only the causal one, which is the soft
    Bellman equation, keeps the true chance.  Dots: 40 000 random games, each kept with a chance
    exp((R − 4)/α).
    """
    rng = np.random.default_rng(0)
    alphas = np.geomspace(0.3, 100, 120)
    few = np.array([1, 2, 5, 20, 80])
    values = np.array([three_calibers(alpha) for alpha in alphas])          # (120, 3, 2)
    chances = ((2 / 3, 1 / 2), (1 / 2, 0.1))            # P(risky), P(win) of all paths alike; true
    games = np.array([[games_that_paid(alpha, *chance, rng) for alpha in few]
                      for chance in chances])           # (2, 5, 2)

    fig, axes = plt.subplot_mosaic([["tree", "tree"], ["risky", "win"]], figsize=(8, 6.5),
                                   height_ratios=(1, 2))
    fig.suptitle("Does the agent think it can influence luck?")
    draw_tree(axes["tree"])
    looks = ((ORANGE, "--", "all paths alike"), (PURPLE, "-.", "weighted by true odds"),
             (BLUE, "-", "causal: soft Bellman, SAC"))
    for k, (name, title) in enumerate((("risky", "P(risky)"), ("win", "believed P(win | risky)"))):
        ax = axes[name]
        for row, (color, style, label) in enumerate(looks):
            ax.plot(alphas, values[:, row, k], color=color, ls=style, label=label)
            if row < 2:
                ax.plot(few, games[row, :, k], "o", color=color, ms=7)
        ax.set(title=title, xlabel="temperature α", xscale="log", ylim=(0, 1.04))
    axes["win"].axhline(0.1, color=BLACK, ls=":", lw=1.5)
    axes["win"].text(0.35, 0.02, "true chance 0.1", va="bottom")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=10)
    return fig


def draw_tree(ax):
    """The game: safe pays 1; risky pays 4 with chance 0.1."""
    ax.axis("off")
    ax.set(xlim=(0, 10), ylim=(0, 4))
    for (x0, y0), (x1, y1), label in (((2, 2), (4.5, 3.2), "safe"), ((2, 2), (4.5, 0.8), "risky"),
                                      ((4.5, 0.8), (7, 1.6), "0.1"), ((4.5, 0.8), (7, 0), "0.9")):
        ax.plot((x0, x1), (y0, y1), color=BLACK, lw=1.5)
        ax.text((x0 + x1) / 2, (y0 + y1) / 2, label, ha="center",
                bbox={"color": "white", "pad": 1}, va="center")
    for x, y, text in ((1.9, 2, "start"), (4.7, 3.2, "pays 1"), (7.2, 1.6, "pays 4"),
                       (7.2, 0, "pays 0")):
        ax.text(x, y, text, va="center", ha="right" if text == "start" else "left")


def caliber_is_control(n=20_000, dt=0.005, seed=0):
    """Langevin paths in the double well that start at −1 and are to end on the right, in two ways.

    R = 1.5 (1 + tanh 2x) at the end, T = 3, kT = 0.4, α = 1.  Free paths get weights ∝ e^{R/α}:
    Eq. 8, relative to Eq. 1.  Pushed paths feel the force u = 2(kT/α) ∂V_soft/∂x, with the soft
    value V_soft(x, t) = α log ψ, ψ = E[e^{R/α} | x_t = x]: Eq. 16 over all futures.

    -> free, pushed (n_steps, n); weights (n,); values (n,) = R − α ∫u²/4kT dt, where the integral
    is, in the mean, the divergence KL(pushed ‖ free); psi (n_steps + 1, 208); target (2, 208), the
    exact density ∝ p ψ half way and at the end.
    """
    kT, alpha, T = 0.4, 1.0, 3.0
    n_steps = round(T / dt)
    rng = np.random.default_rng(seed)

    def R(x):
        return 1.5 * (1 + np.tanh(2 * x))

    G = langevin.fokker_planck_generator(V, DX, kT)
    one = np.eye(len(X))
    h = dt / 64
    back = np.linalg.solve(one - G.T * h / 2, one + G.T * h / 2)
    back = np.linalg.matrix_power(back, 64)             # e^{Gᵀ dt}, from a time to the one before
    psi = [np.exp(R(X) / alpha)]
    for _ in range(n_steps):
        psi.append(back @ psi[-1])
    psi.reverse()                                       # psi[k] belongs to the time k dt

    start = np.full(n, -1.0)
    free = langevin.simulate(start, langevin.double_well_gradient, kT=kT, dt=dt, rng=rng,
                             n_steps=n_steps, record_every=1)
    weights = np.exp(R(free[-1]) / alpha)

    x = start
    pushed = []
    divergence = np.zeros(n)
    for k in range(n_steps):
        force = 2 * kT / alpha * np.gradient(alpha * np.log(psi[k]), DX)    # u on the grid
        u = np.interp(x, X, force)
        divergence += u**2 / (4 * kT) * dt
        x = langevin.langevin_step(x, lambda x: langevin.double_well_gradient(x) - u, kT, dt, 1.0,
                                   rng.standard_normal(n))
        pushed.append(x)

    peak = np.maximum(0, 1 - np.abs(X + 1) / DX) / DX   # the density at the start, of area 1
    p = langevin.fokker_planck_evolve(peak, V, DX, kT, (T / 2, T))
    target = p * (psi[n_steps // 2], psi[-1])
    return SimpleNamespace(free=free, weights=weights / weights.sum(), pushed=np.array(pushed),
                           values=R(x) - alpha * divergence, psi=np.array(psi),
                           target=target / (target.sum(axis=1, keepdims=True) * DX))


def figure_caliber_is_control(options):
    """The other half of three_calibers: here the noise is the action, and caliber is right.

    To draw free Langevin paths by e^{R/α}, Eq. 8, is to push them with the slope of the soft value,
    and that is optimal control if a push u costs αu²/4kT per time (Kappen 2005; Todorov 2009).
    Red: the density of the free paths times ψ = e^{V_soft/α}, from Eq. 3.
    """
    run = caliber_is_control()
    n_steps, n = run.free.shape
    effective = 1 / np.sum(run.weights**2)              # paths that still count
    drawn = np.random.default_rng(1).choice(n, 15, p=run.weights)
    t = np.linspace(3 / n_steps, 3, n_steps)

    fig, axes = plt.subplots(2, 2, figsize=(8.5, 7.5))
    fig.suptitle("Maximum caliber turns Langevin dynamics into optimal control\n"
                 "(reward R: for ending on the right)")
    top = ((run.free[:, drawn], ORANGE, "caliber: free paths (grey), drawn ∝ exp(R/α)"),
           (run.pushed[:, :15], BLUE, "control: paths pushed by the soft value"))
    for ax, (paths, color, title) in zip(axes[0], top):
        ax.plot(t, run.free[:, :40], color=GREY, lw=0.4, alpha=0.5)
        ax.plot(t, paths, color=color, lw=0.8)
        ax.set(xlabel="time", ylabel="position x", ylim=(-1.8, 1.8))
        ax.set_title(title, fontsize=11)
    bottom = ((n_steps // 2 - 1, "half way"), (n_steps - 1, "at the end"))
    for ax, (k, title), target in zip(axes[1], bottom, run.target):
        ax.stairs(histogram(run.free[k]), BINS, color=GREY, label="free")
        ax.stairs(histogram(run.pushed[k]), BINS, fill=True, color=BLUE, alpha=0.6, label="pushed")
        ax.stairs(histogram(run.free[k], run.weights), BINS, color=ORANGE, lw=1.5,
                  label=f"free, weighted by exp(R/α) (effective number: {effective:.0f})")
        ax.plot(X, target, color=RED, label="exact: p ψ")
        ax.set(title=title, xlabel="position x", ylabel="density", xlim=(-1.9, 1.9))
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


# --- Boltzmann policy and soft Bellman equation ---------------------------------------------------

def figure_Boltzmann_Policy(options):
    """From the best action alone (α → 0) to all actions alike (α → ∞): the entropy only grows.

    Last panel: the entropy as a sum (line) and as the slope dV/dα (dots), in physics −dF/dT.
    """
    Q = np.array([1.0, 3.0, 2.0, 0.5, 2.5])
    alphas = np.geomspace(0.05, 50, 201)
    pi_all = np.array([maxent.boltzmann_policy(Q, alpha) for alpha in alphas])
    V_all = np.array([maxent.soft_value(Q, alpha) for alpha in alphas])
    slope = np.gradient(V_all, alphas)

    fig, axes = plt.subplots(2, 3, figsize=(9, 7))
    fig.suptitle("Boltzmann policy π ∝ exp(Q/α): temperature spreads the choice")
    for ax, alpha in zip(axes.flat, (0.1, 0.5, 1, 2, 5)):
        pi = maxent.boltzmann_policy(Q, alpha)
        bars = ax.bar(range(5), pi, color=[RED if q == Q.max() else BLUE for q in Q])
        ax.bar_label(bars, fmt="%.2f", fontsize=10)
        ax.set(title=f"α = {alpha:g},  H = {maxent.entropy(pi):.2f}", ylim=(0, 1.1),
               xticks=range(5), xticklabels=[f"{q:g}" for q in Q], xlabel="Q(a)", ylabel="π(a)")
    last = axes[1, 2]
    last.plot(alphas, maxent.entropy(pi_all), color=GREEN)
    last.plot(alphas[5::14], slope[5::14], "o", color=GREEN, ms=5)
    last.axhline(np.log(5), color=GREEN, ls=":", lw=1)
    last.set(title="entropy, mean Q", xlabel="temperature α", xscale="log", ylim=(0, 1.75))
    last.set_ylabel("H; dots dV/dα (nats)", color=GREEN)
    right = last.twinx()
    right.plot(alphas, pi_all @ Q, color=ORANGE, ls="--")
    right.set_ylabel("E[Q]", color="#9A6A00")
    right.spines["right"].set_visible(True)
    return fig


CLIFF = np.array([list("........"),
                  list("........"),
                  list("........"),
                  list("S######G")])
STEPS = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])    # up, down, left, right: (row, column)


def cliff_walk(gamma=0.95):
    """A grid world with a short way along a cliff and long safe ones.  -> MDP, falls (S, 4).

    A step costs 1, one into the cliff (#) another 50.  The walk ends there or at the goal (G): it
    stays, at no cost.  The measure ¼ counts entropy from that of the uniform policy, so that
    staying earns none.
    """
    place = np.argwhere(CLIFF != "")                                        # (S, 2)
    after = np.clip(place[:, None] + STEPS, 0, np.array(CLIFF.shape) - 1)   # (S, 4, 2)
    over = np.isin(CLIFF, ("#", "G")).ravel()
    successor = np.where(over[:, None], np.arange(CLIFF.size)[:, None],
                         after[..., 0] * CLIFF.shape[1] + after[..., 1])
    falls = (CLIFF.ravel()[successor] == "#") & ~over[:, None]
    reward = np.where(over[:, None], 0, -1 - 50 * falls)
    return maxent.MDP(reward, successor, gamma=gamma, measure=1 / 4), falls


def figure_soft_gridworld(options):
    """Eq. 14–17 at a glance: colour is the soft value, an arrow the mean step of the policy.

    Cold, the agent walks along the cliff.  Warm, it knows that its next steps will be random too,
    and keeps away.  Hot, it wanders and mostly falls.  V counts entropy from the uniform policy.
    """
    world, falls = cliff_walk()
    counted = replace(world, reward=falls, gamma=1 - 1e-9)      # its return is the chance to fall
    start = np.flatnonzero(CLIFF == "S")[0]
    walk = np.isin(CLIFF, (".", "S"))

    fig, axes = plt.subplots(3, 1, figsize=(6.5, 9))
    fig.suptitle("Cold: along the edge. Warm: a wider way. Hot: it falls")
    for ax, alpha in zip(axes, (0.1, 2, 20)):
        _, value, pi = maxent.soft_value_iteration(world, alpha)
        fall, _ = maxent.return_and_entropy(counted, pi)
        step = (pi @ STEPS).reshape(*CLIFF.shape, 2)

        image = ax.imshow(np.where(CLIFF == "#", np.nan, value.reshape(CLIFF.shape)))
        fig.colorbar(image, ax=ax, label="soft value V")
        row, column = np.nonzero(walk)
        ax.quiver(column, row, step[walk, 1], step[walk, 0], angles="xy", scale_units="xy",
                  scale=1.4, pivot="middle", color="white", width=0.008)
        ax.set(title=f"α = {alpha:g}: falls in {fall[start]:.0%} of its walks", facecolor="black",
               xticks=(), yticks=(3,), yticklabels=("start",))
        ax.text(3.5, 3, "c l i f f", color="white", ha="center", va="center")
        ax.text(7, 3, "goal", ha="center", va="center")
    return fig


# --- Soft Actor-Critic on Pendulum-v1 -------------------------------------------------------------

EVALUATE_EVERY = 500
STARTS = range(10_000, 10_100)                          # of every evaluation: set apart


@functools.cache
def held_out_starts():
    """Angle and angular velocity after env.reset(seed=10000 … 10099).  -> (100,), (100,)."""
    env = gym.make("Pendulum-v1")
    observations = np.array([env.reset(seed=seed)[0] for seed in STARTS], dtype=float)
    cos, sin, theta_dot = observations.T
    return np.arctan2(sin, cos), theta_dot


@functools.cache
def best_returns():
    """The best return found from each of these starts.  -> (100,)."""
    return maxent.pendulum_optimal_return(*held_out_starts())


def observe(theta, theta_dot):
    """What Pendulum-v1 shows of its state: cos θ, sin θ, angular velocity (..., 3)."""
    return np.stack((np.cos(theta), np.sin(theta), theta_dot), axis=-1)


def roll_out(agent, theta, theta_dot, n_steps=200):
    """Angle, velocity, torque, reward of the deterministic policy, from N starts at once.

    -> (n_steps, 4, N).  The sum of the rewards is what sac_numpy.evaluate gives one by one.
    """
    steps = []
    for _ in range(n_steps):
        torque = agent.act(observe(theta, theta_dot), deterministic=True)[:, 0]
        next_theta, next_theta_dot, reward = maxent.pendulum_step(theta, theta_dot, torque)
        steps.append((theta, theta_dot, torque, reward))
        theta, theta_dot = next_theta, next_theta_dot
    return np.array(steps)


def train_seed(seed, n_steps):
    """Train one seed.  -> agent, log with "evaluations" (n, 100): every 500 steps, at the end."""
    evaluations = []

    def progress(step, agent, log):
        if step % EVALUATE_EVERY == 0 or step == n_steps:
            evaluations.append(roll_out(agent, *held_out_starts())[:, 3].sum(axis=0))

    agent, log = sac_numpy.train("Pendulum-v1", seed=seed, n_steps=n_steps, progress=progress)
    log["evaluations"] = np.array(evaluations)
    return agent, log


@functools.cache
def trained(n_seeds, n_steps):
    """Agents and logs of the seeds 0 … n_seeds − 1, trained side by side.  -> list of pairs."""
    results = []
    with ProcessPoolExecutor(min(n_seeds, os.cpu_count())) as pool:
        for result in pool.map(train_seed, range(n_seeds), itertools.repeat(n_steps)):
            results.append(result)
            sys.stderr.write(f"\rtrained {len(results)} of {n_seeds} seeds")
            sys.stderr.flush()
    sys.stderr.write("\n")
    return results


def figure_RL_training_log(options):
    """Soft Actor-Critic comes within a few units of the best returns found, in every seed.

    The deterministic policy from 100 fixed starts.  Thin: each seed; thick: their median.  Regret
    shows how well it has learned; the losses do not.
    """
    agents, logs = zip(*trained(options.seeds, options.steps))
    returns = np.array([log["evaluations"].mean(axis=1) for log in logs])   # (seeds, evaluations)
    best = best_returns().mean()
    regret = best - returns
    print("regret of each seed:", *regret[:, -1].round(1), f"  mean {regret[:, -1].mean():.1f}")

    n = returns.shape[1]
    steps = np.minimum(EVALUATE_EVERY * np.arange(1, n + 1), options.steps)
    fig, ((curve, gap), (entropy, loss)) = plt.subplots(2, 2, figsize=(9, 7), sharex=True)
    fig.suptitle(f"Soft Actor-Critic on Pendulum-v1, {options.seeds} seeds")
    for ax, values in ((curve, returns), (gap, regret)):
        ax.plot(steps, values.T, color=SKY, lw=1)
        ax.plot(steps, np.median(values, axis=0), color=DARK_BLUE, lw=3)
    curve.axhline(best, color=BLACK, ls="--", lw=1.5, label=f"best found, {best:.0f}")
    curve.axhspan(-300, -150, color=ORANGE, alpha=0.25, lw=0, label="chapter: “well-trained”")
    curve.set(title="mean return", ylim=(-1550, 0))
    curve.legend(loc="lower right")
    gap.set(title=f"regret: best found − return (end: {regret[:, -1].mean():.1f})", yscale="log")
    for log in logs:
        entropy.plot(*blocks(log, "entropy"), color=ORANGE, lw=1)
        loss.plot(*blocks(log, "critic_loss"), color=GREEN, lw=0.8)
    entropy.axhline(agents[0].target_entropy, color=BLACK, ls="--", lw=1.5, label="target H̄")
    entropy.set(title="entropy of the policy (nats)", xlabel="environment steps")
    entropy.legend()
    loss.set(title="losses", xlabel="environment steps", yscale="log", ylim=(1, 100))
    loss.set_ylabel("Q-loss (reward²)", color=GREEN)
    right = loss.twinx()
    for log in logs:
        right.plot(*blocks(log, "actor_loss"), color=PURPLE, lw=0.8)
    right.set_ylabel("policy loss ≈ −V (reward)", color=PURPLE)
    right.spines["right"].set_visible(True)
    return fig


def blocks(log, name, size=100):
    """Steps and means of a log's numbers over blocks of updates."""
    n = len(log[name]) // size
    return [log[key][:n * size].reshape(n, size).mean(axis=1) for key in ("step", name)]


def mean_torque_and_value(agent, obs):
    """Of the learned policy at obs (N, 3): its mean torque in N m and E_π[min Q].  -> (2, N)."""
    noise, weight = np.polynomial.hermite_e.hermegauss(9)       # Gauss–Hermite quadrature
    obs = obs.astype(agent.dtype)
    mu, log_std, _ = agent.policy(obs)                          # (N, 1)
    result = np.zeros((2, len(obs)))
    for z, w in zip(noise, weight / weight.sum()):
        a = np.tanh(mu + np.exp(log_std) * agent.dtype.type(z))
        Q, _ = agent.q_values(agent.critic, obs, a)
        result += w * np.stack((2 * a[:, 0], Q.min(axis=0)))
    return result


def learned_and_exact(agent, visited):
    """Mean torque and E_π[Q], learned and exact, on the grid of pendulum_mdp.

    visited (n, 3): observations.  -> MDP, learned (2, S), exact (2, S), their correlations r (2,)
    over the visited states.
    """
    mdp = maxent.pendulum_mdp(gamma=agent.settings.gamma)
    Q, _, pi = maxent.soft_value_iteration(mdp, agent.alpha, tol=1e-4)
    exact = np.stack((2 * (pi @ mdp.a), np.sum(pi * Q, axis=1)))
    theta, theta_dot = np.meshgrid(mdp.theta, mdp.theta_dot, indexing="ij")
    learned = mean_torque_and_value(agent, observe(theta, theta_dot).reshape(-1, 3))
    angle = np.arctan2(visited[:, 1], visited[:, 0])
    index, weight = maxent.bilinear(angle, visited[:, 2], len(mdp.theta), len(mdp.theta_dot))
    exact_there = np.sum(weight * exact[:, index], axis=-1)     # (2, n)
    learned_there = mean_torque_and_value(agent, visited)
    r = [np.corrcoef(x, y)[0, 1] for x, y in zip(learned_there, exact_there)]
    return mdp, learned, exact, r


def figure_policy_and_Q(options):
    """What seed 0 has learned, beside the exact soft-optimal solution at its temperature.

    Dots: states met in training.  Dashed: states with the energy of standing upright.  The stripes
    are real: the cost has a kink at θ = ±π, which is passed in steps of 0.05 s.
    """
    agent, log = trained(options.seeds, options.steps)[0]
    visited = log["observations"]
    mdp, learned, exact, r = learned_and_exact(agent, visited)
    shape = (len(mdp.theta), len(mdp.theta_dot))
    angle = np.arctan2(visited[:, 1], visited[:, 0])
    energy_line = np.sqrt(30 * (1 - np.cos(mdp.theta)))         # ω²/6 = 5 (1 − cos θ)

    fig, axes = plt.subplots(2, 3, figsize=(10, 7), sharex=True, sharey=True)
    fig.suptitle(f"What SAC has learned in {options.steps} steps, beside the exact solution")
    names = (("torque (N m)", "RdBu"), ("value E[Q]", "viridis"))
    for row, (name, colors), y, z, r_row in zip(axes, names, learned, exact, r):
        span = np.quantile(np.abs(y - z), 0.95)
        panels = ((y, f"learned {name}", colors, z.min(), z.max()),
                  (z, f"exact {name}", colors, z.min(), z.max()),
                  (y - z, f"white = correct (r = {r_row:.2f})", "PuOr", -span, span))
        for ax, (values, title, cmap, low, high) in zip(row, panels):
            image = ax.pcolormesh(mdp.theta, mdp.theta_dot, values.reshape(shape).T, cmap=cmap,
                                  vmin=low, vmax=high)
            ax.plot(mdp.theta, energy_line, color=BLACK, ls="--", lw=1)
            ax.plot(mdp.theta, -energy_line, color=BLACK, ls="--", lw=1)
            ax.set(title=title, ylim=(-8, 8), xticks=(-3, 0, 3))
            fig.colorbar(image, ax=ax)
        row[0].scatter(angle[::8], visited[::8, 2], s=9, color=BLACK, edgecolors="white", lw=0.4)
        for x, place in ((0, "upright"), (2.9, "hanging")):
            row[1].text(x, 0, place, ha="center", va="center", rotation=90, fontsize=10,
                        bbox={"color": "white", "alpha": 0.8, "pad": 1})
    fig.supxlabel("angle θ (rad)")
    fig.supylabel("angular velocity (rad/s)")
    return fig


# --- Langevin dynamics of an action ---------------------------------------------------------------

A_NODES = np.linspace(-0.9999, 0.9999, 401)


def two_hills(a):
    """A soft action value with two equally good actions, ±0.6."""
    return -(((a / 0.6) ** 2 - 1) ** 2)


def sample_actions(Q, alpha, n=3000, seed=0):
    """Langevin dynamics of n actions in [−1, 1]: Eq. 1 with V = −Q and kT = α.  -> (n,).

    Q (401,) on A_NODES.  At the bounds the actions are reflected.  The time 20/α is enough where no
    valley is deeper than about 4 α.
    """
    slope = np.gradient(Q, A_NODES)
    there_and_back = np.append(slope, -slope[-2:0:-1])          # beyond a bound: the mirror image

    def grad_V(a):
        nearest = np.rint((a + 1) * 200).astype(int) % 800
        return -there_and_back[nearest]

    rng = np.random.default_rng(seed)
    dt = 0.05 * alpha / (maxent.boltzmann_policy(Q, alpha) @ slope**2)
    a = langevin.simulate(rng.uniform(-1, 1, n), grad_V, kT=alpha, dt=dt, rng=rng,
                          n_steps=int(20 / alpha / dt), method="leimkuhler_matthews")
    return 1 - np.abs((a + 1) % 4 - 2)                          # folded back onto [−1, 1]


def best_squashed_gaussian(Q, alpha):
    """The tanh-Gaussian that minimises Eq. 20, α E[log π] − E[Q], by search.  -> μ, log σ, loss.

    Q is a function on [−1, 1].  The loss can have several minima, of which gradients find one.  So
    a grid of 49 × 49 is searched, then refined around the best point five times.
    """
    noise = np.linspace(-4, 4, 81)[:, None]
    weight = np.exp(-noise[:, 0] ** 2 / 2)
    weight = weight / weight.sum()
    unit = np.linspace(-1, 1, 49)
    mu, log_std = 0.0, -1.5
    for width in (1, 1 / 5, 1 / 25, 1 / 125, 1 / 625, 1 / 3125):
        mus, log_stds = np.meshgrid(mu + 3 * width * unit, log_std + 2.5 * width * unit)
        a, log_prob = sac_numpy.squashed_gaussian(mus[..., None, None], log_stds[..., None, None],
                                                  noise)        # (49, 49, 81, 1)
        loss = (alpha * log_prob - Q(a[..., 0])) @ weight       # (49, 49)
        best = np.unravel_index(loss.argmin(), loss.shape)
        mu, log_std = mus[best], log_stds[best]
    return mu, log_std, loss[best]


def gaussian_density(mu, log_std):
    """π(a) of a squashed Gaussian on A_NODES.  -> (401,)."""
    noise = (np.arctanh(A_NODES[:, None]) - mu) / np.exp(log_std)
    _, log_prob = sac_numpy.squashed_gaussian(mu, log_std, noise)
    return np.exp(log_prob)


def figure_action_langevin(options):
    """The bridge of the chapter: an action that follows Langevin dynamics samples the policy.

    V = −Q and kT = α.  Where Q has two hills, so has the Boltzmann policy; a squashed Gaussian,
    which is all that SAC's actor can be, must choose one when cold.  Right: the trained critic
    where the pendulum hangs at rest, with a quarter of the range of Q as α, not the trained α.
    """
    agent, _ = trained(options.seeds, options.steps)[0]
    hanging = np.tile(observe(np.pi, 0.0), (len(A_NODES), 1)).astype(agent.dtype)
    Q, _ = agent.q_values(agent.critic, hanging, A_NODES[:, None].astype(agent.dtype))
    Q = Q.min(axis=0).astype(float)
    cases = (("a Q with two equal hills", two_hills(A_NODES), 0.25),
             ("the trained critic, hanging at rest", Q, np.ptp(Q) / 4))

    fig, axes = plt.subplots(1, 2, figsize=(9, 5.2))
    fig.suptitle("Langevin dynamics of the action samples the Boltzmann policy")
    for ax, (title, Q, alpha) in zip(axes, cases):
        boltzmann = maxent.boltzmann_policy(Q, alpha) / (A_NODES[1] - A_NODES[0])
        mu, log_std, _ = best_squashed_gaussian(functools.partial(np.interp, xp=A_NODES, fp=Q),
                                                alpha)
        gaussian = gaussian_density(mu, log_std)

        ax.hist(sample_actions(Q, alpha), 40, range=(-1, 1), density=True, color=BLUE, alpha=0.6,
                label="3000 actions: Eq. 1 with V = −Q, kT = α")
        ax.plot(A_NODES, boltzmann, color=RED, label="Boltzmann policy, Eq. 17")
        ax.plot(A_NODES, gaussian, color=BLACK, ls="--", label="best squashed Gaussian, Eq. 20")
        ax.set(title=f"{title}\nα = {alpha:.2g}", xlabel="action a", ylabel="density",
               ylim=(0, 1.1 * max(boltzmann.max(), gaussian.max())))
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


# --- The swing-up ---------------------------------------------------------------------------------

def figure_pendulum_swingup(options):
    """The trained agent swings up from hanging at rest; beside it, its path over the value.

    The limit of 2 N m is too little to lift the rod at once (gravity at the horizontal: 5 N m).  It
    pumps energy first.
    """
    agent, _ = trained(options.seeds, options.steps)[0]
    steps = roll_out(agent, np.array([np.pi]), np.zeros(1), 120)[::2, :, 0]
    theta, theta_dot, torque, _ = steps.T
    wrapped = (theta + np.pi) % (2 * np.pi) - np.pi
    grid = np.meshgrid(np.linspace(-np.pi, np.pi, 121), np.linspace(-8, 8, 121))
    _, value = mean_torque_and_value(agent, observe(*grid).reshape(-1, 3))

    fig = plt.figure(figsize=(8, 3.8))
    fig.set_layout_engine("none")                       # fixed places: no layout for every frame
    left = fig.add_axes((0.0, 0.0, 0.44, 0.9), aspect="equal", frame_on=False)
    left.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), xticks=(), yticks=())
    right = fig.add_axes((0.53, 0.16, 0.45, 0.74))
    right.contourf(*grid, value.reshape(121, 121), levels=12, cmap="viridis")
    right.set(title="its path over the learned value", xlabel="angle (rad), 0 = upright",
              ylabel="velocity (rad/s)", xlim=(-np.pi, np.pi), ylim=(-8, 8))
    rod, = left.plot([], [], color=BLUE, lw=16, solid_capstyle="round")
    left.plot(0, 0, "o", color=BLACK, ms=9, zorder=3)
    arrow, = left.plot([], [], color=RED, lw=4, ms=15, markevery=[-1])
    trail, = right.plot([], [], "o", color="white", ms=5, mec=BLACK, mew=0.7)
    here, = right.plot([], [], "o", color=RED, ms=10, mec="white", clip_on=False)

    def draw(k):
        """Frame k, at 0.1 k seconds."""
        bend = np.pi / 2 + np.linspace(0, torque[k], 20)        # anticlockwise, like θ
        rod.set_data([0, -np.sin(theta[k])], [0, np.cos(theta[k])])
        arrow.set_data(0.5 * np.cos(bend), 0.5 * np.sin(bend))
        arrow.set_marker((3, 0, np.degrees(bend[-1]) + 180 * (torque[k] < 0)))
        trail.set_data(wrapped[:k + 1], theta_dot[:k + 1])
        here.set_data(wrapped[k:k + 1], theta_dot[k:k + 1])
        left.set_title(f"t = {0.1 * k:.1f} s, torque {torque[k]:+.1f} N m")

    return FuncAnimation(fig, draw, frames=len(theta))


# --- Command line ---------------------------------------------------------------------------------

FIGURES = {function.__name__.removeprefix("figure_"): function for function in (
    figure_langevin_dynamics_temperature_controls, figure_fokker_planck, figure_two_clocks,
    figure_three_calibers, figure_caliber_is_control, figure_Boltzmann_Policy,
    figure_soft_gridworld, figure_RL_training_log, figure_policy_and_Q, figure_action_langevin,
    figure_pendulum_swingup)}


def make(name, options):
    """Compute, draw and write one figure.  -> its path."""
    with plt.style.context(["default", STYLE]):         # whatever the reader's matplotlibrc says
        figure = FIGURES[name](options)
        if isinstance(figure, FuncAnimation):
            path = options.out / f"{name}.gif"
            figure.save(path, writer=PillowWriter(fps=20), dpi=80)
        else:
            path = options.out / f"{name}.png"
            figure.savefig(path)
        plt.close("all")
    return path


def main():
    """Make all figures, or those named."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--seeds", type=int, default=5, help="how many agents to train")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of each agent")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "plots")
    options = parser.parse_args()
    for name in options.names:
        if name not in FIGURES:
            parser.error(f"unknown figure {name!r}; accepted: {', '.join(FIGURES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or FIGURES:
        print(make(name, options), flush=True)


if __name__ == "__main__":
    main()
