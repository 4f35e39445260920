"""The figures, in the chapter's order: `python figures.py` makes all of them under plots/, `python figures.py NAME` one.

Each figure_… function asks the modules for numbers, then draws; its docstring is the caption and states the claim.
What was simulated is drawn beside its theory, in the colours of Okabe and Ito."""
import argparse
import functools
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import sac_numpy                                  # first: it sets the number of BLAS threads before numpy is imported
import gymnasium as gym
import numpy as np
from matplotlib import rc_context
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure

import langevin
import maxent

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, GREY, BLACK = "#56B4E9", "#CC79A7", "#777777", "#000000"
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
         "axes.titlesize": 11, "axes.xmargin": 0, "legend.frameon": False, "legend.fontsize": 9, "savefig.dpi": 130}


def sheet(size, title, *shape, **options):
    """A figure outside pyplot, so that no display is needed, and its axes."""
    fig = Figure(figsize=size, layout="constrained")
    fig.suptitle(title)
    return fig, fig.subplots(*shape, **options)


def curves(ax, x, rows, *looks):
    """Draw each row of rows (K, n) over x (n,) with its look (name, colour, line style)."""
    for y, (name, color, ls) in zip(rows, looks):
        ax.plot(x, y, color=color, ls=ls, lw=2.2, label=name)


def explain(ax, title, xlabel, ylabel, loc="best", ncols=1, **limits):
    """Title, axes and legend."""
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, **limits)
    ax.legend(loc=loc, ncols=ncols)


# --- Physics ----------------------------------------------------------------------------------------------------------

EDGES = np.linspace(-2.6, 2.6, 105)
X, DX = (EDGES[1:] + EDGES[:-1]) / 2, EDGES[1] - EDGES[0]
V = langevin.double_well(X)
simulate_wells = functools.partial(langevin.simulate, grad_V=langevin.double_well_gradient)


def figure_langevin_dynamics_temperature_controls(options):
    """An ensemble that starts evenly over both wells matches Boltzmann; one run at T = 0.1 never leaves its well.
    Ensemble: 20 000 particles, t = 5; up to T = 0.5 that is too short for the wells to mix, and the start made them even.
    Run: every tenth step from 10 010 to 50 000. Error: total variation, half the area between."""
    rng, panels, well = np.random.default_rng(0), [], np.where(V < 2.2, 0.4 * V, np.nan)
    for kT in (0.1, 0.5, 1.0, 2.0):
        many = simulate_wells(rng.uniform(-2, 2, 20_000), kT=kT, dt=0.01, n_steps=500, rng=rng)
        one = simulate_wells([0.5], kT=kT, dt=0.01, n_steps=50_000, rng=rng, record_every=10)[1000:, 0]
        panels.append((kT, langevin.boltzmann_density(V, DX, kT),
                       *(np.histogram(x, EDGES, density=True)[0] for x in (many, one))))

    fig, axes = sheet((10, 7), "An ensemble that starts evenly matches Boltzmann; one run at T = 0.1 stays in its well", 2, 2)
    for ax, (kT, exact, many, one) in zip(axes.flat, panels):
        top, error = max(exact.max(), one.max()), lambda p: np.abs(p - exact).sum() * DX / 2
        ax.stairs(many, EDGES, fill=True, color=SKY, label=f"ensemble: error {error(many):.2f}")
        ax.stairs(one, EDGES, color=RED, lw=1.4, label=f"one run: error {error(one):.2f}")
        curves(ax, X, (exact, top * well), ("Boltzmann, Eq. 2", BLACK, "-"), ("V (scaled)", GREY, ":"))
        explain(ax, f"T = {kT:g}", "position x", "density", "upper center", 2, xlim=(-2, 2), ylim=(0, 1.5 * top))
    return fig


