"""The chapter's claims as tests: `pytest test_all.py`.  Part 1 goes with the chapter, in its order; part 2 is the rest.

A test's name is a claim; C1 … C19 and Eq. 1 … 25 are the README's numbers. What is expected comes from an identity, a closed
form, an independent slow computation or finite differences. Statistical bounds are four standard errors, with fixed seeds.
"""
import inspect
import itertools
import math
import multiprocessing
import pickle
import pkgutil
import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

import sac_numpy as S                                                       # first: it sets the number of BLAS threads
import figures as F
import gymnasium as gym
import langevin as L
import maxent as M
import numpy as np
import pytest

HERE, RNG = Path(__file__).parent, np.random.default_rng
near = lambda x, y, tol: np.abs(np.subtract(x, y)).max() <= tol
gaussian = lambda x, mean, variance: np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

def off(samples, mean):                                                     # by how many standard errors of their mean
    return abs(samples.mean() - mean) / samples.std() * np.sqrt(samples.size)

def chi_square(samples, p, grid):                                           # over 30 likely bins; 0 ± 1 if p is right
    cdf, dx = np.cumsum(p) / p.sum(), grid[1] - grid[0]
    cut = np.unique(np.searchsorted(cdf, np.arange(1, 30) / 30))
    expected = np.diff(cdf[cut], prepend=0, append=1) * samples.size
    counts = np.bincount(np.searchsorted(grid[cut] + dx / 2, samples), minlength=cut.size + 1)
    return (((counts - expected) ** 2 / expected).sum() - cut.size) / np.sqrt(2 * cut.size)


# === Part 1: the chapter, in its order ===============================================================================

# --- Langevin dynamics, Boltzmann, Fokker–Planck ---------------------------------------------------------------------

KT, GAMMA, K, DT = 0.5, 1.5, 3.0, 0.3                                       # a large DT on purpose: K·DT/GAMMA = 0.6
D, BATH, FORCE = KT / GAMMA, dict(kT=KT, gamma=GAMMA), dict(grad_V=L.double_well_gradient, V=L.double_well)
GRID, DX = np.linspace(-2.5, 2.5, 201, retstep=True)
WELL, START = L.double_well(GRID), gaussian(GRID, 1, 0.15**2)
REST = np.exp(-WELL / KT) / np.exp(-WELL / KT).sum() / DX                   # Eq. 2 by hand

def modes(V, dx, kT, p0, times):                                            # rates λ, and p(t) = Σ e^{−λt} (u, p0) u
    G, root = L.fokker_planck_generator(V, dx, kT), np.sqrt(L.boltzmann_density(V, dx, kT))
    rates, U = np.linalg.eigh(-G * root / root[:, None])                    # −G made symmetric: G_ij root_j / root_i
    return rates, np.exp(-rates * np.array(times)[:, None]) * (p0 / root @ U) @ U.T * root

@pytest.mark.parametrize("method, k, theory", [
    ("euler_maruyama", 0, 2 * D * DT * 40), ("euler_maruyama", K, KT / K / (1 - K * DT / (2 * GAMMA))),
    ("leimkuhler_matthews", 0, 2 * D * DT * 39.5), ("leimkuhler_matthews", K, KT / K),
    ("mala", 0, 2 * D * DT * 40), ("mala", K, KT / K),
    ("leimkuhler_matthews", GAMMA * K, KT / GAMMA / K)])                    # the chapter's drift −V' = −(γV')/γ: kT/γ
def test_variance_is_2Dt_when_free_and_kT_over_k_in_a_spring_but_for_the_textbook_step_or_drift(method, k, theory):
    """D = kT/γ; Euler–Maruyama rests at (kT/k)/(1 − k dt/2γ); the second method's first and last noise count half."""
    spring = dict(grad_V=lambda x: k * x, V=lambda x: k * x * x / 2, method=method)
    x = L.simulate(np.zeros(80_000), dt=DT, n_steps=40, rng=RNG(1), **BATH, **spring)
    assert off(x, 0) < 4 and off(x * x, theory) < 4

def test_metropolis_step_is_in_detailed_balance():
    """p(x) q(y|x) min(1, r) is symmetric; with r = p(y)/p(x) alone it is not."""
    V, dV, (x, y) = L.double_well, L.double_well_gradient, RNG(2).uniform(-1.5, 1.5, (2, 1000))
    flow = lambda x, y, log_r: np.exp(np.minimum(0, log_r) - V(x) / KT) * gaussian(y, x - dV(x) / GAMMA * 0.1, 2 * D * 0.1)
    forth, back = (L.mala_log_ratio(*pair, V, dV, KT, 0.1, GAMMA) for pair in ((x, y), (y, x)))
    assert np.allclose(flow(x, y, forth), flow(y, x, back), rtol=1e-9, atol=0) and 0.1 < (forth > 0).mean() < 0.9
    assert not np.allclose(flow(x, y, (V(x) - V(y)) / KT), flow(y, x, (V(y) - V(x)) / KT), rtol=0.1, atol=0)

def test_one_cold_trajectory_is_trapped_in_its_well_while_an_ensemble_from_a_symmetric_start_matches_boltzmann():
    """C1, on the histograms of the figure: a run that fills one of two wells as Boltzmann says is ½ away from Boltzmann."""
    for ax, kT in zip(F.figure_langevin_dynamics_temperature_controls(None).axes, (0.1, 0.5, 1.0, 2.0)):
        p, (many, one) = ax.lines[0].get_ydata(), (patch.get_data().values for patch in ax.patches)
        assert near(p, L.boltzmann_density(F.V, F.DX, kT), 1e-9)
        assert chi_square(np.repeat(F.X, np.round(many * F.DX * 20_000).astype(int)), p, F.X) < 4
        away = np.abs(one - p).sum() * F.DX / 2                             # total variation: ½ or more if a well is empty
        assert (abs(away - 0.5) < 0.01 and one[F.X < 0].max() == 0) if kT == 0.1 else away < 0.25
        labels = [text.get_text() for text in ax.get_legend().get_texts()[:2]]
        assert labels == [f"ensemble: error {np.abs(many - p).sum() * F.DX / 2:.2f}", f"one run: error {away:.2f}"]
        assert ax.get_title() == f"T = {kT:g}"
    cold = L.simulate(np.ones(2000), kT=0.1, dt=0.01, n_steps=400, rng=RNG(5), **FORCE)
    assert chi_square(cold, L.boltzmann_density(WELL, DX, 0.1), GRID) > 100, "a one-sided start does not match"

def test_boltzmann_density_is_gaussian_in_a_spring_and_blind_to_a_shift_of_V():
    """Eq. 2, also where exp(−V/kT) would overflow, or all weight lies on two nodes."""
    assert near(L.boltzmann_density(1e7 * WELL, DX, 1e-3), np.isclose(WELL, 0) / (2 * DX), 1e-9)
    assert np.allclose(L.boltzmann_density(K * GRID**2 / 2 - 1e4, DX, 0.3), gaussian(GRID, 0, 0.3 / K), rtol=1e-9, atol=0)

def test_entropy_rises_with_temperature_while_the_mean_square_position_falls_and_rises():
    """C2; that dH/dT = Var(V)/T³ is shown with Eq. 17."""
    p = np.array([L.boltzmann_density(WELL, DX, kT) * DX for kT in (0.1, 0.25, 0.5, 1.0, 2.0)])
    assert (np.diff(M.entropy(p)) > 0).all() and [*np.sign(np.diff(p @ GRID**2))] == [-1, -1, -1, 1]

@pytest.mark.parametrize("n", [2, 21, 201])
def test_generator_keeps_mass_and_sign_and_rests_exactly_at_boltzmann_on_every_grid(n):
    """Eq. 3: up/down = exp(−ΔV/kT) and velocity (up − down) dx = −(ΔV/dx)/γ fix all rates but that on a flat, D/dx²."""
    x, dx = np.linspace(-2.5, 2.5, n, retstep=True)
    V = L.double_well(x) + x / 4
    G, p, flat = L.fokker_planck_generator(V, dx, **BATH), L.boltzmann_density(V, dx, KT), D / 200**2
    up, down, largest = G.diagonal(-1), G.diagonal(1), np.abs(G).max()
    assert np.array_equal(G, np.diag(up, -1) + np.diag(down, 1) + np.diag(G.diagonal())) and min(*up, *down) > 0
    assert np.abs(G.sum(axis=0)).max() < 1e-12 * largest and np.abs(G @ p).max() < 1e-12 * largest * p.max()
    assert np.allclose(up * p[:-1], down * p[1:], atol=0) and np.allclose((up - down) * dx, -np.diff(V) / dx / GAMMA)
    assert np.allclose(L.fokker_planck_generator([1.0, 1.0], np.uint8(200), **BATH), [[-flat, flat], [flat, -flat]])

def test_evolution_is_the_sum_over_modes_and_keeps_mass_and_sign_also_where_that_sum_fails():
    """γ only rescales time.  At kT = 0.05 Boltzmann is 1e-240 at x = 2.5, and a hop takes 5e8."""
    times = np.array([0.0, 0.01, 0.3, 2.0, 30.0])
    assert near(L.fokker_planck_evolve(START, WELL, DX, KT, GAMMA * times, GAMMA), modes(WELL, DX, KT, START, times)[1], 1e-10)
    edge, one_well = (GRID == GRID[-1]) / DX, 2 * L.boltzmann_density(WELL, DX, 0.05) * (GRID > 0)
    cold = L.fokker_planck_evolve(edge, WELL, DX, 0.05, [*np.linspace(0, 1e-3, 51), 1e3])
    assert cold.min() >= 0 and near(cold.sum(axis=1) * DX, 1, 1e-12) and near(cold[-1], one_well, 1e-3)
    assert modes(WELL, DX, 0.05, edge, [0.1])[1].min() < -1, "negative control: the sum over modes was right"

def test_free_energy_never_rises_and_exceeds_its_minimum_by_kT_times_the_divergence_from_boltzmann():
    """F[p] − F* = kT KL(p ‖ Eq. 2) with F* = −kT log Z, and 0 log 0 = 0."""
    p = L.fokker_planck_evolve(START, WELL, DX, KT, np.geomspace(1e-3, 15, 16))
    free, rest = np.array([L.free_energy(q, WELL, DX, KT) for q in p]), -KT * np.log(np.exp(-WELL / KT).sum() * DX)
    assert (np.diff(free) < 0).all() and np.allclose(free - rest, KT * np.sum(p * np.log(p / REST), axis=1) * DX, rtol=1e-9)
    assert np.isclose(L.free_energy([0.0, 4.0, 0.0], [1.0, 3.0, 2.0], 0.25, 2.0), 3 + 2 * np.log(4))

def test_a_langevin_ensemble_follows_the_fokker_planck_density():
    """Eq. 1 and Eq. 3 are one process: χ² at three times before rest.  Records are where shorter runs end."""
    x0, well = RNG(9).normal(1, 0.15, 20_000), dict(dt=0.01, **BATH, **FORCE)
    x = L.simulate(x0, n_steps=625, record_every=np.uint8(50), rng=RNG(10), **well)
    for samples, p in zip(x[[0, 3, 11]], L.fokker_planck_evolve(START, WELL, DX, KT, (0.5, 2, 6), GAMMA)):
        assert chi_square(samples, p, GRID) < 4 and chi_square(samples, REST, GRID) > 100
    assert len(x) == 12 and np.array_equal(x[1], L.simulate(x0, n_steps=100, rng=RNG(10), **well))

@pytest.mark.parametrize("f", [0.0, 0.8])
def test_a_driven_ring_is_stationary_without_being_boltzmann(f):
    """Negative control of "∂p/∂t = 0 yields Boltzmann": it needs zero current; a force f round a ring drives one."""
    theta, d = np.linspace(0, 2 * np.pi, 121, retstep=True)
    fold = np.eye(120)[:, np.arange(121) % 120]                             # the last node is the first
    G = fold @ L.fokker_planck_generator(-np.cos(theta) - f * theta, d, **BATH) @ fold.T
    p = np.linalg.solve(G + 1, np.ones(120)) / d                            # (G + ones) p d = 1, from G p = 0 and sum(p) d = 1
    J, away = G.diagonal(-1) * p[:-1] - G.diagonal(1) * p[1:], p - L.boltzmann_density(-np.cos(theta[:-1]), d, KT)
    assert np.abs(G @ p).sum() < 1e-9, "not stationary: this sum bounds how much J differs along the ring"
    assert (np.abs(away).sum() * d > 0.2 and J.min() > 0.01) if f else np.abs([*away, *J]).max() < 1e-9

def test_first_passage_times_add_up_and_see_heavy_tails_and_far_wells_but_nothing_behind_a_wall():
    """From a to c past b takes a to b and b to c; at kT = 0.02, exp(V(−3)/kT) is e^{3200}."""
    tau = lambda V, a=0.0, b=1.0, kT=1.0: L.mean_first_passage_time(V, a, b, kT)
    tail = lambda x: (0.8 * np.log(1 + x * x) - 40 * np.exp(-x * x)) / 50   # e^{−V/kT} falls just fast enough
    for V, a, b, c in ((L.double_well, -3, -1, -0.5), (L.double_well, 0.9, 1, 2), (tail, 0, 0.5, 1)):   # at −1 lies half of Z
        assert np.isclose(tau(V, a, b, 0.02) + tau(V, b, c, 0.02), tau(V, a, c, 0.02), rtol=1e-4)
    assert np.isclose(tau(lambda x: np.log(1 + x * x)), np.pi - 1 / 6 - np.log(2) / 3, rtol=1e-6)  # ∫(1 + y²)(arctan y + π/2)
    boxes = lambda x: np.where((x > -120) & (x < 200) | (x < -200) & (x > -900), 0, np.inf)         # the second is never met
    assert np.isclose(tau(boxes, np.int8(-100), np.int8(100)), (220**2 - 20**2) / 2, rtol=1e-4)

