"""Maximum entropy, maximum caliber and maximum-entropy reinforcement learning, exactly.   Eq. 4–17, 23–25

Needs numpy only.  `python maxent.py` prints three of them beside an independent computation.

    p, π pi     probabilities over the last axis: of outcomes, or of actions π(a|s)        (..., n)
    H           entropy −Σ p log p in nats
    log_base    0 where outcomes are counted; log w for the nodes of a continuous variable with quadrature weights w,
                Σ w f = ∫ f da.  There p/w is the density, and H = −Σ p log(p/w) its differential entropy
    α alpha     temperature, in units of reward;  β = 1/α
    λ           Lagrange multipliers of constrained means
    r, γ gamma  reward; discount (in langevin.py the same letter is a friction)
    Q, V        soft action value (S, A) and soft state value (S,); F = −V free energy
    S, A, K     numbers of states, actions and successors per state and action

Arrays that are not finite or have the wrong shape raise a ValueError (not in pendulum_step and bilinear: bare formulas).
"""
from dataclasses import dataclass

import numpy as np


def _finite(name, x, *shape, like=None):
    """x as an array of finite numbers: of the shape given, where None is any length, or of the last axes of `like`."""
    x = np.asarray(x, dtype=float)
    shape = shape if like is None else like.shape[like.ndim - x.ndim:]
    fits = not shape or (x.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, x.shape)))
    if not (fits and x.size and (x.ndim or like is not None) and np.isfinite(x).all()):
        raise ValueError(f"{name} must be finite, of shape {shape or 'any'} (None: any length), got shape {x.shape}: {x}")
    return x


def _temperature(alpha):
    """alpha, a number of 0 or more."""
    if np.ndim(alpha) or not 0 <= alpha < np.inf:
        raise ValueError(f"alpha must be a number, 0 or more, got {alpha}")
    return alpha


# --- Entropy, soft value, Boltzmann policy ----------------------------------------------------------------------------

def entropy(p, log_base=0.0):
    """H(p) = −Σ p (log p − log_base) over the last axis, in nats, with 0 log 0 = 0.  p: (..., n) -> (...)."""
    p = _finite("p", p)
    log_base = _finite("log_base", log_base, like=p)
    if p.min() < 0 or np.abs(p.sum(-1) - 1).max() > 1e-9:
        raise ValueError("probabilities must be nowhere negative, and of sum 1 over the last axis to within 1e-9")
    return np.sum(p * (log_base - np.log(p, out=np.zeros_like(p), where=p > 0)), axis=-1)


def _gibbs(Q, alpha, log_base):
    """max Q (...), log Σ exp((Q − max Q)/α + log_base) (...), and these terms over their sum (..., A), for Eq. 16, 17."""
    Q = _finite("Q", Q)
    log_base = _finite("log_base", log_base, like=Q)
    Q_max = Q.max(-1, keepdims=True)
    gap = Q - Q_max                                                         # subtract before dividing: safe at Q/α = 1e14
    z = log_base + (gap / alpha if alpha else np.where(gap == 0, 0.0, -np.inf))             # α = 0: the best actions share
    z_max = z.max(-1, keepdims=True)                                        # a second shift: log_base may be −1000
    weights = np.exp(z - z_max)
    total = weights.sum(-1, keepdims=True)
    return Q_max[..., 0], (z_max + np.log(total))[..., 0], weights / total


def soft_value(Q, alpha, log_base=0.0):
    """V = α log Σ exp(Q/α + log_base) over the last axis; max Q at α = 0.  Q: (..., A) -> (...).

    Never below max Q when actions are counted; with a measure (log_base) it can be.
    """
    Q_max, log_Z, _ = _gibbs(Q, _temperature(alpha), log_base)
    return Q_max + alpha * log_Z                                            # Eq. 16 (soft value, log-sum-exp)


def boltzmann_policy(Q, alpha, log_base=0.0):
    """Probabilities of the actions, exp(Q/α + log_base)/Z; at α = 0 the best actions share.  Q: (..., A) -> (..., A)."""
    return _gibbs(Q, _temperature(alpha), log_base)[2]                      # Eq. 17 = Eq. 23 (Boltzmann policy)


def regularised_value(pi, Q, alpha, log_base=0.0):
    """E_π[Q] + α H(π): what the Boltzmann policy maximises, and V when it does.  pi, Q: (..., A) -> (...)."""
    pi = _finite("pi", pi)
    EQ = np.sum(pi * _finite("Q", Q, like=pi), axis=-1)
    return EQ + _temperature(alpha) * entropy(pi, log_base)                 # Eq. 24; Eq. 15 at π*


