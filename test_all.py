"""The chapter's formulas and claims as tests: `pytest test_all.py`.

Part 1 follows the chapter and can be read beside it; part 2 is the program around it.  The numbers
Eq. 1–25 and C1–C25 are those of the README.  A test's name is a claim, its docstring says why it
must hold.  A wrong formula that one could believe has a test of its own, with "not" in its name,
below the right one.  Expected values come from an identity, a closed form, an independent
computation or finite differences; only the bounds of a tendency (> 0.7) are measured.  Statistical
bounds are four standard errors, seeds are fixed.
"""
import functools
import math
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import figures
import gymnasium as gym
import langevin
import matplotlib.pyplot as plt
import maxent
import numpy as np
import pytest
import sac_numpy
from numpy.testing import assert_allclose

HERE = Path(__file__).parent
KT, GAMMA = 0.5, 1.5                            # temperature and friction in most tests of langevin
D = KT / GAMMA
GRID, DX = np.linspace(-2.5, 2.5, 201, retstep=True)
WELL = langevin.double_well(GRID)
Q5 = np.array([1.0, 3.0, 2.0, 0.5, 2.5])        # the chapter's five actions


def rng(seed=0):
    return np.random.default_rng(seed)


def off(samples, mean):
    """By how many standard errors the mean of independent samples lies above `mean`."""
    return (samples.mean() - mean) / (samples.std() / np.sqrt(samples.size))


def worst_bin(x, p, grid=GRID, size=8, weights=None):
    """The largest difference between the share of a bin and the density p (n,), in errors √Σw².

    Bins are `size` nodes of the grid wide; those that expect less than 1 % are left out.
    """
    w = np.full(len(x), 1 / len(x)) if weights is None else weights
    n_bins, dx = len(grid) // size, grid[1] - grid[0]
    expected = p[:n_bins * size].reshape(n_bins, size).sum(axis=1) * dx
    edges = grid[0] - dx / 2 + dx * size * np.arange(n_bins + 1)
    share, _ = np.histogram(x, edges, weights=w)
    variance, _ = np.histogram(x, edges, weights=w**2)
    error = np.sqrt(np.maximum(variance, 1 / len(x) ** 2))      # an empty bin counts as one
    return np.max((np.abs(share - expected) / error)[expected > 0.01])


def normal(x, mean, variance):
    """The density of a normal distribution."""
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


def packet(mean, width=0.15):
    """A Gaussian density on GRID."""
    p = normal(GRID, mean, width**2)
    return p / (p.sum() * DX)


def kl(p, q):
    """KL(p ‖ q) over the last axis."""
    return np.sum(p * np.log(p / q), axis=-1)


def slope(f, x, h=1e-3):
    """f'(x) by central differences of fourth order."""
    return (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h)


def random_policies(*n, actions=5):
    """Probabilities (*n, actions), drawn uniformly."""
    return rng(1).dirichlet(np.ones(actions), n)


def random_mdp(gamma=0.9, states=7, actions=3, successors=2):
    """An MDP with random rewards, successors and probabilities."""
    draw = rng(0)
    successor = draw.random((states, actions, states)).argsort(axis=2)[..., :successors]
    probability = draw.dirichlet(np.ones(successors), (states, actions))
    return maxent.MDP(draw.normal(size=(states, actions)), successor, probability, gamma)


# === Part 1: the chapter, in its order ============================================================

# --- Langevin dynamics (Eq. 1) --------------------------------------------------------------------

def test_double_well_has_wells_at_1_and_a_barrier_of_1():
    assert_allclose(langevin.double_well(np.array([-1.0, 0.0, 1.0, 2.0])), [0, 1, 0, 9])


def test_gradient_and_curvature_are_derivatives():
    x = np.linspace(-2, 2, 41)
    V, dV, ddV = (langevin.double_well, langevin.double_well_gradient,
                  langevin.double_well_curvature)
    assert_allclose(dV(x), slope(V, x), atol=1e-8)
    assert_allclose(ddV(x), slope(dV, x), atol=1e-8)


def in_a_spring(k, **options):
    """80 000 particles after 40 steps of 0.3 in V = k x²/2.  -> x."""
    return langevin.simulate(np.zeros(80_000), lambda x: k * x, kT=KT, gamma=GAMMA, dt=0.3,
                             n_steps=40, rng=rng(1), **options)


def test_free_particles_spread_as_2Dt():
    """Einstein relation: the variance is 2Dt with D = kT/γ, here at t = 12."""
    assert abs(off(in_a_spring(0) ** 2, 2 * D * 12)) < 4


def test_a_spring_settles_at_its_temperature_up_to_the_step():
    """One step maps a variance v to (1 − k dt/γ)² v + 2D dt, at rest at (kT/k)/(1 − k dt/2γ)."""
    assert abs(off(in_a_spring(3) ** 2, KT / 3 / (1 - 3 * 0.3 / (2 * GAMMA)))) < 4


def test_averaged_noise_settles_at_the_temperature_exactly():
    """Leimkuhler–Matthews: the correlation of successive noises undoes the error of the step."""
    assert abs(off(in_a_spring(3, method="leimkuhler_matthews") ** 2, KT / 3)) < 4


def test_drift_without_friction_does_not_settle_at_kT():
    """The chapter's drift −V' is that of the potential γV with friction γ: variance kT/(γk)."""
    x = in_a_spring(3 * GAMMA, method="leimkuhler_matthews")
    assert abs(off(x**2, KT / 3 / GAMMA)) < 4
    assert off(x**2, KT / 3) < -40


# --- Boltzmann distribution (Eq. 2) ---------------------------------------------------------------

def test_boltzmann_density_of_a_spring_is_gaussian():
    """Also where exp(−V/kT) alone would overflow: a constant in V cancels."""
    p = langevin.boltzmann_density(3 * GRID**2 / 2 - 1e4, DX, 0.3)
    assert_allclose(p, normal(GRID, 0, 0.3 / 3), rtol=1e-9)


@pytest.mark.parametrize("kT", (0.1, 0.5, 1.0, 2.0))
def test_an_even_ensemble_matches_boltzmann(kT):
    """C1: the start of the figure's ensemble, spread evenly over both wells."""
    x = langevin.simulate(rng(1).uniform(-2, 2, 20_000), langevin.double_well_gradient, kT=kT,
                          dt=0.01, n_steps=500, rng=rng(2), method="leimkuhler_matthews")
    assert worst_bin(x, langevin.boltzmann_density(WELL, DX, kT)) < 4


