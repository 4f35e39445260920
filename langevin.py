"""Langevin dynamics, the Boltzmann distribution and the Fokker–Planck equation.   Eq. 1–3

Needs numpy only.  `python langevin.py` prints theory beside simulation.

Where particles move, x is an array and V', V'' are functions of it:
    x            positions, of any shape: (N,) for N particles on a line, (N, 2) in a plane
    V'   grad_V  gradient of the potential;  V'' curvature
    ξ    xi      independent standard normal numbers, of x's shape
    dt           time step
On a grid, everything is an array:
    V, p         potential and probability density on n nodes with spacing dx    (n,)
    G            generator of Eq. 3, dp/dt = G p                                 (n, n)
In both:
    kT           temperature k_B T, in units of energy (the chapter's figure calls it T)
    γ    gamma   friction (later in the chapter, γ is the discount)
    D            diffusion coefficient kT/γ
    Z, F         partition function, free energy
"""
import numpy as np


# --- The chapter's potential ----------------------------------------------------------------------

def double_well(x):
    """V(x) = (x² − 1)²: wells at ±1, a barrier of height 1 at 0."""
    return (x**2 - 1) ** 2


def double_well_gradient(x):
    """V'(x) = 4x(x² − 1)."""
    return 4 * x * (x**2 - 1)


def double_well_curvature(x):
    """V''(x) = 12x² − 4: 8 at the wells, −4 at the barrier."""
    return 12 * x**2 - 4


# --- Eq. 1: the overdamped Langevin equation ------------------------------------------------------

def langevin_step(x, grad_V, kT, dt, gamma, xi):
    """Eq. 1 over a time dt: x − V'(x)/γ dt + √(2D dt) ξ.  x, xi -> the next x, all of one shape.

    The chapter writes the drift as −V', which is right for γ = 1 only: otherwise the particles
    settle at exp(−γV/kT).
    """
    D = kT / gamma                                                  # Einstein relation
    return x - grad_V(x) / gamma * dt + np.sqrt(2 * D * dt) * xi    # Eq. 1 (overdamped Langevin)


@np.errstate(over="ignore", invalid="ignore")       # steps that blow up are reported at the end
def simulate(x0, grad_V, *, kT, dt, n_steps, rng, gamma=1.0, method="euler_maruyama",
             record_every=None):
    """Positions after n_steps of Eq. 1.  x0 of any shape -> the same shape.

    record_every=m returns every m-th position after x0, of shape (n_steps // m, *x0.shape).

    method  "euler_maruyama"       Eq. 1 with fresh noise in each step.  The distribution where it
                                   settles is wrong by O(dt)
            "leimkuhler_matthews"  the mean of this step's noise and the last one's: the same cost,
                                   wrong by O(dt²) (Leimkuhler & Matthews, AMRX 2013).  Each call
                                   starts anew, so take one long call, not many short ones

    Raises ValueError if kT, dt or gamma is not positive, FloatingPointError if dt is too large.
    """
    _check_positive(kT=kT, dt=dt, gamma=gamma)
    if method not in ("euler_maruyama", "leimkuhler_matthews"):
        raise ValueError(f"unknown method {method!r}; accepted: 'euler_maruyama', "
                         "'leimkuhler_matthews'")
    x = np.array(x0, dtype=float)
    if not np.isfinite(x).all():
        raise ValueError(f"x0 must hold finite positions, got {x}")

    records = []
    last_xi = rng.standard_normal(x.shape)
    for n in range(1, n_steps + 1):
        xi = rng.standard_normal(x.shape)
        noise = xi if method == "euler_maruyama" else (xi + last_xi) / 2
        x = langevin_step(x, grad_V, kT, dt, gamma, noise)
        last_xi = xi
        if record_every and n % record_every == 0:
            records.append(x)
    if not np.isfinite(x).all():                    # once not finite, never finite again
        raise FloatingPointError(f"the steps blew up: dt = {dt} is too large for this force")
    return np.array(records) if record_every else x


# --- Eq. 2: the Boltzmann distribution ------------------------------------------------------------