def canonical_free_energy(p, E, beta):
    """E_p[E] − H(p)/β: what the canonical ensemble exp(−βE)/Z *minimises*, to −log Z/β.  p, E: (..., n) -> (...).

    The chapter writes max.  This function is convex in p, so its maximum puts everything on the highest energy.
    """
    if np.ndim(beta) or not beta > 0:
        raise ValueError(f"beta must be a positive number, got {beta}")
    p = _finite("p", p)
    return np.sum(p * _finite("E", E, like=p), axis=-1) - entropy(p) / beta # Eq. 25


# --- Maximum entropy under constraints --------------------------------------------------------------------------------

def max_entropy(features, means, log_base=0.0, max_steps=100):
    """The distribution of largest entropy with Σ p f_k = means_k.  features (n, K), means (K,) -> (λ (K,), p (n,)).

    Eq. 4's maximum is p = exp(−λ·f + log_base)/Z (Eq. 5).  λ minimises the convex dual log Z(λ) + λ·means, of gradient
    means − E[f] and Hessian Cov[f], by Newton steps −Cov⁻¹ gradient.  ValueError where no single, finite λ does: means
    must lie strictly inside the convex hull of the features, and these be independent.  Means where Cov[f] (features
    scaled to 1) has an eigenvalue below 1e-12 count as outside.
    """
    f = _finite("features", features, None, None)
    f = f - _finite("means", means, f.shape[1])                             # then log Z alone is the dual
    reach, lam = np.abs(f).max(axis=0) + 1e-300, np.zeros(f.shape[1])
    f = f / reach                                                           # from here on λ is in units of 1/reach
    dual = lambda lam: soft_value(-(f @ lam), 1.0, log_base)
    for _ in range(max_steps):
        p = boltzmann_policy(-(f @ lam), 1.0, log_base)                     # Eq. 5 (exponential family)
        gradient, centred = -(p @ f), f - p @ f
        hessian = (p[:, None] * centred).T @ centred                        # Cov[f]
        ridge = 1e-6 * np.abs(gradient).max() + 1e-14 * np.trace(hessian) + 1e-300          # Cov may be 0
        step = np.linalg.solve(hessian + ridge * np.eye(lam.size), -gradient)
        size, value = 1.0, dual(lam)
        while size > 1e-40 and dual(lam + size * step) > value + 1e-13 * (1 + abs(value)):
            size /= 2                                                       # far from the minimum a full step overshoots
        lam = lam + size * step
        if np.abs(step).max() < 1e-7:                                       # Newton squares the error: 1e-14 is left
            if np.linalg.eigvalsh(hessian)[0] < 1e-12:                      # f has no spread in some direction: on the edge
                break
            return lam / reach, boltzmann_policy(-(f @ lam), 1.0, log_base)
    raise ValueError(f"found no p = exp(−λ·f)/Z of means {means} in {max_steps} steps: these must lie strictly inside the "
                     f"convex hull of the features, {np.min(features, 0)} to {np.max(features, 0)}, which must be independent")


# --- Finite Markov decision processes ---------------------------------------------------------------------------------

@dataclass
class MDP:
    """reward (S, A);  probability (S, A, K), of sum 1 over K, to go on to state successor (S, A, K);  0 ≤ gamma ≤ 1.

    No state is terminal.  One that only leads to itself earns α log A of entropy a step; a reward of −α log A cancels it.
    """
    reward: np.ndarray
    successor: np.ndarray
    probability: np.ndarray
    gamma: float

    def __post_init__(self):
        self.reward = _finite("reward", self.reward, None, None)
        S, A = self.reward.shape
        P = self.probability = _finite("probability", self.probability, S, A, None)
        successor, self.gamma = np.asarray(self.successor), float(self.gamma)
        if successor.shape != P.shape or successor.dtype.kind not in "iu" or successor.min() < 0 or successor.max() >= S:
            raise ValueError(f"successor must hold integers from 0 to {S - 1}, of shape {P.shape}, got {successor}")
        self.successor = successor.astype(int)                              # uint64 beside int64 would become float
        entropy(P)                                                          # refuses what is not a distribution
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be a number between 0 and 1, got {self.gamma}")


