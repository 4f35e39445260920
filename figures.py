"""The figures, in the chapter's order: `python figures.py` makes all of them under plots/, `python figures.py NAME …` some.

Each figure_… function asks the modules for numbers, then draws; its docstring is the caption and states the claim.
Theory is drawn against simulation. Colours are those of Okabe and Ito, which colour-blind readers can tell apart.
"""
import argparse
import functools
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import sac_numpy                                  # first: it sets the number of BLAS threads before numpy is imported
import gymnasium as gym
import numpy as np
from matplotlib import rc_context
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure

import langevin
import maxent

BLUE, ORANGE, GREEN, RED, GREY, SKY, PINK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777", "#56B4E9", "#CC79A7"
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
         "legend.frameon": False, "axes.titlesize": 11, "figure.constrained_layout.use": True, "savefig.dpi": 130}


# --- Physics ----------------------------------------------------------------------------------------------------------

def histogram(x, edges):
    """Density of the samples on the bins."""
    return np.histogram(x, edges)[0] / (len(x) * np.diff(edges))


def total_variation(p, q, edges):
    """Half the L1 distance of two densities on the same bins: 0 for equal, 1 for disjoint."""
    return 0.5 * np.sum(np.abs(p - q) * np.diff(edges))


def figure_langevin(options):
    """Temperature spreads an ensemble over both wells as Boltzmann says; one long trajectory at T = 0.1 never leaves its well.

    Ensemble: 20 000 particles from even starts, t = 5. Trajectory: 50 000 steps of 0.01 from x = 0.5, the first 10 000 left out.
    """
    rng = np.random.default_rng(0)
    edges = np.linspace(-2.2, 2.2, 67)
    middle, dx = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    panels = []
    for kT in (0.1, 0.5, 1.0, 2.0):
        many = langevin.simulate(rng.uniform(-2, 2, 20_000), langevin.double_well_gradient, kT=kT, dt=0.01, n_steps=500, rng=rng)
        one = langevin.simulate([0.5], langevin.double_well_gradient, kT=kT, dt=0.01, n_steps=50_000, rng=rng, record_every=10)[1000:, 0]
        panels.append((kT, langevin.boltzmann_density(langevin.double_well(middle), dx, kT), histogram(many, edges), histogram(one, edges)))

    fig = Figure(figsize=(11, 7))
    for ax, (kT, exact, many, one) in zip(fig.subplots(2, 2).flat, panels):
        ax.stairs(many, edges, fill=True, color=SKY, alpha=0.6, label=f"ensemble (distance {total_variation(many, exact, edges):.2f})")
        ax.stairs(one, edges, color=RED, lw=1.4, label=f"one trajectory (distance {total_variation(one, exact, edges):.2f})")
        ax.plot(middle, exact, color="black", lw=2, label="Boltzmann, Eq. 2")
        ax.set(title=f"temperature T = {kT:g}", xlabel="position x", ylabel="probability density", ylim=(0, 1.45 * max(exact.max(), one.max())), xlim=(-2.2, 2.2))
        well = ax.twinx()
        low = langevin.double_well(middle) < 2.4
        well.plot(middle[low], langevin.double_well(middle)[low], color=GREY, ls=":", lw=1.5, label="potential V(x)")
        well.set(ylim=(0, 4), ylabel="potential V", yticks=(0, 1, 2))
        well.grid(False)
        well.spines["right"].set_visible(True)
        handles = [h for a in (ax, well) for h in a.get_legend_handles_labels()[0]]
        ax.legend(handles, [h.get_label() for h in handles], loc="upper center", ncols=2, fontsize=9)
    fig.suptitle("The ensemble matches Boltzmann at every T; one trajectory at T = 0.1 stays in its well   (distance: total variation)")
    return fig