def boltzmann_density(V, dx, kT):
    """Eq. 2 on a grid, exp(−V/kT)/Z.  V (n,) -> p (n,), with sum(p) dx = 1."""
    _check_positive(dx=dx, kT=kT)
    V = V - np.min(V)                               # cancels in p; without it exp could overflow

    Z = np.sum(np.exp(-V / kT)) * dx
    return np.exp(-V / kT) / Z                      # Eq. 2 (Boltzmann distribution)


# --- Eq. 3: the Fokker–Planck equation ------------------------------------------------------------

def fokker_planck_generator(V, dx, kT, gamma=1.0):
    """The matrix G of Eq. 3, dp/dt = G p.  V (n,) -> G (n, n).  Nothing flows through the ends.

    Probability hops between neighbours, at the rate up_i from node i to i + 1 and down_i back.  The
    current (up_i p_i − down_i p_{i+1}) dx stands for −[V' p/γ + D ∂p/∂x]; the chapter leaves out γ,
    as in Eq. 1.  It is exact where V is straight and the current constant between two nodes, and
    so it vanishes at Eq. 2 for every dx (Scharfetter & Gummel 1969).  With central differences it
    would vanish elsewhere, wrong by O(dx²).
    """
    _check_positive(dx=dx, kT=kT, gamma=gamma)
    D = kT / gamma                                  # Einstein relation
    z = np.diff(V) / kT                             # (n − 1,)

    up = D / dx**2 * _bernoulli(z)                  # Eq. 3 (Fokker–Planck): drift and diffusion
    down = D / dx**2 * _bernoulli(-z)
    G = np.diag(up, -1) + np.diag(down, 1)
    return G - np.diag(G.sum(axis=0))               # what leaves a node arrives beside it


def _bernoulli(z):
    """B(z) = z/(eᶻ − 1), with B(0) = 1."""
    z = np.where(z == 0, 1e-300, z)
    with np.errstate(over="ignore"):                # where eᶻ overflows, B = z/∞ = 0 is right
        return z / np.expm1(z)


def fokker_planck_evolve(p0, V, dx, kT, times, gamma=1.0):
    """Densities p(t) = exp(G t) p0 at the given times.  p0, V (n,), times (M,) -> (M, n).

    A time t is taken in 2²⁰ steps of Crank–Nicolson, p_next = (1 − Gh/2)⁻¹ (1 + Gh/2) p, by
    squaring the matrix of one step twenty times.  The error is about 1e-9 of the largest p.
    """
    _check_density("p0", p0, dx)
    G = fokker_planck_generator(V, dx, kT, gamma)
    one = np.eye(len(G))
    densities = []
    for t in times:
        h = t / 2**20
        step = np.linalg.solve(one - G * h / 2, one + G * h / 2)
        densities.append(np.linalg.matrix_power(step, 2**20) @ p0)
    return np.array(densities)


def relaxation_rates(V, dx, kT, gamma=1.0):
    """The rates at which p relaxes to Eq. 2, ascending from 0.  V (n,) -> (n,).

    These are the eigenvalues of −G.  Detailed balance makes G similar to the symmetric matrix with
    √(G_ij G_ji) off the diagonal.  The error is about 1e-16 of the largest rate.
    """
    G = fokker_planck_generator(V, dx, kT, gamma)
    symmetric = np.sqrt(G * G.T)
    np.fill_diagonal(symmetric, np.diag(G))
    return np.linalg.eigvalsh(-symmetric)


def free_energy(p, V, dx, kT):
    """F = E[V] − kT H(p), with H = −∫ p log p dx.  p, V (n,).  Eq. 3 lowers it to −kT log Z."""
    _check_density("p", p, dx)
    H = -np.sum(p * np.log(np.where(p > 0, p, 1))) * dx             # 0 log 0 = 0
    return np.sum(p * V) * dx - kT * H


def kramers_rate(curvature_well, curvature_barrier, barrier, kT, gamma=1.0):
    """The rate of leaving a well over a barrier, √(V''_well |V''_barrier|)/2πγ · exp(−barrier/kT).

    curvature_barrier is negative.  Exact as kT -> 0 (Kramers 1940): then relaxation_rates[1] of a
    symmetric double well is twice this rate, because particles leave both wells.
    """
    attempts = np.sqrt(curvature_well * -curvature_barrier) / (2 * np.pi * gamma)
    return attempts * np.exp(-barrier / kT)