def return_and_entropy(mdp, pi, log_base=0.0):
    """Discounted sums, from each state on, of the reward and of the entropy of π.  pi: (S, A) -> two of (S,).

    E Σ γ^t r_t is Eq. 9.  log_base: see entropy.  ValueError if gamma = 1: the sums need not exist.
    """
    S, A, K = mdp.successor.shape
    pi = _finite("pi", pi, S, A)
    if mdp.gamma == 1:
        raise ValueError("an infinite horizon needs gamma < 1")
    P = np.zeros((S, S))                                                    # P(s'|s) under π
    np.add.at(P, (np.arange(S)[:, None, None], mdp.successor), pi[:, :, None] * mdp.probability)
    now = np.stack((np.sum(pi * mdp.reward, axis=1), entropy(pi, log_base)), axis=1)
    return np.linalg.solve(np.eye(S) - mdp.gamma * P, now).T                # x = now + γ P x, so x = Σ γ^t P^t now


def soft_policy_evaluation(mdp, pi, alpha, log_base=0.0):
    """V of the policy π: E Σ γ^t (r_t + α H(π(·|s_t))) from each state on.  pi: (S, A) -> (S,).  log_base: see entropy."""
    R, H = return_and_entropy(mdp, pi, log_base)                            # R is Eq. 9, R + αH is Eq. 10, from each state
    return R + _temperature(alpha) * H                                      # Eq. 11; Eq. 12: F = −V = −R − αH


def soft_backup(mdp, V):
    """Q = r + γ E[V(s')].  V: (S,) -> (S, A).  With V = max_a Q in place of Eq. 16 this is the hard Bellman equation."""
    V = _finite("V", V, len(mdp.reward))
    return mdp.reward + mdp.gamma * np.einsum("sak,sak->sa", mdp.probability, V[mdp.successor])     # Eq. 14


def soft_value_iteration(mdp, alpha, log_base=0.0, tol=1e-9):
    """The soft-optimal Q (S, A), V (S,), π (S, A), with an error in V below tol or rounding.  ValueError if gamma = 1.

    If a sweep adds `change` (S,) to V, all later ones together add, in each state, between ahead·min(change) and
    ahead·max(change), ahead = γ/(1 − γ) (Puterman 1994, §6.6).  V gets the middle at once; the error is at most half the gap.
    """
    gamma = mdp.gamma
    if gamma == 1:
        raise ValueError("an infinite horizon needs gamma < 1")
    V, ahead = np.zeros(len(mdp.reward)), gamma / (1 - gamma)
    for _ in range(2 + int(40 / (1 - gamma))):                              # γⁿ < e^{−40}: only rounding is left
        change = soft_value(soft_backup(mdp, V), alpha, log_base) - V       # a sweep: Eq. 14, then Eq. 16
        V = V + change + ahead * (change.max() + change.min()) / 2          # and the middle of what is to come
        if ahead * np.ptp(change) / 2 < max(tol, ahead * 1e-15 * np.abs(V).max()):          # or only rounding is left
            break
    Q = soft_backup(mdp, V)
    return Q, soft_value(Q, alpha, log_base), boltzmann_policy(Q, alpha, log_base)


# --- Maximum caliber: entropy over paths ------------------------------------------------------------------------------

def enumerate_paths(mdp, start, horizon):
    """Every path (s₀, a₀, s₁, …, s_T) of T = horizon steps from start.

    -> paths (n, 2T + 1), returns Σ γ^t r_t (n,), log Π p(s'|s, a) (n,).  A successor that is listed twice gives two
    paths, each with its part of the probability.
    """
    if start not in range(len(mdp.reward)) or horizon < 0:
        raise ValueError(f"start must be a state, and horizon not negative, got {start} and {horizon}")
    if mdp.successor[0].size ** int(horizon) > 2_000_000:
        raise ValueError(f"{mdp.successor[0].size}^{horizon} paths are too many to enumerate; at most 2 000 000")
    paths, returns, log_p = np.array([[start]], int), np.zeros(1), np.zeros(1)
    for t in range(horizon):
        n, a, k = np.nonzero(mdp.probability[paths[:, -1]])                 # path n goes on by action a, successor k
        s = paths[n, -1]
        paths = np.column_stack((paths[n], a, mdp.successor[s, a, k]))
        returns = returns[n] + mdp.gamma**t * mdp.reward[s, a]
        log_p = log_p[n] + np.log(mdp.probability[s, a, k])
    return paths, returns, log_p


def max_caliber(mdp, start, horizon, mean_return):
    """The path probabilities of largest entropy with a given mean return -> alpha, paths (n, 2T + 1), probabilities (n,).

    Eq. 6 under the constraint Eq. 7, with ∫L dt = −Σ γ^t r_t, gives P = Π p(s'|s, a) exp(−λ∫L dt)/Z: the base measure
    log_p makes 𝓗 = −KL(P ‖ paths of uniform actions) + constant.  The chapter's Eq. 8 leaves out λ = 1/α, without which
    the mean return cannot be chosen.  α < 0 for a mean return below that of uniform actions; at that one it is infinite,
    or by rounding huge, of either sign.  ValueError where max_entropy finds no solution.
    """
    paths, returns, log_p = enumerate_paths(mdp, start, horizon)
    lam, P = max_entropy(-returns[:, None], [-mean_return], log_p)          # Eq. 8 (path law): f is ∫L dt = −return
    return (1 / lam[0] if lam[0] else np.inf), paths, P                     # λ = 1/α