def figure_fokker_planck(options):
    """The density of Eq. 3 and an ensemble that obeys Eq. 1 stay together, while the free energy falls to −kT log Z.

    Double well, kT = 0.5, from N(1, 0.15²); 20 000 particles, Euler–Maruyama, dt = 0.002.
    """
    kT, dt, times = 0.5, 0.002, np.array([0.05, 0.3, 1.0, 4.0, 16.0])
    grid = np.linspace(-2.2, 2.2, 265)
    dx, V = grid[1] - grid[0], langevin.double_well(grid)
    p0 = np.exp(-((grid - 1) ** 2) / (2 * 0.15**2))
    p0 /= p0.sum() * dx
    fine = np.concatenate(([0.0], np.logspace(-2, np.log10(20), 40)))
    densities = langevin.fokker_planck_evolve(p0, V, dx, kT, times)
    F = [langevin.free_energy(p, V, dx, kT) for p in langevin.fokker_planck_evolve(p0, V, dx, kT, fine)]
    F_rest = -kT * np.log(np.sum(np.exp(-V / kT)) * dx)
    rng = np.random.default_rng(0)
    x, samples = rng.normal(1, 0.15, 20_000), []
    for steps in np.diff(np.round(times / dt).astype(int), prepend=0):
        x = langevin.simulate(x, langevin.double_well_gradient, kT=kT, dt=dt, n_steps=steps, rng=rng, method="euler_maruyama")
        samples.append(x)

    fig = Figure(figsize=(12, 4.5))
    left, right = fig.subplots(1, 2)
    edges = np.linspace(-2.2, 2.2, 45)
    for t, p, x, color in zip(times, densities, samples, (RED, ORANGE, GREEN, SKY, BLUE)):
        left.plot(grid, p, color=color, lw=2, label=f"t = {t:g}")
        left.plot((edges[1:] + edges[:-1]) / 2, histogram(x, edges), "o", color=color, ms=3)
    left.plot(grid, langevin.boltzmann_density(V, dx, kT), color="black", ls="--", lw=1.2, label="Boltzmann, Eq. 2")
    left.set(title="Density p(x, t): lines Eq. 3, dots 20 000 particles", xlabel="position x", ylabel="probability density")
    left.legend()
    right.semilogx(fine[1:], F[1:], color=BLUE, lw=2, label="F[p] of Eq. 3")
    right.axhline(F_rest, color="black", ls="--", lw=1.2, label=f"−kT log Z = {F_rest:.3f}")
    right.set(title="The free energy never rises", xlabel="time t", ylabel="free energy F")
    right.legend()
    return fig


def figure_two_clocks(options):
    """Inside a well the particle relaxes at once, between the wells in a time ∝ exp(1/T): why T = 0.1 is trapped.

    Relaxation time three ways and by simulation: 1/λ₁ of Eq. 3's generator, half the exact first-passage time from well to
    well, Kramers' formula, and the decay of the mean of 4000 particles that start in one well.
    """
    inverse_T = np.linspace(0.5, 10, 39)
    grid = np.linspace(-2.6, 2.6, 201)
    dx, V = grid[1] - grid[0], langevin.double_well(grid)
    gap, passage, kramers = [], [], []
    for kT in 1 / inverse_T:
        G = langevin.fokker_planck_generator(V, dx, kT)
        off = np.sqrt(np.diag(G, 1) * np.diag(G, -1))                       # symmetrised: same eigenvalues
        gap.append(-1 / np.linalg.eigvalsh(np.diag(G.diagonal()) + np.diag(off, 1) + np.diag(off, -1))[-2])
        passage.append(langevin.mean_first_passage_time(langevin.double_well, -1.0, 1.0, kT) / 2)
        kramers.append(0.5 / langevin.kramers_rate(8, -4, 1, kT))
    rng, simulated = np.random.default_rng(0), []
    for kT in (1.0, 0.5, 1 / 3, 0.25, 0.2):
        tau = np.interp(1 / kT, inverse_T, gap)
        x = langevin.simulate(np.ones(4000), langevin.double_well_gradient, kT=kT, dt=0.02, n_steps=round(tau / 0.02), rng=rng, record_every=round(tau / 0.04))
        half, whole = x.mean(1)                                             # means after τ/2 and τ: decay by exp(−½)
        error = np.hypot(x[0].std() / half, x[1].std() / whole) / np.sqrt(4000)
        rate = np.log(half / whole)
        simulated.append((1 / kT, tau / 2 / rate, tau / 2 / rate * 2 * error / rate))

    fig = Figure(figsize=(8.5, 5.2))
    ax = fig.subplots()
    ax.semilogy(inverse_T, gap, color=BLUE, lw=2.5, label="1/λ₁, spectral gap of Eq. 3")
    ax.semilogy(inverse_T, passage, color=ORANGE, ls="--", lw=2, label="half the first-passage time −1 → 1")
    ax.semilogy(inverse_T, kramers, color=GREEN, ls=":", lw=2, label="Kramers, 1/(2k)")
    x, y, error = np.array(simulated).T
    ax.errorbar(x, y, error, fmt="o", color="black", ms=5, capsize=3, label="Langevin simulation (± 2 standard errors)")
    ax.axhline(1 / 8, color=GREY, lw=1)
    ax.text(0.6, 0.15, "inside a well: 1/V'' = 1/8", color=GREY)
    ax.axhline(500, color=RED, lw=1)
    ax.text(0.6, 560, "length of the chapter's run: 500", color=RED)
    ax.set(title="Two clocks: the time between wells grows like exp(1/T)", xlabel="1/T", ylabel="relaxation time", xlim=(0.4, 10.1))
    for kT in (2, 1, 0.5, 0.1):
        ax.axvline(1 / kT, color=GREY, lw=0.6, ls=":")
        ax.text(1 / kT - 0.05, 1.5e4, f"T = {kT:g}", color=GREY, rotation=90, va="top", ha="right", fontsize=8)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0.1))
    return fig