def test_kramers_rate_and_spectral_gap_are_those_of_the_first_passage_time_as_temperature_falls():
    """kτ − 1 halves with kT and extrapolates to 0; λ1τ/2 = 1, because hops both ways relax the ensemble."""
    tau = lambda T, gamma=GAMMA: L.mean_first_passage_time(L.double_well, -1, 1, T, gamma)
    excess = [L.kramers_rate(8.0, -4.0, 1.0, T, GAMMA) * tau(T) - 1 for T in (0.04, 0.02, 0.01)]
    assert abs(excess[0] / excess[1] - 2) < 0.1 and abs(2 * excess[2] - excess[1]) < 2e-4
    x, dx = np.linspace(-2, 2, 501, retstep=True)                           # x as a start too: rates do not depend on it
    assert abs(modes(L.double_well(x), dx, 0.1, x, [0])[0][1] * tau(0.1, gamma=1.0) / 2 - 1) < 1e-3

def test_simulated_first_passage_needs_the_brownian_bridge():
    """Between x, y < 0 a path has been beyond 0 with probability exp(−xy/D dt); ignored, τ is too long."""
    x, rng, first = np.full(4000, -1.0), RNG(11), np.full((2, 4000), np.inf)            # with the bridge, and without
    for t in np.arange(0.01, 60, 0.02):                                     # middles of steps; before 60 all arrive
        y = L.simulate(x, dt=0.02, n_steps=1, rng=rng, method="euler_maruyama", **BATH, **FORCE)
        beyond = rng.random(4000) < np.exp(np.minimum(0, -x * y) / (D * 0.02))
        first[np.isinf(first) & [beyond, y >= 0]] = t
        x = np.where(y >= 0, x, y)
    tau = L.mean_first_passage_time(L.double_well, -1.0, 0.0, **BATH)
    assert off(first[0], tau) < 4 and first[1].mean() - tau > 4 * first[1].std() / np.sqrt(4000)

def test_onsager_machlup_action_is_minus_log_p_only_with_its_curvature_term_and_turns_by_dV_over_kT_with_time():
    """On 400 paths its error falls like √dt, but stays put without V''/2γ.  In a spring any path is turned exactly."""
    log_p, action = partial(L.path_log_probability, **BATH), partial(L.onsager_machlup_action, **BATH)
    path, well = RNG(0).normal(size=9), L.double_well_gradient
    steps = gaussian(path[1:], path[:-1] - 4 * path[:-1] * (path[:-1] ** 2 - 1) / GAMMA * DT, 2 * D * DT)
    assert np.isclose(log_p(path, DT, well), np.log(steps).sum(), rtol=1e-12)

    def errors(dt, curvature):                                              # of 400 paths up to t = 4
        run = partial(L.simulate, np.full(400, -1.0), well, method="euler_maruyama", rng=RNG(12), **BATH)
        paths = run(dt=dt, n_steps=round(4 / dt), record_every=1).T
        prefactors = (len(paths[0]) - 1) * np.log(4 * np.pi * D * dt) / 2
        return np.abs([action(x, dt, well, curvature) + log_p(x, dt, well) + prefactors for x in paths])

    for curvature, ratio in ((L.double_well_curvature, 2), (np.zeros_like, 1)):
        coarse, fine = errors(0.02, curvature), errors(0.005, curvature)
        spread = np.hypot(coarse.std() / coarse.mean(), fine.std() / fine.mean()) / 20      # 20 = √400
        assert abs(coarse.mean() / fine.mean() / ratio - 1) < 4 * spread
    forth, back = (action(x, DT, lambda x: K * x, np.ones_like) for x in (path, path[::-1]))
    assert np.isclose(forth - back, K * (path[-1] ** 2 - path[0] ** 2) / 2 / KT)

# --- Maximum entropy, maximum caliber, soft Bellman, Boltzmann policy ------------------------------------------------

Q5, BASE5, FACES = np.array([1, 3, 2, 0.5, 2.5]), np.log([0.1, 0.7, 0.3, 0.5, 0.4]), np.arange(1.0, 7)[:, None]
kl = lambda p, q: np.sum(p * (np.log(p) - np.log(q)), axis=-1)
slope = lambda f, x, h: (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h)          # error O(h⁴)
simplex = lambda k, *n: RNG(1).dirichlet(np.ones(k), n)

def random_mdp(gamma=0.9, states=7, actions=3, n=2):                        # n different successors, with random probabilities
    r, shape = RNG(0), (states, actions)
    return M.MDP(r.normal(size=shape), r.random((*shape, states)).argsort(2)[..., :n].astype("u8"), simplex(n, *shape), gamma)

def test_a_die_with_mean_4_5_is_found_in_at_most_8_newton_steps_and_has_the_largest_entropy():
    """Eq. 4, 5 (Jaynes' die); 3.5 is the fair die, 2.5 the mirrored one, and renumbering the faces changes nothing."""
    die = lambda mean: M.max_entropy(FACES, [mean], 0.0, 8)[1]
    p = die(4.5)
    assert near([die(mean) @ FACES - mean for mean in (3, 4.5, 5.5)], 0, 1e-12)
    assert near(die(3.5), 1 / 6, 1e-15) and near(die(2.5), p[::-1], 1e-12)
    assert near(M.max_entropy(1e6 * FACES + 1e9, [1e6 * 4.5 + 1e9], 0.0, 8)[1], p, 1e-8)
    q = p + 0.01 * RNG(0).normal(size=(50, 4)) @ np.diff(np.eye(6), 2, axis=0)      # (1, −2, 1) on neighbours keeps the mean
    assert near(M.entropy(p) - M.entropy(q), kl(q, p), 1e-14) and kl(q, p).min() > 0, "so log p is linear in the faces: Eq. 5"

def test_multipliers_of_a_gaussian_and_the_derivatives_of_log_Z_are_the_known_ones():
    """Eq. 5: λ = (−μ/σ², 1/2σ²); ∂log Z = −E[f], ∂²log Z = Cov[f]."""
    x, var = np.arange(-1200, 1201) / 100, 0.3
    found = [M.max_entropy(np.c_[x, x * x], [mu, var + mu**2], np.log(0.01))[0] * var for mu in (-7, 0)]
    assert near(found, [[7, 0.5], [0, 0.5]], 1e-8)
    f, lam = RNG(0).normal(size=(6, 2)), np.array([0.3, -0.8])
    law = lambda lam: M.boltzmann_policy(-f @ lam, 1.0)
    gradient = lambda g: [slope(lambda x: g(lam + x * axis), 0.0, 1e-3) for axis in np.eye(2)]
    assert near(gradient(lambda lam: M.soft_value(-f @ lam, 1.0)), -law(lam) @ f, 1e-10), "∂log Z = −E[f]"
    assert near(gradient(lambda lam: -law(lam) @ f), np.cov(f.T, aweights=law(lam), ddof=0), 1e-8), "−∂E[f] = ∂²log Z = Cov[f]"
    assert near(M.max_entropy(f, law(lam) @ f)[0], lam, 1e-10)

def soft_paths(mdp, alphas):                                                # backward induction, Eq. 14, 16, 17; P is Π p π
    paths, returns, log_p = M.enumerate_paths(mdp, 0, len(alphas))
    V, P = np.zeros(len(mdp.reward)), np.exp(log_p)
    for t in reversed(range(len(alphas))):
        Q = M.soft_backup(mdp, V)
        V, P = M.soft_value(Q, alphas[t]), P * M.boltzmann_policy(Q, alphas[t])[paths[:, 2 * t], paths[:, 2 * t + 1]]
    return returns, log_p, P, V[0]

@pytest.mark.parametrize("successors, gamma", ((1, 1.0), (1, 0.9), (2, 1.0), (2, 0.9)))
def test_maximum_caliber_is_soft_optimal_control_only_if_deterministic_and_undiscounted(successors, gamma):
    """C4, Eq. 6–8: otherwise P ∝ Πp exp(R/α) is not π's law: α log Z − J(π) = α KL > 0; α/γ^t undoes discounting."""
    mdp, alpha = random_mdp(gamma, 4, 2, successors), 0.7
    returns, log_p, soft, V = soft_paths(mdp, [alpha] * 4)
    found, _, P = M.max_caliber(mdp, 0, 4, M.boltzmann_policy(returns, alpha, log_p) @ returns)
    J, TV = M.regularised_value(soft, returns, alpha, log_p), np.abs(soft - P).sum() / 2
    assert near(found, alpha, 1e-9) and near(M.soft_value(returns, alpha, log_p) - J, alpha * kl(soft, P), 1e-12)
    assert near(soft, P, 1e-12) if successors == gamma == 1 else TV > 0.01
    assert near(V, J, 1e-12) == (gamma == 1), "V discounts the entropy, J does not"
    assert successors > 1 or near(soft_paths(mdp, alpha / gamma**np.arange(4))[2], P, 1e-12)

def test_the_multiplier_changes_sign_at_the_mean_return_of_uniform_actions():
    """Eq. 7: below it α is negative. Eq. 8 as the chapter writes it has λ = 1 and one mean, whatever is asked for."""
    R = M.enumerate_paths(mdp := random_mdp(1.0, 4, 2, 1), 0, 4)[1]
    for shift in (-0.5, -1e-3, 0.0, 1e-3, 0.5):
        alpha, _, P = M.max_caliber(mdp, 0, 4, R.mean() + shift)
        assert np.sign(alpha) == np.sign(shift) if shift else abs(alpha) > 1e12
        assert near(P @ R, R.mean() + shift, 1e-12) and not near(M.boltzmann_policy(R, 1.0) @ R, P @ R, 0.1)

def test_three_readings_of_maximum_caliber_differ_in_a_stochastic_world():
    """C4, Eq. 8: safe pays 1, risky 4 with chance 0.1; only the causal reading keeps that chance, P = 1/(1 + exp(1 − 0.4))."""
    generator, e1, e4 = RNG(1), *np.exp((1, 4))
    expected = [((e4 + 1) / (e4 + 1 + e1), e4 / (e4 + 1)),                  # P(risky), P(win | risky): three paths alike,
                ((0.1 * e4 + 0.9) / (0.1 * e4 + 0.9 + e1), 0.1 * e4 / (0.1 * e4 + 0.9)),        # as likely as they are,
                (1 / (1 + np.exp(0.6)), 0.1)]                               # and causal
    assert near(F.three_calibers(1.0), expected, 1e-12)
    for exact, odds in zip(expected, ((2 / 3, 1 / 2), (1 / 2, 0.1))):       # of the kept games at least 40 000 are risky
        assert near(F.lucky(1.0, *odds, generator, 10**6), exact, 4 * np.sqrt(0.25 / 40_000))
    for ax, exact in zip(F.figure_three_calibers(None).axes, np.transpose(expected)):
        *curves, uniform, dynamics = (np.interp(1.0, *line.get_data()) for line in ax.lines)    # dots: at least 2000 kept
        assert near(curves, exact, 1e-3) and near((uniform, dynamics), exact[:2], 4 * np.sqrt(0.25 / 2000))

def test_return_and_soft_value_are_sums_over_time_and_the_entropy_is_the_slope_of_the_optimum_in_alpha():
    """Eq. 9–12: F = −V = −R − αH with R and H discounted sums, here step by step; dV*/dα = H as for any free energy."""
    mdp, pi = random_mdp(), simplex(3, 7)
    P = np.einsum("sa,sak,sakz->sz", pi, mdp.probability, np.eye(7)[mdp.successor])
    visits = sum(np.linalg.matrix_power(0.9 * P, t) for t in range(400))    # Σ γ^t P^t; 0.9^400 is 5e-19
    R, H = visits @ np.sum(pi * mdp.reward, axis=1), -visits @ np.sum(pi * np.log(pi), axis=1)
    assert near((*M.return_and_entropy(mdp, pi), M.soft_policy_evaluation(mdp, pi, 0.3)), (R, H, R + 0.3 * H), 1e-12)
    V = lambda alpha: M.soft_value_iteration(mdp, alpha, tol=1e-12)[1]
    assert near(slope(V, 0.5, 1e-2), M.return_and_entropy(mdp, M.soft_value_iteration(mdp, 0.5)[2])[1], 1e-6)

@pytest.mark.parametrize("alpha", (0.0, 0.5, np.uint8(3)))
def test_policy_flow_solves_its_equation_lowers_the_free_energy_and_ends_at_the_boltzmann_policy(alpha):
    """Eq. 13, Fisher–Rao: ∂π/∂t = π (G − E_π[G]), G = Q − α log π."""
    flow, times = partial(M.policy_flow, simplex(5), Q5, alpha), np.linspace(0.1, 2, 20)
    gain = Q5 - alpha * np.log(pi := flow(times))
    assert near(slope(flow, times, 1e-3), pi * (gain - np.sum(pi * gain, axis=1, keepdims=True)), 1e-10)
    assert near(flow([0, 1e3]), (simplex(5), M.boltzmann_policy(Q5, alpha)), 1e-12)
    assert (np.diff(M.regularised_value(flow([0, *times]), Q5, alpha)) > 0).all(), "F must fall"

def test_langevin_noise_on_the_logits_does_not_sample_the_boltzmann_policy_and_without_noise_they_reach_it():
    """C5, negative control: dθ = −∇F dt + √(2kT) dW draws policies, and not even their mean is π*."""
    theta, noise, kT = np.zeros((2, 2000, 5)), RNG(0), np.array((0, 0.3))[:, None, None]
    for _ in range(200):                                                    # dt = 1/2
        gain = Q5 - np.log(pi := M.boltzmann_policy(theta, 1.0))
        force = pi * (gain - np.sum(pi * gain, axis=-1, keepdims=True))
        theta = theta + 0.5 * force + np.sqrt(2 * kT * 0.5) * noise.normal(size=theta.shape)
    quiet, noisy = np.abs(pi.mean(1) - M.boltzmann_policy(Q5, 1.0)).sum(1) / 2
    assert quiet < 1e-3 and noisy > 4 * pi[1].std(0).sum() / 2 / np.sqrt(2000) + 0.05