# --- The gradient flow of a policy ------------------------------------------------------------------------------------

def policy_flow(pi0, Q, alpha, times):
    """π(t) on the steepest descent of F = −E_π[Q] − α H(π) in the Fisher–Rao metric.  pi0, Q (A,), times (K,) -> (K, A).

    Eq. 13 as ∂π/∂t = π (G − E_π[G]), G = Q − α log π, is solved by π(t) ∝ π(0)^{e^{−αt}} exp((1 − e^{−αt}) Q/α).  It is
    deterministic, so not Langevin dynamics.  In the Wasserstein metric Eq. 13 is the Fokker–Planck equation Eq. 3 in
    action space, with V = −Q and kT = α.
    """
    pi0, t = _finite("pi0", pi0, None), _finite("times", times, None)[:, None]
    Q = _finite("Q", Q, len(pi0))
    entropy(pi0)                                                            # refuses what is not a distribution
    if pi0.min() == 0:
        raise ValueError("pi0 must be positive everywhere: the flow never revives an action")
    gain = -np.expm1(-t * alpha) / alpha if _temperature(alpha) else t      # (1 − e^{−αt})/α, and its limit at α = 0
    return boltzmann_policy(np.exp(-t * alpha) * np.log(pi0) + gain * Q, 1.0)   # Eq. 13, as a softmax


# --- Pendulum-v1, exactly ---------------------------------------------------------------------------------------------

def pendulum_step(theta, theta_dot, torque):
    """One step (0.05 s) of Gymnasium's Pendulum-v1, elementwise -> (theta, theta_dot, reward).

    theta in rad, 0 upright, not wrapped; theta_dot in rad/s; torque in N m, at most ±2.
    """
    angle = (theta + np.pi) % (2 * np.pi) - np.pi
    reward = -(angle**2 + 0.1 * theta_dot**2 + 0.001 * torque**2)
    theta_dot = np.clip(theta_dot + (15 * np.sin(theta) + 3 * torque) * 0.05, -8, 8)        # 3g/2l, 3/ml², dt
    return theta + theta_dot * 0.05, theta_dot, reward


def bilinear(theta, theta_dot, n_theta, n_theta_dot):
    """Corners (..., 4) of the grid cell around each state, as indices of states, and their bilinear weights (..., 4)."""
    x = (theta + np.pi) / (2 * np.pi) * n_theta
    y = np.clip((theta_dot + 8) / 16, 0, 1) * (n_theta_dot - 1)
    i, j = np.floor(x).astype(int), np.minimum(y.astype(int), n_theta_dot - 2)
    x, y = x - i, y - j
    left, right = (i % n_theta) * n_theta_dot + j, ((i + 1) % n_theta) * n_theta_dot + j    # theta is periodic
    return (np.stack((left, left + 1, right, right + 1), -1),
            np.stack(((1 - x) * (1 - y), (1 - x) * y, x * (1 - y), x * y), -1))


@dataclass
class PendulumMDP(MDP):
    """An MDP with its grid: theta (n,), theta_dot (m,), a (A,) = torque/2, log_base (A,); state index i m + j."""
    theta: np.ndarray
    theta_dot: np.ndarray
    a: np.ndarray
    log_base: np.ndarray


def pendulum_mdp(n_theta=101, n_theta_dot=81, n_a=33, gamma=0.99, spacing="tanh"):
    """Pendulum-v1 on a grid: the bilinear weights of the next state are its transition probabilities.

    Actions a = torque/2 in [−1, 1], the frame in which SAC measures entropy.  "tanh": nodes at tanh u, |u| ≤ 6, with
    weights da = sech² u du, dense at the bounds, where π has layers of width α/|∂Q/∂a|.  "uniform" (bounds included,
    equal weights) misses these: for α = 0 only.  Pass log_base to all that take it, or nodes are counted.
    """
    if spacing not in ("tanh", "uniform") or min(n_theta, n_theta_dot, n_a) < 2:
        raise ValueError(f"spacing must be 'tanh' or 'uniform', all n at least 2, got {spacing!r}, {n_theta, n_theta_dot, n_a}")
    theta = -np.pi + 2 * np.pi / n_theta * np.arange(n_theta)
    theta_dot = np.linspace(-8, 8, n_theta_dot)
    u = np.linspace(-6, 6, n_a)
    a, weight = (np.tanh(u), np.cosh(u) ** -2) if spacing == "tanh" else (u / 6, np.ones(n_a))
    log_base = np.log(2 * weight / weight.sum())                            # the measure of [−1, 1] is 2
    *after, reward = pendulum_step(*np.meshgrid(theta, theta_dot, 2 * a, indexing="ij"))
    successor, probability = (w.reshape(-1, n_a, 4) for w in bilinear(*after, n_theta, n_theta_dot))
    return PendulumMDP(reward.reshape(-1, n_a), successor, probability, gamma, theta, theta_dot, a, log_base)