# --- Maximum caliber and the Boltzmann policy -------------------------------------------------------------------------

def three_calibers(alpha):
    """P(risky) and the believed P(win | risky) under three readings of Eq. 8, where risky pays 4 with chance 0.1, safe pays 1.

    Rows: uniform base measure over paths; base measure of the true dynamics; causal (Eq. 14–17, the dynamics held fixed).
    """
    mdp = maxent.MDP(reward=np.array([[0.0, 0.0], [1.0, 1.0], [4.0, 4.0], [0.0, 0.0]]),        # states: start, safe, win, lose
                     successor=np.array([[[1, 1], [2, 3]]] + [[[s, s], [s, s]] for s in (1, 2, 3)]),
                     probability=np.array([[[1.0, 0.0], [0.1, 0.9]]] + 3 * [[[1.0, 0.0], [1.0, 0.0]]]), gamma=1.0)
    paths, returns, log_p = maxent.enumerate_paths(mdp, start=0, horizon=2)
    risky, win = paths[:, 1] == 1, paths[:, 2] == 2
    result = []
    for log_base in (0.0, log_p):
        P = maxent.boltzmann_policy(returns, alpha, log_base)               # Eq. 8 with λ = 1/α
        result.append((P[risky].sum(), P[risky & win].sum() / P[risky].sum()))
    V = maxent.soft_value(maxent.soft_backup(mdp, np.zeros(4)), alpha)
    pi = maxent.boltzmann_policy(maxent.soft_backup(mdp, V), alpha)
    return np.array(result + [(pi[0, 1], 0.1)])


def figure_three_calibers(options):
    """In a stochastic world, "maximise the entropy over paths" has three answers; only the causal one keeps the odds honest.

    The first two gamble, because they let the dynamics bend to the wish: they believe in luck that is not there.
    """
    alphas = np.logspace(-0.7, 2, 120)
    values = np.array([three_calibers(alpha) for alpha in alphas])

    fig = Figure(figsize=(11, 4.4))
    for ax, k, title in zip(fig.subplots(1, 2), (0, 1), ("how often the risky action is chosen", "believed P(win | risky)")):
        for row, (name, color, ls) in enumerate((("uniform over paths", RED, "--"), ("relative to the dynamics (posterior)", ORANGE, "-."), ("causal: soft Bellman, SAC", BLUE, "-"))):
            ax.semilogx(alphas, values[:, row, k], color=color, ls=ls, lw=2.2, label=name)
        ax.set(title=title, xlabel="temperature α", ylim=(0, 1.04))
    ax.axhline(0.1, color="black", ls=":", lw=1.2, label="true P(win) = 0.1")
    ax.legend(loc="center right", bbox_to_anchor=(1, 0.72))
    fig.suptitle("Three calibers: safe pays 1, risky pays 4 with chance 0.1")
    return fig


def figure_boltzmann(options):
    """The temperature α takes the Boltzmann policy from the best action alone to all actions alike; entropy only grows."""
    Q = np.array([1.0, 3.0, 2.0, 0.5, 2.5])
    panels = [(alpha, maxent.boltzmann_policy(Q, alpha), maxent.soft_value(Q, alpha)) for alpha in (0.1, 0.5, 1.0, 2.0, 5.0)]
    alphas = np.logspace(-1.3, 1.7, 200)
    curve = np.array([maxent.boltzmann_policy(Q, alpha) for alpha in alphas])

    fig = Figure(figsize=(12, 6.5))
    axes = fig.subplots(2, 3).flat
    for ax, (alpha, pi, V) in zip(axes, panels):
        bars = ax.bar(range(1, 6), pi, color=[RED if i == Q.argmax() else BLUE for i in range(5)])
        ax.bar_label(bars, [f"{p:.2f}" for p in pi], fontsize=9)
        ax.set(title=f"α = {alpha:g}\nH = {maxent.entropy(pi):.2f}   E[Q] = {pi @ Q:.2f}   V = {V:.2f}", ylim=(0, 1.12), ylabel="π(a)",
               xticks=range(1, 6), xticklabels=[f"a{i}\nQ={q:g}" for i, q in enumerate(Q, 1)])
        ax.grid(False, axis="x")
    ax = axes[5]
    ax.semilogx(alphas, maxent.entropy(curve), color=GREEN, lw=2, label="entropy H(π)")
    ax.semilogx(alphas, curve @ Q, color=ORANGE, lw=2, label="mean value E[Q]")
    for level, text, color in ((np.log(5), "log 5", GREEN), (3, "max Q", ORANGE), (Q.mean(), "mean Q: uniform", ORANGE)):
        ax.axhline(level, color=color, ls=":", lw=1)
        ax.text(0.055, level + (0.04 if color == ORANGE else -0.14), text, color=color, fontsize=9)
    ax.set(title="all temperatures", xlabel="temperature α", ylabel="nats, or units of Q", ylim=(0, 3.4))
    ax.legend(loc="lower right")
    fig.suptitle("Boltzmann policy π(a) ∝ exp(Q(a)/α), Eq. 17: the best action is red")
    return fig