@pytest.mark.parametrize("alpha, log_base", [(x, base) for x in (0.1, 0.5, 1.0, 2.0, 5.0) for base in (0.0, BASE5)])
def test_boltzmann_policy_is_the_unique_solution_and_its_entropy_rises_with_temperature(alpha, log_base):
    """Eq. 15–17, 24, C6, C9: α KL(π‖π*) = V − (E_π[Q] + α H(π)) for every π; C2: dH/dα = Var/α³, dE[Q]/dα = −Var/α²."""
    policy = lambda alpha: M.boltzmann_policy(Q5, alpha, log_base)
    value = lambda pi: M.regularised_value(pi, Q5, alpha, log_base)
    V, best, pi = M.soft_value(Q5, alpha, log_base), policy(alpha), simplex(5, 1000)
    assert near(V - value(pi), alpha * kl(pi, best), 1e-12) and kl(pi, best).min() > 0
    assert near((value(best), alpha * np.log(np.sum(np.exp(Q5 / alpha + log_base)))), V, 1e-12), "Eq. 15 = Eq. 16 at π*"
    H_and_Q = lambda alpha: np.array((M.entropy(policy(alpha), log_base), policy(alpha) @ Q5))
    var = best @ (Q5 - best @ Q5) ** 2
    assert near(slope(H_and_Q, alpha, 1e-3 * alpha), (var / alpha**3, -var / alpha**2), 1e-8)

def test_alpha_to_zero_is_deterministic_up_to_ties_alpha_to_infinity_uniform_and_nothing_overflows():
    """C3: ties share, by their measure if there is one; for large α, π → 1/n and V − α log n → the mean of Q."""
    for alpha, w in itertools.product((0, 1e-3), (1, 3)):
        assert near(M.boltzmann_policy([1, 3, 3], alpha, np.log([1, 1, w])), (0, 1 / (1 + w), w / (1 + w)), 1e-12)
        assert near(M.soft_value([1, 3, 3], alpha, np.log([1, 1, w])), 3 + alpha * np.log(1 + w), 1e-12)
    assert near(M.boltzmann_policy(Q5, 1e3), (1 + (Q5 - Q5.mean()) / 1e3) / 5, (np.ptp(Q5) / 1e3) ** 2)
    assert near(M.soft_value(Q5, 1e3) - 1e3 * np.log(5), Q5.mean() + Q5.var() / 2e3, np.ptp(Q5) ** 3 / 1e6)
    for alpha, level in ((1e-8, -1e6), (1e-8, 1e6), (1.0, 1e6)):
        Q = level + alpha * np.log([[1.0, 2.0, 5.0], [9.0, 1.0, 1.0]])
        weights = np.exp((Q - level) / alpha)                               # what rounding has left of 1, 2, 5
        assert near(M.boltzmann_policy(Q, alpha), weights / weights.sum(1, keepdims=True), 1e-13)
        assert near(M.soft_value(Q, alpha), level + alpha * np.log(weights.sum(1)), 4e-16 * abs(level) + 1e-14 * alpha)

def test_log_sum_exp_of_a_continuous_action_can_lie_below_the_maximum_and_of_counted_actions_never():
    """Eq. 16 of Q = −8a² on [−1, 1] is (α/2) log(πα/8) (Laplace) + α log erf √(8/α), < 0 = max Q for small α."""
    Q = -8 * np.arange(-1 + 5e-5, 1, 1e-4) ** 2
    for alpha, below in ((5.0, False), (1.0, True), (0.1, True), (0.01, True)):
        V, laplace = M.soft_value(Q, alpha, np.log(1e-4)), alpha / 2 * np.log(np.pi * alpha / 8)
        assert near(V - laplace, alpha * np.log(math.erf(np.sqrt(8 / alpha))), 1e-7)
        assert (V < 0) == below and M.soft_value(Q, alpha) > Q.max(), "an integral over a; a sum over counted actions"

def test_canonical_ensemble_is_the_minimum_of_Eq_25_whose_maximum_is_the_highest_energy():
    """Eq. 25: E_p[E] − H(p)/β exceeds −log Z/β by KL(p‖Boltzmann)/β; what the chapter's max picks is δ(highest E)."""
    energy, p, law = np.array([0, 1, 2.5]), simplex(3, 1000), np.exp(-1.3 * np.array([0, 1, 2.5]))
    free, at_vertices = (M.canonical_free_energy(q, energy, 1.3) for q in (p, np.eye(3)))
    assert near(free + np.log(law.sum()) / 1.3, kl(p, law / law.sum()) / 1.3, 1e-13)
    assert near(at_vertices, energy, 0) and free.max() < energy.max()

@pytest.mark.parametrize("alpha, gamma", ((0.5, 0.0), (10.0, 0.9), (0.01, 0.9), (0.05, 0.99)))
def test_soft_backup_contracts_by_gamma_and_policy_improvement_and_value_iteration_end_at_the_optimum(alpha, gamma):
    """Eq. 14–17, C13: Q − α log π* = V for all actions (no noise in a target); V_0 ≤ V_α ≤ V_0 + α log|A|/(1 − γ)."""
    mdp, pi, values = random_mdp(gamma), simplex(3, 7), []
    bound = alpha * np.log(3) / (1 - gamma)
    Q, V, opt = M.soft_value_iteration(mdp, alpha)
    T = lambda V: M.soft_value(M.soft_backup(mdp, V), alpha)
    for A, B in RNG(0).normal(size=(100, 2, 7)):
        assert near(T(A), T(B), gamma * np.abs(A - B).max() + 1e-12) and near(T(A + 5), T(A) + 5 * gamma, 1e-12)
    for _ in range(20):
        values.append(M.soft_policy_evaluation(mdp, pi, alpha))
        pi = M.boltzmann_policy(M.soft_backup(mdp, values[-1]), alpha)
    assert np.diff(values, axis=0).min() > -1e-11 and near(values[-1], V, 2e-9), "improvement must be monotone"
    assert near(Q, mdp.reward + gamma * np.sum(mdp.probability * V[mdp.successor], axis=2), 1e-9)
    assert near(Q - alpha * np.log(opt), V[:, None], 1e-9) and near(M.soft_policy_evaluation(mdp, opt, alpha), V, 2e-9)
    more = V - M.soft_value_iteration(mdp, 0)[1]
    assert -2e-9 < more.min() and more.max() < bound
    flat = replace(mdp, reward=np.ones((7, 3)))                             # here the bound is attained
    assert near(M.soft_value_iteration(flat, alpha)[1], 1 / (1 - gamma) + bound, 2e-9)

def test_a_soft_policy_is_robust_against_one_set_of_reward_changes_and_not_against_another():
    """C8: E_π[r] + α H(π) − ε is the worst E_π[r'] over all r' with α log Σ exp((r − r')/α) ≤ ε (Eysenbach & Levine 2022)."""
    alpha, epsilon, pi = 0.7, 1.3, M.boltzmann_policy(Q5, 0.7)              # r = Q5
    worst = Q5 - alpha * np.log(pi) - epsilon
    assert near(M.soft_value(Q5 - worst, alpha), epsilon, 1e-12), "it lies on the edge of the set"
    assert near(pi @ worst, M.regularised_value(pi, Q5, alpha) - epsilon, 1e-12)
    change = RNG(0).normal(0, 2, (5000, 5))
    change += (epsilon - M.soft_value(change, alpha))[:, None]              # other r − r' on the edge
    assert (pi @ (Q5 - change).T >= pi @ worst - 1e-12).all()
    in_box = lambda pi: min(pi @ (Q5 + change) for change in itertools.product((-0.1, 0.1), repeat=5))
    assert max(map(in_box, (pi, *simplex(5, 1000)))) < in_box(Q5 == Q5.max()), "against |r − r'| ≤ 0.1 greedy stays best"

def test_only_the_ratio_of_reward_and_temperature_counts():
    """C19: (c r, c α) has the policy of (r, α) and c times its value.  That α is the price of entropy: see Eq. 9–12."""
    mdp = random_mdp()
    (_, V, pi), (_, V_c, pi_c) = (M.soft_value_iteration(replace(mdp, reward=c * mdp.reward), 0.5 * c) for c in (1, 3.7))
    assert near(pi_c, pi, 1e-8) and near(V_c, 3.7 * V, 1e-7)

def test_a_flat_loss_of_zero_does_not_mean_convergence():
    """C13: for a target network that is still 0, r + γ α log 3 has the loss 0 and is wrong; the exact Q has γ² Var V(s')."""
    mdp = random_mdp()
    y = lambda V: mdp.reward[..., None] + mdp.gamma * V[mdp.successor]      # Eq. 19, for both successors
    loss = lambda Q, V: np.sum(mdp.probability * (Q[..., None] - y(V)) ** 2, axis=-1)
    (Q, V, _), wrong = M.soft_value_iteration(mdp, 0.5), mdp.reward + 0.9 * 0.5 * np.log(3)
    assert near(loss(wrong, M.soft_value(np.zeros((7, 3)), 0.5)), 0, 1e-28) and np.abs(wrong - Q).max() > 1
    noise = 0.9**2 * mdp.probability.prod(-1) * np.ptp(V[mdp.successor], axis=-1) ** 2      # γ² p (1 − p) (V_1 − V_2)²
    assert near(loss(Q, V), noise, 1e-8) and noise.min() > 0

def test_the_soft_maximum_overestimates_more_than_the_hard_one_and_the_minimum_of_two_critics_less_than_half():
    """C7, ten actions of value 0 seen through noise N(0, 1): E[LSE_α] > E[max], and only less α log 10 it falls with α.
    C10: so does E_π[Q̂], π ∝ exp(Q̂/α), and for the smaller of two critics it is below half of that, for large α below 0."""
    alphas, n = np.array((0.1, 0.5, 1.0, 2.0, 10**0.8)), 200_000
    Q, other = RNG(1).normal(size=(2, n, 10))
    Q -= Q.mean()                                                           # of mean 0 exactly: all means err less
    hard, soft = Q.max(axis=1).mean(), np.array([alpha * np.log(np.exp(Q / alpha).sum(axis=1)).mean() for alpha in alphas])
    average = lambda Q: np.array([np.average(Q, 1, np.exp(Q / alpha)).mean() for alpha in alphas])
    less, one, smaller = soft - alphas * np.log(10), average(Q), average(np.minimum(Q, other))
    error = 4 / np.sqrt(n)                                                  # no standard deviation is above 0.7 = 1/√2
    assert near(F.overestimation(alphas, n), np.stack((hard + 0 * soft, soft, less, one, smaller)), error)
    assert min(soft) > hard > max(*less, *one), "true for each draw, as what follows"
    assert min(np.diff(soft)) > 0 > np.diff((less, one, smaller)).max()
    assert (smaller < one / 2 - error).all() and smaller[0] > error and smaller[-1] < -error
    theory = [line.get_ydata()[-1] for line in F.figure_overestimation(None).axes[0].lines[-3:]]    # at our last α
    assert np.allclose(theory, (hard, less[-1], one[-1]), rtol=0.01)
    added = [M.soft_value(Q[:, :2] + (3, 0), alpha).mean() - M.soft_value((3, 0), alpha) for alpha in (0.5, 1, 2, 5)]
    assert min(np.diff(added[:3])) > error and added[2] - error > added[3] > error, "if one is better, this first grows with α"

def test_a_critic_that_judges_its_own_choice_is_biased_up_and_the_smaller_of_two_slightly_down():
    """C10: E_π[noise] under π ∝ exp(Q + noise), values Q from 0 to 2: own > 0 > judged by the smaller > −own/3, and 0 > smaller
    that judges its own choice > −own/10; for equal values and greedily chosen too the smaller is below 0."""
    (one, two), Q = RNG(0).normal(size=(2, 200_000, 10)), np.linspace(0, 2, 10)
    smaller = np.minimum(one, two)
    bias = lambda picks, judges: np.sum(M.boltzmann_policy(Q + picks, 1.0) * judges, axis=1)
    own, judged, both = bias(one, one), bias(one, smaller), bias(smaller, smaller)
    greedy = smaller[np.arange(200_000), one.argmax(axis=1)]
    assert off(own + np.sum(M.boltzmann_policy(Q + one, 1.0) ** 2, axis=1), 1) < 4, "Stein: E[Σ π_i ε_i] = E[Σ ∂π_i/∂ε_i]"
    for positive in (own, -judged, judged + own / 3, -both, both + own / 10, -greedy):
        assert off(positive, 0) > 4 and positive.mean() > 0

# --- Soft Actor-Critic -----------------------------------------------------------------------------------------------

Box, inf, nan = gym.spaces.Box, np.inf, np.nan
SMALL = S.Settings(hidden=(8, 8), gamma=0.9, tau=0.1, batch_size=16, learning_rate=5e-3, final_learning_rate=1e-3,
                   warmup=50, random_steps=0, alpha=0.2, q_scale=2.0, buffer_size=1000)
AGENT = S.SAC(3, [-1], [1], SMALL)          # as it was made: no test changes it