def pendulum_optimal_return(thetas, theta_dots, n_theta=401, n_theta_dot=301, n_torque=5, n_steps=200):
    """The best return of n_steps ≥ 1 steps that was found from each start.  (N,), (N,) -> (N,).

    Backward induction on the grid (Eq. 14 with γ = 1 and the hard maximum), then on the true dynamics each of n_torque
    torques first and greedy steps, from 81 torques, after it; the best one counts.  So each number is a return that was
    really reached, a lower bound of the optimum.  Greedy steps alone can miss it by 20: the grid blurs the value's cliffs.
    """
    theta = _finite("thetas", thetas, None)
    theta_dot = _finite("theta_dots", theta_dots, len(theta))
    mdp = pendulum_mdp(n_theta, n_theta_dot, n_torque, gamma=1.0, spacing="uniform")
    values = [np.zeros(n_theta * n_theta_dot)]                              # with 0, 1, 2, … steps to go
    for _ in range(n_steps - 2):
        values.append(soft_backup(mdp, values[-1]).max(axis=1))
    theta, theta_dot, total = pendulum_step(theta[:, None], theta_dot[:, None], 2 * mdp.a)  # (N, n_torque)
    torques = np.linspace(-2, 2, 81)
    for V in reversed(values[:n_steps - 1]):
        *after, reward = pendulum_step(theta[..., None], theta_dot[..., None], torques)
        successor, probability = bilinear(*after, n_theta, n_theta_dot)
        best = (reward + (probability * V[successor]).sum(axis=-1)).argmax(axis=-1)
        theta, theta_dot, reward = pendulum_step(theta, theta_dot, torques[best])
        total += reward
    return total.max(axis=1)


def main():
    """Print each principle beside an independent computation."""
    rng = np.random.default_rng(0)
    Q, alpha, n = np.array([1.0, 3.0, 2.0, 0.5, 2.5]), 0.7, 100_000
    drawn = np.bincount((Q + alpha * rng.gumbel(size=(n, 5))).argmax(1), minlength=5) / n
    print("Eq. 17  Boltzmann policy, Q = (1, 3, 2, 0.5, 2.5), alpha = 0.7, and how often Q + alpha Gumbel noise is largest")
    print("        formula", boltzmann_policy(Q, alpha).round(4), "  simulated", drawn.round(4))

    lam, p = max_entropy(np.arange(1.0, 7)[:, None], [4.5])
    ways = [np.polynomial.polynomial.polypow([0] + 6 * [1.0], n) for n in (199, 200)]         # [m]: in which n dice have sum m
    one = ways[0][900 - np.arange(1, 7)] / ways[1][900]
    print("Eq. 5   a die of mean 4.5, and one of 200 fair dice that happen to have this mean, by counting (equal for many)")
    print("        formula", p.round(3), "  counted", one.round(3))

    mdp = MDP(rng.normal(size=(3, 2)), rng.integers(0, 3, (3, 2, 1)), np.ones((3, 2, 1)), gamma=1.0)
    alpha, paths, P = max_caliber(mdp, start=0, horizon=5, mean_return=2.0)
    log_pi, V = np.zeros(len(paths)), np.zeros(3)
    for t in reversed(range(5)):                                            # soft-optimal policies, from the last step back
        Q = soft_backup(mdp, V)
        log_pi += np.log(boltzmann_policy(Q, alpha))[paths[:, 2 * t], paths[:, 2 * t + 1]]
        V = soft_value(Q, alpha)
    print(f"Eq. 8   {len(paths)} paths of mean return 2: alpha = {alpha:.4f}, and the product of its soft-optimal policies")
    print(f"        largest difference of a path's probability: {np.abs(P - np.exp(log_pi)).max():.1e}")


if __name__ == "__main__":
    main()
