"""Maximum entropy, maximum caliber and maximum-entropy reinforcement learning.   Eq. 4–17, 23–25

Needs numpy only.  `python maxent.py` prints three formulas beside independent computations.

    p, π  pi     probabilities over the last axis: of outcomes, or of actions π(a|s)     (..., n)
    H            entropy −Σ p log p, in nats
    measure      1 where outcomes are counted.  For a continuous variable, the weights w of its
                 nodes, with Σ w f = ∫ f da: then p/w is the density.  For a path, the product of
                 p(s'|s, a) and the measure of a over its steps
    α     alpha  temperature, in units of reward
    β     beta   inverse temperature
    λ     lam    Lagrange multipliers of constrained means, one for each feature
    r, γ  gamma  reward and discount (in the chapter's Eq. 1, γ is the friction)
    Q, V         soft action value (S, A) and soft state value (S,)
    F            free energy −V
    S, A, K      numbers of states, actions, and successors of each state and action
"""
from dataclasses import dataclass

import numpy as np


# --- Entropy, soft value, Boltzmann policy --------------------------------------------------------

def entropy(p, measure=1.0):
    """H = −Σ p log(p/measure) over the last axis, in nats; p/measure is the density.

    p (..., n) -> (...).
    """
    p = _check_probabilities("p", p)
    density = np.where(p > 0, p / measure, 1)                       # 0 log 0 = 0
    return -np.sum(p * np.log(density), axis=-1)                    # H(π), defined with Eq. 10


def soft_value(Q, alpha, measure=1.0):
    """V = α log Σ exp(Q/α), the hard maximum at α = 0.  Q (..., A) -> (...).

    For counted actions V is never below max Q; for a continuous action it can be.
    """
    _check_temperature(alpha)
    Q_max = np.max(Q, axis=-1, keepdims=True)
    if alpha == 0:
        return Q_max[..., 0]
    Q = Q - Q_max                                                   # now exp cannot overflow

    V = alpha * np.log(np.sum(np.exp(Q / alpha) * measure, axis=-1))    # Eq. 16 (soft value)
    return V + Q_max[..., 0]


def boltzmann_policy(Q, alpha, measure=1.0):
    """Probabilities exp(Q/α)/Z of the actions.  Q (..., A) -> the same shape.

    At α = 0 ties split the probability evenly.
    """
    _check_temperature(alpha)
    Q = Q - np.max(Q, axis=-1, keepdims=True)                       # cancels in π
    if alpha == 0:
        weight = (Q == 0) * measure
    else:
        weight = np.exp(Q / alpha) * measure

    Z = np.sum(weight, axis=-1, keepdims=True)
    return weight / Z                                               # Eq. 17 and 23 (Boltzmann)


def regularised_value(pi, Q, alpha, measure=1.0):
    """E_π[Q] + α H(π) = E_π[Q − α log π].  The Boltzmann policy maximises it, and then it is V.

    pi, Q (..., A) -> (...).
    """
    return np.sum(pi * Q, axis=-1) + alpha * entropy(pi, measure)   # Eq. 24; at π = π* Eq. 15


def canonical_free_energy(p, E, beta):
    """E_p[E] − H(p)/β.  The canonical ensemble exp(−βE)/Z minimises it.  p, E (..., n) -> (...).

    The chapter writes max, but the function is convex: its maximum is all p on the highest energy.
    """
    return np.sum(p * E, axis=-1) - entropy(p) / beta               # Eq. 25


# --- Maximum entropy under constraints ------------------------------------------------------------