# --- The probability of a whole path --------------------------------------------------------------

def path_log_probability(path, dt, grad_V, kT, gamma=1.0):
    """Log-density of a path of Euler–Maruyama steps, given its start.  path (n_steps + 1,).

    Each step draws x_next from a normal distribution of mean x − V'(x)/γ dt and variance 2D dt.
    """
    x, x_next = path[:-1], path[1:]
    mean = x - grad_V(x) / gamma * dt
    variance = 2 * (kT / gamma) * dt
    return np.sum(-((x_next - mean) ** 2) / (2 * variance) - np.log(2 * np.pi * variance) / 2)


def onsager_machlup_action(path, dt, grad_V, curvature, kT, gamma=1.0):
    """S = ∫ [(ẋ + V'/γ)²/4D − V''/2γ] dt of a path.  path (n_steps + 1,).

    As dt -> 0, −path_log_probability = S + a constant on paths of Eq. 1, so P ∝ exp(−S): this is
    the chapter's "path-integral weight", Eq. 8, for Eq. 1.  The forces are taken at the midpoint of
    each step, which is where the term V'' comes from (Onsager & Machlup 1953; Stratonovich 1971).
    """
    x = (path[:-1] + path[1:]) / 2
    velocity = np.diff(path) / dt
    D = kT / gamma
    return np.sum((velocity + grad_V(x) / gamma) ** 2 / (4 * D) - curvature(x) / (2 * gamma)) * dt


# --- Checks of input ------------------------------------------------------------------------------

def _check_positive(**values):
    for name, value in values.items():
        if not 0 < value < np.inf:
            raise ValueError(f"{name} must be a positive number, got {value}")


def _check_density(name, p, dx):
    total = np.sum(p) * dx
    if not abs(total - 1) < 1e-6:
        raise ValueError(f"{name} must be a density, with sum({name}) * dx = 1; got {total:.7g}")


# --- Theory beside simulation ---------------------------------------------------------------------

def main():
    """Print Eq. 1, 2 and 3 beside simulations, each with its standard error."""
    rng = np.random.default_rng(0)

    print("Eq. 1  spring V = x^2/2, friction 2, kT = 1, dt = 0.4: the variance after t = 20")
    theory = {"euler_maruyama": 1 / (1 - 0.4 / 4), "leimkuhler_matthews": 1.0}     # 1/(1 − dt/2γ)
    for method, variance in theory.items():
        x = simulate(np.zeros(100_000), lambda x: x, kT=1.0, gamma=2.0, dt=0.4, n_steps=50,
                     rng=rng, method=method)
        report(method, x**2, variance)

    print("Eq. 2  double well, particles that start spread evenly over both wells: the mean of V")
    grid, dx = np.linspace(-2.5, 2.5, 201, retstep=True)
    V = double_well(grid)
    for kT in (0.1, 0.5, 1.0, 2.0):
        x = simulate(rng.uniform(-2, 2, 20_000), double_well_gradient, kT=kT, dt=0.01, n_steps=500,
                     rng=rng, method="leimkuhler_matthews")
        report(f"kT = {kT}", double_well(x), np.sum(boltzmann_density(V, dx, kT) * V) * dx)

    print("Eq. 3  double well, kT = 0.5, particles that start at x = 1: the mean of x")
    p0 = np.where(np.isclose(grid, 1), 1 / dx, 0)
    for t, p in zip((0.25, 1.0, 4.0), fokker_planck_evolve(p0, V, dx, 0.5, (0.25, 1.0, 4.0))):
        x = simulate(np.ones(20_000), double_well_gradient, kT=0.5, dt=0.0025,
                     n_steps=round(t / 0.0025), rng=rng)
        report(f"t = {t}", x, np.sum(p * grid) * dx)


def report(label, samples, theory):
    """One line: the mean of the samples, its standard error, and what it should be."""
    error = samples.std() / np.sqrt(samples.size)
    print(f"       {label:20s} simulated {samples.mean():.4f} +- {error:.4f}   theory {theory:.4f}")


if __name__ == "__main__":
    main()