def figure_fokker_planck(options):
    """The density of Eq. 3 and an ensemble that obeys Eq. 1 stay together, while the free energy falls to −kT log Z.
    Double well, kT = 0.5, from N(1, 0.15²); 10 000 particles, Euler–Maruyama, dt = 1/256."""
    kT, dt, rng, times = 0.5, 1 / 256, np.random.default_rng(0), 4.0 ** np.linspace(-3, 2, 31)
    p0 = np.exp(-((X - 1) ** 2) / (2 * 0.15**2))
    densities = langevin.fokker_planck_evolve(p0 / (p0.sum() * DX), V, DX, kT, times)
    F, F_rest = [langevin.free_energy(p, V, DX, kT) for p in densities], -kT * np.log(np.sum(np.exp(-V / kT)) * DX)
    shown, particles, x = slice(6, None, 6), [], rng.normal(1, 0.15, 10_000)
    for n_steps in np.diff(np.round(times[shown] / dt).astype(int), prepend=0):
        x = simulate_wells(x, kT=kT, dt=dt, n_steps=n_steps, rng=rng, method="euler_maruyama")
        particles.append((p := np.histogram(x, EDGES, density=True)[0], langevin.free_energy(p, V, DX, kT)))

    fig, (left, right) = sheet((10, 4.3), "Fokker–Planck (lines) and 10 000 particles (dots) relax together", 1, 2)
    for t, exact, (p, F_p), color in zip(times[shown], densities[shown], particles, (RED, ORANGE, GREEN, SKY, BLUE)):
        curves(left, X, [exact], (f"t = {t:g}", color, "-"))
        left.plot(X, p, "o", color=color, ms=3)
        right.plot(t, F_p, "o", color=color, ms=8, clip_on=False)
    curves(left, X, [langevin.boltzmann_density(V, DX, kT)], ("Boltzmann, Eq. 2", BLACK, ":"))
    curves(right, times, [F, 0 * times + F_rest], ("free energy F[p]", GREY, "-"), ("−kT log Z", BLACK, ":"))
    explain(left, "density p(x, t), Eq. 3", "position x", "probability density", xlim=(-2, 2))
    explain(right, "the free energy never rises", "time t", "free energy", xscale="log")
    return fig


def figure_two_clocks(options):
    """Inside a well the particle relaxes at once, between the wells in a time ∝ exp(1/T): why T = 0.1 is trapped."""
    inverse_T, rng, theory, simulated = np.linspace(0.5, 10, 39), np.random.default_rng(0), [], []
    for kT in 1 / inverse_T:
        rates = np.sort(-np.linalg.eigvals(langevin.fokker_planck_generator(V, DX, kT)).real)       # the first is 0: rest
        theory.append((1 / rates[1],
                       langevin.mean_first_passage_time(langevin.double_well, -1.0, 1.0, kT) / 2,
                       0.5 / langevin.kramers_rate(8, -4, 1, kT), 1 / 8))
    for kT in (1.0, 0.5, 1 / 3, 0.25, 0.2):
        half = round(np.interp(1 / kT, inverse_T, np.array(theory)[:, 0]) / 2 / 0.02)
        x = simulate_wells(np.ones(10_000), kT=kT, dt=0.02, n_steps=2 * half, rng=rng, record_every=half)
        early, late = x.mean(axis=1)                                        # about half a relaxation time apart
        simulated.append((1 / kT, 0.02 * half / np.log(early / late)))

    fig, ax = sheet((9, 5), "Two clocks: inside a well relaxation is fast, between the wells it takes a time ∝ exp(1/T)")
    curves(ax, inverse_T, np.transpose(theory), ("between wells: 1/(spectral gap of Eq. 3)", BLUE, "-"),
           ("half the first-passage time −1 → 1 (hops go both ways)", ORANGE, "--"), ("1/(2 × Kramers' rate)", GREEN, ":"),
           ("inside a well, as T → 0: 1/V'' = 1/8", PINK, "-"))
    ax.plot(*np.transpose(simulated), "o", color=BLACK, label="10 000 particles (standard error 4 %)")
    ax.axhspan(500, 5e4, color=RED, alpha=0.12, lw=0, label="longer than 50 000 steps of 0.01: trapped")
    ax.secondary_xaxis("top").set_xticks((0.5, 1, 2, 10), ("T = 2", "1", "0.5", "T = 0.1"))
    explain(ax, None, "1/T", "relaxation time", (0.5, 0.14), yscale="log", xlim=(0.3, 10.2), ylim=(0.06, 5e4))
    return fig


# --- Maximum caliber and the Boltzmann policy -------------------------------------------------------------------------

def three_calibers(alpha):
    """P(risky) and the believed P(win | risky) under three readings of Eq. 8; risky pays 4 with chance 0.1, safe 1.
    Rows: uniform base measure over paths; that of the true dynamics; causal (Eq. 14–17, the dynamics held fixed)."""
    returns, log_p = np.array([1.0, 4.0, 0.0]), np.log([1.0, 0.1, 0.9])     # the paths: safe; risky and won; risky and lost
    laws = (maxent.boltzmann_policy(returns, alpha, log_base) for log_base in (0.0, log_p))         # Eq. 8 with λ = 1/α
    causal = maxent.boltzmann_policy([1.0, 0.1 * 4], alpha)[1]              # Eq. 17, with Q = E[return] for risky: Eq. 14
    return np.array([(win + lose, win / (win + lose)) for _, win, lose in laws] + [(causal, 0.1)])