class Toy(gym.Env):
    """Shows (t, 0.5) and pays 1, but for events, {step: function -> (obs, reward)}; ends after `length` steps.
    As environments may, it goes on writing into the array that it returned: s and s' must not become one."""
    def __init__(self, length=4, terminates=False, events=(), **more):
        self.observation_space, self.action_space = Box(-inf, inf, (2,)), Box(-0.3, 0.1, (1,), np.float64)
        vars(self).update(length=length, terminates=terminates, events=dict(events), steps=0, own=np.float32([0, 0.5]), **more)

    def reset(self, seed=None, options=None):
        self.t = self.own[0] = 0
        return self.own, {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.t, self.steps, self.own[0] = self.t + 1, self.steps + 1, self.t + 1
        obs, reward = self.events.get(self.steps, lambda: (self.own, 1.0))()
        over = self.t == self.length
        return np.asarray(obs), reward, over and self.terminates, over and not self.terminates, {}

def assert_gradient(d_theta, f, theta, h=1e-5):
    expected = np.empty_like(theta)
    for i, old in enumerate(theta.copy()):
        theta[i] = old + h
        up = f()
        theta[i] = old - h
        expected[i] = (up - f()) / (2 * h)
        theta[i] = old
    assert np.allclose(d_theta, expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max()), np.max(d_theta - expected)

def random_agent(N=40):
    """A float64 agent with A = 2, no zero bias, distinct twins, a log σ often clipped; a batch and noise for it.
    With this seed either critic is the smaller one at times, as the test of the gradients needs."""
    rng, agent = RNG(241), S.SAC(3, [-1, 0], [3, 10], SMALL, dtype=np.float64)
    for net in (agent.actor, agent.critic, agent.critic_target):
        net.theta[:] = rng.normal(0, 0.5, net.theta.shape)
    agent.actor.biases[-1][0, 2] = S.LOG_STD_MAX
    obs, a, reward = rng.normal(size=(N, 3)), rng.uniform(-0.9, 0.9, (N, 2)), rng.normal(size=N)
    return agent, (obs, a, reward, rng.normal(size=(N, 3)), np.arange(N) % 3 == 0), rng.normal(size=(2, N, 2))

def plain_mlp(net, x, twin=()):                                             # one network alone, x (N, n_in) -> (N, n_out)
    for W, b in zip(net.weights, net.biases):
        y = np.einsum("ni,io->no", x, W[twin]) + b[twin]
        x = y / 2 + np.sqrt(y * y + 0.5) / 2
    return net.scale * y

def plain_soft_value(agent, critic, obs, noise):
    """min Q − α log π of one sampled action per state; the slope of tanh u is 1/cosh² u."""
    mu, raw = np.hsplit(plain_mlp(agent.actor, obs), 2)
    log_std = np.clip(raw, S.LOG_STD_MIN, S.LOG_STD_MAX)
    u = mu + np.exp(log_std) * noise
    log_prob = np.sum(-noise**2 / 2 - log_std - np.log(2 * np.pi) / 2 + 2 * np.log(np.cosh(u)), axis=1)
    return np.minimum(*(plain_mlp(critic, np.hstack((obs, np.tanh(u))), twin)[:, 0] for twin in (0, 1))) - 0.2 * log_prob

def parameters(agent):
    return np.concatenate([agent.actor.theta, agent.critic.theta, agent.critic_target.theta, agent.log_alpha])

@pytest.mark.parametrize("mu, sigma", [(0.0, 0.02), (0.0, 1.0), (0.3, 2.5), (6.0, 0.1), (-6.0, 1.0)])
def test_squashed_density_integrates_to_one_and_entropy_is_minus_its_mean_logarithm(mu, sigma):
    """A density in a, on nodes a = tanh v, where the sum is exact; without log(1 − a²) its mass would be E[1 − a²]."""
    v, dv = np.linspace(max(-17, mu - 12 * sigma), min(17, mu + 12 * sigma), 4001, retstep=True)
    a, da = np.tanh(v)[:, None], dv / np.cosh(v) ** 2
    same_a, log_prob = S.squashed_gaussian(0 * a + mu, 0 * a + math.log(sigma), (np.arctanh(a) - mu) / sigma)
    assert near(same_a, a, 1e-12) and abs(np.exp(log_prob) @ da - 1) < 1e-7
    assert np.exp(log_prob) / np.cosh(v) ** 2 @ da < 0.9999, "without the tanh term it should not integrate to 1"
    sampled = S.squashed_gaussian(mu, math.log(sigma), RNG(4).standard_normal((50_000, 1)))[1]
    assert off(sampled, np.exp(log_prob) * log_prob @ da) < 4

@pytest.mark.parametrize("dtype, error", [(np.float64, 1e-12), (np.float32, 2**-23 * 40)])
def test_log_probability_is_exact_far_out(dtype, error):
    """log(1 − tanh² u) = −2 log cosh u, also where tanh u rounds to ±1: log(1 − a² + 1e-6) would be −13.8 at u = 20."""
    u = np.arange(-20, 20.1, 0.25, dtype)[:, None]
    log_prob = S.squashed_gaussian(u, 0 * u, 0 * u)[1]
    assert log_prob.dtype == dtype and near(log_prob, 2 * np.log(np.cosh(u[:, 0])) - math.log(2 * math.pi) / 2, error)

def test_target_and_losses_equal_the_plain_formulas_with_the_smaller_of_two_critics():
    """Eq. 18, 19, 20, one network at a time: y = r + γ (min Q' − α log π), and y = r where terminated."""
    agent, (obs, a, reward, next_obs, terminated), noise = random_agent()
    y = reward + 0.9 * np.where(terminated, 0, plain_soft_value(agent, agent.critic_target, next_obs, noise[0]))
    squares = [(plain_mlp(agent.critic, np.hstack((obs, a)), twin)[:, 0] - y) ** 2 for twin in (0, 1)]
    V = plain_soft_value(agent, agent.critic, obs, noise[1])
    assert np.allclose(agent.target(reward, next_obs, terminated, noise[0]), y, rtol=1e-10)
    assert math.isclose(agent.critic_loss(obs, a, y)[0], np.sum(squares) / len(y), rel_tol=1e-10)
    assert math.isclose(agent.actor_loss(obs, noise[1])[0], -V.mean(), rel_tol=1e-10)

def test_every_gradient_equals_central_differences_in_actor_both_critics_and_log_alpha():
    """The losses exactly as update computes them, log σ clipped or not, either critic the smaller one."""
    agent, (obs, a, reward, next_obs, terminated), (noise, noise2) = random_agent()
    mu, log_std, free, _ = agent.policy(obs)
    Q = agent.critic.forward(np.concatenate((obs, S.squashed_gaussian(mu, log_std, noise)[0]), axis=1))[0][..., 0]
    assert 0.2 < np.mean(Q[0] < Q[1]) < 0.8 and 0.2 < free[:, 0].mean() < 0.8, "the test must see both branches"
    assert all(b.all() for net in (agent.actor, agent.critic) for b in net.biases) and log_std.max() == S.LOG_STD_MAX
    y = agent.target(reward, next_obs, terminated, noise2)
    assert_gradient(agent.critic_loss(obs, a, y)[1], lambda: agent.critic_loss(obs, a, y)[0], agent.critic.theta)
    _, d_theta, log_prob = agent.actor_loss(obs, noise)
    assert_gradient(d_theta, lambda: agent.actor_loss(obs, noise)[0], agent.actor.theta)
    assert_gradient([agent.temperature_loss(log_prob)[1]], lambda: agent.temperature_loss(log_prob)[0], agent.log_alpha)
    y, cache = agent.actor.forward(obs)                                     # a network alone, by its input
    assert_gradient(agent.actor.backward(y, cache)[1].ravel(), lambda: (agent.actor.forward(obs)[0]**2).sum() / 2, obs.ravel())
    agent.actor.biases[-1][0, 2] = S.LOG_STD_MIN - 9                        # below the clip: no gradient gets there
    _, d_biases = agent.actor.views(agent.actor_loss(obs, noise)[1])
    assert agent.policy(obs)[1].min() == S.LOG_STD_MIN and d_biases[-1][0, 2] == 0 != d_biases[-1][0, 3]

def test_actor_loss_is_alpha_times_a_kl_divergence_minus_alpha_log_Z():
    """C9: Eq. 20 = Eq. 21, by quadrature over noise and over a = tanh v.  Equal for all parameters, so are their gradients."""
    rng, agent = RNG(6), S.SAC(2, [-1], [1], replace(SMALL, hidden=(8,), alpha=0.7), dtype=np.float64)
    v, dv = np.linspace(-20, 20, 2001, retstep=True)
    for net in (agent.actor, agent.critic):
        net.theta[:] = rng.normal(0, 0.4, net.theta.shape)
    agent.critic.biases[1][1] += 1000                                       # critic 0 is the smaller everywhere
    obs = rng.normal(size=(1, 2))
    mu, log_std = (value.item() for value in agent.policy(obs)[:2])
    pi_dv = gaussian(v, mu, math.exp(2 * log_std)) * dv
    Q = agent.critic.forward(np.column_stack((np.repeat(obs, v.size, 0), np.tanh(v))))[0][0, :, 0]
    boltzmann_dv = np.exp(Q / 0.7) / np.cosh(v) ** 2 * dv                   # not yet divided by Z
    divergence = pi_dv @ np.log(pi_dv / boltzmann_dv * boltzmann_dv.sum())
    loss = sum(gaussian(x, 0, 1) * 0.03 * agent.actor_loss(obs, np.array([[x]]))[0] for x in np.linspace(-9, 9, 601))
    assert math.isclose(loss, 0.7 * divergence - 0.7 * math.log(boltzmann_dv.sum()), rel_tol=1e-9) and divergence > 0.1

@pytest.mark.parametrize("H, sign", [(-1.0, -1), (-2.0, 0), (-3.0, 1)])
def test_temperature_falls_while_entropy_exceeds_its_target_rests_at_it_and_stays_if_fixed(H, sign):
    """Eq. 22, −α (mean log π + H̄), H̄ = −1 per action dimension: α is the multiplier of a constraint."""
    agent, batch, _ = random_agent()
    loss, d_log_alpha = agent.temperature_loss(-H + np.array([-0.5, 0.5]))  # two values of log π, with the mean −H
    agent.settings = replace(SMALL, tune_alpha=False)
    assert math.isclose(loss, 0.2 * (H + 2), abs_tol=1e-12) and agent.update(batch)["alpha"] == AGENT.alpha
    agent.optimisers[2].step(d_log_alpha)
    assert np.sign(agent.alpha - AGENT.alpha) == sign, f"H = {H}: α went from {AGENT.alpha} to {agent.alpha}"
    assert S.SAC(3, [-1], [1], replace(SMALL, target_entropy=-0.5)).target_entropy == -0.5

def test_update_steps_critics_actor_and_temperature_then_averages_the_targets():
    """In this order, each once, on a fresh pair of noises; Polyak averaging keeps 1 − τ of the old target."""
    other, batch, _ = random_agent()
    agent = pickle.loads(pickle.dumps(other))                               # a copy learns on like the original, apart from it
    assert (AGENT.critic_target.theta == AGENT.critic.theta).all() and AGENT.critic_target.scale == AGENT.critic.scale == 2
    obs, a, reward, next_obs, terminated = batch
    metrics, noise = agent.update(batch), other.rng.standard_normal((2, 40, 2))
    critic_loss, d_critic = other.critic_loss(obs, a, other.target(reward, next_obs, terminated, noise[0]))
    S.Adam(other.critic.theta, 5e-3).step(d_critic)
    actor_loss, d_actor, log_prob = other.actor_loss(obs, noise[1])
    S.Adam(other.actor.theta, 5e-3).step(d_actor)
    S.Adam(other.log_alpha, 5e-3).step(other.temperature_loss(log_prob)[1])
    other.critic_target.theta[:] = 0.1 * other.critic.theta + 0.9 * other.critic_target.theta
    assert near(parameters(agent), parameters(other), 1e-12) and agent.rng.random() == other.rng.random()
    assert metrics == dict(critic_loss=critic_loss, actor_loss=actor_loss, alpha=other.alpha, entropy=-log_prob.mean())

@pytest.fixture
def rows(monkeypatch):
    """The transitions that training puts into its buffer."""
    rows, add = [], S.ReplayBuffer.add
    monkeypatch.setattr(S.ReplayBuffer, "add", lambda buffer, *row: rows.append(row) or add(buffer, *row))
    return rows

@pytest.mark.parametrize("terminates, Q", [(True, 1.0), (False, 2.0)])
def test_a_terminated_step_does_not_bootstrap_and_a_truncated_one_does(terminates, Q, rows):
    """Always the same state, pay 1, γ = 1/2: Q = 1 at a terminal state, 1/(1 − γ) at a time limit."""
    env = Toy(1, terminates, dict.fromkeys(range(501), lambda: ([0.0, 0.5], 1.0)), close=None)
    agent, _ = S.train(env, replace(SMALL, gamma=0.5, learning_rate=2e-2, alpha=1e-4, tune_alpha=False), n_steps=500)
    obs, a, reward, next_obs, terminated = (np.array(column, np.float32) for column in zip(*rows))
    future = agent.target(reward, next_obs, terminated, 0 * a) != 1
    assert (terminated == terminates).all() and (future != terminates).all(), "only a time limit has a future"
    assert near(agent.critic.forward(np.concatenate((obs, a), axis=1))[0], Q, 0.1)

# --- Pendulum-v1, learned and exact; actions that follow Langevin dynamics -------------------------------------------

@lru_cache
def exact_pendulum(alpha):                                                  # θ, ω, V and mean action on the grid
    mdp = M.pendulum_mdp() if alpha else M.pendulum_mdp(61, 61, 11, spacing="uniform")
    _, V, pi = M.soft_value_iteration(mdp, alpha, mdp.log_base, tol=0.01)
    return *np.meshgrid(mdp.theta, mdp.theta_dot, indexing="ij"), *np.reshape((V, pi @ mdp.a), (2, len(mdp.theta), -1))

def test_the_exact_torque_saturates_on_most_of_the_grid_and_near_upright_opposes_the_fall():
    """C16: it is α that makes it smooth. C14: left alone the pendulum falls as θ + ω/√15 says; ω alone decides at θ ≈ 0."""
    hard, soft = (np.mean(np.abs(exact_pendulum(alpha)[3]) > 0.99) for alpha in (0, 0.2))
    theta, omega, _, u = (x[37:65, 30:51] for x in exact_pendulum(0.2))     # |θ| < 0.9, |ω| ≤ 2
    fall, velocity = (u * x < 0 for x in (theta + omega / np.sqrt(15), omega))
    assert hard > 0.8 and soft < 0.1 and fall.mean() > 0.95
    assert velocity.mean() < 0.7 and velocity[np.abs(theta) < 0.1].mean() > 0.9

def test_value_is_mirror_symmetric_and_follows_mechanical_energy_not_the_distance_from_the_goal():
    """C15: correlations over the grid, or where |ω| ≤ 2; hanging at rest is worst, though hanging at ω = 6 is farther."""
    theta, omega, V, u = exact_pendulum(0.2)
    energy = omega**2 / 6 + 5 * (np.cos(theta) - 1)                         # mechanical; 0 when standing upright
    distance, slow = theta**2 + 0.1 * omega**2, np.abs(omega) <= 2
    of = lambda x, where=np.full(V.shape, True): np.corrcoef(V[where], x[where])[0, 1]
    assert near(np.roll(np.stack((V, -u))[:, ::-1, ::-1], 1, axis=1), (V, u), 1e-8), "at (−θ, −ω): the same V, the opposite u"
    assert of(-np.abs(energy)) > 0.7 and of(-distance) < 0.3 and of(-distance, slow) > 0.8
    assert V.min() == V[0, 40] < V[0, 70] - 100 and V.max() == V[48:53, 39:42].max() # θ = −π, ω = 0 and 6; θ ≈ 0, ω ≈ 0

def total_return(policy, theta, omega, total=0.0):
    for _ in range(200):
        theta, omega, reward = M.pendulum_step(theta, omega, policy(theta, omega))
        total = total + reward
    return total

def test_the_best_possible_mean_return_is_minus_133_and_pumping_random_or_no_torque_stay_below():
    """C11, starts of reset(seed=0..99).  Pumping ends with a linear regulator; of three steps all are tried."""
    def pump(theta, omega):
        energy, x = omega**2 / 6 + 5 * (np.cos(theta) - 1), (theta + np.pi) % (2 * np.pi) - np.pi + omega / np.sqrt(15)
        return np.clip(np.where(np.abs(x) < 0.25, -20 * x, -2 * np.sign(omega * energy)), -2, 2)       # close to LQR
    zero = lambda theta, omega: 0 * theta
    draw = RNG(0)
    random = lambda theta, omega: draw.uniform(-2, 2, theta.shape)
    (theta, omega), best = F.held_out_starts(), F.optimum().mean()
    assert abs(best + 133) < 0.7
    assert best > max(total_return(policy, theta, omega).mean() for policy in (pump, zero, random))
    assert off(total_return(random, *draw.uniform((-np.pi, -1), (np.pi, 1), (4000, 2)).T), -1226) < 4       # not −1500
    *once, r1 = M.pendulum_step(theta[:, None, None], omega[:, None, None], np.linspace(-2, 2, 81)[:, None])
    *twice, r2 = M.pendulum_step(*once, np.linspace(-2, 2, 81))
    tried = (r1 + r2 + M.pendulum_step(*twice, 0.0)[2]).max(axis=(1, 2))    # a last torque only costs
    loss = tried - M.pendulum_optimal_return(theta, omega, 101, 101, 6, 3)
    assert loss.min() > -1e-12 and loss.max() < 1e-3, "of three steps, trying all torques must find nothing better"
    assert near(M.pendulum_optimal_return([0.0], [0.0], 5, 5, 5, 1), 0, 1e-12)

@pytest.fixture(scope="module")
def pendulum():
    """One agent with the default settings, after 6000 steps."""
    return S.train("Pendulum-v1", seed=0, n_steps=6000)

def test_default_settings_leave_little_regret_and_evaluation_is_repeatable_one_by_one_or_all_at_once(pendulum):
    """Eq. 9 on Pendulum-v1; no start changes another's return, and the figures' vectorised rollout is Gymnasium's."""
    agent, _ = pendulum
    returns = F.roll_out(agent, *F.held_out_starts())[:, 3].sum(axis=0)
    assert (F.optimum() - returns).min() > -1 and (F.optimum() - returns).mean() < 15
    one_by_one = S.evaluate(agent, "Pendulum-v1", [7, 3, 5])
    assert near(one_by_one, returns[[7, 3, 5]], 0.01)
    assert np.array_equal(S.evaluate(agent, "Pendulum-v1", [5, 7]), one_by_one[[2, 0]])

def test_entropy_of_the_trained_policy_settles_at_its_target(pendulum):
    """C12: H falls from about 0.6 to H̄ = −1 (log 2 is the most a density on [−1, 1] can have): no special role for 0."""
    _, log = pendulum
    assert log["entropy"][:100].max() > 0 and abs(log["entropy"][-3000:].mean() + 1) < 0.1

def test_sac_has_learned_the_physics_where_it_went_and_the_figure_says_so(pendulum, monkeypatch):
    """C17: on the states that it visited, its Q follows the exact soft Q, and its torque mostly has the right sign."""
    agent, log = pendulum
    mdp, obs = M.pendulum_mdp(gamma=agent.settings.gamma), log["observations"]
    Q, _, pi = M.soft_value_iteration(mdp, agent.alpha, mdp.log_base, tol=0.1)
    theta, omega = np.arctan2(obs[:, 1], obs[:, 0]).astype(float), obs[:, 2].astype(float)
    corners, weight = M.bilinear(theta, omega, len(mdp.theta), len(mdp.theta_dot))
    exact = 2 * (pi @ mdp.a), np.sum(pi * Q, axis=1)
    torque, value = (np.sum(weight * x[corners], axis=1) for x in exact)
    our_torque, our_value = F.mean_torque_and_value(agent, obs)
    r_torque, r_value = np.corrcoef(our_torque, torque)[0, 1], np.corrcoef(our_value, value)[0, 1]
    assert r_value > 0.95 and np.mean((our_torque * torque > 0)[np.abs(torque) > 1.8]) > 0.8
    monkeypatch.setattr(F, "trained", lambda *_: [pendulum])
    axes = F.figure_policy_and_Q(SimpleNamespace(seeds=1, steps=6000)).axes
    grid = F.observe(*np.meshgrid(mdp.theta, mdp.theta_dot, indexing="ij")).reshape(-1, 3).astype(np.float32)
    for row, y, z, r in zip((axes[:3], axes[3:6]), F.mean_torque_and_value(agent, grid), exact, (r_torque, r_value)):
        learned, true, difference = (np.reshape(ax.collections[0].get_array(), (81, 101)).T.ravel() for ax in row)
        assert near((learned, true, difference), (y, z, y - z), 1e-9)
        assert row[2].get_title().endswith(f"(r = {r:.2f} over states met)")
    theta, omega = axes[0].lines[0].get_data()
    assert near(omega**2 / 6, 5 * (1 - np.cos(theta)), 1e-9), "dashed: the energy of standing upright"

TWO_PEAKS = lambda a: -(((a / 0.6) ** 2 - 1) ** 2)

@pytest.mark.parametrize("alpha, peaks, tilt", ((0.25, 1, 0.25), (0.5, 0.3, 1.5)))
def test_langevin_in_action_space_samples_the_boltzmann_policy(alpha, peaks, tilt):
    """C5: the bridge of the chapter is a = an action at a fixed state, with V = −Q and kT = α.  Two unequal peaks with a valley
    of 3.4 α; and a slope that presses the actions against a bound, where they must be reflected."""
    a = np.linspace(-0.9999, 0.9999, 2001)
    Q, dQ_da = peaks * TWO_PEAKS(a) + tilt * a, -4 * peaks * a / 0.36 * (a**2 / 0.36 - 1) + tilt
    x = F.sample_actions(a, Q, dQ_da, alpha, n=6000)
    assert np.abs(x).max() <= 1 and chi_square(x, M.boltzmann_policy(Q, alpha), a) < 4

def test_the_squashed_gaussian_commits_to_one_mode_below_the_critical_temperature():
    """C8: for a Q with two peaks the best tanh-Gaussian is centred above α = 0.300, where a one-sided one is as good, and
    one-sided below, where it loses log 2: one of two equal modes is at a divergence of log 2."""
    assert abs(F.best_squashed_gaussian(TWO_PEAKS, 0.2977)[0]) > 0.5
    assert abs(F.best_squashed_gaussian(TWO_PEAKS, 0.3017)[0]) < 0.01
    a = np.linspace(-1, 1, 4001)
    loss, V = F.best_squashed_gaussian(TWO_PEAKS, 0.05)[2], M.soft_value(TWO_PEAKS(a), 0.05, np.log(a[1] - a[0]))
    assert near((loss + V) / 0.05, np.log(2), 0.01)


# === Part 2: the program around it ===================================================================================

# --- Calls that are refused ------------------------------------------------------------------------------------------

def refuses(call, good, message, **bad):                                    # each bad value, in place of the good one
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError, match=message.format(name)):
                pytest.fail(f"accepted {name} = {value}: {call(**{**good, name: value})}")