def max_entropy(features, means, measure=1.0):
    """The distribution of largest entropy with given means E[f].  -> λ (F,), p (n,).

    features (n, F), means (F,).  Eq. 4 is solved by Eq. 5, p = exp(−λ·f)/Z.  Maximising H is the
    same as minimising the convex function log Z(λ) + λ·means, whose gradient is means − E[f] and
    whose Hessian is Cov[f]; here by Newton's method.

    Raises ValueError if the means do not lie inside the convex hull of the features, where alone a
    finite λ exists, or if the features are linearly dependent, so that many do.
    """
    f = np.asarray(features, dtype=float) - means                   # now log Z alone is minimised
    lam = np.zeros(f.shape[1])
    for _ in range(100):
        p = boltzmann_policy(-f @ lam, 1.0, measure)                # Eq. 5: exp(−λ·f)/Z
        gradient = -p @ f
        covariance = (p[:, None] * f).T @ f - np.outer(gradient, gradient)      # (F, F)
        if not np.linalg.cond(covariance) < 1e12:
            break
        step = -np.linalg.solve(covariance, gradient)
        if np.abs(f @ step).max() < 1e-8:                           # log p stops changing
            lam = lam + step
            return lam, boltzmann_policy(-f @ lam, 1.0, measure)
        log_Z = soft_value(-f @ lam, 1.0, measure)
        while soft_value(-f @ (lam + step), 1.0, measure) > log_Z + 1e-12:
            step = step / 2                                         # too far
        lam = lam + step
    raise ValueError(f"no p = exp(−λ·f)/Z has the means {means}: they must lie inside the convex "
                     f"hull of the features, which reach from {np.min(features, axis=0)} to "
                     f"{np.max(features, axis=0)} and must neither be linearly dependent nor "
                     "differ too much in scale")


# --- Finite Markov decision processes -------------------------------------------------------------

@dataclass
class MDP:
    """A finite Markov decision process; no state is terminal.

    reward       (S, A)
    successor    (S, A, K) states that may come next, or (S, A) in a deterministic world
    probability  (S, A, K) of each of them; not needed in a deterministic world
    gamma        discount, from 0 to 1
    measure      of the actions, (A,) or 1: see above
    """
    reward: np.ndarray
    successor: np.ndarray
    probability: np.ndarray = None
    gamma: float = 1.0
    measure: np.ndarray = 1.0

    def __post_init__(self):
        self.reward = np.asarray(self.reward, dtype=float)
        self.successor = np.asarray(self.successor)
        if self.successor.ndim == 2:
            self.successor = self.successor[:, :, None]
        if self.probability is None:
            self.probability = np.ones(self.successor.shape)
        self.probability = _check_probabilities("probability", self.probability)
        if self.probability.shape != self.successor.shape:
            raise ValueError("probability must have the shape of successor, "
                             f"{self.successor.shape}, got {self.probability.shape}")
        S, A = self.reward.shape
        if self.successor.min() < 0 or self.successor.max() >= S:
            raise ValueError(f"successor must hold states from 0 to {S - 1}, got "
                             f"{self.successor.min()} to {self.successor.max()}")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must lie between 0 and 1, got {self.gamma}")
        self.measure = np.broadcast_to(self.measure, A)


def return_and_entropy(mdp, pi):
    """E Σ γ^t r_t and E Σ γ^t H(π(·|s_t)), from each state on.  pi (S, A) -> R (S,), H (S,).

    The chapter's sum ends at T.  This one has no end, so gamma must be below 1.
    """
    _check_discount(mdp)
    S = len(mdp.reward)
    P = np.zeros((S, S))                                            # P(s'|s) under π
    here = np.arange(S)[:, None, None]
    np.add.at(P, (here, mdp.successor), pi[:, :, None] * mdp.probability)
    r_pi = np.sum(pi * mdp.reward, axis=1)                          # mean reward in each state
    H_pi = entropy(pi, mdp.measure)                                 # entropy in each state

    one = np.eye(S)
    R = np.linalg.solve(one - mdp.gamma * P, r_pi)                  # Eq. 9: R = r_π + γ P R
    H = np.linalg.solve(one - mdp.gamma * P, H_pi)                  # likewise
    return R, H


def soft_policy_evaluation(mdp, pi, alpha):
    """V = E Σ γ^t (r_t + α H(π(·|s_t))) from each state on.  pi (S, A) -> (S,).

    The free energy of the policy is F = −V = −R − αH (Eq. 12).
    """
    R, H = return_and_entropy(mdp, pi)
    return R + alpha * H                                            # Eq. 10, 11 (soft value of π)


def soft_backup(mdp, V):
    """Q = r + γ E[V(s')].  V (S,) -> Q (S, A)."""
    expected_V = np.einsum("sak,sak->sa", mdp.probability, V[mdp.successor])
    return mdp.reward + mdp.gamma * expected_V                      # Eq. 14 (soft Bellman equation)