def lucky(alpha, p_risky, p_win, rng, n=40_000):
    """P(risky) and P(win | risky) among random games, of which one with return R is kept with chance exp((R − 4)/α)."""
    risky = rng.random(n) < p_risky
    win = risky & (rng.random(n) < p_win)
    kept = rng.random(n) < np.exp((np.where(win, 4, np.where(risky, 0, 1)) - 4) / alpha)
    return risky[kept].mean(), win[kept].sum() / risky[kept].sum()


def figure_three_calibers(options):
    """In a stochastic world "maximise the entropy over paths" has three answers; only the causal one keeps the odds.
    The first two gamble as if luck were skill. Dots: of 40 000 random games each is kept with chance exp((R − 4)/α)."""
    alphas, few, rng = np.logspace(-0.7, 2, 120), np.array([1, 2, 5, 20, 80]), np.random.default_rng(0)
    values = np.array([three_calibers(alpha) for alpha in alphas])
    odds = (2 / 3, 1 / 2), (1 / 2, 0.1)                                     # P(risky), P(win): of three equal paths; true
    games = np.array([[lucky(alpha, *p, rng) for p in odds] for alpha in few])

    fig, axes = sheet((10, 4.3), "Only the causal caliber keeps the odds: safe pays 1, risky pays 4 with chance 0.1", 1, 2)
    for ax, rows, dots, title in zip(axes, values.T, games.T, ("P(risky)", "believed P(win | risky); in truth 0.1")):
        curves(ax, alphas, rows, ("uniform over paths", RED, "--"), ("relative to the dynamics", ORANGE, "-."),
               ("causal: soft Bellman, SAC", BLUE, "-"))
        for y, color in zip(dots, (RED, ORANGE)):
            ax.plot(few, y, "o", color=color, ms=6, label="dots: games kept" if color == RED else None)
        explain(ax, title, "temperature α", "probability", "upper right", xscale="log", ylim=(0, 1.04))
    return fig


def figure_Boltzmann_Policy(options):
    """The temperature α takes the Boltzmann policy from the best action alone to all actions alike; entropy only grows.
    Last panel: the entropy as a sum (line) and as the slope dV/dα (dots), in thermodynamics −dF/dT."""
    Q, alphas = np.array([1.0, 3.0, 2.0, 0.5, 2.5]), np.logspace(-1.3, 1.7, 201)
    panels = [(alpha, maxent.boltzmann_policy(Q, alpha), maxent.soft_value(Q, alpha)) for alpha in (0.1, 0.5, 1, 2, 5)]
    pi_all = np.array([maxent.boltzmann_policy(Q, alpha) for alpha in alphas])
    slope = np.gradient([maxent.soft_value(Q, alpha) for alpha in alphas], alphas)

    fig, axes = sheet((10, 6.4), "Boltzmann policy π(a) ∝ exp(Q(a)/α), Eq. 17: from the best action (Q = 3) to all alike", 2, 3)
    *bar_axes, last = axes.flat
    for ax, (alpha, pi, V) in zip(bar_axes, panels):
        ax.bar_label(ax.bar(range(5), pi, color=[RED if q == 3 else BLUE for q in Q]), fmt="%.2f", fontsize=9)
        ax.set(title=f"α = {alpha:g}\nH = {maxent.entropy(pi):.2f}   E[Q] = {pi @ Q:.2f}   V = {V:.2f}", ylim=(0, 1.12),
               ylabel="π(a)", xticks=range(5), xticklabels=[f"Q =\n{q:g}" for q in Q])
    curves(last, alphas, (pi_all @ Q, maxent.entropy(pi_all)), ("E[Q]", ORANGE, "-"), ("entropy H", GREEN, "-"))
    last.plot(alphas[5::10], slope[5::10], "o", color=GREEN, ms=4, label="dV/dα")
    last.set_yticks((0, 1, np.log(5), 2, 3), ("0", "1", "log 5", "2", "3"))
    explain(last, "all temperatures", "temperature α", "nats; units of Q", "lower right", xscale="log", ylim=(0, 3.2))
    return fig


# --- Soft Actor-Critic on Pendulum-v1 ---------------------------------------------------------------------------------

EVALUATE_EVERY = 500