NOT_POSITIVE = 0.0, -1.0, np.nan, np.inf

def test_bad_physics_is_refused_before_a_number_is_drawn_and_a_step_that_blows_up_names_dt():
    """With what was wrong, and what is accepted; rng is None.  The quartic well explodes beyond |x| = 1/√(2dt)."""
    run = partial(refuses, L.simulate, dict(x0=[0, 3], kT=1, dt=0.5, n_steps=9, rng=None, grad_V=L.double_well_gradient))
    run("{} must be a positive number", kT=NOT_POSITIVE, dt=NOT_POSITIVE, gamma=NOT_POSITIVE)
    run("{} must be a one-dim", x0=(1.0, np.zeros((2, 2)), [0.0, np.nan], [np.inf]))
    run("{} must be a whole number", n_steps=(-1, 1.5), record_every=(-1, 0, 1.5))
    run("{} must return one finite", grad_V=(np.sum, lambda x: np.where(x > 1, np.nan, x)), V=(np.sum,))
    run("mala", method=("mala", "verlet"))                                  # the first needs V, the second is unknown
    with pytest.raises(FloatingPointError, match="blew up at step .: dt = 0.5"):
        L.simulate([0, 3], L.double_well_gradient, kT=1, dt=0.5, n_steps=9, rng=RNG(13))
    evolve = partial(refuses, L.fokker_planck_evolve, dict(p0=(0.5, 0.5), V=(0, 0), dx=1, kT=1, times=[1]))
    evolve("{} must be a positive number", kT=NOT_POSITIVE, dx=NOT_POSITIVE, gamma=NOT_POSITIVE)
    evolve("{} must hold finite", V=([[0, 0]], [1], [0, np.inf]), p0=([1, np.nan],))
    evolve("{} must be", p0=([0.5, 0.3, 0.2], [2, -1], [0.5, 0.5000015]), times=(1, [[1]], [2, 1], [-1], [1, np.nan]))
    passage = partial(refuses, L.mean_first_passage_time, dict(V=L.double_well, a=0.0, b=1.0, kT=1.0))
    passage("{} must be a positive number", kT=NOT_POSITIVE, gamma=NOT_POSITIVE)
    passage("b must lie to the right of a", a=(1.0, 2.0, -np.inf, np.nan))
    slow = lambda x: 0.75 * np.log(1 + x * x)                               # a mean exists, but too much of it lies far out
    well = lambda x: np.log(1 + x * x) / 2 - 40 * np.exp(-x * x)            # none exists, but little of it lies far out
    passage("{} must grow", V=(lambda x: x, lambda x: np.log(1 + x * x) / 2, slow, well, np.cos))
    passage("{} must return", V=[lambda x, bad=bad: np.where(x > 0.5, bad, x * x) for bad in (np.nan, np.inf)])
    path = partial(refuses, L.onsager_machlup_action, dict(path=[0, 1], dt=1, grad_V=abs, curvature=abs, kT=1))
    path("{} must be a positive number", kT=NOT_POSITIVE, dt=NOT_POSITIVE)
    path("{} must return one finite", grad_V=[np.sum], curvature=[np.sum])

def test_impossible_means_and_bad_input_are_refused_with_what_was_wrong():
    """Means outside the convex hull, on its edge (λ = ∞), or of dependent features; NaN, infinite, a wrong shape or range."""
    die = partial(refuses, M.max_entropy, dict(features=FACES, means=[4.5]))
    die("found no p", means=([1], [6], [7], [-1e9]), features=(np.ones((4, 1)), [[0], [4.5]], [[4.5], [4.5], [5]]))
    die("{} must", means=([np.nan], [4.5, 1]), features=(FACES[:, 0],))
    refuses(M.max_entropy, dict(features=np.eye(3, 2)), "found no p", means=([0.6, 0.6], [0.5, 0.5], [0.3, 0.7], [1e-13, 0.5]))
    for f, means in ((FACES * [1, 2], [4.5, 9]), (FACES ** [1, 2], [3.5, 12.5]), (np.eye(6), [1 / 6] * 6)):
        refuses(M.max_entropy, dict(features=f), "found no p", means=[means])
    action = dict(Q=[1, 2], alpha=1)
    refuses(M.soft_value, action, "{} must", Q=([1, np.nan], [1, np.inf], 3, []), alpha=(-1, np.nan, np.inf, [1, 1]))
    refuses(M.boltzmann_policy, action, "{} must", log_base=(np.nan, [1, 2, 3], [[1], [2]]))
    refuses(M.regularised_value, action | dict(pi=[0.5, 0.5]), "{} must", Q=([1, 2, 3],), alpha=[-1])
    refuses(M.entropy, {}, "{} must|probabilities must", p=([-0.5, 1.5], [0.5, 0.5 + 1e-8], [np.nan, 1], 1.0, []))
    refuses(M.canonical_free_energy, dict(p=[1.0], E=[1.0], beta=1), "{} must", E=([1, 2], [np.nan]), beta=[0])
    full, half = lambda x: np.full((2, 2, 2), x), np.full((2, 2), 0.5)
    good = dict(reward=half, successor=full(0), probability=full(0.5), gamma=0.9)
    refuses(M.MDP, good, "{}|probabilities", reward=(np.ones(2), half * np.nan), gamma=(-0.1, 1.1, np.nan),
            successor=(full((0, -1)), full((0, 2)), full(0.0), full(0)[0]),
            probability=(full(0.4), full((-0.5, 1.5)), full(0.5)[0], full(0.5) + 1e-8 * np.eye(8)[0].reshape(2, 2, 2)))
    mdp, endless = M.MDP(**good), M.MDP(**good | dict(gamma=1))
    refuses(M.soft_value_iteration, dict(alpha=1), "gamma < 1", mdp=[endless])
    refuses(M.return_and_entropy, dict(mdp=mdp, pi=half), "gamma < 1|pi must", mdp=[endless], pi=[np.ones((2, 1))])
    refuses(M.soft_backup, dict(mdp=mdp), "{} must", V=[np.ones(5)])
    refuses(M.enumerate_paths, dict(mdp=mdp, start=0, horizon=1), "{}|too many", start=(2, 0.5), horizon=(-1, 11, np.int64(32)))
    refuses(M.policy_flow, dict(**action, times=[1]), "pi0 must|probabilities must", pi0=([0.5, 0.6], [0, 1]))
    refuses(M.policy_flow, dict(**action, pi0=[0.5, 0.5], times=[1]), "{} must", times=(1, [np.nan]), Q=([1, 2, 3],))
    assert {len(x) for x in M.enumerate_paths(mdp, 0, 0)} == {1}, "of no step there is one path"
    refuses(M.pendulum_mdp, dict(n_theta=2, n_theta_dot=2, n_a=2), "must be", spacing=["x"], n_theta=[1], n_a=[1])
    assert M.pendulum_mdp(2, 2, 2).reward.shape == (4, 2)
    refuses(M.pendulum_optimal_return, dict(thetas=[0.0], theta_dots=[0.0]), "must", thetas=([np.nan], [0, 1]))