# --- Soft Actor-Critic on Pendulum-v1 ---------------------------------------------------------------------------------

EVALUATE_EVERY = 500
ENVIRONMENT = "Pendulum-v1"


@functools.cache
def held_out_starts():
    """Angle and angular velocity (2, 100) after env.reset(seed=0 … 99): the starts of every evaluation."""
    env = gym.make(ENVIRONMENT)
    cos, sin, theta_dot = np.array([env.reset(seed=seed)[0] for seed in range(100)], dtype=float).T
    return np.arctan2(sin, cos), theta_dot


@functools.cache
def optimum():
    """Best possible return (100,) from each held-out start."""
    return maxent.pendulum_optimal_return(*held_out_starts())


def observe(theta, theta_dot):
    """What Pendulum-v1 shows of its state: (cos θ, sin θ, angular velocity) (..., 3)."""
    return np.stack((np.cos(theta), np.sin(theta), theta_dot), -1)


def pendulum_returns(agent, theta, theta_dot):
    """Returns (N,) of the deterministic policy from N starts at once; sac_numpy.evaluate gives the same, one by one."""
    total = np.zeros(len(theta))
    for _ in range(200):
        torque = agent.act(observe(theta, theta_dot), deterministic=True)[:, 0].astype(float)
        theta, theta_dot, reward = maxent.pendulum_step(theta, theta_dot, torque)
        total += reward
    return total


def _train_seed(job):
    """Worker: train one seed, evaluating on the way -> agent, log with "evaluations" (n, 100)."""
    seed, n_steps = job
    evaluations = []

    def progress(step, agent, log):
        if step % 100 == 0:
            with _steps_done.get_lock():
                _steps_done.value += 100
        if step % EVALUATE_EVERY == 0:
            evaluations.append(pendulum_returns(agent, *held_out_starts()))
    agent, log = sac_numpy.train(ENVIRONMENT, seed=seed, n_steps=n_steps, progress=progress)
    return agent, log | {"evaluations": np.array(evaluations)}


def _start_worker(steps_done):
    global _steps_done
    _steps_done = steps_done
    signal.signal(signal.SIGINT, signal.SIG_IGN)                            # Ctrl-C is the parent's to handle