def test_one_cold_run_does_not_match_boltzmann():
    """C1: at T = 0.1 it never sees one of two equal wells, so it misplaces half or more."""
    _, run = figures.ensemble_and_one_run(0.1, rng(0))
    boltzmann = figures.binned(langevin.boltzmann_density(figures.V, figures.DX, 0.1))
    assert run[:len(run) // 2].max() == 0
    assert figures.distance(run, boltzmann) > 0.499


def test_entropy_rises_with_temperature_in_the_double_well():
    """C2: dH/dT = Var(V)/T³ > 0."""
    def H(kT):
        return maxent.entropy(langevin.boltzmann_density(WELL, DX, kT) * DX, DX)
    for kT in (0.1, 0.5, 2.0):
        p = langevin.boltzmann_density(WELL, DX, kT) * DX
        assert_allclose(slope(H, kT), p @ (WELL - p @ WELL) ** 2 / kT**3, rtol=1e-6)


def test_spread_does_not_always_rise_with_temperature():
    """C2: E[x²] first falls, because warmer particles also visit the barrier at 0."""
    spread = [langevin.boltzmann_density(WELL, DX, kT) * DX @ GRID**2 for kT in (0.1, 0.5, 1, 2)]
    assert spread[0] > spread[1] > spread[2] < spread[3]


def test_high_temperature_is_not_flat():
    """C24: farther out, p(x)/p(1) = exp(−V(x)/T) falls to nothing at every T."""
    p = langevin.boltzmann_density(WELL, DX, 2.0)
    assert_allclose(p[-1] / p[140], np.exp(-langevin.double_well(2.5) / 2), rtol=1e-9)


def test_low_temperature_does_not_find_the_lower_well():
    """C24: Boltzmann has 88 % on the left; at t = 20 a cold even start still has half."""
    tilted = WELL + 0.1 * GRID
    even = np.where(np.abs(GRID) < 2, 1, 0)
    p = langevin.fokker_planck_evolve(even / (even.sum() * DX), tilted, DX, 0.1, [20.0])[0]
    left = GRID < 0
    assert_allclose(p[left].sum() * DX, 0.5, atol=0.05)
    assert langevin.boltzmann_density(tilted, DX, 0.1)[left].sum() * DX > 0.85


# --- Fokker–Planck equation (Eq. 3) ---------------------------------------------------------------

@pytest.fixture(params=[2, 21, 201])
def tilted_well(request):
    """A double well with a slope, on a grid of n nodes -> V, dx."""
    x, dx = np.linspace(-2.5, 2.5, request.param, retstep=True)
    return langevin.double_well(x) + x / 4, dx


def test_generator_conserves_probability(tilted_well):
    """Every column of G sums to zero: what leaves one node arrives at another."""
    G = langevin.fokker_planck_generator(*tilted_well, KT, GAMMA)
    assert_allclose(G.sum(axis=0), 0, atol=1e-12 * np.abs(G).max())


def test_generator_rests_at_boltzmann_in_detailed_balance(tilted_well):
    """Eq. 3 is at rest at Eq. 2, and no current flows between any two nodes."""
    G = langevin.fokker_planck_generator(*tilted_well, KT, GAMMA)
    p = langevin.boltzmann_density(*tilted_well, KT)
    up, down = np.diag(G, -1), np.diag(G, 1)
    assert_allclose(up * p[:-1], down * p[1:], rtol=1e-9)


def test_generator_drifts_with_the_force_over_friction(tilted_well):
    """Between two nodes the mean velocity (up − down) dx is −(ΔV/dx)/γ."""
    V, dx = tilted_well
    G = langevin.fokker_planck_generator(V, dx, KT, GAMMA)
    velocity = (np.diag(G, -1) - np.diag(G, 1)) * dx
    assert_allclose(velocity, -np.diff(V) / dx / GAMMA, rtol=1e-9)


def test_generator_diffuses_on_a_flat():
    """Without a force both rates are D/dx²."""
    G = langevin.fokker_planck_generator([1.0, 1.0], 0.1, KT, GAMMA)
    assert_allclose(G, D / 0.1**2 * np.array([[-1, 1], [1, -1]]), rtol=1e-12)


def test_fokker_planck_without_friction_does_not_rest_at_kT(tilted_well):
    """The chapter's ∇V p is the drift of γV with friction γ: it rests at the temperature kT/γ."""
    V, dx = tilted_well
    G = langevin.fokker_planck_generator(GAMMA * V, dx, KT, GAMMA)
    colder, p = (langevin.boltzmann_density(V, dx, T) for T in (KT / GAMMA, KT))
    assert np.abs(G @ colder).max() < 1e-10 * np.abs(G @ p).max()


def test_central_differences_do_not_rest_at_boltzmann():
    """The textbook's current on 21 nodes: dp/dt exceeds 1 where it should be 0."""
    x, dx = np.linspace(-2.5, 2.5, 21, retstep=True)
    p = langevin.boltzmann_density(langevin.double_well(x), dx, KT)
    middle = (x[1:] + x[:-1]) / 2
    current = -langevin.double_well_gradient(middle) * (p[1:] + p[:-1]) / 2 - KT * np.diff(p) / dx
    assert np.abs(np.diff(current) / dx).max() > 1


def matrix_exponential(A):
    """e^A from 24 terms of its series, scaled by 2^k and squared k times."""
    k = max(0, math.ceil(math.log2(np.abs(A).sum(axis=0).max())))
    term = result = np.eye(len(A))
    for n in range(1, 25):
        term = term @ A / (n * 2**k)
        result = result + term
    return np.linalg.matrix_power(result, 2**k)


@pytest.mark.parametrize("kT, start", ((0.5, 1.0), (0.1, -2.0)))
def test_evolution_is_the_matrix_exponential(kT, start):
    """Also for a packet high on a wall, where a sum over eigenmodes fails."""
    G = langevin.fokker_planck_generator(WELL, DX, kT)
    for t in (0.01, 1.0, 30.0):
        p = langevin.fokker_planck_evolve(packet(start), WELL, DX, kT, [t])[0]
        assert_allclose(p, matrix_exponential(G * t) @ packet(start), atol=1e-8)
        assert p.min() > -1e-12


def test_a_langevin_ensemble_follows_the_fokker_planck_density():
    """Eq. 1 and Eq. 3 are one process, at three times before rest."""
    times = (0.5, 2.0, 6.0)
    x = langevin.simulate(rng(9).normal(1, 0.15, 20_000), langevin.double_well_gradient, kT=KT,
                          gamma=GAMMA, dt=0.005, n_steps=1200, record_every=100, rng=rng(10))
    densities = langevin.fokker_planck_evolve(packet(1), WELL, DX, KT, times, GAMMA)
    for t, p in zip(times, densities):
        then = x[round(t / 0.5) - 1]
        assert worst_bin(then, p) < 4
        assert worst_bin(then, langevin.boltzmann_density(WELL, DX, KT)) > 10


def test_free_energy_never_rises_under_fokker_planck():
    densities = langevin.fokker_planck_evolve(packet(1), WELL, DX, KT, np.geomspace(1e-3, 15, 9))
    F = [langevin.free_energy(p, WELL, DX, KT) for p in densities]
    assert np.diff(F).max() < 0


def test_free_energy_exceeds_its_minimum_by_a_divergence():
    """F[p] − (−kT log Z) = kT KL(p ‖ Eq. 2); and 0 log 0 = 0."""
    on_one_node = np.array([0.0, 4.0, 0.0])
    assert_allclose(langevin.free_energy(on_one_node, on_one_node, 0.25, 2), 4 + 2 * np.log(4))
    p = packet(0.3, 0.5)
    lowest = -KT * np.log(np.sum(np.exp(-WELL / KT)) * DX)
    divergence = kl(p * DX, langevin.boltzmann_density(WELL, DX, KT) * DX)
    assert_allclose(langevin.free_energy(p, WELL, DX, KT) - lowest, KT * divergence, rtol=1e-10)


def test_the_smallest_rate_above_0_is_the_last_relaxation():
    """Late, ⟨x⟩ decays as exp(−λ₁ t), because all faster modes are gone."""
    rates = langevin.relaxation_rates(WELL, DX, KT, GAMMA)
    early, late = langevin.fokker_planck_evolve(packet(1), WELL, DX, KT, (30, 32), GAMMA) @ GRID
    assert_allclose(np.log(early / late) / 2, rates[1], rtol=1e-6)


def test_kramers_rate_is_the_cold_limit():
    """C1: two rates, one each way, make the relaxation, up to 3kT/8 + O(kT²) for this quartic."""
    x, dx = np.linspace(-2, 2, 801, retstep=True)
    exact = langevin.relaxation_rates(langevin.double_well(x), dx, 0.1, GAMMA)[1]
    kramers = 2 * langevin.kramers_rate(8.0, -4.0, 1.0, 0.1, GAMMA)
    assert_allclose(1 - exact / kramers, 3 * 0.1 / 8, atol=0.1**2)


def test_a_driven_ring_is_stationary_but_not_boltzmann():
    """C23: ∂p/∂t = 0 is not enough; a force round a ring drives a current that never ends."""
    theta, d = np.linspace(0, 2 * np.pi, 121, retstep=True)
    V = -np.cos(theta) - 0.8 * theta
    fold = np.eye(120)[:, np.arange(121) % 120]                 # the last node is the first
    G = fold @ langevin.fokker_planck_generator(V, d, KT) @ fold.T
    p = np.linalg.solve(G + 1 / len(G), np.ones(120))           # G p = 0 and mean(p) = 1
    current = np.diag(G, -1) * p[:-1] - np.diag(G, 1) * p[1:]
    assert_allclose(G @ p, 0, atol=1e-9)
    assert current.min() > 0.1 * current.max() > 0
    assert np.ptp(np.log(p) + V[:-1] / KT) > 1                  # constant for Boltzmann


# --- The probability of a path (for Eq. 8) --------------------------------------------------------

def path_errors(dt, curvature):
    """|S + log p + constant| of 400 paths up to t = 4, recorded from their first step on."""
    options = {"grad_V": langevin.double_well_gradient, "kT": KT, "gamma": GAMMA}
    paths = langevin.simulate(np.full(400, -1.0), dt=dt, n_steps=round(4 / dt), rng=rng(12),
                              record_every=1, **options).T
    constant = (paths.shape[1] - 1) * np.log(4 * np.pi * D * dt) / 2
    return np.abs([constant + langevin.path_log_probability(x, dt, **options)
                   + langevin.onsager_machlup_action(x, dt, curvature=curvature, **options)
                   for x in paths])


def test_path_probability_is_that_of_its_steps():
    """The product of the normal densities of all steps, each with variance 2D dt."""
    x = rng(0).normal(size=9)
    mean = x[:-1] - 4 * x[:-1] * (x[:-1] ** 2 - 1) / GAMMA * 0.3
    log_p = langevin.path_log_probability(x, 0.3, langevin.double_well_gradient, KT, GAMMA)
    assert_allclose(log_p, np.log(normal(x[1:], mean, 2 * D * 0.3)).sum(), rtol=1e-12)


def test_onsager_machlup_action_is_minus_the_log_probability():
    """Up to a constant, and an error of order √dt, so that four times the steps halve it."""
    coarse = path_errors(0.02, langevin.double_well_curvature)
    fine = path_errors(0.005, langevin.double_well_curvature)
    error = np.hypot(coarse.std() / coarse.mean(), fine.std() / fine.mean()) / np.sqrt(400)
    assert abs(coarse.mean() / fine.mean() / 2 - 1) < 4 * error


def test_action_without_curvature_is_not_the_log_probability():
    """Without −V''/2γ the error stays, near ∫V''/2γ dt ≈ 8/(2γ) · 4 in a well."""
    assert path_errors(0.005, np.zeros_like).mean() > 8 / (2 * GAMMA) * 4 / 2


def test_reversing_a_path_changes_its_action_by_dV_over_kT():
    """Detailed balance of paths; in a spring exactly, for any path."""
    x = rng(0).normal(size=9)
    forth, back = (langevin.onsager_machlup_action(path, 0.3, lambda x: 3 * x, np.ones_like, KT,
                                                   GAMMA) for path in (x, x[::-1]))
    assert_allclose(forth - back, 3 * (x[-1] ** 2 - x[0] ** 2) / 2 / KT, rtol=1e-10)


# --- Maximum entropy (Eq. 4, 5) -------------------------------------------------------------------

FACES = np.arange(1.0, 7)[:, None]


def test_jaynes_die_is_exponential_and_has_the_mean():
    """Eq. 5: log p = −λ·f − log Z."""
    for mean in (1.5, 3.0, 4.5, 5.9):
        lam, p = maxent.max_entropy(FACES, [mean])
        assert_allclose(p @ FACES[:, 0], mean, rtol=1e-12)
        assert_allclose(np.diff(np.log(p)), -lam[0], rtol=1e-9)


def test_no_other_die_of_this_mean_has_more_entropy():
    """Eq. 4: H(p) − H(q) = KL(q ‖ p) for every q of the same mean."""
    _, p = maxent.max_entropy(FACES, [4.5])
    moves = np.diff(np.eye(6), 2, axis=0)                       # (1, −2, 1) keeps the mean
    q = p + 0.01 * rng(0).normal(size=(50, 4)) @ moves
    assert_allclose(maxent.entropy(p) - maxent.entropy(q), kl(q, p), atol=1e-13)
    assert kl(q, p).min() > 0


def test_mean_and_variance_make_a_gaussian():
    """λ = (−μ/σ², 1/2σ²), on a grid that counts with its spacing."""
    x = np.arange(-12, 12, 0.01)
    lam, _ = maxent.max_entropy(np.stack((x, x**2), axis=1), [0.4, 0.3 + 0.4**2], 0.01)
    assert_allclose(lam, [-0.4 / 0.3, 1 / (2 * 0.3)], rtol=1e-8)


def test_entropy_of_a_density_is_not_that_of_its_probabilities():
    """A measure is needed: with it a Gaussian has H = ½ log 2πeσ²; without, −log dx more."""
    p = normal(np.arange(-9, 9, 0.01), 0, 0.3) * 0.01
    H = np.log(2 * np.pi * np.e * 0.3) / 2
    assert_allclose(maxent.entropy(p, 0.01), H, rtol=1e-9)
    assert_allclose(maxent.entropy(p), H - np.log(0.01), rtol=1e-9)


def test_mean_and_variance_are_derivatives_of_log_Z():
    """∂log Z/∂λ = −E[f] and ∂²log Z/∂λ² = Var f: why the dual is convex and Newton works."""
    f = FACES[:, 0]

    def p(lam):
        return maxent.boltzmann_policy(-f * lam, 1.0)

    mean = p(0.3) @ f
    assert_allclose(slope(lambda lam: maxent.soft_value(-f * lam, 1.0), 0.3), -mean, rtol=1e-9)
    assert_allclose(slope(lambda lam: p(lam) @ f, 0.3), -p(0.3) @ (f - mean) ** 2, rtol=1e-9)


def test_newton_takes_8_steps_near_the_edge(monkeypatch):
    """It squares the error in each step; with a wrong Hessian it takes longer."""
    steps, solve = [], np.linalg.solve
    monkeypatch.setattr(np.linalg, "solve", lambda *args: steps.append(1) or solve(*args))
    maxent.max_entropy(FACES, [5.9])
    assert len(steps) <= 8


def test_newton_survives_a_first_step_that_is_too_long():
    """Two outcomes, one e^30 times less likely before: λ = −30 makes them equal."""
    lam, _ = maxent.max_entropy([[0], [1]], [0.5], [1, np.exp(-30)])
    assert_allclose(lam, -30, rtol=1e-10)


# --- Maximum caliber (Eq. 6–8) --------------------------------------------------------------------

def soft_paths(mdp, alpha, horizon=4):
    """The law of the paths of soft-optimal control, by backward induction from Eq. 14, 16, 17.

    -> P (n,) of enumerate_paths, V at the start.  alpha: a number, or one for each step.
    """
    paths, _, _ = maxent.enumerate_paths(mdp, 0, horizon)
    alphas = np.broadcast_to(alpha, horizon)
    V, P = np.zeros(len(mdp.reward)), np.ones(len(paths))
    for t in reversed(range(horizon)):
        s, a, s_next = paths[:, 2 * t:2 * t + 3].T
        Q = maxent.soft_backup(mdp, V)
        V = maxent.soft_value(Q, alphas[t], mdp.measure)
        P *= maxent.boltzmann_policy(Q, alphas[t], mdp.measure)[s, a]
        P *= np.sum(mdp.probability[s, a] * (mdp.successor[s, a] == s_next[:, None]), axis=1)
    return P, V[0]


def caliber(mdp, alpha):
    """Eq. 8 over paths of 4 steps, P ∝ measure · exp(return/α).  -> P, returns, α log Z."""
    _, returns, measure = maxent.enumerate_paths(mdp, 0, 4)
    P = maxent.boltzmann_policy(returns, alpha, measure)
    return P, returns, maxent.soft_value(returns, alpha, measure)


@pytest.mark.parametrize("measure", (1.0, np.array([0.3, 1.2])))
def test_caliber_is_soft_control_in_a_deterministic_world(measure):
    """C4, γ = 1: the product of the policies of all steps, also if actions differ in measure."""
    mdp = replace(random_mdp(1.0, 4, 2, successors=1), measure=measure)
    P, _, alpha_log_Z = caliber(mdp, 0.7)
    controlled, V = soft_paths(mdp, 0.7)
    assert_allclose(P, controlled, rtol=1e-10)
    assert_allclose(alpha_log_Z, V, rtol=1e-12)


def test_caliber_is_not_soft_control_in_a_random_world():
    """C4: Eq. 8 tilts the chances too, and so promises more: α log Z = V + α KL(control ‖ P)."""
    mdp = random_mdp(1.0, 4, 2, successors=2)
    P, _, alpha_log_Z = caliber(mdp, 0.7)
    controlled, V = soft_paths(mdp, 0.7)
    assert_allclose(alpha_log_Z - V, 0.7 * kl(controlled, P), rtol=1e-9)
    assert kl(controlled, P) > 0.01


def test_caliber_is_not_soft_control_with_a_discount():
    """C4: Eq. 10 discounts the entropy too; α/γ^t in step t undoes this, and they agree again."""
    mdp = random_mdp(0.9, 4, 2, successors=1)
    P, _, _ = caliber(mdp, 0.7)
    assert kl(soft_paths(mdp, 0.7)[0], P) > 1e-3
    assert_allclose(P, soft_paths(mdp, 0.7 / 0.9 ** np.arange(4))[0], rtol=1e-10)


def test_a_discount_is_a_chance_to_survive():
    """C4's two exceptions are one: to discount is to die with chance 1 − γ into a state of value 0.

    There A actions earn α log A of entropy in each step, which a reward of −α log A cancels.
    """
    mdp, alpha = random_mdp(0.9), 0.7
    S, A, K = mdp.successor.shape
    reward = np.vstack((mdp.reward, np.full((1, A), -alpha * np.log(A))))
    successor = np.full((S + 1, A, K + 1), S)
    successor[:S, :, :K] = mdp.successor
    probability = np.zeros((S + 1, A, K + 1))
    probability[:S, :, :K] = 0.9 * mdp.probability
    probability[:, :, K] = 1 - probability.sum(axis=2)
    mortal = maxent.MDP(reward, successor, probability, gamma=1.0)
    V, V_mortal = np.zeros(S), np.zeros(S + 1)
    for _ in range(50):
        V = maxent.soft_value(maxent.soft_backup(mdp, V), alpha)
        V_mortal = maxent.soft_value(maxent.soft_backup(mortal, V_mortal), alpha)
    assert_allclose(V_mortal, [*V, 0], atol=1e-12)


@pytest.mark.parametrize("measure", (1.0, np.array([0.3, 1.2])))
def test_max_caliber_finds_the_multiplier(measure):
    """Eq. 6, 7, in a random world: given the mean return of α = 0.7, it answers α = 0.7."""
    mdp = replace(random_mdp(1.0, 4, 2), measure=measure)
    P, returns, _ = caliber(mdp, 0.7)
    alpha, _, found = maxent.max_caliber(mdp, 0, 4, P @ returns)
    assert_allclose(alpha, 0.7, rtol=1e-9)
    assert_allclose(found, P, atol=1e-10)


@pytest.mark.parametrize("shift", (-0.5, -1e-3, 1e-3, 0.5))
def test_temperature_of_caliber_has_the_sign_of_the_gain(shift):
    """Eq. 7: to earn less than uniform actions do, α must be negative."""
    mdp = random_mdp(1.0, 4, 2, successors=1)
    _, returns, _ = caliber(mdp, 1.0)
    alpha, _, P = maxent.max_caliber(mdp, 0, 4, returns.mean() + shift)
    assert np.sign(alpha) == np.sign(shift)
    assert_allclose(P @ returns, returns.mean() + shift, rtol=1e-12)


def test_eq_8_without_a_multiplier_does_not_meet_the_constraint():
    """The chapter's λ = 1 has a single mean return, whatever Eq. 7 asks for."""
    P, returns, _ = caliber(random_mdp(1.0, 4, 2, successors=1), 1.0)
    assert P @ returns > returns.mean() + 0.5


def test_three_calibers_follow_from_their_weights():
    """C4, α = 1: uniform paths, true chances, and causal with P(risky) = 1/(1 + e^{1 − 0.4})."""
    e1, e4 = np.exp(1), np.exp(4)
    expected = [((e4 + 1) / (e4 + 1 + e1), e4 / (e4 + 1)),
                ((0.1 * e4 + 0.9) / (0.1 * e4 + 0.9 + e1), 0.1 * e4 / (0.1 * e4 + 0.9)),
                (1 / (1 + np.exp(0.6)), 0.1)]
    assert_allclose(figures.three_calibers(1.0), expected, rtol=1e-12)


@pytest.mark.parametrize("row, chances", ((0, (2 / 3, 1 / 2)), (1, (1 / 2, 0.1))))
def test_games_kept_for_what_they_paid_follow_eq_8(row, chances):
    """Of a million random games over 40 000 risky ones are kept: standard error below 1/400."""
    kept = figures.games_that_paid(1.0, *chances, rng(1), 10**6)
    assert_allclose(kept, figures.three_calibers(1.0)[row], atol=4 * np.sqrt(0.25 / 40_000))


# --- The chapter's title: Langevin dynamics + maximum caliber = control (C20) ---------------------

@pytest.fixture(scope="module")
def title():
    return figures.caliber_is_control()


def test_soft_value_obeys_fokker_planck_backwards(title):
    """By detailed balance ψ p_eq obeys Eq. 3, from e^{R/α} p_eq at the end to the start, T = 3."""
    p_eq = langevin.boltzmann_density(figures.V, figures.DX, 0.4)
    end = title.psi[-1] * p_eq
    area = end.sum() * figures.DX
    start = langevin.fokker_planck_evolve(end / area, figures.V, figures.DX, 0.4, [3.0])[0]
    assert_allclose(title.psi[0] * p_eq, start * area, atol=1e-6)


def test_pushed_paths_reach_the_soft_value_of_the_start(title):
    """E[R] − α KL(pushed ‖ free) = V_soft(−1) = α log E[e^{R/α}], the most that any push can."""
    V_soft = np.log(np.interp(-1, figures.X, title.psi[0]))
    assert abs(off(title.values, V_soft)) < 4


@pytest.mark.parametrize("paths", ("pushed", "free, weighted"))
@pytest.mark.parametrize("half", (0, 1))
def test_caliber_and_control_are_one_distribution_over_paths(title, paths, half):
    """Pushed paths, and free ones weighted by e^{R/α}, follow p ψ half way and at the end."""
    when = (len(title.free) // 2 - 1, -1)[half]
    x, weights = (title.pushed, None) if paths == "pushed" else (title.free, title.weights)
    assert worst_bin(x[when], title.target[half], figures.X, weights=weights) < 4


def test_free_paths_are_not_distributed_as_p_psi(title):
    """Most of them never leave their well."""
    assert worst_bin(title.free[-1], title.target[1], figures.X) > 40


def test_half_the_time_step_gives_the_same_value(title):
    fine = figures.caliber_is_control(n=5000, dt=0.0025, seed=1)
    error = np.hypot(title.values.std() / np.sqrt(20_000), fine.values.std() / np.sqrt(5000))
    assert abs(title.values.mean() - fine.values.mean()) < 4 * error


# --- Maximum-entropy objective, free energy, gradient flow (Eq. 9–13) -----------------------------

def test_return_and_entropy_are_discounted_sums_over_time():
    """Eq. 9, step by step; after 400 steps γ^t is below 1e-18."""
    mdp, pi = random_mdp(), random_policies(7, actions=3)
    P = np.einsum("sa,sak,sakz->sz", pi, mdp.probability, np.eye(7)[mdp.successor])
    visits = sum(np.linalg.matrix_power(0.9 * P, t) for t in range(400))
    R, H = maxent.return_and_entropy(mdp, pi)
    assert_allclose(R, visits @ np.sum(pi * mdp.reward, axis=1), rtol=1e-10)
    assert_allclose(H, -visits @ np.sum(pi * np.log(pi), axis=1), rtol=1e-10)


def test_soft_value_of_a_policy_solves_its_bellman_equation():
    """Eq. 10, 11: V = E_π[Q − α log π] with Q = r + γ E[V], for any π."""
    mdp, pi = random_mdp(), random_policies(7, actions=3)
    V = maxent.soft_policy_evaluation(mdp, pi, 0.3)
    Q = maxent.soft_backup(mdp, V)
    assert_allclose(V, np.sum(pi * (Q - 0.3 * np.log(pi)), axis=1), rtol=1e-10)


def test_total_entropy_is_the_slope_of_the_optimum():
    """C2, Eq. 12: dV*/dα = H, as −dF/dT = S; in an MDP this total is what rises with α."""
    mdp = random_mdp()
    _, _, pi = maxent.soft_value_iteration(mdp, 0.5, tol=1e-13)
    _, H = maxent.return_and_entropy(mdp, pi)
    dV = slope(lambda alpha: maxent.soft_value_iteration(mdp, alpha, tol=1e-13)[1], 0.5, 1e-2)
    assert_allclose(dV, H, rtol=1e-6)


def freedom_or_pay(alpha):
    """The soft-optimal chance, in state 0, of a free life rather than a paid one, for γ = 0.9.

    In state 1 both actions are free, and earn α log 2 in each step.  State 2 pays 1 and has one
    action only: the penalty rules the other out.  Q(free) − Q(paid) = 0.9 (α log 2 − 1)/(1 − 0.9).
    """
    reward = [[0, 0], [0, 0], [1, -1000 * alpha]]
    mdp = maxent.MDP(reward, successor=[[1, 2], [1, 1], [2, 2]], gamma=0.9)
    _, _, pi = maxent.soft_value_iteration(mdp, alpha, tol=1e-12)
    assert_allclose(pi[0, 0], 1 / (1 + np.exp(-9 * (np.log(2) - 1 / alpha))), rtol=1e-8)
    return pi[0]


def test_entropy_in_one_state_does_not_always_rise_with_alpha():
    """C2: Q depends on α too.  At α = 1/log 2 the two lives are equal; hotter, one is chosen."""
    assert_allclose(maxent.entropy(freedom_or_pay(1 / np.log(2))), np.log(2), rtol=1e-8)
    assert maxent.entropy(freedom_or_pay(10)) < 0.1


def test_hot_policy_is_not_uniform_where_freedom_differs():
    """C3: for α -> ∞ it prefers the state with more choices, 2^9 to 1 here."""
    assert_allclose(freedom_or_pay(1e6)[0], 1 / (1 + 2**-9), rtol=1e-5)


def test_policy_flow_solves_its_equation():
    """Eq. 13 in the Fisher–Rao metric: ∂π/∂t = π (g − E_π[g]), g = Q − α log π."""
    pi0, times = random_policies(), np.linspace(0.1, 2, 20)
    pi = maxent.policy_flow(pi0, Q5, 0.5, times)
    velocity = slope(lambda t: maxent.policy_flow(pi0, Q5, 0.5, t), times)
    assert_allclose(velocity, maxent.policy_velocity(pi, Q5, 0.5), atol=1e-10)


def test_policy_flow_lowers_the_free_energy_by_its_variance():
    """dF/dt = −Var_π(g), computed along the flow."""
    pi0 = random_policies()
    g = Q5 - 0.5 * np.log(pi0)

    def F(t):
        return -maxent.regularised_value(maxent.policy_flow(pi0, Q5, 0.5, [t]), Q5, 0.5)[0]

    assert_allclose(slope(F, 0.0), -(pi0 @ g**2 - (pi0 @ g) ** 2), rtol=1e-8)


def test_policy_flow_goes_from_its_start_to_the_boltzmann_policy():
    """Whatever the start."""
    pi0 = random_policies()
    ends = maxent.policy_flow(pi0, Q5, 0.5, [0, 1e3])
    assert_allclose(ends, [pi0, maxent.boltzmann_policy(Q5, 0.5)], atol=1e-12)


def noisy_logits(kT, n_steps=200, dt=0.5):
    """Langevin dynamics of the logits of 2000 policies on F = −E_π[Q] − H(π).  -> π (2000, 5)."""
    theta, draw = np.zeros((2000, 5)), rng(0)

    def grad_F(theta):
        return -maxent.policy_velocity(maxent.boltzmann_policy(theta, 1.0), Q5, 1.0)

    for _ in range(n_steps):
        theta = langevin.langevin_step(theta, grad_F, kT, dt, 1.0, draw.normal(size=theta.shape))
    return maxent.boltzmann_policy(theta, 1.0)


def test_without_noise_the_logits_reach_the_boltzmann_policy():
    """C5: the flow of a policy is deterministic."""
    assert_allclose(noisy_logits(0)[0], maxent.boltzmann_policy(Q5, 1.0), atol=1e-3)


def test_langevin_noise_on_logits_does_not_sample_the_policy():
    """C5: F is bounded over logits, so noisy ones never settle: their mean policy drifts off."""
    best = maxent.boltzmann_policy(Q5, 1.0)
    away = [np.abs(noisy_logits(0.3, n).mean(axis=0) - best).sum() / 2 for n in (200, 800)]
    error = 0.5 / np.sqrt(2000)                                 # at most, of a mean probability
    assert away[0] > 4 * error and away[1] > away[0] + 4 * error


def test_energy_is_minus_Q_and_not_minus_the_reward():
    """C25: π ∝ exp(r/α) looks one step ahead only, and loses in every state."""
    mdp = random_mdp()
    _, V, _ = maxent.soft_value_iteration(mdp, 0.5)
    myopic = maxent.boltzmann_policy(mdp.reward, 0.5)
    assert np.min(V - maxent.soft_policy_evaluation(mdp, myopic, 0.5)) > 0.1


# --- Soft Bellman equation (Eq. 14–16) ------------------------------------------------------------

@pytest.fixture(params=((0.5, 0.0), (10.0, 0.9), (0.01, 0.9), (0.05, 0.99)))
def solved(request):
    """MDP, α, and the soft-optimal Q, V, π."""
    alpha, gamma = request.param
    mdp = random_mdp(gamma)
    return mdp, alpha, *maxent.soft_value_iteration(mdp, alpha, tol=1e-12)


def test_soft_bellman_equation_holds_at_the_optimum(solved):
    """Eq. 14, written out: Q = r + γ Σ p V(s')."""
    mdp, alpha, Q, V, pi = solved
    expected = sum(mdp.probability[..., k] * V[mdp.successor[..., k]] for k in (0, 1))
    assert_allclose(Q, mdp.reward + mdp.gamma * expected, atol=1e-9)


def test_the_two_forms_of_the_soft_value_agree_at_the_optimum(solved):
    """Eq. 15 = Eq. 16: Q − α log π* is V for each action, so that a' adds no noise to a target."""
    mdp, alpha, Q, V, pi = solved
    assert_allclose(Q - alpha * np.log(pi), V[:, None] + np.zeros(3), atol=1e-9)


def test_the_softmax_weighted_mean_is_not_the_soft_value():
    """What the comparison table's E[softmax Q] could be read as lacks the entropy: V − αH."""
    pi = maxent.boltzmann_policy(Q5, 0.7)
    lacking = maxent.soft_value(Q5, 0.7) - pi @ Q5
    assert_allclose(lacking, 0.7 * maxent.entropy(pi), rtol=1e-12)
    assert lacking > 0.5


def test_optimum_is_the_value_of_its_own_policy(solved):
    mdp, alpha, Q, V, pi = solved
    assert_allclose(maxent.soft_policy_evaluation(mdp, pi, alpha), V, rtol=1e-9, atol=1e-9)


def test_a_sweep_contracts_by_gamma(solved):
    """So that value iteration has one fixed point; a constant shift shrinks by exactly γ."""
    mdp, alpha, *_ = solved

    def sweep(V):
        return maxent.soft_value(maxent.soft_backup(mdp, V), alpha)

    for V, W in rng(0).normal(size=(100, 2, 7)):
        assert np.abs(sweep(V) - sweep(W)).max() <= mdp.gamma * np.abs(V - W).max() + 1e-12
        assert_allclose(sweep(V + 5), sweep(V) + 5 * mdp.gamma, atol=1e-12)


def test_soft_value_exceeds_the_hard_one_by_at_most_all_entropy(solved):
    """C7: 0 ≤ V_α − V_0 ≤ α log A/(1 − γ), so V_α -> V_0 as α -> 0."""
    mdp, alpha, _, V, _ = solved
    more = V - maxent.soft_value_iteration(mdp, 0, tol=1e-12)[1]
    assert more.min() > -1e-8
    assert more.max() < alpha * np.log(3) / (1 - mdp.gamma)


def test_soft_value_of_a_density_does_not_always_exceed_it():
    """Q = −8a² on [−1, 1]: V = (α/2) log(πα/8) + α log erf √(8/α), below max Q = 0 for small α."""
    a = np.arange(-1 + 5e-5, 1, 1e-4)
    for alpha in (1.0, 0.1, 0.01):
        V = maxent.soft_value(-8 * a**2, alpha, 1e-4)
        gauss = alpha / 2 * np.log(np.pi * alpha / 8)
        assert_allclose(V, gauss + alpha * np.log(math.erf(np.sqrt(8 / alpha))), atol=1e-7)
        assert V < 0


@pytest.mark.parametrize("alpha, level", ((1e-8, 1e6), (1e-8, -1e6), (1e-3, 1e6)))
def test_nothing_overflows_or_loses_digits(alpha, level):
    """Weights 1, 2, 5, to what rounding has left of Q."""
    Q = level + alpha * np.log([1.0, 2.0, 5.0])
    weight = np.exp((Q - level) / alpha)
    assert_allclose(maxent.soft_value(Q, alpha), level + alpha * np.log(weight.sum()), rtol=1e-12)
    assert_allclose(maxent.boltzmann_policy(Q, alpha), weight / weight.sum(), rtol=1e-12)


def test_value_iteration_is_as_exact_as_asked_for():
    """Two states that lead to themselves: V = ±100 exactly."""
    apart = maxent.MDP([[1.0], [-1.0]], [[0], [1]], gamma=0.99)
    for tol in (1e-3, 1e-9):
        _, V, _ = maxent.soft_value_iteration(apart, 1.0, tol)
        assert_allclose(V, [100, -100], atol=100 * tol)


@pytest.mark.parametrize("gamma", (0.9999, 1 - 1e-9))
def test_value_iteration_is_fast_near_gamma_1(monkeypatch, gamma):
    """Without the extrapolation γ = 0.9999 would take 200 000 sweeps."""
    mdp, sweeps, backup = random_mdp(gamma), [], maxent.soft_backup
    monkeypatch.setattr(maxent, "soft_backup", lambda *args: sweeps.append(1) or backup(*args))
    _, V, _ = maxent.soft_value_iteration(mdp, 0.5)
    assert len(sweeps) < 1000
    assert_allclose(maxent.soft_value(backup(mdp, V), 0.5), V, rtol=1e-9)


# --- Boltzmann policy (Eq. 17, 23, 24, 25) --------------------------------------------------------

at_all_temperatures = pytest.mark.parametrize("alpha", (0.1, 1.0, 5.0))
with_a_measure = pytest.mark.parametrize("measure", (1.0, np.array([0.1, 0.7, 0.3, 0.5, 0.4])))


@with_a_measure
@at_all_temperatures
def test_policy_is_the_unique_best_choice(alpha, measure):
    """C6, Eq. 24: V − (E_π[Q] + αH(π)) = α KL(π ‖ π*) ≥ 0 for every π."""
    best, pi = maxent.boltzmann_policy(Q5, alpha, measure), random_policies(1000)
    loss = maxent.soft_value(Q5, alpha, measure) - maxent.regularised_value(pi, Q5, alpha, measure)
    assert_allclose(loss, alpha * kl(pi, best), atol=1e-12)
    assert loss.min() > 0


@with_a_measure
@at_all_temperatures
def test_policy_and_value_are_as_the_chapter_writes_them(alpha, measure):
    """Eq. 16, 17, where nothing overflows."""
    weight = np.exp(Q5 / alpha) * measure
    assert_allclose(maxent.soft_value(Q5, alpha, measure), alpha * np.log(weight.sum()), rtol=1e-12)
    assert_allclose(maxent.boltzmann_policy(Q5, alpha, measure), weight / weight.sum(), rtol=1e-12)


@pytest.mark.parametrize("alpha", (0.1, 0.5, 2.0))
def test_entropy_rises_with_temperature_at_fixed_Q(alpha):
    """C2: dH/dα = Var(Q)/α³ and dE[Q]/dα = −Var(Q)/α²."""
    def policy(alpha):
        return maxent.boltzmann_policy(Q5, alpha)

    variance = policy(alpha) @ (Q5 - policy(alpha) @ Q5) ** 2
    dH = slope(lambda alpha: maxent.entropy(policy(alpha)), alpha, 1e-3 * alpha)
    dQ = slope(lambda alpha: policy(alpha) @ Q5, alpha, 1e-3 * alpha)
    assert_allclose([dH, dQ], [variance / alpha**3, -variance / alpha**2], rtol=1e-8)


@pytest.mark.parametrize("alpha", (0, 1e-3))
def test_cold_policy_is_deterministic_up_to_ties(alpha):
    """C3: ties split the probability by their measure, evenly if counted."""
    Q = [1, 3, 3]
    assert_allclose(maxent.boltzmann_policy(Q, alpha), [0, 0.5, 0.5], atol=1e-12)
    assert_allclose(maxent.boltzmann_policy(Q, alpha, [1, 1, 3]), [0, 0.25, 0.75], atol=1e-12)
    assert_allclose(maxent.soft_value(Q, alpha), 3 + alpha * np.log(2), rtol=1e-12)


def test_hot_policy_is_uniform_at_fixed_Q():
    """C3: π -> 1/5, up to (Q − mean Q)/5α."""
    expected = (1 + (Q5 - Q5.mean()) / 1e3) / 5
    assert_allclose(maxent.boltzmann_policy(Q5, 1e3), expected, atol=(np.ptp(Q5) / 1e3) ** 2)


def test_only_the_ratio_of_reward_and_temperature_counts():
    """C19: (c r, c α) has the policy of (r, α) and c times its value."""
    mdp = random_mdp()
    _, V, pi = maxent.soft_value_iteration(mdp, 0.5)
    _, V_c, pi_c = maxent.soft_value_iteration(replace(mdp, reward=3.7 * mdp.reward), 3.7 * 0.5)
    assert_allclose(pi_c, pi, atol=1e-7)
    assert_allclose(V_c, 3.7 * V, rtol=1e-7)


def test_alpha_is_the_price_of_an_entropy_constraint():
    """C19: descent on log α rests where H = 1; of all π with H ≥ 1 that π has the best E[Q]."""
    log_alpha = 0.0
    for _ in range(2000):
        pi = maxent.boltzmann_policy(Q5, np.exp(log_alpha))
        log_alpha -= 0.1 * (maxent.entropy(pi) - 1.0)
    others = random_policies(1000)
    allowed = maxent.entropy(others) >= 1
    assert_allclose(maxent.entropy(pi), 1, atol=1e-9)
    assert (others @ Q5)[allowed].max() < pi @ Q5 < (others @ Q5).max()


def test_policy_over_a_reference_is_what_human_feedback_trains():
    """max E[r] − β KL(π ‖ π_ref) has β log(π/π_ref) − r constant (Rafailov et al. 2023)."""
    reference = random_policies()
    pi = maxent.boltzmann_policy(Q5, 0.3, reference)
    assert_allclose(np.ptp(0.3 * np.log(pi / reference) - Q5), 0, atol=1e-12)


def test_canonical_ensemble_minimises_eq_25():
    """E_p[E] − H(p)/β = −log Z/β + KL(p ‖ e^{−βE}/Z)/β."""
    E, p = np.array([0.0, 1.0, 2.5]), random_policies(1000, actions=3)
    weight = np.exp(-1.3 * E)
    more = maxent.canonical_free_energy(p, E, 1.3) + np.log(weight.sum()) / 1.3
    assert_allclose(more, kl(p, weight / weight.sum()) / 1.3, atol=1e-12)


def test_canonical_ensemble_does_not_maximise_eq_25():
    """The chapter's max is reached by all probability on the highest energy: value 2.5."""
    E = np.array([0.0, 1.0, 2.5])
    inside = maxent.canonical_free_energy(random_policies(1000, actions=3), E, 1.3)
    assert_allclose(maxent.canonical_free_energy(np.eye(3), E, 1.3), E)
    assert inside.max() < 2.5


# --- Why MaxEnt wins: robustness, overestimation, convergence -------------------------------------

def test_a_soft_policy_is_robust_against_one_set_of_rewards():
    """C8: E_π[r] + αH(π) − ε is the worst E_π[r'] over α log Σ exp((r − r')/α) ≤ ε.

    (Eysenbach & Levine 2022.)  It is reached at r' = r − α log π − ε.  Where instead each r' may
    differ from r by ε, every policy can lose ε, and the greedy one stays best.
    """
    alpha, epsilon = 0.7, 1.3
    pi = maxent.boltzmann_policy(Q5, alpha)
    worst = Q5 - alpha * np.log(pi) - epsilon
    change = rng(0).normal(0, 2, (5000, 5))
    change += (epsilon - maxent.soft_value(change, alpha))[:, None]         # on the edge of the set
    assert_allclose(maxent.soft_value(Q5 - worst, alpha), epsilon, rtol=1e-12)
    assert_allclose(pi @ worst, maxent.regularised_value(pi, Q5, alpha) - epsilon, rtol=1e-12)
    assert np.min((Q5 - change) @ pi) > pi @ worst


def equal_critics(n=100_000):
    """Two critics of ten actions of value 0, as noise N(0, 1).  -> (2, n, 10)."""
    return rng(1).normal(size=(2, n, 10))


def test_noise_adds_less_to_the_soft_maximum():
    """C7: above its noise-free value α log 10 it lies by (1 − 1/10)/2α for large α, not by 1.54."""
    one, _ = equal_critics()

    def added(alpha):
        noise = one - one.mean(axis=1, keepdims=True)           # this shift is 0 on average
        return maxent.soft_value(noise, alpha) - alpha * np.log(10)

    assert one.max(axis=1).mean() > added(0.1).mean() > added(1.0).mean() > added(30.0).mean()
    assert abs(off(added(30.0), 0.9 / 60)) < 4


def test_soft_maximum_does_not_always_overestimate_less():
    """C7: where one action is clearly best, noise adds more to it than to the hard maximum."""
    Q = np.array([0.0, -4.0])
    noisy = Q + equal_critics()[0][:, :2]
    soft = maxent.soft_value(noisy, 2.0) - maxent.soft_value(Q, 2.0)
    assert off(soft - noisy.max(axis=1), 0) > 4


def test_a_critic_that_judges_its_own_choice_is_biased_up():
    """C10: for π ∝ exp(noise), E[Σ π_i noise_i] = E[1 − Σ π²] (Stein: E[ε f] = E[∂f/∂ε])."""
    one, _ = equal_critics()
    pi = maxent.boltzmann_policy(one, 1.0)
    own = np.sum(pi * one, axis=1)
    assert abs(off(own - (1 - np.sum(pi**2, axis=1)), 0)) < 4
    assert off(own, 0) > 4


def test_the_smaller_of_two_critics_is_less_than_half_as_biased():
    """C10, for α up to 1; hotter it is too low instead: E[min of two] = −1/√π for α -> ∞."""
    one, two = equal_critics()

    def bias(Q, alpha):
        return np.sum(maxent.boltzmann_policy(Q, alpha) * Q, axis=1)

    smaller = np.minimum(one, two)
    for alpha in (0.1, 0.5, 1.0):
        assert off(bias(one, alpha) / 2 - bias(smaller, alpha), 0) > 4
        assert off(bias(one, alpha) / 2 + bias(smaller, alpha), 0) > 4
    assert abs(off(bias(smaller, 1e6), -1 / np.sqrt(np.pi))) < 4


def test_a_loss_of_zero_does_not_mean_convergence():
    """C13: while the target network is still 0, Q = r + γ α log 3 has no loss, and is wrong."""
    mdp = random_mdp()
    wrong = maxent.soft_backup(mdp, maxent.soft_value(np.zeros((7, 3)), 0.5))
    assert_allclose(wrong, mdp.reward + 0.9 * 0.5 * np.log(3), rtol=1e-12)
    assert np.abs(wrong - maxent.soft_value_iteration(mdp, 0.5)[0]).max() > 1


def test_the_exact_Q_does_not_have_a_loss_of_zero():
    """C13: where the next state is random, a single target scatters: γ² Var V(s') is left."""
    mdp = random_mdp()
    Q, V, _ = maxent.soft_value_iteration(mdp, 0.5)
    y = mdp.reward[..., None] + 0.9 * V[mdp.successor]
    loss = np.sum(mdp.probability * (Q[..., None] - y) ** 2, axis=-1)
    noise = 0.9**2 * mdp.probability.prod(axis=-1) * np.ptp(V[mdp.successor], axis=-1) ** 2
    assert_allclose(loss, noise, atol=1e-8)
    assert noise.min() > 0


# --- Soft Actor-Critic: policy, target and losses (Eq. 18–22) -------------------------------------

SMALL = sac_numpy.Settings(hidden=(8, 8), gamma=0.9, tau=0.1, batch_size=16, learning_rate=5e-3,
                           final_learning_rate=1e-3, warmup=50, random_share=0.0,
                           buffer_size=1000)


@pytest.fixture
def sac():
    """A float64 agent with two actions and random parameters, and a batch of 40 with noise.

    Some log σ are clipped, from above or from below; either critic is the smaller one at times.
    """
    draw = rng(241)
    agent = sac_numpy.SAC(3, [-1, 0], [3, 10], SMALL, dtype=np.float64)
    for net in (agent.actor, agent.critic, agent.critic_target):
        net.theta[:] = draw.normal(0, 0.5, net.theta.shape)
    agent.actor.biases[-1][0, 2:] = sac_numpy.LOG_STD_MAX, sac_numpy.LOG_STD_MIN
    return SimpleNamespace(
        agent=agent, obs=draw.normal(size=(40, 3)), a=draw.uniform(-0.9, 0.9, (40, 2)),
        reward=draw.normal(size=40), next_obs=draw.normal(size=(40, 3)),
        terminated=np.arange(40) % 3 == 0, noise=draw.normal(size=(40, 2)))


def plain_network(net, x, twin=()):
    """The MLP written anew, for one network: x (N, n_in) -> (N, n_out)."""
    *hidden, last = zip(net.weights, net.biases)
    for W, b in hidden:
        z = np.einsum("ni,io->no", x, W[twin]) + b[twin]
        x = np.where(z > 0, z, 0.01 * z)
    return np.einsum("ni,io->no", x, last[0][twin]) + last[1][twin]


def plain_policy(agent, obs, noise):
    """a and log π written anew: the slope of tanh u is 1/cosh² u."""
    mu, raw = np.hsplit(plain_network(agent.actor, obs), 2)
    log_std = np.clip(raw, sac_numpy.LOG_STD_MIN, sac_numpy.LOG_STD_MAX)
    u = mu + np.exp(log_std) * noise
    log_prob = np.log(normal(u, mu, np.exp(2 * log_std)) * np.cosh(u) ** 2).sum(axis=1)
    return np.tanh(u), log_prob


def plain_Q(critic, obs, a):
    """Both critics, one at a time.  -> (2, N)."""
    return np.stack([plain_network(critic, np.hstack((obs, a)), twin)[:, 0] for twin in (0, 1)])


@pytest.mark.parametrize("mu, sigma", [(0.0, 0.02), (0.0, 1.0), (0.3, 2.5), (6.0, 0.1)])
def test_density_of_the_squashed_gaussian_integrates_to_one(mu, sigma):
    """Over a = tanh v, da = dv/cosh² v."""
    v, dv = np.linspace(max(-17, mu - 12 * sigma), min(17, mu + 12 * sigma), 4001, retstep=True)
    noise = (v[:, None] - mu) / sigma
    a, log_prob = sac_numpy.squashed_gaussian(mu, math.log(sigma), noise)
    assert_allclose(a[:, 0], np.tanh(v), atol=1e-12)
    assert_allclose(np.sum(np.exp(log_prob) / np.cosh(v) ** 2) * dv, 1, rtol=1e-7)


def test_log_probability_is_exact_far_out():
    """log(1 − tanh² u) = −2 log cosh u, also where tanh u rounds to ±1."""
    u = np.arange(-20, 20.1, 0.25)[:, None]
    _, log_prob = sac_numpy.squashed_gaussian(u, 0 * u, 0 * u)
    assert_allclose(log_prob, 2 * np.log(np.cosh(u[:, 0])) - math.log(2 * math.pi) / 2, rtol=1e-12)


def test_log_of_one_minus_a_squared_plus_epsilon_is_not_exact():
    """log(1 − a² + 1e-6) stops at −13.8; the truth at u = 20 is −2 log cosh u = −38.6."""
    assert np.log(1 - np.tanh(20.0) ** 2 + 1e-6) > -2 * np.log(np.cosh(20)) + 20


def test_target_is_eq_19(sac):
    """y = r + γ (min Q' − α log π), with the smaller critic, and y = r where terminated."""
    next_a, log_prob = plain_policy(sac.agent, sac.next_obs, sac.noise)
    Q = plain_Q(sac.agent.critic_target, sac.next_obs, next_a)
    V = np.minimum(*Q) - 0.2 * log_prob
    y = sac.agent.target(sac.reward, sac.next_obs, sac.terminated, sac.noise)
    assert_allclose(y, sac.reward + 0.9 * np.where(sac.terminated, 0, V), rtol=1e-10)


def test_critic_loss_is_eq_18_for_both_critics(sac):
    y = rng(3).normal(size=40)
    Q = plain_Q(sac.agent.critic, sac.obs, sac.a)
    loss, _ = sac.agent.critic_loss(sac.obs, sac.a, y)
    assert_allclose(loss, np.mean((Q[0] - y) ** 2) + np.mean((Q[1] - y) ** 2), rtol=1e-10)


def test_actor_loss_is_eq_20_with_the_smaller_critic(sac):
    a, log_prob = plain_policy(sac.agent, sac.obs, sac.noise)
    Q = plain_Q(sac.agent.critic, sac.obs, a)
    loss, _, same_log_prob = sac.agent.actor_loss(sac.obs, sac.noise)
    assert_allclose(loss, np.mean(0.2 * log_prob - np.minimum(*Q)), rtol=1e-10)
    assert_allclose(same_log_prob, log_prob, rtol=1e-10)


def test_actor_loss_is_a_kl_divergence():
    """C9, Eq. 21: its mean over the noise is α KL(π ‖ exp(Q/α)/Z) − α log Z.

    By quadrature over noise and over a = tanh v, where the kinks of Q leave errors of order dv².
    As it holds for all parameters, so do gradients.
    """
    draw, alpha = rng(6), 0.2
    agent = sac_numpy.SAC(2, [-1], [1], replace(SMALL, hidden=(8,)), dtype=np.float64)
    for net in (agent.actor, agent.critic):
        net.theta[:] = draw.normal(0, 0.4, net.theta.shape)
    obs = draw.normal(size=(1, 2))
    mu, log_std, _ = agent.policy(obs)
    v, dv = np.linspace(-20, 20, 4001, retstep=True)
    Q, _ = agent.q_values(agent.critic, np.repeat(obs, v.size, axis=0), np.tanh(v)[:, None])
    weight = np.exp(Q.min(axis=0) / alpha) / np.cosh(v) ** 2 * dv           # exp(Q/α) da
    pi = normal(v, mu[0, 0], np.exp(2 * log_std[0, 0])) * dv
    divergence = np.sum(pi * np.log(pi / weight * weight.sum()))
    loss = sum(normal(z, 0, 1) * 0.02 * agent.actor_loss(obs, np.array([[z]]))[0]
               for z in np.arange(-8, 8, 0.02))
    assert_allclose(loss, alpha * divergence - alpha * np.log(weight.sum()), rtol=1e-6)
    assert divergence > 0.1


def assert_gradient(d_theta, loss, theta, h=1e-5):
    """Every component of d_theta against central differences of loss()."""
    expected = np.empty_like(theta)
    for i, old in enumerate(theta.copy()):
        theta[i] = old + h
        up = loss()
        theta[i] = old - h
        expected[i] = (up - loss()) / (2 * h)
        theta[i] = old
    assert_allclose(d_theta, expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())


def test_gradient_of_the_critic_loss_is_its_slope(sac):
    y = rng(3).normal(size=40)
    _, d_theta = sac.agent.critic_loss(sac.obs, sac.a, y)
    assert_gradient(d_theta, lambda: sac.agent.critic_loss(sac.obs, sac.a, y)[0],
                    sac.agent.critic.theta)


def test_gradient_of_the_actor_loss_is_its_slope(sac):
    """Through log π, through a, clipped or not, and whichever critic is the smaller."""
    mu, log_std, _ = sac.agent.policy(sac.obs)
    a, _ = sac_numpy.squashed_gaussian(mu, log_std, sac.noise)
    Q, _ = sac.agent.q_values(sac.agent.critic, sac.obs, a)
    clipped = np.mean(log_std == (sac_numpy.LOG_STD_MAX, sac_numpy.LOG_STD_MIN), axis=0)
    assert 0.1 < np.mean(Q[0] < Q[1]) < 0.9, "the test must see either critic"
    assert np.all((0.1 < clipped) & (clipped < 0.9)), "and log σ on both sides of its bounds"
    _, d_theta, _ = sac.agent.actor_loss(sac.obs, sac.noise)
    assert_gradient(d_theta, lambda: sac.agent.actor_loss(sac.obs, sac.noise)[0],
                    sac.agent.actor.theta)


def test_gradient_of_the_temperature_loss_is_its_slope(sac):
    """In log α, which stays positive by itself."""
    log_prob = rng(3).normal(size=40)
    _, d_log_alpha = sac.agent.temperature_loss(log_prob)
    assert_gradient([d_log_alpha], lambda: sac.agent.temperature_loss(log_prob)[0],
                    sac.agent.log_alpha)


@pytest.mark.parametrize("H, sign", [(-1.0, -1), (-2.0, 0), (-3.0, 1)])
def test_temperature_falls_while_entropy_exceeds_its_target(sac, H, sign):
    """Eq. 22, −α (mean log π + H̄) with H̄ = −1 per action dimension; at the target it rests."""
    loss, d_log_alpha = sac.agent.temperature_loss(np.array([-H - 0.5, -H + 0.5]))
    assert_allclose(loss, 0.2 * (H + 2), atol=1e-12)
    sac.agent.alpha_adam.step(d_log_alpha)
    assert np.sign(round(sac.agent.alpha - 0.2, 12)) == sign


# --- Soft Actor-Critic on Pendulum-v1 (C11–C18, C21, C22) -----------------------------------------

@pytest.fixture(scope="module")
def trained():
    """One agent with the default settings, after 5000 steps -> agent, log."""
    return sac_numpy.train("Pendulum-v1", seed=0, n_steps=5000)


@pytest.fixture(scope="module")
def exact():
    """θ, ω, soft-optimal V and mean torque on the pendulum's grid for α = 0.2, each (101, 81)."""
    mdp = maxent.pendulum_mdp()
    _, V, pi = maxent.soft_value_iteration(mdp, 0.2, tol=1e-4)
    theta, omega = np.meshgrid(mdp.theta, mdp.theta_dot, indexing="ij")
    return theta, omega, V.reshape(101, 81), 2 * (pi @ mdp.a).reshape(101, 81)


def total_return(policy, theta, omega):
    """Return of 200 steps from starts (N,); policy(theta, omega) -> torque."""
    total = np.zeros(len(theta))
    for _ in range(200):
        theta, omega, reward = maxent.pendulum_step(theta, omega, policy(theta, omega))
        total = total + reward
    return total


def test_random_torque_does_not_earn_minus_1500():
    """C11: the reference, −1228.9 ± 0.3, is of a million episodes."""
    draw = rng(0)
    starts = draw.uniform((-np.pi, -1), (np.pi, 1), (4000, 2)).T
    returns = total_return(lambda theta, _: draw.uniform(-2, 2, theta.shape), *starts)
    assert abs(off(returns, -1228.9)) < 4
    assert off(returns, -1500) > 40


def test_best_return_of_three_steps_is_that_of_trying_all():
    """All pairs of 81 torques; a last torque only costs."""
    theta, omega = figures.held_out_starts()
    torques = np.linspace(-2, 2, 81)
    *once, r1 = maxent.pendulum_step(theta[:, None, None], omega[:, None, None], torques[:, None])
    *twice, r2 = maxent.pendulum_step(*once, torques)
    _, _, r3 = maxent.pendulum_step(*twice, 0.0)
    found = maxent.pendulum_optimal_return(theta, omega, 101, 101, 6, n_steps=3)
    assert_allclose(found, (r1 + r2 + r3).max(axis=(1, 2)), atol=1e-3)


def test_pumping_energy_comes_close_to_the_best_return():
    """C11: pump energy, then hold with a linear regulator."""
    def pump(theta, omega):
        energy = omega**2 / 6 + 5 * (np.cos(theta) - 1)
        fall = (theta + np.pi) % (2 * np.pi) - np.pi + omega / np.sqrt(15)
        torque = np.where(np.abs(fall) < 0.25, -20 * fall, -2 * np.sign(omega * energy))
        return np.clip(torque, -2, 2)

    pumped = total_return(pump, *figures.held_out_starts()).mean()
    assert 2 * figures.best_returns().mean() < pumped < figures.best_returns().mean()


def test_zero_is_not_the_optimum_unless_upright():
    """C22: the first step alone costs θ², whatever the torque."""
    theta, _ = figures.held_out_starts()
    assert np.all(figures.best_returns() <= -(theta**2) + 1e-9)


def test_default_settings_leave_little_regret(trained):
    """C11: half of the default steps bring it within 15, where random torque loses 1100."""
    agent, _ = trained
    returns = figures.roll_out(agent, *figures.held_out_starts())[:, 3].sum(axis=0)
    assert np.mean(figures.best_returns() - returns) < 15


def test_entropy_settles_at_its_target_and_not_at_zero(trained):
    """C12: over states of the buffer.  It begins below log 2, the most for a density on [−1, 1]."""
    _, log = trained
    assert 0 < log["entropy"][:20].mean() < np.log(2)
    assert_allclose(log["entropy"][-2000:].mean(), -1, atol=0.1)


def test_near_upright_the_exact_torque_opposes_the_fall(exact):
    """C14: without torque only θ + ω/√15 grows, as exp(√15 t)."""
    theta, omega, _, u = exact
    near = (np.abs(theta) < 0.9) & (np.abs(omega) <= 2)
    assert np.mean((u * (theta + omega / np.sqrt(15)) < 0)[near]) > 0.95


def test_near_upright_the_exact_torque_does_not_follow_velocity(exact):
    """C14: it opposes ω in less than 70 % of these states (chance: 50 %)."""
    theta, omega, _, u = exact
    near = (np.abs(theta) < 0.9) & (np.abs(omega) <= 2)
    assert np.mean((u * omega < 0)[near]) < 0.7


def test_far_from_upright_the_exact_torque_pumps_energy(exact):
    """C21: there it has the sign of ω, and not that of the shorter way up (chance: 50 %)."""
    theta, omega, _, u = exact
    far = (np.abs(theta) > 2.5) & (np.abs(omega) > 0.3) & (np.abs(omega) < 5)
    assert np.mean((u * omega > 0)[far]) > 0.88
    assert np.mean((u * theta < 0)[far]) < 0.5


def test_exact_value_follows_energy(exact):
    """C15: over the grid, how near the energy is to that of standing upright."""
    theta, omega, V, _ = exact
    energy = omega**2 / 6 + 5 * (np.cos(theta) - 1)
    assert np.corrcoef(V.ravel(), -np.abs(energy).ravel())[0, 1] > 0.7


def test_exact_value_does_not_follow_distance(exact):
    """C15: over the grid it hardly correlates with −(θ² + 0.1 ω²); on slow states it does."""
    theta, omega, V, _ = exact
    distance = theta**2 + 0.1 * omega**2
    slow = np.abs(omega) <= 2
    assert np.corrcoef(V.ravel(), -distance.ravel())[0, 1] < 0.3
    assert np.corrcoef(V[slow], -distance[slow])[0, 1] > 0.8


def test_exact_value_is_best_upright_and_worst_hanging(exact):
    """To within a cell of the grid, 0.06 by 0.2."""
    theta, omega, V, _ = exact
    best, worst = V.argmax(), V.argmin()
    assert_allclose((theta.flat[best], omega.flat[best]), 0, atol=0.2 + 1e-9)
    assert_allclose((theta.flat[worst], omega.flat[worst]), (-np.pi, 0), atol=1e-9)


def test_exact_torque_saturates_and_only_its_mean_does_not():
    """C16, torque above 99 %: without entropy on most of the grid, and in the mode of π as well."""
    mdp = maxent.pendulum_mdp(61, 61, 33)
    hard = np.abs(maxent.soft_value_iteration(mdp, 0, tol=1e-4)[2] @ mdp.a)
    Q, _, pi = maxent.soft_value_iteration(mdp, 0.2, tol=1e-4)
    mode = np.abs(mdp.a[Q.argmax(axis=1)])
    assert np.mean(hard > 0.99) > 0.8 and np.mean(mode > 0.99) > 0.8
    assert np.mean(np.abs(pi @ mdp.a) > 0.99) < 0.1


def test_sac_has_learned_the_value_and_torque_where_it_went(trained):
    """C17: over the states met in training, against the exact solution at its temperature."""
    agent, log = trained
    _, _, _, (r_torque, r_value) = figures.learned_and_exact(agent, log["observations"])
    assert r_value > 0.95
    assert r_torque > 0.7


@functools.cache
def pushed(alpha, greedy=True):
    """What a plan for the true pendulum earns if 0.4 N m is added to each torque.  -> (1000,)."""
    mdp, draw = maxent.pendulum_mdp(121, 101), rng(5)
    Q, _, _ = maxent.soft_value_iteration(mdp, alpha, tol=1e-4)

    def policy(theta, omega):
        index, weight = maxent.bilinear(theta, omega, 121, 101)
        Q_here = np.einsum("nk,nka->na", weight, Q[index])
        pi = maxent.boltzmann_policy(Q_here, 0 if greedy else alpha, mdp.measure)
        choice = (pi.cumsum(axis=1) < draw.random((len(theta), 1))).sum(axis=1)
        return 2 * mdp.a[np.minimum(choice, 32)] + 0.4

    return total_return(policy, *rng(4).uniform((-np.pi, -1), (np.pi, 1), (1000, 2)).T)


def test_planning_with_entropy_can_help_in_a_changed_world():
    """C8: greedy on the soft value earns more than greedy on the hard one, paired by start."""
    assert off(pushed(0.2) - pushed(0), 0) > 4


def test_acting_at_random_is_not_robust_to_a_changed_world():
    """C8: the sampled soft policy itself earns less than the hard plan."""
    assert off(pushed(0.2, greedy=False) - pushed(0), 0) < -4


# --- Langevin dynamics of an action (C5, C8) ------------------------------------------------------

@pytest.mark.parametrize("alpha, Q", (
    (0.25, figures.two_hills(figures.A_NODES) + 0.25 * figures.A_NODES),
    (0.5, 1.5 * figures.A_NODES)))
def test_langevin_in_action_space_samples_the_boltzmann_policy(alpha, Q):
    """C5: V = −Q, kT = α, at a fixed state.  Unequal hills; a slope that presses on a bound."""
    a = figures.sample_actions(Q, alpha, n=2000)
    p = maxent.boltzmann_policy(Q, alpha) / (figures.A_NODES[1] - figures.A_NODES[0])
    assert np.abs(a).max() <= 1
    assert worst_bin(a, p, figures.A_NODES, size=20) < 4


def test_best_squashed_gaussian_is_not_multi_modal_when_cold():
    """C8: it picks one of two equal hills, which loses α log 2."""
    mu, _, loss = figures.best_squashed_gaussian(figures.two_hills, 0.05)
    a, da = np.linspace(-1, 1, 4001, retstep=True)
    V = maxent.soft_value(figures.two_hills(a), 0.05, da)
    assert abs(mu) > 0.5
    assert_allclose((loss + V) / 0.05, np.log(2), atol=0.01)


def test_best_squashed_gaussian_straddles_both_when_warm():
    """C8: the change is sudden, near α = 0.3."""
    assert abs(figures.best_squashed_gaussian(figures.two_hills, 0.29)[0]) > 0.5
    assert abs(figures.best_squashed_gaussian(figures.two_hills, 0.31)[0]) < 0.01


# === Part 2: the program around it ================================================================

# --- Networks, optimiser, buffer, agent -----------------------------------------------------------

def parameters(agent):
    return np.concatenate((agent.actor.theta, agent.critic.theta, agent.critic_target.theta,
                           agent.log_alpha))


def test_weights_start_with_he_variance_and_differ_between_twins():
    """Var W = 2/n_in keeps the size of a signal through the layers; the last one is smaller."""
    net = sac_numpy.MLP((100, 200, 300, 50), rng(), copies=2)
    for W, size in zip(net.weights, (1, 1, 0.1)):
        assert abs(W.var() / size**2 * W.shape[1] / 2 - 1) < 4 * math.sqrt(2 / W.size)
        assert (W[0] != W[1]).all()
    assert not any(b.any() for b in net.biases)


def test_a_copied_agent_learns_on_like_the_original(sac):
    """Weights are views into theta, and must be so in the copy too."""
    batch = (sac.obs, sac.a, sac.reward, sac.next_obs, sac.terminated)
    copied = pickle.loads(pickle.dumps(sac.agent))
    sac.agent.update(batch)
    assert (parameters(copied) != parameters(sac.agent)).any()
    copied.update(batch)
    np.testing.assert_array_equal(parameters(copied), parameters(sac.agent))


def test_adam_takes_the_textbook_steps():
    """m̂/(√v̂ + ε), with bias-corrected means (Kingma & Ba 2015, algorithm 1)."""
    draw = rng(2)
    theta = draw.normal(size=9)
    expected, m, v = theta.copy(), 0, 0
    adam = sac_numpy.Adam(theta, 0.03, beta1=0.8, beta2=0.95, epsilon=0.5)
    for t in range(1, 8):
        g = draw.normal(size=9)
        m = 0.8 * m + 0.2 * g
        v = 0.95 * v + 0.05 * g**2
        expected -= 0.03 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 0.5)
        adam.step(g)
    assert_allclose(theta, expected, rtol=1e-12)


def test_buffer_keeps_the_last_transitions_and_their_order():
    buffer = sac_numpy.ReplayBuffer(10, 2, 1)
    for i in range(25):
        buffer.add([i, -i], [i / 100], i / 10, [i + 1, i - 1], i % 2)
    obs, a, reward, next_obs, terminated = buffer.sample(2000, rng())
    i = obs[:, 0]
    assert sorted(set(i)) == list(range(15, 25))
    rows = np.column_stack((obs, a, reward, next_obs, terminated))
    expected = np.stack((i, -i, i / 100, i / 10, i + 1, i - 1, i % 2), axis=1)
    assert_allclose(rows, expected, rtol=1e-6)


def test_update_takes_its_steps_in_order(sac):
    """Critics against the old target, actor by the new critics, α, then Polyak averaging."""
    other = pickle.loads(pickle.dumps(sac.agent))
    sac.agent.update((sac.obs, sac.a, sac.reward, sac.next_obs, sac.terminated))
    next_noise, noise = other.rng.standard_normal((2, 40, 2))
    y = other.target(sac.reward, sac.next_obs, sac.terminated, next_noise)
    sac_numpy.Adam(other.critic.theta, 5e-3).step(other.critic_loss(sac.obs, sac.a, y)[1])
    _, d_theta, log_prob = other.actor_loss(sac.obs, noise)
    sac_numpy.Adam(other.actor.theta, 5e-3).step(d_theta)
    sac_numpy.Adam(other.log_alpha, 5e-3).step(other.temperature_loss(log_prob)[1])
    other.critic_target.theta[:] = 0.1 * other.critic.theta + 0.9 * other.critic_target.theta
    assert_allclose(parameters(sac.agent), parameters(other), rtol=1e-12)


def test_a_fixed_temperature_stays(sac):
    sac.agent.settings = replace(SMALL, tune_alpha=False)
    metrics = sac.agent.update((sac.obs, sac.a, sac.reward, sac.next_obs, sac.terminated))
    assert metrics["alpha"] == 0.2


def test_actions_fill_the_bounds_of_the_environment(sac):
    a = np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]])
    assert_allclose(sac.agent.to_environment(a), [[-1, 0], [1, 5], [3, 10]], atol=1e-12)