@functools.cache
def held_out_starts():
    """Angle and angular velocity (2, 100) after env.reset(seed=0 … 99): the starts of every evaluation."""
    env = gym.make("Pendulum-v1")
    cos, sin, theta_dot = np.array([env.reset(seed=seed)[0] for seed in range(100)], dtype=float).T
    return np.arctan2(sin, cos), theta_dot


@functools.cache
def optimum():
    """The best return (100,) found from each held-out start, 0.2 below the optimum on average because its grid is finite."""
    return maxent.pendulum_optimal_return(*held_out_starts())


def observe(theta, theta_dot):
    """What Pendulum-v1 shows of its state: (cos θ, sin θ, angular velocity) (..., 3)."""
    return np.stack((np.cos(theta), np.sin(theta), theta_dot), -1)


def roll_out(agent, theta, theta_dot, n_steps=200):
    """Angle, angular velocity, torque, reward (n_steps, 4, N) of the deterministic policy, from N starts at once.
    The sum of the rewards is what sac_numpy.evaluate gives, one by one."""
    steps = []
    for _ in range(n_steps):
        torque = agent.act(observe(theta, theta_dot), deterministic=True)[:, 0]
        *after, reward = maxent.pendulum_step(theta, theta_dot, torque)
        steps.append((theta, theta_dot, torque, reward))
        theta, theta_dot = after
    return np.array(steps)


def _train_seed(seed, n_steps):
    """In a worker: train one seed -> agent, log; its "evaluations" (n, 100) are every EVALUATE_EVERY steps and at the end."""
    def progress(step, agent, log):
        """Evaluate now and then, and say so."""
        if step % EVALUATE_EVERY == 0 or step == n_steps:
            log.setdefault("evaluations", []).append(roll_out(agent, *held_out_starts())[:, 3].sum(axis=0))
            print(f"\rtraining seed {seed}: step {step} of {n_steps}    ", end="", file=sys.stderr, flush=True)
    return sac_numpy.train("Pendulum-v1", seed=seed, n_steps=n_steps, progress=progress)