@functools.cache
def trained(n_seeds, n_steps):
    """Agents and logs of seeds 0 … n_seeds − 1, trained in parallel processes, with a progress line."""
    steps_done, started = multiprocessing.Value("l", 0), time.monotonic()
    with multiprocessing.Pool(min(os.cpu_count(), n_seeds), _start_worker, (steps_done,)) as pool:
        runs = pool.map_async(_train_seed, [(seed, n_steps) for seed in range(n_seeds)], chunksize=1)
        while not runs.ready():
            runs.wait(0.5)
            done, total = steps_done.value, n_seeds * n_steps
            left = (time.monotonic() - started) * (total - done) / max(done, 1)
            print(f"\rtraining {n_seeds} seeds: {done}/{total} steps, {left:.0f} s left   ", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return runs.get()


def interquartile_mean(x):
    """Mean over the middle half of the first axis."""
    x, cut = np.sort(x, axis=0), len(x) // 4
    return x[cut:len(x) - cut].mean(axis=0)


def bootstrap_band(x, n=2000):
    """95 % band of the interquartile mean over the first axis, by resampling it."""
    draws = np.random.default_rng(0).integers(0, len(x), (n, len(x)))
    return np.percentile([interquartile_mean(x[i]) for i in draws], (2.5, 97.5), axis=0)


def figure_training(options):
    """SAC reaches the exact optimum of Pendulum-v1 to within a few units: every seed (thin), their interquartile mean and its 95 % band.

    Evaluation: deterministic policy from the same 100 starts as the optimum. Flat losses do not show this; regret does.
    """
    runs = trained(options.seeds, options.steps)
    returns = np.array([log["evaluations"].mean(axis=1) for _, log in runs])
    regret = optimum().mean() - returns
    steps = EVALUATE_EVERY * np.arange(1, returns.shape[1] + 1)
    update = runs[0][1]["step"]
    smooth = lambda x: np.apply_along_axis(lambda row: np.convolve(row, np.full(100, 0.01), "valid"), -1, x)
    logs = {key: smooth(np.array([log[key] for _, log in runs])) for key in ("entropy", "alpha", "critic_loss", "actor_loss")}
    update = smooth(update.astype(float))

    fig = Figure(figsize=(12, 7.5))
    (top_left, top_right), (bottom_left, bottom_right) = fig.subplots(2, 2)
    for ax, values in ((top_left, returns), (top_right, regret)):
        ax.plot(steps, values.T, color=BLUE, lw=0.6, alpha=0.4)
        ax.fill_between(steps, *bootstrap_band(values), color=BLUE, alpha=0.25)
        ax.plot(steps, interquartile_mean(values), color=BLUE, lw=2, label="interquartile mean")
        ax.set(xlabel="environment steps")
    top_left.axhline(optimum().mean(), color="black", ls="--", label=f"exact optimum {optimum().mean():.1f}")
    top_left.set(title="Learning curve", ylabel="mean return, 100 fixed starts")
    top_right.set(title=f"Regret = optimum − return: {interquartile_mean(regret)[-1]:.1f} at the end, worst seed {regret[:, -1].max():.1f}",
                  ylabel="regret (log axis)", yscale="log")
    top_right.axhline(5, color=GREY, ls=":", label="5")
    bottom_left.plot(update, logs["entropy"].T, color=GREEN, lw=0.6, alpha=0.5)
    bottom_left.axhline(-1, color="black", ls="--", label="target entropy H̄ = −1")
    bottom_left.plot([], [], color=GREEN, label="entropy of π")
    bottom_left.set(title="Entropy falls to its target; α is what it costs", xlabel="environment steps", ylabel="entropy (nats, a in [−1, 1])")
    right = bottom_left.twinx()
    right.semilogy(update, logs["alpha"].T, color=ORANGE, lw=0.6, alpha=0.6)
    right.plot([], [], color=ORANGE, label="temperature α")
    right.set(ylabel="temperature α (units of reward)")
    right.grid(False)
    right.spines["right"].set_visible(True)
    bottom_left.legend(handles=bottom_left.get_legend_handles_labels()[0] + right.get_legend_handles_labels()[0], loc="upper right")
    bottom_right.semilogy(update, logs["critic_loss"].T, color=PINK, lw=0.6, alpha=0.6)
    bottom_right.semilogy(update, np.abs(logs["actor_loss"].T), color=BLUE, lw=0.6, alpha=0.6)
    bottom_right.plot([], [], color=PINK, label="critic loss (Eq. 18)")
    bottom_right.plot([], [], color=BLUE, label="actor loss (Eq. 20), about −V")
    bottom_right.set(title="Losses say little: the target moves", xlabel="environment steps", ylabel="loss (log axis)")
    for ax in (top_left, top_right, bottom_right):
        ax.legend(loc="best")
    fig.suptitle(f"Soft Actor-Critic on {ENVIRONMENT}: {options.seeds} seeds, {options.steps} steps each")
    return fig


def figure_policy(options):
    """What seed 0 has learned beside the exact soft-optimal solution at the same α: mean torque, value, and their difference.

    Colours outside the dotted states, which training never visited, are guesses. Dashed: the energy of standing upright.
    """
    agent, log = trained(options.seeds, options.steps)[0]
    mdp = maxent.pendulum_mdp(gamma=agent.settings.gamma)
    Q, _, pi = maxent.soft_value_iteration(mdp, agent.alpha, mdp.log_base, tol=0.1)
    shape = len(mdp.theta), len(mdp.theta_dot)
    obs = observe(*(x.ravel() for x in np.meshgrid(mdp.theta, mdp.theta_dot, indexing="ij"))).astype(agent.dtype)
    a = agent.sample(obs, deterministic=True)
    learned_Q = agent.critic.forward(np.concatenate((obs, a), 1))[0].min(0)[:, 0]
    exact_Q = (pi * Q).sum(1)
    rows = (("mean torque", 2 * a[:, 0], 2 * pi @ mdp.a, "RdBu", (-2, 2), (-4, 4)),
            ("value Q(s, π(s))", learned_Q, exact_Q, "viridis", (exact_Q.min(), exact_Q.max()), (-60, 60)))
    cos, sin, speed = log["observations"].T
    angle = np.arctan2(sin, cos)
    cell = (np.round((angle + np.pi) / (2 * np.pi) * shape[0]).astype(int) % shape[0]) * shape[1] + np.round((speed + 8) / 16 * (shape[1] - 1)).astype(int)

    fig = Figure(figsize=(13, 7.5))
    for (name, learned, exact, colours, limits, span), axes in zip(rows, fig.subplots(2, 3, sharex=True, sharey=True)):
        agreement = np.corrcoef(learned[cell], exact[cell])[0, 1]
        for ax, z, title, cmap, lim in ((axes[0], learned, f"learned {name}", colours, limits), (axes[1], exact, f"exact {name}", colours, limits),
                                        (axes[2], learned - exact, f"difference (correlation {agreement:.3f} where visited)", "PuOr", span)):
            image = ax.pcolormesh(mdp.theta, mdp.theta_dot, z.reshape(shape).T, cmap=cmap, vmin=lim[0], vmax=lim[1], shading="nearest", rasterized=True)
            fig.colorbar(image, ax=ax, label="torque (N m)" if "torque" in name else "units of return")
            for sign in (-1, 1):
                ax.plot(mdp.theta, sign * np.sqrt(30 * (1 - np.cos(mdp.theta))), color="black", ls="--", lw=1)
            ax.set(title=title, ylim=(-8, 8), xlim=(-np.pi, np.pi), xticks=(-np.pi, 0, np.pi), xticklabels=("−π", "0 (upright)", "π"))
            ax.grid(False)
        axes[0].set(ylabel="angular velocity (rad/s)")
        axes[0].plot(angle[::4], speed[::4], ".", color="black", ms=1, alpha=0.5)
    for ax in axes:
        ax.set(xlabel="angle θ (rad)")
    fig.suptitle(f"SAC, seed 0, {options.steps} steps, beside the exact solution at its α = {agent.alpha:.3f}   (dots: states visited; dashed: energy of standing upright)")
    return fig


def fold(x):
    """The line folded onto [−1, 1] by reflection at both ends, and the direction ±1 of the fold there."""
    phase = (x + 1) % 4
    return 1 - np.abs(phase - 2), np.where(phase < 2, 1.0, -1.0)


def best_squashed_gaussian(Q, alpha, noise=np.linspace(-4, 4, 81)):
    """μ, log σ and value of the tanh-Gaussian that minimises Eq. 20, α E[log π] − E[Q(a)], for Q a function of a in [−1, 1].

    A search on a grid, refined five times: the actor loss has several minima, and gradients would find only one.
    """
    weight = np.exp(-noise**2 / 2) / np.exp(-noise**2 / 2).sum()
    mu, log_std, width, height = 0.0, -1.5, 3.0, 2.5
    for _ in range(6):
        m, s = np.meshgrid(mu + width * np.linspace(-1, 1, 49), log_std + height * np.linspace(-1, 1, 49), indexing="ij")
        a, log_prob = sac_numpy.squashed_gaussian(m[..., None, None], s[..., None, None], noise[:, None])
        loss = (alpha * log_prob - Q(a[..., 0])) @ weight
        best = np.unravel_index(loss.argmin(), loss.shape)
        mu, log_std, width, height = m[best], s[best], width / 5, height / 5
    return mu, log_std, loss[best]


def sample_actions(a, Q, dQ_da, alpha, n=5000, seed=0):
    """Langevin dynamics of n actions in [−1, 1] at a fixed state: Eq. 1 with V = −Q and kT = α, reflected at the bounds.

    Q, dQ_da: values and slopes on the nodes a (A,).  A step moves an action by a quarter of the width α/|∂Q/∂a| on which
    exp(Q/α) changes; the run lasts one diffusion time.
    """
    rng = np.random.default_rng(seed)

    def minus_gradient(x):
        y, direction = fold(x)
        return -direction * np.interp(y, a, dQ_da)
    dt = 0.03 * alpha / (maxent.boltzmann_policy(Q, alpha) @ dQ_da**2)
    x = langevin.simulate(rng.uniform(-1, 1, n), minus_gradient, kT=alpha, dt=dt, n_steps=int(1 / alpha / dt), rng=rng)
    return fold(x)[0]


def critic_along_actions(agent, theta, theta_dot, a):
    """Q(s, ·) of the agent's first critic at the nodes a, and ∂Q/∂a by its backward pass."""
    x = np.concatenate((np.tile(observe(theta, theta_dot), (a.size, 1)), a[:, None]), 1).astype(agent.dtype)
    Q, cache = agent.critic.forward(x)
    first = np.zeros_like(Q)
    first[0] = 1
    return Q[0, :, 0].astype(float), agent.critic.backward(first, cache, with_theta=False)[1][:, -1].astype(float)


def figure_action_langevin(options):
    """The bridge: at a fixed state, Langevin dynamics driven by the critic (V = −Q, kT = α) samples the Boltzmann policy.

    Where Q has two peaks so has the Boltzmann policy; the actor's squashed Gaussian (best fit by Eq. 20) must choose one.
    """
    agent, _ = trained(options.seeds, options.steps)[0]
    a = np.linspace(-1, 1, 401)
    states = [(theta, theta_dot) for theta in np.linspace(-np.pi, np.pi, 61) for theta_dot in np.linspace(-3, 3, 13)]

    def valley(state):
        """How far Q(s, ·) dips below the lower of the two peaks beside its lowest point, less the peaks' difference."""
        Q = critic_along_actions(agent, *state, a)[0]
        left, right = Q[:Q.argmin() + 1].max(), Q[Q.argmin():].max()
        return min(left, right) - Q.min() - abs(left - right)
    panels = []
    for title, choose in (("two peaks", max), ("one peak", min)):
        state = choose(states, key=valley)
        alpha = abs(valley(state)) / 3
        Q, dQ_da = critic_along_actions(agent, *state, a)
        log_base = np.full(a.size, np.log(a[1] - a[0]))
        mu, log_std, _ = best_squashed_gaussian(lambda y: np.interp(y, a, Q), alpha)
        noise = (np.arctanh(a[1:-1]) - mu) / np.exp(log_std)
        gauss = np.exp(sac_numpy.squashed_gaussian(mu, log_std, noise[:, None])[1])
        panels.append((title, state, alpha, maxent.boltzmann_policy(Q, alpha, log_base) / (a[1] - a[0]), gauss, sample_actions(a, Q, dQ_da, alpha)))

    fig = Figure(figsize=(12, 4.6))
    edges = np.linspace(-1, 1, 41)
    for ax, (title, state, alpha, boltzmann, gauss, x) in zip(fig.subplots(1, 2), panels):
        ax.stairs(histogram(x, edges), edges, fill=True, color=SKY, alpha=0.7, label="Langevin in a: V = −Q, kT = α")
        ax.plot(a, boltzmann, color="black", lw=2, label="Boltzmann policy, Eq. 17")
        ax.plot(a[1:-1], gauss, color=RED, ls="--", lw=2, label="best squashed Gaussian, Eq. 20")
        ax.set(title=f"{title}: θ = {state[0]:.2f}, angular velocity {state[1]:.2f}, α = {alpha:.2g}", xlabel="action a = torque/2", ylabel="probability density",
               ylim=(0, 1.5 * max(boltzmann.max(), gauss.max())))
        ax.legend(loc="upper center")
    fig.suptitle("Langevin dynamics in action space, driven by a trained critic")
    return fig


def overestimation(alphas, n_actions=10, n_draws=50_000, seed=0):
    """What the maximum makes of critics that are only noise, Q = 0 + N(0, 1): rows of estimates, each a mean (len(alphas),).

    Rows: hard max; soft max (Eq. 16); its noise-induced part, less α log n; Boltzmann average Σ π Q; smaller of two
    critics at the action that the first likes best.
    """
    Q1, Q2 = np.random.default_rng(seed).standard_normal((2, n_draws, n_actions))
    best = np.arange(n_draws), Q1.argmax(1)
    hard, both = Q1.max(1).mean(), np.minimum(Q1[best], Q2[best]).mean()
    soft = np.array([maxent.soft_value(Q1, alpha).mean() for alpha in alphas])
    average = np.array([(maxent.boltzmann_policy(Q1, alpha) * Q1).sum(1).mean() for alpha in alphas])
    return np.array([np.full(len(alphas), hard), soft, soft - alphas * np.log(n_actions), average, np.full(len(alphas), both)])


def figure_overestimation(options):
    """The soft maximum overestimates more than the hard one; what shrinks with α is its noise-induced part. The cure is two critics."""
    alphas = np.logspace(-1.3, 0.8, 22)
    rows = overestimation(alphas)

    fig = Figure(figsize=(8.5, 5))
    ax = fig.subplots()
    names = ("hard max", "soft max, Eq. 16", "soft max less its noise-free value α log 10", "Boltzmann average Σ π Q", "smaller of two critics, at the first one's best action")
    for row, name, color, ls in zip(rows, names, (ORANGE, RED, GREEN, PINK, BLUE), ("-", "-", "--", "-.", "-")):
        ax.semilogx(alphas, row, color=color, ls=ls, lw=2, label=name)
    ax.axhline(0, color="black", lw=1)
    ax.text(alphas[0], 0.06, "truth: Q = 0", fontsize=9)
    ax.set(title="Ten actions of value 0, seen through noise N(0, 1)", xlabel="temperature α", ylabel="mean estimate of the value", ylim=(-0.5, 5))
    ax.legend()
    return fig


def figure_swingup(options):
    """The trained agent swings up from hanging at rest; beside it, its path over the learned value. Arc: torque.

    It cannot lift the rod at once: the limit is 2 N m, gravity at the horizontal 5 N m. It pumps energy first.
    """
    agent, _ = trained(options.seeds, options.steps)[0]
    theta, theta_dot, path = np.array([np.pi]), np.array([0.0]), []
    for _ in range(140):
        torque = agent.act(observe(theta, theta_dot), deterministic=True)[:, 0].astype(float)
        path.append((theta[0], theta_dot[0], torque[0]))
        theta, theta_dot, _ = maxent.pendulum_step(theta, theta_dot, torque)
    theta, theta_dot, torque = np.array(path).T
    grid = np.meshgrid(np.linspace(-np.pi, np.pi, 121), np.linspace(-8, 8, 121))
    obs = observe(*grid).reshape(-1, 3).astype(agent.dtype)
    Q = agent.critic.forward(np.concatenate((obs, agent.sample(obs, deterministic=True)), 1))[0].min(0).reshape(121, 121)

    fig = Figure(figsize=(8, 3.8))
    left, right = fig.subplots(1, 2, width_ratios=(1, 1.35))
    left.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal", xticks=(), yticks=())
    right.imshow(Q, origin="lower", extent=(-np.pi, np.pi, -8, 8), aspect="auto", cmap="viridis")
    right.set(xlabel="angle θ (0 = upright)", ylabel="angular velocity (rad/s)", title="its path over the learned value Q(s, π(s))")
    for ax in (left, right):
        ax.grid(False)
    rod, = left.plot([], [], color=BLUE, lw=8, solid_capstyle="round")
    arc, = left.plot([], [], color=RED, lw=3)
    head, = left.plot([], [], color=RED, marker="o", ms=7)
    trail, = right.plot([], [], ".", color="white", ms=3)
    here, = right.plot([], [], "o", color=RED, ms=8)
    wrapped = (theta + np.pi) % (2 * np.pi) - np.pi

    def draw(k):
        rod.set_data([0, -np.sin(theta[k])], [0, np.cos(theta[k])])         # positive angles turn anticlockwise, as in Gymnasium
        bend = np.pi / 2 + np.linspace(0, torque[k], 20)
        arc.set_data(0.45 * np.cos(bend), 0.45 * np.sin(bend))
        head.set_data(0.45 * np.cos(bend[-1:]), 0.45 * np.sin(bend[-1:]))
        trail.set_data(wrapped[:k + 1], theta_dot[:k + 1])
        here.set_data(wrapped[k:k + 1], theta_dot[k:k + 1])
        left.set_title(f"t = {0.05 * k:.1f} s   torque {torque[k]:+.1f} N m")
    return FuncAnimation(fig, draw, frames=range(0, 140, 2))


FIGURES = {
    "langevin_dynamics_temperature_controls": figure_langevin,
    "fokker_planck": figure_fokker_planck,
    "two_clocks": figure_two_clocks,
    "three_calibers": figure_three_calibers,
    "Boltzmann_Policy": figure_boltzmann,
    "RL_training_log": figure_training,
    "policy_and_Q": figure_policy,
    "action_langevin": figure_action_langevin,
    "overestimation": figure_overestimation,
    "pendulum_swingup": figure_swingup,
}


def save(figure, path):
    """Write a Figure as .png or an animation as .gif, whole or not at all -> the path with its suffix."""
    path = path.with_suffix(".gif" if isinstance(figure, FuncAnimation) else ".png")
    part = path.with_name("part-" + path.name)
    try:
        if isinstance(figure, FuncAnimation):
            figure.save(part, writer=PillowWriter(fps=20), dpi=80)
        else:
            figure.savefig(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def main():
    parser = argparse.ArgumentParser(description="Make the figures: all of them, or those named.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(FIGURES)}")
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds to train (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10_000, help="environment steps of each seed (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "plots", help="folder for the figures (default: %(default)s)")
    options = parser.parse_args()
    try:
        for name in options.names:
            if name not in FIGURES:
                raise ValueError(f"unknown figure {name!r}; accepted: {', '.join(FIGURES)}")
        if options.seeds < 1 or options.steps < 2000:
            raise ValueError(f"--seeds must be at least 1 and --steps at least 2000, got {options.seeds} and {options.steps}")
        options.out.mkdir(parents=True, exist_ok=True)
        if not os.access(options.out, os.W_OK):
            raise OSError(f"cannot write to {options.out}")
        for name in options.names or FIGURES:
            started = time.monotonic()
            with rc_context(STYLE):
                path = save(FIGURES[name](options), options.out / name)
            print(f"{path}   {time.monotonic() - started:.1f} s", flush=True)
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the figures named above are complete", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