def test_a_loaded_agent_acts_like_the_saved_one(tmp_path, sac):
    sac.agent.save(tmp_path / "agent.npz")
    loaded = sac_numpy.SAC.load(tmp_path / "agent.npz")
    np.testing.assert_array_equal(parameters(loaded), parameters(sac.agent))
    np.testing.assert_array_equal(loaded.act(sac.obs, deterministic=True),
                                  sac.agent.act(sac.obs, deterministic=True))


# --- Training on small environments ---------------------------------------------------------------

Box = gym.spaces.Box


class Toy(gym.Env):
    """Shows (t, 0.5) and pays 1; ends after `length` steps.  step_returns: what a step gives.

    As environments may, it goes on writing into the array that it has returned.
    """
    observation_space, action_space = Box(-9, 9, (2,)), Box(-0.3, 0.1, (1,), np.float64)

    def __init__(self, length=4, terminated=False, **changes):
        self.length, self.terminated = length, terminated
        self.shown = np.float32([0, 0.5])
        self.t = 0
        vars(self).update(changes)

    def reset(self, seed=None, options=None):
        self.t = self.shown[0] = 0
        return self.shown, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.t += 1
        self.shown[0] = self.t
        over = self.t >= self.length
        return self.result(over)

    def result(self, over):
        return self.shown, 1.0, self.terminated if over else False, over, {}