class Reacher(gym.Env):
    """A point that moves by at most 0.3 along each axis pays 1 per step until max|x| < 0.1."""
    observation_space, action_space = Box(-9, 9, (2,)), Box(np.float32([-1, 0]), np.float32([3, 10]))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1, 2), 0
        return self.x.astype(np.float32), {}

    def step(self, action):
        self.x, self.t = self.x + 0.3 * (action - [1, 5]) / [2, 5], self.t + 1
        return self.x.astype(np.float32), -1.0, bool(np.abs(self.x).max() < 0.1), self.t == 20, {}

@pytest.mark.filterwarnings("ignore::RuntimeWarning")                       # on purpose: numbers that overflow
def test_wrong_calls_are_refused_before_work_starts_by_what_was_wrong():
    """Bounds, settings, numbers of steps, spaces, observations; the edges that make sense stay allowed."""
    assert replace(SMALL, gamma=0, tau=1, batch_size=1, random_steps=0), "the edges are allowed"
    positive = "tau batch_size learning_rate final_learning_rate warmup alpha q_scale buffer_size".split()
    refuses(S.Settings, {}, "setting.*{}", **{name: NOT_POSITIVE for name in positive})
    refuses(S.Settings, {}, "setting.*{}", gamma=(-0.1, 1, nan), tau=[1.1], target_entropy=(nan, -inf))
    refuses(S.Settings, {}, "setting.*{}", random_steps=(-1, 0.5), batch_size=[1.5], hidden=([0], [8, 2.5]))
    low = [-1, 1], [-inf, -1], [nan, 0], [-1e308, 0], [-1], [[-1], [-1]]
    refuses(partial(S.SAC, 2), dict(action_high=[1e308, 1]), "finite bounds low < high|shape", action_low=low)
    for low, high in ([-1, 0], [3, 9]), ([-1, -1], [3, 10]), ([-1], [3]):
        refuses(S.evaluate, dict(env=Reacher(), seeds=[0]), "of another environment", agent=[S.SAC(2, low, high, SMALL)])
    train = partial(refuses, lambda n=60, **spaces: S.train(Toy(**spaces), SMALL, n_steps=n), {})
    train("whole number above the 50 steps", n=(50, 60.5, inf, nan))
    spaces = gym.spaces.Discrete(3), Box(-1, 1, (2, 2)), Box(-1, 1, (1, 1))
    train("must be a flat Box", action_space=(*spaces, Box(-1, 1, (1,), int)), observation_space=spaces)
    two = dict(obs=np.zeros((2, 3), "f4"), a=np.zeros((2, 1), "f4"))
    refuses(AGENT.critic_loss, two, "{} must be of shape", y=(1.0, np.ones(1), np.ones((2, 1)), np.ones((2, 2))))
    refuses(AGENT.act, {}, "the observation must have 3 numbers", obs=(0, np.zeros(4), np.zeros((5, 2)), np.zeros((1, 1, 3))))

# --- Numerics of the exact solutions ---------------------------------------------------------------------------------

def test_double_well_has_a_barrier_of_one_between_its_wells_and_the_derivatives_written_beside_it():
    """Central differences of V and V', whose error, h²/6 times the third derivative of each, is below 1e-7."""
    assert np.array_equal(L.double_well(np.array([-1.0, 0.0, 1.0, 2.0])), [0, 1, 0, 9])
    for f, df in ((L.double_well, L.double_well_gradient), (L.double_well_gradient, L.double_well_curvature)):
        assert near((f(GRID + 1e-4) - f(GRID - 1e-4)) / 2e-4, df(GRID), 1e-6)

def test_maximum_entropy_solves_what_is_hard_for_newtons_method():
    """A step from λ = 0 that overshoots by e^1000; a covariance that is singular on the way; a variance of 1e-11."""
    for unlikely in (-30.0, -1000.0):
        (lam,), p = M.max_entropy([[0], [1]], [0.5], [0, unlikely])
        assert near((lam - unlikely, *p), (0, 0.5, 0.5), 1e-12)
    f, p = np.array([[-2, -2], [2, 2], [-1, -2]]), np.array([3, 3, 1]) / 7  # three unknowns and three equations: the only p
    assert near(M.max_entropy(f, p @ f, [-15, -37, 32])[1], p, 1e-9)
    assert near(M.max_entropy([[0], [1]], [1e-11])[1][1], 1e-11, 1e-15)
    assert near(M.max_entropy(np.eye(3, 2), [1e-10, 1e-10], [0, 20, -10])[1], (1e-10, 1e-10, 1 - 2e-10), 1e-15)

def test_value_iteration_is_as_exact_as_promised_where_nothing_mixes_and_stops_once_only_rounding_is_left(monkeypatch):
    """One action, two states that lead to themselves: V = ±100, and the change of a sweep shrinks by γ at most."""
    apart = M.MDP([[1.0], [-1.0]], [[[0]], [[1]]], np.ones((2, 1, 1)), 0.99)
    for tol in (0.1, 1e-9):
        assert 0.9 * tol < 100 - M.soft_value_iteration(apart, 1.0, tol=tol)[1][0] < tol, "as exact as asked for, and no more"
    gamma = np.float32(0.99)                                                # in float32 1/(1 − γ) is off by 4e-6
    assert near(M.soft_value_iteration(M.MDP([[1.0]], [[[0]]], [[[1.0]]], gamma), 1.0)[1], 1 / (1 - float(gamma)), 1e-9)
    sweeps, backup, mdp = [], M.soft_backup, random_mdp(0.9999)
    monkeypatch.setattr(M, "soft_backup", lambda mdp, V: sweeps.append(V) or backup(mdp, V))
    V = M.soft_value_iteration(mdp, 0.5, tol=0)[1]
    assert len(sweeps) < 1000 and near(M.soft_value(backup(mdp, V), 0.5), V, 1e-11 * V.max())