def soft_value_iteration(mdp, alpha, tol=1e-9):
    """The soft-optimal Q (S, A), V (S,), π (S, A).  V is right within tol · max|V|; gamma < 1.

    If one sweep changes V by `change`, all later ones together change each state by an amount
    between γ/(1 − γ) min(change) and γ/(1 − γ) max(change) (Puterman 1994, §6.6).  Adding the
    middle at once saves most of the sweeps.
    """
    _check_discount(mdp)
    later = mdp.gamma / (1 - mdp.gamma)
    V = np.zeros(len(mdp.reward))
    unsure = np.inf
    while True:
        change = soft_value(soft_backup(mdp, V), alpha, mdp.measure) - V
        V = V + change + later * (change.max() + change.min()) / 2
        last = unsure
        unsure = later * (change.max() - change.min()) / 2
        if unsure <= tol * np.abs(V).max() or unsure >= last:       # or only rounding is left
            break
    Q = soft_backup(mdp, V)
    return Q, soft_value(Q, alpha, mdp.measure), boltzmann_policy(Q, alpha, mdp.measure)


# --- Maximum caliber: entropy over paths ----------------------------------------------------------

def enumerate_paths(mdp, start, horizon):
    """Every path s_0, a_0, s_1, …, s_T of T = horizon steps.

    -> paths (n, 2T + 1), their returns Σ γ^t r_t (n,) and their measure (n,), which is the product
    of p(s'|s, a) measure(a) over the steps.  Raises ValueError for more than two million paths.
    """
    branches = mdp.successor[0].size
    if branches**horizon > 2_000_000:
        raise ValueError(f"{branches}^{horizon} paths are too many; at most 2 000 000 are accepted")
    paths = np.array([[start]])
    returns = np.zeros(1)
    measure = np.ones(1)
    for t in range(horizon):
        s = paths[:, -1]
        n, a, k = np.nonzero(mdp.probability[s])            # path n goes on by a to successor k
        s = s[n]
        paths = np.column_stack((paths[n], a, mdp.successor[s, a, k]))
        returns = returns[n] + mdp.gamma**t * mdp.reward[s, a]
        measure = measure[n] * mdp.probability[s, a, k] * mdp.measure[a]
    return paths, returns, measure


def max_caliber(mdp, start, horizon, mean_return):
    """The distribution over paths of largest entropy with a given mean return.

    -> α, paths (n, 2T + 1), P (n,).  Eq. 6 under Eq. 7 is maximum entropy over paths, with the
    return as −∫L dt.  The chapter's Eq. 8 leaves out the multiplier λ = 1/α, which the mean return
    determines.  α is negative for a mean below that of the measure alone, huge or infinite at it.

    P is the law of soft-optimal control if the world is deterministic and γ = 1.  With γ < 1 it is
    that of control at the temperature α/γ^t in step t.  In a random world it tilts the successors
    too, which no policy can do.
    """
    paths, returns, measure = enumerate_paths(mdp, start, horizon)
    L = -returns[:, None]                                           # ∫L dt of each path, (n, 1)
    lam, P = max_entropy(L, [-mean_return], measure)        # Eq. 8: P ∝ measure · exp(−λ ∫L dt)
    return 1 / lam[0], paths, P                                     # λ = 1/α


# --- The gradient flow of a policy ----------------------------------------------------------------

def policy_velocity(pi, Q, alpha):
    """∂π/∂t on the steepest descent of F = −E_π[Q] − α H(π).  pi, Q (..., A) -> (..., A).

    Eq. 13 needs a metric; this is that of Fisher and Rao.  In that of Wasserstein it is Eq. 3 over
    actions, with −Q as the potential and kT = α.  Either way the policy moves without noise; it is
    an action that can do Langevin dynamics.
    """
    g = Q - alpha * np.log(pi)                                      # −∂F/∂π, up to a constant
    return pi * (g - np.sum(pi * g, axis=-1, keepdims=True))        # Eq. 13 (gradient flow)