class Reacher(gym.Env):
    """A point that moves by at most 0.3 along each axis pays −1 per step until max|x| < 0.1."""
    observation_space = Box(-9, 9, (2,))
    action_space = Box(np.float32([-1, 0]), np.float32([3, 10]))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1, 2), 0
        return self.x.astype(np.float32), {}

    def step(self, action):
        self.x = self.x + 0.3 * (action - [1, 5]) / [2, 5]
        self.t += 1
        over = np.abs(self.x).max() < 0.1
        return self.x.astype(np.float32), -1.0, over, self.t == 20, {}


@pytest.mark.parametrize("terminated, Q", ((True, 1.0), (3, 1.0), (False, 2.0)))
def test_a_terminal_step_has_no_future_and_a_time_limit_has(terminated, Q):
    """Pays 1 per step, γ = ½, always the same state: Q = 1 or 1/(1 − γ).  3 counts as True."""
    env = Toy(1, terminated)
    env.result = lambda over: (np.array([0, 0.5]), 1.0, terminated, True, {})
    settings = replace(SMALL, hidden=(32, 32), gamma=0.5, warmup=300, alpha=1e-4, tune_alpha=False)
    agent, _ = sac_numpy.train(env, settings, n_steps=1000)
    a = np.linspace(-0.9, 0.9, 9)[:, None]
    learned, _ = agent.q_values(agent.critic, np.tile([0, 0.5], (9, 1)), a)
    assert_allclose(learned, Q, atol=0.1)