@pytest.mark.parametrize("spacing, nodes", (("tanh", np.tanh([-6, -3, 0, 3, 6])), ("uniform", np.linspace(-1, 1, 5))))
def test_pendulum_mdp_is_gymnasiums_step_seen_through_bilinear_weights(spacing, nodes):
    """The weights are probabilities and reproduce linear functions; ω beyond ±8 counts as ±8, and θ is periodic."""
    env = gym.make("Pendulum-v1").unwrapped
    for *state, torque in RNG(0).uniform((-9, -8, -2), (9, 8, 2), (200, 3)):
        env.state = state
        reward = env.step(np.array([torque]))[1]
        assert near(M.pendulum_step(*state, torque), (*env.state, reward), 1e-12)
    (theta, omega), mdp = RNG(0).uniform((-9, -9), (9, 9), (1000, 2)).T, M.pendulum_mdp(11, 9, 5, 0.97, spacing)
    (corners, w), (i, j, k) = M.bilinear(theta, omega, 11, 9), np.indices((11, 9, 5))
    x = (mdp.theta[corners // 9] - theta[:, None] + np.pi) % (2 * np.pi) - np.pi
    y = mdp.theta_dot[corners % 9] - np.clip(omega, -8, 8)[:, None]
    assert w.min() >= 0 and near(w.sum(1), 1, 1e-12) and near([np.sum(w * z, axis=1) for z in (x, y, x * y)], 0, 1e-12)
    *after, reward = M.pendulum_step(mdp.theta[i], mdp.theta_dot[j], 2 * nodes[k])
    true = reward, *M.bilinear(*after, 11, 9), nodes, np.arange(-11, 11, 2) * np.pi / 11, np.arange(-8, 9, 2), 0.97
    for ours, x in zip((mdp.reward, mdp.successor, mdp.probability, mdp.a, mdp.theta, mdp.theta_dot, mdp.gamma), true):
        assert near(np.reshape(ours, np.shape(x)), x, 1e-12)

def test_tanh_spaced_nodes_integrate_the_boundary_layers_that_a_uniform_grid_mis_integrates():
    """log_base sums to the measure 2; α log ∫ exp(a/α) da = α log(2α sinh(1/α)) even for layers of a width 1e-3."""
    tanh, uniform = (M.pendulum_mdp(5, 5, 33, spacing=spacing) for spacing in ("tanh", "uniform"))
    _, V, pi = M.soft_value_iteration(tanh, 0.2, tanh.log_base, tol=1e-6)
    assert near(M.soft_policy_evaluation(tanh, pi, 0.2, tanh.log_base), V, 1e-6), "with the same measure, the same value"
    assert near(np.exp(tanh.log_base).sum(), 2, 1e-4) and near(np.exp(uniform.log_base).sum(), 2, 1e-12)
    for alpha, exact in ((x, 1 + x * np.log(x * -np.expm1(-2 / x))) for x in (10.0, 0.1, 1e-2, 1e-3)):
        assert near(M.soft_value(tanh.a, alpha, tanh.log_base), exact, 0.01 * alpha)
        assert alpha > 0.01 or not near(M.soft_value(uniform.a, alpha, uniform.log_base), exact, alpha)

def test_stripes_of_the_exact_torque_come_from_the_kink_of_the_cost_and_not_from_the_grid():
    """Peaks of the torque over θ at ω = 6: a finer grid has the same; the cost 5(1 − cos θ) in place of θ² leaves none."""
    def peaks(n, m, kink):
        mdp = M.pendulum_mdp(n, m)
        if not kink:
            mdp.reward = mdp.reward + (mdp.theta**2 - 5 * (1 - np.cos(mdp.theta))).repeat(m)[:, None]
        u = M.soft_value_iteration(mdp, 0.05, mdp.log_base, tol=0.1)[2] @ mdp.a
        rising = np.diff(u.reshape(n, m)[:, np.abs(mdp.theta_dot - 6).argmin()]) > 0
        return [x for x, up, then in zip(mdp.theta[1:], rising, rising[1:]) if up and not then and 0.5 < x < 2.3]
    assert near(peaks(101, 81, kink=True), peaks(151, 121, kink=True), 2 * np.pi / 101) and not peaks(101, 81, kink=False)

# --- Networks, buffer, agent, training, command line -----------------------------------------------------------------

def test_mlp_starts_with_he_variance_a_tenth_of_that_size_in_the_last_layer_and_first_biases_within_one():
    """Var W = 2/n_in keeps a signal's size through the layers; twins differ."""
    net = S.MLP((100, 200, 300, 50), RNG(0), copies=2)
    for W, size in zip(net.weights, (1, 1, 0.1)):
        assert abs(W.var() / (size**2 * 2 / W.shape[1]) - 1) < 4 * math.sqrt(2 / W.size) and (W[0] != W[1]).any()
    b, *others = net.biases
    assert abs(3 * b.var() - 1) < 4 * math.sqrt(0.8 / b.size) and abs(b).max() <= 1 and not any(b.any() for b in others)
    assert net.theta.dtype == np.float32

def test_adam_takes_the_textbook_steps():
    """m̂/(√v̂ + ε) with bias-corrected means (Kingma & Ba, algorithm 1); ε is large here, so that its place is seen."""
    rng, lr, b1, b2, epsilon = RNG(2), 0.03, 0.8, 0.95, 0.5
    theta, m, v = rng.normal(size=9), 0, 0
    expected, adam = theta.copy(), S.Adam(theta, lr, b1, b2, epsilon)
    for t in range(1, 8):
        g = rng.normal(size=9)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        expected -= lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + epsilon)
        adam.step(g)
        assert near(theta, expected, 1e-12), f"step {t}"

def test_replay_buffer_overwrites_the_oldest_and_draws_whole_rows_uniformly_in_float32():
    """Capacity 5: of twelve transitions the last five remain; s, a, r, s' and `terminated` of a row belong together."""
    buffer, rng, n = S.ReplayBuffer(5, 2, 3), RNG(3), 20_000
    for i in range(12):
        buffer.add([i, -i], [i, 2 * i, 3 * i], 10 * i, [i + 1, i + 2], i % 2 == 0)
        rows = np.column_stack(buffer.sample(n, rng))
        k = rows[:, 0]
        assert set(k) == set(range(max(0, i - 4), i + 1)) and len(buffer) == min(i + 1, 5), f"after {i + 1} transitions"
        assert np.array_equal(rows, np.column_stack([k, -k, k, 2 * k, 3 * k, 10 * k, k + 1, k + 2, k % 2 == 0]))
    assert abs(np.bincount(k.astype(int))[7:] / n - 0.2).max() < 4 * (0.2 * 0.8 / n)**0.5 and k.dtype == np.float32

def test_actions_are_the_squashed_sample_scaled_to_asymmetric_bounds_and_never_beyond():
    """tanh μ when deterministic, otherwise the sample of squashed_gaussian; −1, 0, 1 are low, middle, high."""
    agent, (obs, *_), _ = random_agent()
    mu, log_std, *_ = agent.policy(obs)
    a, _ = S.squashed_gaussian(mu, log_std, random_agent()[0].rng.standard_normal(mu.shape))
    assert near(agent.act(obs), [1, 5] + a * [2, 5], 1e-12) and agent.act(obs[0]).shape == (2,)
    assert near(agent.act(obs, deterministic=True), [1, 5] + np.tanh(mu) * [2, 5], 1e-12)
    assert agent.act(obs[:0]).shape == (0, 2), "no observations, no actions"
    ends = agent.to_environment(np.array([[-1, -1], [0, 0], [1, 1], [0.5, -0.5]]))
    assert ends.tolist() == [[-1, 0], [1, 5], [3, 10], [2, 2.5]]
    low, high = S.SAC(3, [-0.3], [0.1], SMALL).to_environment(np.float32([[-1], [1]]))
    assert -0.3 <= low < high <= 0.1, "beyond, by rounding"

@pytest.mark.parametrize("bad", [nan, 1e200])                               # the square of 1e200 is infinite
def test_an_update_stops_at_a_bad_gradient_before_it_does_harm(bad):
    agent, batch, _ = random_agent()
    for name, results in (("actor", (0.0, agent.actor.theta * bad, None)), ("critic", (0.0, agent.critic.theta * bad))):
        before = getattr(agent, name).theta.copy()
        setattr(agent, f"{name}_loss", lambda *_: results)
        with pytest.raises(FloatingPointError, match=f"the {name}'s squared gradient is not finite: (nan|inf)"):
            agent.update(batch)
        assert np.array_equal(getattr(agent, name).theta, before), "the step was taken all the same"

def test_training_warms_up_with_random_actions_then_follows_the_policy_and_logs_each_step(rows, monkeypatch):
    """Later episodes begin with 0 to random_steps random steps; a policy that always answers 0 tells them apart."""
    monkeypatch.setattr(S.SAC, "sample", lambda agent, obs: np.zeros((len(obs), 1)))
    rates, n, steps, settings = [], 950, np.arange(1, 951), replace(SMALL, random_steps=4, buffer_size=900)
    agent, log = S.train(Toy(10), settings, n_steps=n, progress=lambda step, agent, log:
                         rates.append([step, *(optimiser.learning_rate for optimiser in agent.optimisers)]))
    rate = 5e-3 + (1e-3 - 5e-3) * np.maximum(steps - 50, 0) / (n - 50)      # linear, from the first update to the last
    assert near(rates, np.column_stack([steps, rate, rate, rate]), 1e-12)
    obs, a, next_obs = (np.array([row[i][0] for row in rows]) for i in (0, 1, 3))
    assert np.array_equal([obs, next_obs - 1], 2 * [(steps - 1) % 10]), "s' is the last state of an episode, not the next start"
    assert -1 <= a.min() < -0.9 and 0.9 < a.max() <= 1 and len(set(a[:50])) == 50, "all 50 steps of warm-up are random"
    lead = (a[50:].reshape(90, 10) != 0).sum(axis=1)
    assert set(lead) == {0, 1, 2, 3, 4} and np.array_equal(a[50:].reshape(90, 10) != 0, np.arange(10) < lead[:, None])
    assert np.array_equal(log["step"], steps[50:]) and log["alpha"][-1] == agent.alpha and log["n_steps"] == n
    assert all(len(log[key]) == n - 50 for key in ("critic_loss", "actor_loss", "alpha", "entropy"))
    assert np.array_equal(log["episode_step"], steps[9::10]) and (log["episode_return"] == 10).all()
    assert np.array_equal(log["observations"], [row[0] for row in rows[900:] + rows[50:900]]), "the newest over the oldest"

def test_equal_seeds_give_bitwise_equal_parameters_and_different_seeds_different_ones():
    """Same machine, one thread; two whole episodes of an environment of Gymnasium."""
    runs = (3, 450), (np.int64(3), np.int64(450)), (4, 450)
    one, two, other = (parameters(S.train("Pendulum-v1", SMALL, seed, n)[0]) for seed, n in runs)
    assert np.isfinite(one).all() and np.array_equal(one, two) and np.mean(one == other) < 0.1

def test_reacher_with_asymmetric_bounds_and_a_terminal_state_is_learned_to_near_its_optimum():
    """The optimum is ⌈(max|x| − 0.1)/0.3⌉ steps, at least one; random actions need more than twice as many."""
    starts = [np.abs(Reacher().reset(seed=seed)[0]).max() for seed in range(100)]
    best = -np.maximum(1, np.ceil((np.array(starts) - 0.1) / 0.3))
    settings = replace(SMALL, hidden=(32, 32), gamma=0.95, tau=0.05, batch_size=64, warmup=300, alpha=0.1, q_scale=1.0)
    agent, log = S.train(Reacher(), settings, n_steps=2000)
    regret = best - S.evaluate(agent, Reacher(), range(100))
    assert regret.min() >= 0 and regret.mean() < 0.4, f"{regret.mean():.2f} steps beyond {-best.mean():.2f}"
    assert log["episode_return"][:10].mean() < 2 * best.mean()

def ctrl_c(*_, **__):
    raise KeyboardInterrupt

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_loaded_agent_acts_bitwise_as_before_and_what_save_did_not_write_is_refused(dtype, tmp_path, monkeypatch):
    """Deterministic, and with the noise that would have come next.  An interrupted save leaves the old file alone."""
    settings = replace(SMALL, hidden=np.array([8, 8]), batch_size=np.int64(16), gamma=np.float64(0.9),
                       learning_rate=np.array(5e-3), tune_alpha=np.True_)
    agent, file, obs = S.SAC(3, [-1, 0], [3, 10], settings, 4, dtype), tmp_path / "agent.npz", RNG(7).normal(size=(5, 3))
    agent.act(obs), agent.save(file)
    loaded, whole, data = S.SAC.load(file), file.read_bytes(), dict(np.load(file))
    assert np.array_equal(parameters(agent), parameters(loaded)) and loaded.settings == SMALL and loaded.dtype == dtype
    assert settings.hidden == (8, 8) and type(settings.gamma) is float, "else all arithmetic would be float64"
    assert all(np.array_equal(agent.act(obs, mode), loaded.act(obs, mode)) for mode in (True, False, False))
    for owner, name, broken in (np, "savez", lambda f, **_: f.write(b"half") and ctrl_c()), (S.os, "replace", ctrl_c):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, name, broken)
            agent.save(file)
    assert file.read_bytes() == whole and [f.name for f in tmp_path.iterdir()] == ["agent.npz"]
    parts = [whole[:len(whole) * k // 10] for k in range(10)]
    damages = (dict(about="{"), dict(about="{}"), dict(actor=data["actor"][:1]), dict(critic=nan * data["critic"]),
               dict(log_alpha=[800.0]), dict(a_pickle=np.array([print])))
    for damage in (b"a text", whole[:-1], *parts, *damages):
        file.write_bytes(damage) if isinstance(damage, bytes) else np.savez(file, **(data | damage))
        refuses(S.SAC.load, {}, "agent.npz is not a whole file written by SAC.save", path=[file])

@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Call main in an empty folder, with small settings and `env` for --env -> exit status, stdout, lines of stderr.
    What is made from an id must be closed, also if it is refused or fails; one that is given must not (close=None above)."""
    still_open = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(S, "train", partial(S.train, settings=SMALL))
    def call(words, env=None):
        monkeypatch.setattr(sys, "argv", ["sac_numpy.py", *words.split()])
        if env:
            env.close = still_open.clear
            monkeypatch.setattr(gym, "make", lambda _: still_open.append(env) or env)
        status, (out, err) = S.main(), capsys.readouterr()
        assert not still_open
        return status, out, [line for line in re.split(r"[\r\n]+", err) if line]
    return call

BAD_STEPS = {                                                               # what goes wrong at step 161 of a training
    "the observation must have 2 numbers, got the shape .1,.": lambda: ([0], 1.0),
    "the observation must have 2 numbers, got the shape .1, 2.": lambda: ([[0, 0]], 1.0),
    "training stopped after 160 steps: the observation is not finite": lambda: ([0, nan], 1.0),
    "training stopped after 160 steps: the reward is not finite": lambda: ([0, 0], 1e39),
    "training stopped after 1.. steps: the critic's squared gradient is not finite": lambda: ([0, 0], 1e38),
    "training stopped after 161 steps: the action is not finite": lambda: ([1e30, 0], 1.0),
    "the reward must be a number, got array": lambda: ([0, 0], np.ones(1)),
    "'torque'": lambda: {}["torque"]}

@pytest.mark.parametrize("words, env, message", [
    ("--steps 50", {}, "n_steps must"), ("", dict(action_space=Box(0, inf, (1,))), "actions need finite bounds"),
    ("--save .", {}, "cannot write ."), ("--save no/a.npz", {}, "No such.*no/a"), ("--save text/a.npz", {}, "Not a.*text"),
    ("--save mine", {}, ".*exists.*'mine.part'"), (f"--save {252 * 'x'}", {}, ".*long"), ("--load no", {}, "No such.*'no'"),
    ("--load text", {}, "text is not a whole file"), ("--load other.npz", {}, "the agent is of another environment"),
    ("--load toy.npz", dict(events={9: lambda: {}["torque"]}), "'torque'"), ("--env Nil-v0", None, ".*Nil"),
    *(("--steps 190 --save a.npz", dict(events={161: event}), message) for message, event in BAD_STEPS.items())])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")                       # on purpose: numbers that overflow
def test_a_wrong_call_or_bad_number_prints_one_line_exits_with_2_and_leaves_no_file(words, env, message, command):
    """No traceback; what went wrong, in which step and quantity, on a line of its own; nothing half-written."""
    AGENT.save("other.npz"), S.SAC(np.int64(2), [-0.3], [0.1], SMALL).save("toy.npz")
    Path("text").write_text("a text"), Path("mine.part").write_text("of the user")
    status, out, lines = command(words, None if env is None else Toy(**env))
    assert status == 2 and not out and re.match(rf"sac_numpy.py: \w+: .*{message}", lines[-1]), lines
    assert all(line.startswith("step ") for line in lines[:-1])
    assert ("FloatingPointError: " in lines[-1]) == ("not finite" in lines[-1]), "anything else is no matter of numbers"
    assert {f.name for f in Path().iterdir()} == {"text", "mine.part", "other.npz", "toy.npz"}

def test_command_line_shows_progress_trains_evaluates_saves_and_loads(command, monkeypatch):
    """A clock that gains 50 s per look: 2 steps/s leave 35 s for 70, then 1.4.  The loaded agent is evaluated alike."""
    _, log = S.train(Toy(5), n_steps=170)                                   # its first update is at step 51
    monkeypatch.setattr(S, "time", SimpleNamespace(monotonic=partial(next, itertools.count(1000, 50))))
    status, out, lines = command("--steps 170 --save agent.npz", Toy(5))
    shown = re.compile(r"step +(\d+)/170 +last return +(\S+) +α (\S+) +entropy +(\S+) +(\d+) steps/s +(\d+) s left ?")
    for line, n, *speed in zip(lines, (100, 170), ("2", "1"), ("35", "0")):
        alpha, entropy = f"{log['alpha'][n - 51]:.4f}", f"{log['entropy'][n - 51]:.2f}"
        assert shown.fullmatch(line).groups() == (str(n), "5.0", alpha, entropy, *speed)
    assert len(lines) == 2 and not status
    assert out == "mean return over 100 episodes from reset(seed=0..99): 5.0 (standard deviation 0.0)\n"
    assert command("--load agent.npz", env := Toy(5)) == (None, out, []) and env.steps == 100 * 5

def test_interrupt_ends_training_with_what_was_learned_so_far(command, monkeypatch):
    """Ctrl-C in the environment's step 80: the agent of 79 steps is saved.  In an update: the log has whole rows."""
    status, _, lines = command("--steps 200 --seed 3 --save a.npz", Toy(events={80: ctrl_c}))
    assert status == 130 and lines[-1].endswith("interrupted after 79 of 200 steps")
    kept = []
    S.train(Toy(), seed=3, n_steps=200, progress=lambda step, agent, log: step == 79 and kept.append(parameters(agent)))
    assert np.array_equal(parameters(S.SAC.load("a.npz")), kept[0])
    monkeypatch.setattr(S.SAC, "update", ctrl_c)
    _, log = S.train(Toy(), n_steps=200)
    assert log["n_steps"] == 51 and {log[key].size for key in ("step", "critic_loss", "alpha", "entropy")} == {0}

def test_benchmark_divides_the_time_of_an_update_by_that_of_its_matrix_products(monkeypatch, capsys):
    """Times that grow by 1 ms a call.  Multiplications per layer: 4 of the actor, 6 of each critic, less its last dx."""
    clock = itertools.count(1)
    monkeypatch.setattr(S.timeit, "repeat", lambda f, number, repeat: (f(), [0.001 * number * next(clock)] * repeat)[1])
    S.benchmark()
    out, agent = capsys.readouterr().out, S.SAC(3, [-2], [2], replace(SMALL, hidden=(8, 6)))
    for line in ("hidden (64, 64), batch 128: one update 2.000 ms, its matrix products 3.000 ms, ratio 0.67;",
                 "hidden (256, 256), batch 256: one update 4.000 ms, its matrix products 5.000 ms, ratio 0.80;"):
        assert line in out
    assert "networks 90,904 bytes, replay buffer 360,000 bytes" in out, "4 (4546 + 4·4545), 4·9·10 000"
    multiplications = 4 * (3 * 8 + 8 * 6 + 6 * 2) + 2 * (6 * (4 * 8 + 8 * 6) + 4 * 6)
    assert sum((x @ y).size * x.shape[-1] for x, y in S.bare_products(agent, 10)) == 10 * multiplications

# --- Figures ---------------------------------------------------------------------------------------------------------

def test_in_the_figure_of_fokker_planck_the_dots_follow_the_lines_and_the_free_energy_falls_to_its_minimum():
    """Eq. 3 at kT = 0.5 from N(1, 0.15²), and F[p] = E[V] + kT E[log p] of what is drawn, also of the dots."""
    left, right = F.figure_fokker_planck(None).axes
    for line, dots, point in zip(left.lines[0:10:2], left.lines[1:10:2], right.lines):
        (t,), (F_dots,), p = *point.get_data(), dots.get_ydata()
        assert line.get_label() == f"t = {t:g}" and np.isclose(F_dots, L.free_energy(p, F.V, F.DX, 0.5), rtol=1e-9)
        assert chi_square(np.repeat(F.X, np.round(p * F.DX * 10_000).astype(int)), line.get_ydata(), F.X) < 4
        assert near(line.get_ydata(), modes(F.V, F.DX, 0.5, gaussian(F.X, 1, 0.15**2), [t])[1][0], 1e-8)
    falling, lowest = (line.get_ydata() for line in right.lines[5:])
    assert near(lowest, -0.5 * np.log(np.exp(-F.V / 0.5).sum() * F.DX), 1e-12)
    assert (np.diff(falling) < 0).all() and falling[-1] - lowest[0] < 1e-3

def test_in_the_figure_of_the_boltzmann_policy_bars_titles_and_slope_are_those_of_its_formulas():
    """Eq. 17, 24, by hand; the entropy as a slope is drawn where it was computed as a sum."""
    *panels, last = F.figure_Boltzmann_Policy(None).axes
    for ax, alpha in zip(panels, (0.1, 0.5, 1, 2, 5)):
        pi = np.exp(Q5 / alpha) / np.exp(Q5 / alpha).sum()
        H, V = -pi @ np.log(pi), alpha * np.log(np.exp(Q5 / alpha).sum())
        assert near([bar.get_height() for bar in ax.patches], pi, 1e-12)
        assert ax.get_title() == f"α = {alpha:g}\nH = {H:.2f}   E[Q] = {pi @ Q5:.2f}   V = {V:.2f}"
    (x, mean), (_, H), (dots, slopes) = (line.get_data() for line in last.lines)
    assert near(mean + x * H, x * np.log(np.exp(Q5 / x[:, None]).sum(axis=1)), 1e-12)
    assert near(slopes, np.interp(dots, x, H), 1e-3)

def test_in_the_figure_of_two_clocks_simulation_meets_the_spectral_gap_and_cold_theories_meet_each_other():
    """C1.  The mean at τ/2 and τ gives τ to √(e² − e)/100/½ = 4.3 %: 10 000 particles near ±1, with that correlation.
    At T = 0.1 the grid (dx = 0.05) shifts the gap by < 1 %, and Kramers errs by O(T)."""
    lines = F.figure_two_clocks(None).axes[0].lines[:5]
    inverse_T, (x, tau) = lines[0].get_xdata(), lines[4].get_data()
    gap, passage, kramers, well = (line.get_ydata() for line in lines[:4])
    assert near(tau / np.interp(x, inverse_T, gap), 1, 4 * 0.043) and len(x) == 5 and inverse_T[-1] == 10
    assert near(gap[-1] / passage[-1], 1, 0.01) and near(kramers[-1] / passage[-1], 1, 0.1) and (well == 1 / 8).all()

def test_in_the_figure_of_actions_langevin_fills_both_peaks_of_a_trained_critic_the_gaussian_only_one(pendulum, monkeypatch):
    """C5, C8: the drawn policy is ∝ exp(Q/α) at the state and α of its title, and histograms differ from it by chance only."""
    monkeypatch.setattr(F, "trained", lambda *_: [pendulum])
    for ax in F.figure_action_langevin(SimpleNamespace(seeds=1, steps=6000)).axes:
        theta, omega, alpha = map(float, re.findall(r"-?\d[\d.e-]*", ax.get_title()))
        theta = np.linspace(-np.pi, np.pi, 61)[round((theta + np.pi) / (np.pi / 30))]
        (a, pi), gauss = ax.lines[0].get_data(), ax.lines[1].get_ydata()
        obs = np.tile([np.cos(theta), np.sin(theta), omega], (a.size, 1))
        Q = pendulum[0].critic.forward(np.column_stack((obs, a)).astype(np.float32))[0][..., 0].min(axis=0)
        assert abs(np.polyfit(Q, np.log(pi), 1)[0] * alpha - 1) < 0.05 and np.corrcoef(Q, np.log(pi))[0, 1] > 1 - 1e-9
        assert near(np.log(pi.max() / pi.min()), 4, 1e-6), "α is a quarter of the range of Q"
        ten, mode = pi[:-1].reshape(10, 20).sum(axis=1), gauss.argmax()     # ten bins, no thin peaks
        valley = max(min(ten[:i + 1].max(), ten[i:].max()) - ten[i] for i in range(10)) / ten.max()
        assert valley > 0.2 if "two" in ax.get_title() else valley < 0.1 and max(ten[0], ten[-1]) < 0.5 * ten.max()
        assert (np.diff(gauss[:mode + 1]) >= 0).all() and (np.diff(gauss[mode:]) <= 0).all(), "the Gaussian has one peak"
        u, seen = np.arctanh(a), gauss > 1e-99
        c, b, rest = np.polyfit(u[seen], np.log((gauss * (1 - a * a))[seen]), 2)            # −1/2σ², μ/σ²
        assert near(rest, b * b / (4 * c) + np.log(-c / np.pi) / 2, 1e-6), "over u it is a normalised Gaussian"
        drawn, width = ax.patches[0].get_data().values, np.diff(a[::5])
        bins = (pi[:-1] + pi[1:]).reshape(-1, 5).mean(axis=1) / 2
        chance = np.sqrt(2 / np.pi * bins * width / 5000).sum()             # sum of mean differences, of 5000 drawn from it
        assert np.abs(drawn - bins) @ width < 2 * chance

def test_mean_torque_and_value_are_integrals_over_the_policy_of_the_smaller_critic():
    """Nine nodes beside 1601, on a policy with σ = 1/4 and a smooth Q; what is left is float32's rounding."""
    agent, obs, noise = S.SAC(3, [-1], [1], SMALL), RNG(0).normal(size=(6, 3)).astype(np.float32), np.linspace(-8, 8, 1601)
    agent.actor.biases[-1][..., 1] -= 1.5                                   # log σ
    agent.critic.biases[-1][1] += 100                                       # the first critic is the smaller one
    mu, log_std, *_ = agent.policy(obs)
    a, weight = np.tanh(mu + np.exp(log_std) * noise), gaussian(noise, 0, 1) * 0.01
    Q = np.transpose([agent.critic.forward(np.column_stack((obs, x)))[0][0, :, 0] for x in a.T])
    assert near(F.mean_torque_and_value(agent, obs), (2 * a @ weight, Q @ weight), 1e-5)

def test_the_training_figure_prints_and_draws_the_regret_of_each_seed(monkeypatch, capsys):
    """Made up: seed k loses 100, then 10 everywhere, at last 2k at 90 starts and 50 at ten; of 230 updates 200 are drawn."""
    lost = np.empty((4, 3, 100))
    lost[:, 0], lost[:, 1], lost[:, 2], lost[:, 2, 90:] = 100, 10, [[0], [2], [4], [6]], 50
    keys = "entropy", "actor_loss", "critic_loss", "alpha"
    log = {key: k + np.arange(230) for k, key in enumerate(keys)} | dict(step=np.arange(1001, 1231))
    monkeypatch.setattr(F, "trained", lambda *_: [(AGENT, log | dict(evaluations=F.optimum() - x)) for x in lost])
    curve, regret, entropy, _ = F.figure_RL_training_log(SimpleNamespace(seeds=4, steps=1200)).axes
    out, best = capsys.readouterr().out, F.optimum().mean()
    assert out.startswith("regret of each seed: 5.0 6.8 8.6 10.4   of its median start: 0.0 2.0 4.0 6.0\n"), out
    assert "10: 10.0 of 100, with 65% of all regret" in out and "7.7 at the end, worst seed 10.4" in regret.get_title()
    for line, drawn, last in zip(regret.lines, curve.lines, (5, 6.8, 8.6, 10.4, 7.7)):      # seeds, interquartile mean
        assert near(line.get_data(), ((500, 1000, 1200), (100, 10, last)), 1e-9)
        assert near(drawn.get_ydata(), best - line.get_ydata(), 1e-9)
    assert (entropy.lines[0].get_xdata() == [1055.5, 1105.5, 1155.5, 1205.5]).all(), "blocks of 50, the newest whole"
    assert (entropy.lines[0].get_ydata() == [54.5, 104.5, 154.5, 204.5]).all() and curve.lines[5].get_ydata()[0] == best

def test_interquartile_mean_and_its_band():
    """The mean of the middle half; of other resampled means 2.5 % lie on either side of the band, which equal seeds shrink."""
    assert F.interquartile_mean(np.array([-1e9, 1, 2, 3, 4, 1e9, -50, 5])) == 2.5
    x, n = RNG(0).normal(size=400), 20_000
    low, high = F.bootstrap_band(x, n)
    means = np.sort(RNG(1).choice(x, (n, 400)), axis=1)[:, 100:300].mean(axis=1)
    assert near((np.mean(means < low), np.mean(means > high)), 0.025, 4 * np.sqrt(2 * 0.025 * 0.975 / n))
    assert np.array_equal(F.bootstrap_band(np.tile([1.0, 7.0], (5, 1))), [[1, 7], [1, 7]]), "each step has its own band"

def test_training_in_a_worker_is_the_same_training_and_leaves_the_callers_other_processes_alone():
    other = multiprocessing.Process(target=time.sleep, args=(60,), daemon=True)
    other.start()
    ((agent, log),) = F.trained(1, 1001)
    time.sleep(0.1)
    assert other.is_alive()
    other.kill()
    assert np.array_equal(parameters(agent), parameters(S.train("Pendulum-v1", n_steps=1001)[0]))
    assert log["evaluations"].shape == (3, 100), "every 500 steps, and at the end"

def python(*args, cwd=HERE):                                                # as into a file where Greek cannot be written
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True,
                          env=S.os.environ | {"PYTHONIOENCODING": "ascii"})

@pytest.mark.parametrize("args, message", ((["nonsense"], "unknown figure 'nonsense'"), (["--seeds", "0"], "--seeds must be"),
                                           (["--steps", "5"], "--steps"), (["--out", "/dev/null/x"], "/dev/null")))
def test_figures_refuses_in_one_line(args, message):
    done = python("figures.py", *args)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr

def test_a_figure_is_made_without_a_display_and_an_interrupted_one_leaves_only_the_old_files(tmp_path, monkeypatch):
    words = ["figures.py", "Boltzmann_Policy", "three_calibers", "--out", str(tmp_path)]
    files = lambda: {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = python("-X", "importtime", *words)
    assert done.returncode == 0, done.stderr
    assert "pyplot" not in done.stderr, "pyplot, which looks for a display, is imported"
    whole = files()
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(F.Figure, "savefig", lambda figure, path: path.write_bytes(b"half") and ctrl_c())
    assert F.main() == 130 and files() == whole and whole.keys() == {"Boltzmann_Policy.png", "three_calibers.png"}

# --- Modules on their own, README ------------------------------------------------------------------------------------

README = (HERE / "README.md").read_text("utf-8")
ROWS = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in README.splitlines() if line.startswith("| ")]
EQUATIONS = [row for row in ROWS if len(row) == 5 and row[0] != "Eq."]
CODE = {name: (HERE / f"{name}.py").read_text("utf-8") for name in ("langevin", "maxent", "sac_numpy", "figures", "test_all")}

@pytest.mark.parametrize("module, words", (("langevin", []), ("maxent", []), ("sac_numpy", ["--steps", "1010"])))
def test_a_module_copied_out_alone_runs_its_demonstration_where_simulation_agrees_with_theory(module, words, tmp_path):
    (tmp_path / f"{module}.py").write_text(CODE[module], "utf-8")
    done = python(f"{module}.py", *words, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout, done.stderr
    lines = re.findall(r"simulated (\S+) \+- (\S+) +theory (\S+)", done.stdout)
    assert len(lines) == 10 * (module == "langevin")
    assert all(abs(float(simulated) - float(theory)) < 4 * float(error) for simulated, error, theory in lines)
    if module == "maxent":
        both = re.findall(r"formula \[(.*?)\] +(?:simulated|counted) \[(.*?)\]", done.stdout)
        drawn, dice = (np.abs(np.subtract(*(np.array(x.split(), float) for x in pair))).max() for pair in both)
        assert drawn < 4 * np.sqrt(0.25 / 100_000) and dice < 1 / 200, "200 dice are nearly as many as Eq. 5 needs"
        assert float(done.stdout.split()[-1]) < 1e-12, "the largest difference of a path's probability"

def tagged(text):
    """The numbers of the equations that a text names: Eq. 3, Eq. 4–6, Eq. 15, 24."""
    parts = [part.split("–") for tag in re.findall(r"Eq\. (\d+(?:(?:–|, )\d+)*)", text) for part in tag.split(", ")]
    return {number for part in parts for number in range(int(part[0]), int(part[-1]) + 1)}

def test_every_equation_is_in_the_readme_and_in_the_function_named_there():
    assert set().union(*(tagged("Eq. " + row[0]) for row in EQUATIONS)) == set(range(1, 26))
    assert set().union(*(tagged(CODE[name]) for name in ("langevin", "maxent", "sac_numpy"))) == set(range(1, 26))
    for row in EQUATIONS:
        source = inspect.getsource(pkgutil.resolve_name(row[2].strip("`")))
        assert tagged("Eq. " + row[0]) <= tagged(source), f"{row[2]} does not name Eq. {row[0]}"

def test_every_name_in_the_readme_exists():
    tests = re.findall(r"def (test_\w+)", CODE["test_all"])
    claims = [row for row in ROWS if re.match(r"C\d", row[0])]
    assert [(row[0], len(row)) for row in claims] == [(f"C{i}", 4) for i in range(1, 20)], "each a row of four cells"
    for row in EQUATIONS + claims:                                          # the fourth cell names tests, the fifth figures
        words = re.findall(r"`(\w+)`", row[3])
        assert words and all(any(word in test for test in tests) for word in words), f"{row[0]}: no test for {row[3]!r}"
    assert {name for row in EQUATIONS for name in re.findall(r"`(\w+)`", row[4])} <= set(F.FIGURES)
    for name in re.findall(r"`((?:langevin|maxent|sac_numpy)\.(?!py)[A-Za-z_.]+)`", README):
        pkgutil.resolve_name(name)                                          # AttributeError if it does not exist
    for link in re.findall(r"\]\(([^):]+)\)", README):
        assert (HERE / link).exists(), f"{link} does not exist"
    for script, name in re.findall(r"python (\w+\.py)((?: [A-Za-z_]+)*)", README):
        assert (HERE / script).exists() and (script != "figures.py" or set(name.split()) <= set(F.FIGURES)), f"{script}{name}"

def test_what_is_quoted_and_not_tested_says_so_and_names_its_source():
    """C18: whether SAC matches or beats PPO and DDPG is beyond this project."""
    assert "quoted, not tested" in next(row for row in ROWS if row[0] == "C18")[2] and "huggingface.co/sb3" in README

def test_the_line_counts_in_the_readme_are_right():
    counts = {row[0].strip("`"): int(row[1]) for row in ROWS if row[0].endswith(".py`")}
    assert counts == {f"{name}.py": text.count("\n") for name, text in CODE.items()}
    part_1 = CODE["test_all"].split("# === Part 2")[0].rstrip().count("\n") + 1
    command_line = CODE["sac_numpy"].split("# --- Command line")[1].count("\n")
    assert f"part 1 (the first {part_1} lines)" in README and f"the last {command_line} lines are the command line" in README

def test_the_code_in_the_readme_runs(tmp_path):
    block, = re.findall(r"```python\n(.*?)```", README, re.S)
    done = python("-c", f"import sys; sys.path.insert(0, {str(HERE)!r})\n{block}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