def policy_flow(pi0, Q, alpha, times):
    """The solution of Eq. 13, π(t) ∝ π(0)^m exp((1 − m) Q/α) with m = e^{−αt}, for α > 0.

    pi0, Q (A,), times (M,) -> (M, A).
    """
    m = np.exp(-alpha * np.asarray(times))[:, None]                 # (M, 1)
    return boltzmann_policy(m * np.log(pi0) + (1 - m) * Q / alpha, 1.0)


# --- An application: Pendulum-v1 on a grid --------------------------------------------------------

def pendulum_step(theta, theta_dot, torque):
    """One step of 0.05 s of Gymnasium's Pendulum-v1.  -> theta, theta_dot, reward, elementwise.

    theta in rad, 0 upright, not wrapped; theta_dot in rad/s; torque in N m, from −2 to 2.
    """
    angle = (theta + np.pi) % (2 * np.pi) - np.pi
    reward = -(angle**2 + 0.1 * theta_dot**2 + 0.001 * torque**2)
    acceleration = 15 * np.sin(theta) + 3 * torque                  # 3g/2l and 3/ml²
    theta_dot = np.clip(theta_dot + acceleration * 0.05, -8, 8)
    return theta + theta_dot * 0.05, theta_dot, reward


def bilinear(theta, theta_dot, n_theta, n_theta_dot):
    """The four grid points around each state.  -> their index (..., 4), their weight (..., 4).

    The weights are not negative, add up to 1 and reproduce linear functions.  The grid point (i, j)
    is state i · n_theta_dot + j.
    """
    x = (theta + np.pi) / (2 * np.pi) * n_theta                     # position in units of the grid
    y = np.clip((theta_dot + 8) / 16, 0, 1) * (n_theta_dot - 1)
    i = np.floor(x).astype(int)
    j = np.minimum(y.astype(int), n_theta_dot - 2)
    right = x - i                                                   # how far inside the cell
    up = y - j
    here = (i % n_theta) * n_theta_dot + j                          # theta is periodic
    there = ((i + 1) % n_theta) * n_theta_dot + j
    index = np.stack((here, here + 1, there, there + 1), axis=-1)
    weight = np.stack(((1 - right) * (1 - up), (1 - right) * up, right * (1 - up), right * up), -1)
    return index, weight


@dataclass
class PendulumMDP(MDP):
    """An MDP with its grid: theta (n,), theta_dot (m,), actions a = torque/2 (A,)."""
    theta: np.ndarray = None
    theta_dot: np.ndarray = None
    a: np.ndarray = None


def _pendulum_on_grid(n_theta, n_theta_dot, a, measure, gamma):
    theta = -np.pi + 2 * np.pi / n_theta * np.arange(n_theta)
    theta_dot = np.linspace(-8, 8, n_theta_dot)
    state = np.meshgrid(theta, theta_dot, 2 * a, indexing="ij")     # each (n, m, A)
    next_theta, next_theta_dot, reward = pendulum_step(*state)
    successor, probability = bilinear(next_theta, next_theta_dot, n_theta, n_theta_dot)
    A = len(a)
    return PendulumMDP(reward.reshape(-1, A), successor.reshape(-1, A, 4),
                       probability.reshape(-1, A, 4), gamma, measure, theta, theta_dot, a)


def pendulum_mdp(n_theta=101, n_theta_dot=81, n_a=33, gamma=0.99):
    """Pendulum-v1 on a grid: the weights of bilinear interpolation are transition probabilities.

    Actions a = torque/2 from −1 to 1, as in sac_numpy.py, at a = tanh u with u from −6 to 6.  These
    nodes are dense at the bounds, where π falls off within a distance α/|∂Q/∂a|.
    """
    u = np.linspace(-6, 6, n_a)
    weight = np.cosh(u) ** -2                                       # da = sech² u du
    measure = 2 * weight / weight.sum()                             # [−1, 1] has length 2
    return _pendulum_on_grid(n_theta, n_theta_dot, np.tanh(u), measure, gamma)