def test_equal_seeds_make_equal_agents_and_others_do_not():
    first, again, other = (parameters(sac_numpy.train(Reacher(), SMALL, seed, n_steps=80)[0])
                           for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_reacher_is_learned():
    """Two actions, each with bounds of its own.  From a corner four steps of 0.3 are enough."""
    settings = replace(SMALL, hidden=(32, 32), batch_size=64, warmup=200)
    agent, _ = sac_numpy.train(Reacher(), settings, seed=0, n_steps=1500)
    assert sac_numpy.evaluate(agent, Reacher(), range(50)).mean() > -4


def test_returns_and_states_are_logged():
    _, log = sac_numpy.train(Toy(), SMALL, n_steps=62)
    assert_allclose(log["episode_step"], np.arange(4, 61, 4))
    assert_allclose(log["episode_return"], 4)
    assert_allclose(log["observations"][:, 0], np.arange(62) % 4)
    assert_allclose(log["step"], np.arange(51, 63))


def test_episodes_begin_with_random_actions_up_to_a_share(monkeypatch):
    """Episodes of 100 steps: on average a quarter of the steps is random, if up to half may be."""
    chosen, sample = [], sac_numpy.SAC.sample
    monkeypatch.setattr(sac_numpy.SAC, "sample", lambda *args: chosen.append(1) or sample(*args))
    sac_numpy.train(Toy(100), replace(SMALL, random_share=0.5), n_steps=2050)
    assert abs(1 - len(chosen) / 2000 - 1 / 4) < 4 * (0.5 / math.sqrt(12)) / math.sqrt(20)


def test_learning_rates_fall_in_a_straight_line():
    agent, _ = sac_numpy.train(Toy(), SMALL, n_steps=60)
    for progress, rate in ((None, 1e-3), (0, 5e-3), (0.5, 3e-3)):
        if progress is not None:
            agent.set_learning_rate(progress)
        for adam in (agent.critic_adam, agent.actor_adam, agent.alpha_adam):
            assert_allclose(adam.learning_rate, rate, rtol=1e-12)


def test_warm_up_draws_actions_uniformly(monkeypatch):
    """From (−1, 1): mean 0 and mean square 1/3."""
    drawn, add = [], sac_numpy.ReplayBuffer.add
    monkeypatch.setattr(sac_numpy.ReplayBuffer, "add",
                        lambda buffer, obs, a, *rest: drawn.append(a) or add(buffer, obs, a, *rest))
    sac_numpy.train(Toy(), replace(SMALL, warmup=1000), n_steps=1001)
    assert abs(off(np.array(drawn[:1000]), 0)) < 4
    assert abs(off(np.array(drawn[:1000]) ** 2, 1 / 3)) < 4


def test_the_policy_does_not_act_during_warm_up(monkeypatch):
    chosen, sample = [], sac_numpy.SAC.sample
    monkeypatch.setattr(sac_numpy.SAC, "sample", lambda *args: chosen.append(1) or sample(*args))
    sac_numpy.train(Toy(), SMALL, n_steps=51)
    assert len(chosen) == 1


def test_ctrl_c_keeps_what_was_learned():
    def progress(step, agent, log):
        if step == 70:
            raise KeyboardInterrupt

    agent, log = sac_numpy.train(Toy(), SMALL, n_steps=500, progress=progress)
    assert len(log["step"]) == 20


def test_evaluation_starts_each_episode_from_its_seed(trained):
    agent, _ = trained
    one_by_one = sac_numpy.evaluate(agent, "Pendulum-v1", [10_007, 10_003])
    assert_allclose(one_by_one, sac_numpy.evaluate(agent, "Pendulum-v1", [10_003, 10_007])[::-1])
    all_at_once = figures.roll_out(agent, *figures.held_out_starts())[:, 3].sum(axis=0)
    assert_allclose(one_by_one, all_at_once[[7, 3]], atol=0.01)


# --- Grids ----------------------------------------------------------------------------------------

def test_pendulum_step_is_gymnasiums():
    env = gym.make("Pendulum-v1").unwrapped
    for *state, torque in rng().uniform((-9, -8, -2), (9, 8, 2), (200, 3)):
        env.state = state
        _, reward, *_ = env.step(np.array([torque]))
        assert_allclose(maxent.pendulum_step(*state, torque), (*env.state, reward), atol=1e-12)


def test_bilinear_weights_reproduce_linear_functions():
    """And are probabilities; θ is periodic, and ω beyond ±8 counts as ±8."""
    theta, omega = rng().uniform((-9, -9), (9, 9), (1000, 2)).T
    index, weight = maxent.bilinear(theta, omega, 11, 9)
    grid_theta = -np.pi + 2 * np.pi / 11 * (index // 9)
    x = (grid_theta - theta[:, None] + np.pi) % (2 * np.pi) - np.pi
    y = (-8 + 2 * (index % 9)) - np.clip(omega, -8, 8)[:, None]
    assert weight.min() >= 0
    assert_allclose(weight.sum(axis=1), 1, rtol=1e-12)
    for linear in (x, y, x * y):
        assert_allclose(np.sum(weight * linear, axis=1), 0, atol=1e-12)


def test_tanh_spaced_actions_integrate_boundary_layers():
    """α log ∫ exp(a/α) da = 1 + α log(α (1 − e^{−2/α})), even for a layer of width 1e-3."""
    mdp = maxent.pendulum_mdp(5, 5, 33)
    for alpha in (10.0, 0.1, 1e-2, 1e-3):
        exact = 1 + alpha * np.log(alpha * -np.expm1(-2 / alpha))
        assert_allclose(maxent.soft_value(mdp.a, alpha, mdp.measure), exact, atol=0.01 * alpha)


def test_positions_in_the_plane_are_particles_too():
    """(N, 2): two independent springs."""
    x = langevin.simulate(np.zeros((20_000, 2)), lambda x: 3 * x, kT=KT, dt=0.1, n_steps=50,
                          rng=rng(), method="leimkuhler_matthews")
    assert x.shape == (20_000, 2)
    assert_allclose(np.cov(x.T), KT / 3 * np.eye(2), atol=4 * KT / 3 * np.sqrt(2 / 20_000))


# --- Calls that are refused -----------------------------------------------------------------------

def simulate(**bad):
    good = {"x0": [0.0, 3.0], "grad_V": langevin.double_well_gradient, "kT": 1.0, "dt": 0.01,
            "n_steps": 9, "rng": rng()}
    return langevin.simulate(**{**good, **bad})


def mdp(**bad):
    good = {"reward": np.zeros((2, 2)), "successor": np.zeros((2, 2, 2), int),
            "probability": np.full((2, 2, 2), 0.5), "gamma": 0.9}
    return maxent.MDP(**{**good, **bad})


def train(n_steps=60, **changes):
    return sac_numpy.train(Toy(**changes), SMALL, n_steps=n_steps)


def gives(obs=(0.0, 0.5), reward=1.0):
    """The result of a step, for Toy."""
    return lambda over: (np.array(obs), reward, False, over, {})


REFUSED = {
    "langevin": (
        (lambda: simulate(kT=-1.0), "kT must be a positive number, got -1.0"),
        (lambda: simulate(dt=0), "dt must be a positive"),
        (lambda: simulate(gamma=np.nan), "gamma must be a positive"),
        (lambda: simulate(x0=[0, np.inf]), "x0 must hold finite"),
        (lambda: simulate(method="verlet"), "'verlet'; accepted: 'euler_maruyama', 'leim"),
        (lambda: simulate(dt=0.5), "dt = 0.5 is too large"),
        (lambda: langevin.boltzmann_density(WELL, DX, -0.1), "kT must be"),
        (lambda: langevin.fokker_planck_generator(WELL, -DX, KT), "dx must be"),
        (lambda: langevin.fokker_planck_evolve(WELL, WELL, DX, KT, [1]), "p0 must be a density"),
        (lambda: langevin.free_energy(np.ones(201), WELL, DX, KT), "= 1; got 5.025")),
    "maxent": (
        (lambda: maxent.soft_value(Q5, -0.1), "alpha must be a number, 0 or more, got -0.1"),
        (lambda: maxent.boltzmann_policy(Q5, np.nan), "alpha must"),
        (lambda: maxent.entropy([0.5, 0.5 + 1e-5]), "p must hold prob.* off by 1e-05"),
        (lambda: maxent.entropy([-0.5, 1.5]), "smallest entry is -0.5"),
        (lambda: mdp(probability=np.full((2, 2, 2), 0.4)), "probability must hold"),
        (lambda: mdp(probability=np.ones((2, 2, 1))), "have the shape of successor"),
        (lambda: mdp(successor=np.full((2, 2, 2), 2)), "states from 0 to 1, got 2 to 2"),
        (lambda: mdp(successor=np.full((2, 2, 2), -1)), "states from 0 to 1"),
        (lambda: mdp(gamma=1.1), "gamma must lie between 0 and 1, got 1.1"),
        (lambda: maxent.soft_value_iteration(mdp(gamma=1), 1.0), "gamma < 1"),
        (lambda: maxent.return_and_entropy(mdp(gamma=1), np.full((2, 2), 0.5)), "gamma < 1"),
        (lambda: maxent.max_entropy(FACES, [7]), "inside the convex hull"),
        (lambda: maxent.max_entropy(FACES, [6]), r"from \[1.\] to \[6.\]"),
        (lambda: maxent.max_entropy(FACES * [1, 2], [4.5, 9]), "neither be linearly dependent"),
        (lambda: maxent.enumerate_paths(mdp(), 0, 11), r"4\^11 paths are too many")),
    "sac_numpy": (
        (lambda: train(n_steps=50), "n_steps must exceed the 50 steps"),
        (lambda: train(action_space=gym.spaces.Discrete(3)), "flat, bounded Box of floats"),
        (lambda: train(action_space=Box(-np.inf, 1, (1,))), "flat, bounded Box"),
        (lambda: train(observation_space=Box(-1, 1, (2, 2))), "observations must be a flat Box"),
        (lambda: train(observation_space=gym.spaces.Dict(x=Box(-1, 1, (2,)))), "flat Box"),
        (lambda: train(result=gives(obs=(0.0,))), r"must have the shape \(2,\), got \(1,\)"),
        (lambda: train(result=gives(obs=(np.nan, 0))), "step 1: the observation is not finite"),
        (lambda: train(result=gives(reward=np.inf)), "step 1: the reward is not finite: inf"),
        (lambda: train(result=gives(reward=1e30)), "step 51: the critic's loss is not finite"),
        (lambda: sac_numpy.evaluate(sac_numpy.SAC(2, [-1], [1]), Toy(), [0]), "another env"),
        (lambda: sac_numpy.evaluate(sac_numpy.SAC(2, *np.float64([[-0.3], [0.1]])),
                                    Toy(10**6), [0], 100), "gymnasium.wrappers.TimeLimit"),
        (lambda: sac_numpy.SAC.load(__file__), "not a file written by SAC.save"))}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("module", REFUSED)
def test_wrong_calls_are_refused_with_what_was_wrong(module):
    for call, message in REFUSED[module]:
        with pytest.raises((ValueError, FloatingPointError), match=message):
            call()


def test_probabilities_of_float32_are_near_enough():
    assert maxent.entropy(rng().dirichlet(np.ones(1000)).astype(np.float32)) > 0


# --- Command lines, figures, README ---------------------------------------------------------------

def run(*args, cwd=HERE, **environment):
    """A Python command -> its result; output goes where Greek cannot be written."""
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, capture_output=True,
                          text=True, env={**os.environ, "PYTHONIOENCODING": "ascii", **environment})


@pytest.mark.parametrize("module", ("langevin", "maxent"))
def test_a_module_copied_out_alone_runs_its_demonstration(module, tmp_path):
    (tmp_path / "alone.py").write_text((HERE / f"{module}.py").read_text("utf-8"), "utf-8")
    done = run("alone.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"simulated (\S+) \+- (\S+) +theory (\S+)", done.stdout)
    assert all(abs(float(x) - float(theory)) < 4 * float(error) for x, error, theory in lines)
    pairs = re.findall(r"\[(.*?)\]\n.*\[(.*?)\]", done.stdout)
    assert len(lines) + len(pairs) >= 3
    for formula, other in pairs:
        theory, seen = (np.array(row.split(), float) for row in (formula, other))
        assert_allclose(seen, theory, atol=0.006)


def test_sac_numpy_trains_saves_and_loads_from_the_command_line(tmp_path):
    saved = tmp_path / "agent.npz"
    first = run("sac_numpy.py", "--steps", 1010, "--save", saved)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("mean return over 100 episodes")
    assert max(map(len, first.stderr.splitlines())) < 80
    assert run("sac_numpy.py", "--load", saved).stdout == first.stdout


@pytest.mark.parametrize("args, message", (
    (["sac_numpy.py", "--steps", 5], "n_steps must exceed"),
    (["sac_numpy.py", "--save", HERE], "Is a directory|ermission"),
    (["sac_numpy.py", "--load", "README.md"], "not a file written by SAC.save"),
    (["figures.py", "nonsense"], "unknown figure 'nonsense'; accepted: langevin_")))
def test_command_lines_refuse_without_a_traceback(args, message):
    done = run(*args)
    assert done.returncode != 0
    assert re.search(message, done.stderr) and "Traceback" not in done.stderr


def test_a_figure_needs_no_display_and_no_backend(tmp_path):
    done = run("figures.py", "Boltzmann_Policy", "--out", tmp_path, MPLBACKEND="module://nowhere")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["Boltzmann_Policy.png"]


def test_the_training_figure_prints_the_regret_of_each_seed(trained, monkeypatch, capsys):
    """Made up: seed k loses k + 1 everywhere at the end."""
    agent, log = trained
    best = figures.best_returns()
    results = [(agent, {**log, "evaluations": best - np.array([[900.0], [k + 1.0]])})
               for k in range(3)]
    monkeypatch.setattr(figures, "trained", lambda *_: results)
    figures.figure_RL_training_log(SimpleNamespace(seeds=3, steps=1000))
    plt.close("all")
    assert capsys.readouterr().out == "regret of each seed: 1.0 2.0 3.0   mean 2.0\n"


def test_mean_torque_and_value_are_means_over_the_policy():
    """Against 10 000 draws, at a single state."""
    agent, obs = sac_numpy.SAC(3, [-2], [2], SMALL), np.float32([[0.3, -0.8, 0.5]])
    agent.actor.biases[-1][0, 1] = -1                           # log σ
    a = agent.sample(np.repeat(obs, 10_000, axis=0))
    Q, _ = agent.q_values(agent.critic, np.repeat(obs, 10_000, axis=0), a)
    (torque,), (value,) = figures.mean_torque_and_value(agent, obs)
    assert abs(off(2 * a.astype(float), torque)) < 4
    assert abs(off(Q.min(axis=0).astype(float), value)) < 4


def test_on_the_cliff_a_hot_agent_falls_and_a_cold_one_does_not():
    """soft_gridworld; a warm one turns away from the edge, where a cold one walks straight on."""
    world, falls = figures.cliff_walk()
    counted = replace(world, reward=falls, gamma=1 - 1e-9)
    cold, warm, hot = (maxent.soft_value_iteration(world, alpha)[2] for alpha in (0.1, 2, 20))
    fall = [maxent.return_and_entropy(counted, pi)[0][24] for pi in (cold, warm, hot)]
    assert fall[0] < 1e-6 and fall[1] < 0.01 and fall[2] > 0.5
    up, right = 0, 3
    edge = 2 * 8 + 3                                            # above the middle of the cliff
    assert cold[edge, right] > 0.99 and warm[edge, up] > 0.2 > cold[edge, up]


README = (HERE / "README.md").read_text("utf-8")


def test_the_code_in_the_readme_runs(tmp_path):
    block, = re.findall(r"```python\n(.*?)```", README, re.S)
    done = run("-c", f"import sys; sys.path.insert(0, {str(HERE)!r})\n{block}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_names_in_the_readme_exist():
    """`module.name`, `test_…`, and the figures under plots/."""
    modules = {"langevin": langevin, "maxent": maxent, "sac_numpy": sac_numpy}
    for module, names in re.findall(r"`(langevin|maxent|sac_numpy)\.((?!py\b)[\w.]+)`", README):
        assert functools.reduce(getattr, names.split("."), modules[module])
    for name in re.findall(r"`(test_\w+)`", README):
        assert name in globals(), name
    for name in re.findall(r"plots/(\w+)\.", README):
        assert name in figures.FIGURES, name


def test_every_equation_has_a_row_in_the_readme_and_a_tag():
    """A tag: Eq. 9, or Eq. 10, 11, or Eq. 17 and 23."""
    code = "".join((HERE / f"{name}.py").read_text("utf-8")
                   for name in ("langevin", "maxent", "sac_numpy"))
    tags = re.findall(r"Eq\. (\d+(?:(?:, | and )\d+)*)", code)
    assert {int(number) for tag in tags for number in re.findall(r"\d+", tag)} == {*range(1, 26)}
    rows = re.findall(r"^\| (\d+) \|", README, re.M)
    assert [int(number) for number in rows] == [*range(1, 26)]