@functools.cache
def trained(n_seeds, n_steps):
    """Agents and logs of seeds 0 … n_seeds − 1, trained in parallel processes, with a progress line."""
    others, quiet = set(multiprocessing.active_children()), (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    with ProcessPoolExecutor(min(os.cpu_count(), n_seeds), initializer=signal.signal, initargs=quiet) as pool:
        try:
            return list(pool.map(_train_seed, range(n_seeds), n_seeds * [n_steps]))
        finally:
            for worker in set(multiprocessing.active_children()) - others:  # whose work is done, or no longer wanted
                worker.kill()
            print(file=sys.stderr)


def interquartile_mean(x):
    """Mean over the first axis without its lowest and highest quarter, each rounded down."""
    x, cut = np.sort(x, axis=0), len(x) // 4
    return x[cut:len(x) - cut].mean(axis=0)


def bootstrap_band(x, n=2000):
    """95 % band of the interquartile mean over the first axis, by resampling it."""
    draws = np.random.default_rng(0).integers(0, len(x), (n, len(x)))
    return np.percentile([interquartile_mean(x[i]) for i in draws], (2.5, 97.5), axis=0)


def figure_RL_training_log(options):
    """SAC comes within a few units of the optimum of Pendulum-v1, in every seed; regret shows it, losses do not.
    Deterministic policy, from the same 100 starts as the optimum. Thin: each seed (below: means of 50 updates)."""
    agents, logs = zip(*trained(options.seeds, options.steps))
    returns, best = np.array([log["evaluations"].mean(axis=1) for log in logs]), optimum().mean()
    last, steps = best - returns[:, -1], [*range(EVALUATE_EVERY, options.steps, EVALUATE_EVERY), options.steps]
    lost = np.array([optimum() - log["evaluations"][-1] for log in logs])   # (seeds, 100)
    print("regret of each seed:", *last.round(1), "  of its median start:", *np.median(lost, axis=1).round(1))
    many, share = (lost > 10).sum(axis=1).mean(), lost[lost > 10].sum() / lost.sum()
    print(f"starts that lose more than 10: {many:.1f} of 100, with {share:.0%} of all regret")
    blocks = lambda key: np.transpose([log[key][len(log[key]) % 50:].reshape(-1, 50).mean(axis=1) for log in logs])

    title = f"Soft Actor-Critic on Pendulum-v1: {options.seeds} seeds, {options.steps} steps each"
    fig, ((curve, regret), (entropy, loss)) = sheet((10, 7), title, 2, 2, sharex=True)
    for ax, values in ((curve, returns), (regret, best - returns)):
        ax.plot(steps, values.T, color=BLUE, lw=0.7, alpha=0.5)[0].set_label("each seed")
        curves(ax, steps, [interquartile_mean(values)], ("interquartile mean", BLUE, "-"))
        ax.fill_between(steps, *bootstrap_band(values), color=BLUE, alpha=0.25, lw=0, label="its 95 % bootstrap band")
    curve.axhline(best, color=BLACK, ls="--", label=f"optimum, {best:.1f}")
    curve.axhspan(-300, -150, color=ORANGE, alpha=0.15, lw=0, label="the chapter's “well trained”")
    for key, name, color in (("entropy", "entropy of π", GREEN), ("actor_loss", "actor loss, ≈ −V", BLUE),
                             ("critic_loss", "critic losses, summed (reward²)", PINK), ("alpha", "temperature α", ORANGE)):
        ax = entropy if key == "entropy" else loss
        ax.plot(blocks("step"), blocks(key), color=color, lw=0.9)[0].set_label(name)
    entropy.axhline(agents[0].target_entropy, color=BLACK, ls="--", label=f"target H̄ = {agents[0].target_entropy}")
    explain(curve, f"Learning curve (untrained network: {returns[:, 0].mean():.0f})", None, "mean return", ylim=(-400, -100))
    title = f"Regret: {interquartile_mean(last):.1f} at the end, worst seed {last.max():.1f}"
    explain(regret, title, None, "optimum − mean return", yscale="log", ylim=(1, 2000))
    explain(entropy, "Entropy settles at its target", "environment steps", "nats, for a in (−1, 1)")
    explain(loss, "Losses and α", "environment steps", "units of reward", "lower left", yscale="log", ylim=(1e-3, 1e3))
    return fig


def mean_torque_and_value(agent, obs):
    """Of the learned policy at obs (N, 3): its mean torque in N m, and E_π[Q] of the smaller critic (2, N)."""
    noise, weight = np.polynomial.hermite_e.hermegauss(9)                   # Gauss–Hermite quadrature
    mu, log_std, *_ = agent.policy(obs)
    a = np.tanh(mu + np.exp(log_std) * noise)                               # (N, 9)
    inputs = np.column_stack((np.repeat(obs, 9, axis=0), a.ravel())).astype(agent.dtype)
    Q = agent.critic.forward(inputs)[0][..., 0].min(axis=0).reshape(a.shape)
    return np.stack((2 * a, Q)) @ weight / weight.sum()


def figure_policy_and_Q(options):
    """What seed 0 has learned beside the exact soft-optimal solution at its α; they correlate over all states met (dots: a
    fourth of these). Dashed: states with the energy of standing upright, from which the pendulum coasts to the top.
    The stripes are no error of the grid: the cost has a kink at θ = ±π, passed in steps of 0.05 s."""
    agent, log = trained(options.seeds, options.steps)[0]
    mdp, visited = maxent.pendulum_mdp(gamma=agent.settings.gamma), log["observations"]
    Q, _, pi = maxent.soft_value_iteration(mdp, agent.alpha, mdp.log_base, tol=0.1)
    angle, speed = np.arctan2(visited[:, 1], visited[:, 0]), visited[:, 2]
    grid = observe(*np.meshgrid(mdp.theta, mdp.theta_dot, indexing="ij")).astype(agent.dtype)
    corner, weight = maxent.bilinear(angle, speed, *grid.shape[:2])
    exact, learned = (2 * (pi @ mdp.a), np.sum(pi * Q, axis=1)), mean_torque_and_value(agent, grid.reshape(-1, 3))
    agreement = [np.corrcoef(np.sum(weight * z[corner], axis=1), at_dots)[0, 1]
                 for z, at_dots in zip(exact, mean_torque_and_value(agent, visited))]

    title = f"SAC, seed 0, {options.steps} steps, beside the exact solution at its α = {agent.alpha:.3f}"
    fig, axes = sheet((11, 6.8), title, 2, 3, sharex=True, sharey=True)
    looks = (("mean torque", "torque (N m)", "RdBu"), ("value E_π[Q]", "units of return", "viridis"))
    for row, (name, unit, cmap), y, z, r in zip(axes, looks, learned, exact, agreement):
        limits, span = (z.min(), z.max()), np.quantile(np.abs(y - z), 0.95)
        panels = ((y, f"learned {name}", cmap, limits), (z, f"exact {name}", cmap, limits),
                  (y - z, f"learned − exact (r = {r:.2f} over states met)", "PuOr", (-span, span)))
        for ax, (values, title, colors, clim) in zip(row, panels):
            ax.grid(False)
            image = ax.pcolormesh(mdp.theta, mdp.theta_dot, values.reshape(grid.shape[:2]).T, cmap=colors, clim=clim)
            # ω²/6 = 5(1 − cos θ): the energy of standing upright
            ax.plot(mdp.theta, np.outer(np.sqrt(30 * (1 - np.cos(mdp.theta))), (-1, 1)), color=BLACK, ls="--", lw=1)
            ax.set(title=title, ylim=(-8, 8), xticks=(-3, 0, 3))
            if ax is not row[0]:
                fig.colorbar(image, ax=ax, label=unit)
        row[0].plot(angle[::4], speed[::4], ".", color=BLACK, ms=1, alpha=0.5)
    fig.supxlabel("angle θ (rad), 0 = upright", fontsize=10)
    fig.supylabel("angular velocity (rad/s)", fontsize=10)
    return fig


def best_squashed_gaussian(Q, alpha):
    """μ, log σ and value of the tanh-Gaussian that minimises Eq. 20, α E[log π] − E[Q(a)], Q a function on [−1, 1].
    A search on a grid, refined five times: the actor loss has several minima, and gradients would find only one."""
    noise, unit = np.linspace(-4, 4, 81), np.linspace(-1, 1, 49)
    weight = np.exp(-noise**2 / 2) / np.exp(-noise**2 / 2).sum()
    mu, log_std, width, height = 0.0, -1.5, 3.0, 2.5
    for _ in range(6):
        m, s = np.meshgrid(mu + width * unit, log_std + height * unit)
        a, log_prob = sac_numpy.squashed_gaussian(m[..., None, None], s[..., None, None], noise[:, None])   # (49, 49, 81, 1)
        loss = (alpha * log_prob - Q(a[..., 0])) @ weight
        best = np.unravel_index(loss.argmin(), loss.shape)
        mu, log_std, width, height = m[best], s[best], width / 5, height / 5
    return mu, log_std, loss[best]


def sample_actions(a, Q, dQ_da, alpha, n=5000):
    """Langevin dynamics of n actions at a fixed state: Eq. 1 with V = −Q and kT = α, reflected at the bounds ±1.
    Q, dQ_da: values and slopes on nodes −1 < a < 1 (A,).  A step is 0.45 of the width α/|∂Q/∂a| on which exp(Q/α) changes,
    with the root mean square of ∂Q/∂a under the policy; a rare peak much steeper than that comes out too small.  A time of
    20/kT is enough for valleys of up to four α; a deeper one takes exp(depth/α), as for T = 0.1."""
    nodes, slopes = np.append(a, 2 - a), np.append(dQ_da, -dQ_da)           # beyond a bound its mirror image; period 4
    minus_gradient = lambda x: -np.interp(x, nodes, slopes, period=4)
    rng, dt = np.random.default_rng(0), 0.1 * alpha / (maxent.boltzmann_policy(Q, alpha) @ dQ_da**2)
    x = langevin.simulate(rng.uniform(-1, 1, n), minus_gradient, kT=alpha, dt=dt, n_steps=int(20 / alpha / dt), rng=rng)
    return 1 - np.abs((x + 1) % 4 - 2)                                      # folded back onto [−1, 1]


def states_to_show(agent, a):
    """Of a grid of states that with the deepest valley between two peaks of π in ten bins, and that with the highest single
    peak above bounds and valleys, where the best squashed Gaussian has σ < 0.7: a wider one can have two peaks itself.
    α: a quarter of the range of Q(s, ·): π spans e⁴.  a: 10k + 1 nodes (A,) -> name, θ, velocity, α, Q (A,), μ, log σ."""
    states = [(theta, speed) for theta in np.linspace(-np.pi, np.pi, 61) for speed in np.linspace(-4, 4, 33)]
    inputs = (np.column_stack((np.tile(observe(*state), (a.size, 1)), a)).astype(agent.dtype) for state in states)
    Q = np.array([agent.critic.forward(x)[0][..., 0].min(axis=0) for x in inputs], dtype=float)     # (states, A)
    alphas = np.ptp(Q, axis=1) / 4
    pi = maxent.boltzmann_policy(Q / alphas[:, None], 1.0)
    bins = pi[:, :-1].reshape(len(Q), 10, -1).sum(axis=2)                   # in which a thin peak counts little
    left, right = (np.maximum.accumulate(side, axis=1) for side in (bins, bins[:, ::-1]))           # highest so far
    depth = (np.minimum(left, right[:, ::-1]) - bins).max(axis=1)           # of a valley, below the lower peak beside it
    height = bins.max(axis=1) - np.maximum(bins[:, 0], bins[:, -1])
    for name, size in (("two peaks", depth), ("one peak", height - depth)):
        for i in np.argsort(-size):
            mu, log_std, _ = best_squashed_gaussian(lambda y: np.interp(y, a, Q[i]), alphas[i])
            if log_std < np.log(0.7):
                break
        yield name, *states[i], alphas[i], Q[i], mu, log_std


def figure_action_langevin(options):
    """The bridge: Langevin dynamics of the action, driven by the critic (V = −Q, kT = α), samples the Boltzmann policy.
    Where Q has two peaks so has the policy; a squashed Gaussian with one peak must choose.
    Which states, and which α: see states_to_show. Kinks: the other critic becomes the smaller."""
    agent, _ = trained(options.seeds, options.steps)[0]
    a, panels = np.linspace(-0.9999, 0.9999, 201), []                       # arctanh is finite
    for *state, alpha, Q, mu, log_std in states_to_show(agent, a):
        sampled, _ = np.histogram(sample_actions(a, Q, np.gradient(Q, a), alpha), a[::5], density=True)
        gauss = np.exp(sac_numpy.squashed_gaussian(mu, log_std, (np.arctanh(a[:, None]) - mu) / np.exp(log_std))[1])
        panels.append((*state, alpha, sampled, maxent.boltzmann_policy(Q, alpha) / (a[1] - a[0]), gauss))

    title = f"Langevin driven by a trained critic samples its Boltzmann policy (α chosen; SAC's own is {agent.alpha:.2g})"
    fig, axes = sheet((10, 4.5), title, 1, 2)
    for ax, (name, theta, speed, alpha, sampled, boltzmann, gauss) in zip(axes, panels):
        ax.stairs(sampled, a[::5], fill=True, color=SKY, alpha=0.7, label="Langevin in a: V = −Q, kT = α")
        curves(ax, a, (boltzmann, gauss), ("Boltzmann, Eq. 17", BLACK, "-"), ("best squashed Gaussian, Eq. 20", RED, "--"))
        title, top = f"{name}: θ = {theta:.2f}, angular velocity {speed:.2f}, α = {alpha:.2g}", max(*boltzmann, *gauss)
        explain(ax, title, "action a = torque/2", "probability density", "upper center", xlim=(-1, 1), ylim=(0, 1.5 * top))
    return fig


def overestimation(alphas, n_draws=50_000):
    """What the maximum makes of critics that are only noise, Q = 0 + N(0, 1): rows of mean estimates (5, len(alphas)).
    Hard max of ten; soft max (Eq. 16); that less α log 10; Boltzmann average; the same of the smaller of two critics."""
    Q1, Q2 = np.random.default_rng(0).standard_normal((2, n_draws, 10))
    soft = np.array([maxent.soft_value(Q1, alpha).mean() for alpha in alphas])
    one, smaller = ([(maxent.boltzmann_policy(Q, alpha) * Q).sum(axis=1).mean() for alpha in alphas]
                    for Q in (Q1, np.minimum(Q1, Q2)))
    return np.stack(np.broadcast_arrays(Q1.max(axis=1).mean(), soft, soft - alphas * np.log(10), one, smaller))


def figure_overestimation(options):
    """The soft maximum lies above the hard one; what noise adds is less, and shrinks as α grows (for equal actions).
    The bias with two critics falls too, but through 0 to −1/√π. Theory: E[max of 10 normal numbers] = 1.53875; for
    large α noise adds (1 − 1/10)/2α, to the average twice that."""
    alphas = np.logspace(-1.3, 0.8, 22)
    rows = overestimation(alphas)
    theory = np.full_like(alphas, 1.53875), *np.where(alphas > 1.5, (0.45 / alphas, 0.9 / alphas), np.nan)

    fig, ax = sheet((9, 5), "The soft max lies above the hard one, though noise adds less to it; two critics overestimate less")
    curves(ax, alphas, [*rows, 0 * alphas, *theory], ("hard max", ORANGE, "-"), ("soft max, Eq. 16", RED, "-"),
           ("soft max minus its noise-free value α log 10", GREEN, "--"), ("Boltzmann average Σ π Q", PINK, "-."),
           ("Boltzmann average of the smaller of two critics", BLUE, "-"), ("truth", BLACK, "-"),
           ("theory: 1.54; for large α 0.45/α and 0.9/α", BLACK, ":"), (None, BLACK, ":"), (None, BLACK, ":"))
    explain(ax, "ten actions of value 0, noise N(0, 1)", "temperature α", "mean estimate", xscale="log", ylim=(-0.6, 4))
    return fig


def figure_pendulum_swingup(options):
    """The trained agent swings up from hanging at rest; beside it, its path over the learned value. Arrow: torque.
    It cannot lift the rod at once: the limit is 2 N m, gravity at the horizontal 5 N m. It pumps energy first."""
    agent, _ = trained(options.seeds, options.steps)[0]
    theta, theta_dot, torque, _ = roll_out(agent, np.array([np.pi]), np.zeros(1), 120)[::2, :, 0].T
    wrapped = (theta + np.pi) % (2 * np.pi) - np.pi
    grid = np.meshgrid(np.linspace(-np.pi, np.pi, 121), np.linspace(-8, 8, 121))
    _, Q = mean_torque_and_value(agent, observe(*grid).reshape(-1, 3).astype(agent.dtype))

    fig = Figure(figsize=(8, 3.8))                                          # fixed places: no layout for every frame
    left, right = fig.add_axes((0.01, 0.02, 0.42, 0.88)), fig.add_axes((0.51, 0.14, 0.46, 0.76))
    left.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal", xticks=(), yticks=(), frame_on=False)
    right.contourf(*grid, Q.reshape(121, 121), levels=12, cmap="viridis")
    right.set(title="its path over the learned value", xlabel="angle θ (rad), 0 = upright", ylabel="velocity (rad/s)")
    rod, = left.plot([], [], "o-", color=BLUE, lw=8, ms=4, mfc=BLACK, mec=BLACK, markevery=[0], solid_capstyle="round")
    arrow, = left.plot([], [], color=RED, lw=3, ms=12, markevery=[-1])
    trail, = right.plot([], [], ".", color="white", ms=4)
    here, = right.plot([], [], "o", color=RED, ms=9, mec="white", clip_on=False)

    def draw(k):
        """Frame k, at 0.1 k seconds."""
        bend = np.pi / 2 + np.linspace(0, torque[k], 20)                    # anticlockwise, like θ in Gymnasium
        rod.set_data([0, -np.sin(theta[k])], [0, np.cos(theta[k])])
        arrow.set_data(0.45 * np.cos(bend), 0.45 * np.sin(bend))
        arrow.set_marker((3, 0, np.degrees(bend[-1]) + 180 * (torque[k] < 0)))
        trail.set_data(wrapped[:k + 1], theta_dot[:k + 1])
        here.set_data(wrapped[k:k + 1], theta_dot[k:k + 1])
        left.set_title(f"t = {0.1 * k:.1f} s   torque {torque[k]:+.1f} N m")
    return FuncAnimation(fig, draw, frames=len(theta))


FIGURES = {name.removeprefix("figure_"): value for name, value in list(globals().items()) if name.startswith("figure_")}


def save(figure, path):
    """Write a Figure as .png or an animation as .gif, whole or not at all -> the path with its suffix."""
    path = path.with_suffix(".gif" if isinstance(figure, FuncAnimation) else ".png")
    part = path.with_name("part-" + path.name)
    try:
        figure.savefig(part) if path.suffix == ".png" else figure.save(part, writer=PillowWriter(fps=20), dpi=80)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def main():
    """The command line -> exit status: None, 2 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description="Make the figures: all of them, or those named.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(FIGURES)}")
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds to train (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of each seed (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "plots", help="default: %(default)s")
    options, least = parser.parse_args(), sac_numpy.Settings().warmup + 1
    try:
        if unknown := [name for name in options.names if name not in FIGURES]:
            raise ValueError(f"unknown figure {unknown[0]!r}; accepted: {', '.join(FIGURES)}")
        if options.seeds < 1 or options.steps < least:
            raise ValueError(f"--seeds must be at least 1 and --steps {least}, got {options.seeds} and {options.steps}")
        options.out.mkdir(parents=True, exist_ok=True)
        if not os.access(options.out, os.W_OK):
            raise OSError(f"cannot write to {options.out}")
        for name in options.names or FIGURES:
            with rc_context(STYLE):
                print(save(FIGURES[name](options), options.out / name), flush=True)
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted; the figures named above are complete", file=sys.stderr)
        return 130
    except Exception as error:                                              # one line, whatever a worker raises
        print(f"{parser.prog}: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