def pendulum_optimal_return(thetas, theta_dots, n_theta=401, n_theta_dot=301, n_torque=5,
                            n_steps=200):
    """The best return found over n_steps from each start.  thetas, theta_dots (N,) -> (N,).

    Backward induction on a grid: Eq. 14 with γ = 1, n_torque torques and the hard maximum.  Then,
    in the true dynamics, each of these torques first and the greedy one of 81 in all later steps;
    the best result counts.  It was really reached, so it is a lower bound on the optimum.
    """
    mdp = _pendulum_on_grid(n_theta, n_theta_dot, np.linspace(-1, 1, n_torque), 1.0, 1.0)
    values = [np.zeros(len(mdp.reward))]                            # with 0, 1, 2, … steps to go
    for _ in range(n_steps - 2):
        values.append(soft_backup(mdp, values[-1]).max(axis=1))

    torques = np.linspace(-2, 2, 81)
    theta, theta_dot, total = pendulum_step(thetas[:, None], theta_dots[:, None], 2 * mdp.a)
    for V in reversed(values[:n_steps - 1]):                        # theta is (N, n_torque)
        *after, reward = pendulum_step(theta[..., None], theta_dot[..., None], torques)
        index, weight = bilinear(*after, n_theta, n_theta_dot)
        Q = reward + np.sum(weight * V[index], axis=-1)             # (N, n_torque, 81)
        theta, theta_dot, reward = pendulum_step(theta, theta_dot, torques[Q.argmax(axis=-1)])
        total = total + reward
    return total.max(axis=1)


# --- Checks of input ------------------------------------------------------------------------------

def _check_probabilities(name, p):
    p = np.asarray(p, dtype=float)
    error = np.abs(p.sum(axis=-1) - 1).max()
    if not (error < 1e-6 and p.min() >= 0):
        raise ValueError(f"{name} must hold probabilities that sum to 1 over the last axis: a sum "
                         f"is off by {error:.3g}, the smallest entry is {p.min():.3g}")
    return p


def _check_temperature(alpha):
    if not 0 <= alpha < np.inf:
        raise ValueError(f"alpha must be a number, 0 or more, got {alpha}")


def _check_discount(mdp):
    if not mdp.gamma < 1:
        raise ValueError("an infinite horizon needs gamma < 1")


# --- Formula beside an independent computation ----------------------------------------------------

def main():
    """Print the Boltzmann policy, Jaynes' die and maximum caliber beside independent results."""
    rng = np.random.default_rng(0)

    print("Eq. 17  the Boltzmann policy, and how often an action's Q + alpha Gumbel is largest")
    Q = np.array([1.0, 3.0, 2.0, 0.5, 2.5])
    largest = np.argmax(Q + 0.7 * rng.gumbel(size=(100_000, 5)), axis=1)
    print("        formula  ", boltzmann_policy(Q, 0.7).round(3))
    print("        simulated", (np.bincount(largest) / 100_000).round(3))

    print("Eq. 5   a die of mean 4.5, and one of 200 fair dice that happen to add up to 900")
    faces = np.arange(1, 7)
    lam, p = max_entropy(faces[:, None], [4.5])
    others = np.ones(1)                                     # probability of each sum of 199 dice
    for _ in range(199):
        others = np.convolve(others, [0, 1/6, 1/6, 1/6, 1/6, 1/6, 1/6])
    counted = others[900 - faces]                           # a die shows k, the others 900 - k
    print("        formula  ", p.round(3))
    print("        counted  ", (counted / counted.sum()).round(3))

    print("Eq. 8   caliber over four-step paths of mean return 4, and soft control at its alpha")
    mdp = MDP(reward=[[0, 1], [0.5, -0.3], [2, 0.2]], successor=[[1, 2], [2, 0], [0, 1]])
    alpha, paths, P = max_caliber(mdp, start=0, horizon=4, mean_return=4.0)
    V = np.zeros(3)
    controlled = np.ones(len(paths))
    for t in reversed(range(4)):
        Q = soft_backup(mdp, V)
        V = soft_value(Q, alpha)
        controlled *= boltzmann_policy(Q, alpha)[paths[:, 2 * t], paths[:, 2 * t + 1]]
    likely = np.argsort(-P)[:6]
    print("        caliber  ", P[likely].round(3))
    print("        control  ", controlled[likely].round(3))


if __name__ == "__main__":
    main()
