"""Langevin dynamics, its Boltzmann distribution and its Fokker–Planck equation, in one dimension.   Eq. 1–3

Needs numpy only.  `python langevin.py` prints theory beside simulation in a few seconds.

    x        positions of N independent particles                            (N,)
    V, V'    potential and its derivative: functions of x, or values on a grid with uniform spacing dx (n,)
    kT       temperature k_B T, in units of energy (the chapter's figure calls it T)
    γ gamma  friction (in maxent.py and sac_numpy.py the same letter is the discount)
    D        diffusion coefficient kT/γ (Einstein relation)
    dt       time step; time t is in the units that V, x and γ imply
    ξ, W     independent standard normal numbers; Wiener process, of variance t
    p, Z, F  probability density, partition function, free energy
    τ        mean first-passage time
"""
import numpy as np

METHODS = ("euler_maruyama", "leimkuhler_matthews", "mala")


# --- The chapter's potential ------------------------------------------------------------------------------------------

def double_well(x):
    """V(x) = (x² − 1)²: wells at ±1, a barrier of height 1 at 0."""
    return (x * x - 1) ** 2


def double_well_gradient(x):
    """V'(x) = 4x(x² − 1)."""
    return 4 * x * (x * x - 1)


def double_well_curvature(x):
    """V''(x) = 12x² − 4: 8 at the wells, −4 at the barrier."""
    return 12 * x * x - 4


# --- Eq. 1: the overdamped Langevin equation --------------------------------------------------------------------------

def simulate(x0, grad_V, *, kT, dt, n_steps, rng, gamma=1.0, method="leimkuhler_matthews", V=None, record_every=None):
    """Positions after n_steps of Eq. 1, dx = −V'/γ dt + √(2D) dW, for all particles at once.

    x0: (N,) -> (N,), or (n_steps // record_every, N) with every record_every-th position.  grad_V, V: functions of x that
    return an array (N,) and leave x as it is.
    The chapter writes the drift as −V', which is right for γ = 1 only: otherwise it settles at exp(−γV/kT).

    method  "euler_maruyama"        the textbook step; where it settles is wrong by O(dt)
            "leimkuhler_matthews"   same cost, wrong by O(dt²) (Leimkuhler & Matthews, AMRX 2013).  A step takes the
                                    mean of two successive noises, and each call starts anew: looping over calls of
                                    m small steps settles at the temperature kT (1 − 1/(2m)).  For short m use
                                    record_every.  Without a force the variance is 2D(t − dt/2)
            "mala"                  Euler–Maruyama with a Metropolis test (Roberts & Tweedie 1996): settles at
                                    Eq. 2 for every dt, but for a large one hardly a step is accepted; needs V

    ValueError for input that cannot be simulated; FloatingPointError, naming dt, once a position is not finite (in a
    spring k dt/γ > 2 is too large, but just above 2 it takes very many steps to get there).
    """
    x = np.array(x0, dtype=float)
    _check_simulation(x, grad_V, kT, dt, n_steps, gamma, method, V, record_every)
    n_steps, record_every = int(n_steps), record_every and int(record_every)    # plain ints: np.uint8(255) + 1 is 0
    amplitude = np.sqrt(2 * (kT / gamma) * dt)                              # √(2D dt), D = kT/γ (Einstein relation)
    records = None if record_every is None else np.empty((n_steps // record_every, x.size))
    xi = rng.standard_normal(x.size) if method == "leimkuhler_matthews" else None
    np.empty(16_000_000, np.uint8)      # not used: freed at once, it makes glibc reuse large arrays; up to 2.6 times faster
    with np.errstate(over="ignore", invalid="ignore"):                      # a blow-up is reported below, once
        for n in range(1, n_steps + 1):
            xi_next = rng.standard_normal(x.size)
            noise = (xi + xi_next) / 2 if method == "leimkuhler_matthews" else xi_next
            y = x - grad_V(x) * (dt / gamma) + amplitude * noise            # Eq. 1 (overdamped Langevin)
            if method == "mala":
                accept = np.log(rng.random(x.size)) < mala_log_ratio(x, y, V, grad_V, kT, dt, gamma)
                y = np.where(accept, y, x)
            x, xi = y, xi_next
            if not np.isfinite(x).all():
                raise FloatingPointError(f"the Langevin step blew up at step {n}: dt = {dt} is too large for this force")
            if record_every is not None and n % record_every == 0:
                records[n // record_every - 1] = x
    return x if records is None else records


def mala_log_ratio(x, y, V, grad_V, kT, dt, gamma=1.0):
    """log of p(y) q(x|y) / p(x) q(y|x), for p of Eq. 2 and q the Euler–Maruyama step: accept y with min(1, ratio).

    x, y: (N,) -> (N,).  This choice gives detailed balance, p(x) q(y|x) min(1, ratio) symmetric in x and y.
    """
    forward = (y - x + grad_V(x) * (dt / gamma)) ** 2
    backward = (x - y + grad_V(y) * (dt / gamma)) ** 2
    return (V(x) - V(y)) / kT + (forward - backward) / (4 * (kT / gamma) * dt)


# --- Eq. 2: the Boltzmann distribution --------------------------------------------------------------------------------

def boltzmann_density(V, dx, kT):
    """Eq. 2, p = exp(−V/kT)/Z.  V: on a grid (n,) -> p (n,), with sum(p) dx = 1."""
    V = _check_grid(V, dx=dx, kT=kT)
    p = np.exp(-(V - V.min()) / kT)                                         # the shift cancels in Z and avoids overflow
    return p / (p.sum() * dx)


# --- Eq. 3: the Fokker–Planck equation --------------------------------------------------------------------------------

def fokker_planck_generator(V, dx, kT, gamma=1.0):
    """Matrix G of Eq. 3, dp/dt = G p, for ∂p/∂t = ∂/∂x [V' p/γ + D ∂p/∂x].  V: (n,) -> G (n, n).

    The rate from i to a neighbour j is D/dx² B((V_j − V_i)/kT), B(z) = z/(eᶻ − 1) (Scharfetter & Gummel 1969; Chang &
    Cooper 1970): the exact steady flux if V is linear in between.  Nothing flows through the ends.  So columns sum to 0,
    rates are ≥ 0, and G rests exactly at Eq. 2 for every dx.  Central differences rest wrong by O(dx²), and some rates
    are negative where V differs by more than 2 kT between neighbours.
    """
    V = _check_grid(V, dx=dx, kT=kT, gamma=gamma)
    D = kT / gamma                                                          # Einstein relation
    step = np.diff(V) / kT
    up, down = (D / dx / dx * _bernoulli(z) for z in (step, -step))         # up i -> i + 1, down back; up/down = e^{−ΔV/kT}
    G = np.diag(up, -1) + np.diag(down, 1)
    return G - np.diag(G.sum(axis=0))


def _bernoulli(z):
    """z / (eᶻ − 1), which is 1 at z = 0."""
    with np.errstate(over="ignore"):                                        # eᶻ = ∞ gives the right limit, 0
        return np.divide(z, np.expm1(z), out=np.ones_like(z), where=z != 0)


def fokker_planck_evolve(p0, V, dx, kT, times, gamma=1.0):
    """Densities p(t) = exp(G t) p0 that solve Eq. 3.  p0, V: (n,), times: (K,) increasing from 0 -> (K, n).

    Exact in time up to rounding, mass and positivity included: with q the largest rate of leaving a node, M = 1 + G/q
    holds no negative number, exp(G t) = Σ_k M^k (qt)^k e^{−qt}/k! (uniformisation; Jensen 1953), summed for a short
    time and squared up to t.  Diagonalising the symmetrised G is faster, but its error grows with 1/√w where p0 sits
    at exp(−V/kT) = w: for w below 1e-32 no digit is right.
    """
    p, V = _check_density(p0, V, dx, kT, "p0")
    times = np.asarray(times, dtype=float)
    if times.ndim != 1 or not np.isfinite(times).all() or (np.diff(times, prepend=0.0) < 0).any():
        raise ValueError(f"times must be a one-dimensional increasing array, from 0 on, got {times}")
    G = fokker_planck_generator(V, dx, kT, gamma)
    q, identity = np.abs(G).max(), np.eye(len(V))
    M = identity + G / q
    result = np.empty((len(times), len(V)))
    for k, interval in enumerate(np.diff(times, prepend=0.0)):
        squarings = int(q * interval).bit_length()
        qt = q * interval / 2**squarings                                    # below 1
        E = identity
        for j in range(20, 0, -1):                                          # Σ_j (qt M)^j/j! by Horner; the rest is < 3e-20
            E = identity + (qt / j) * (M @ E)
        E /= E.sum(axis=0)                                                  # M's columns sum to 1, so E's to e^{qt}
        for _ in range(squarings):
            E = E @ E
            E /= E.sum(axis=0)                                              # and does not drift by rounding
        p = result[k] = E @ p
    return result


def free_energy(p, V, dx, kT):
    """F[p] = ∫ V p dx + kT ∫ p log p dx (0 log 0 = 0).  Eq. 3 descends it; F − (−kT log Z) = kT KL(p ‖ Eq. 2)."""
    p, V = _check_density(p, V, dx, kT)
    return dx * (V @ p + kT * p @ np.log(p, out=np.zeros_like(p), where=p > 0))


# --- How long it takes to cross a barrier -----------------------------------------------------------------------------

def kramers_rate(curvature_well, curvature_barrier, barrier, kT, gamma=1.0):
    """Rate of leaving a well, √(V''_well |V''_barrier|) / (2πγ) · exp(−barrier/kT), as kT -> 0 (Kramers 1940).

    barrier > 0, curvature_barrier < 0.
    """
    _check_positive(curvature_well=curvature_well, minus_curvature_barrier=-curvature_barrier, barrier=barrier, kT=kT,
                    gamma=gamma)
    return np.sqrt(curvature_well * -curvature_barrier) / (2 * np.pi * gamma) * np.exp(-barrier / kT)


def mean_first_passage_time(V, a, b, kT, gamma=1.0):
    """Mean time τ from a to first reach b > a, τ = 1/D ∫_a^b dy e^{V(y)/kT} ∫_{−∞}^y dz e^{−V(z)/kT}.

    V: a function of arrays, finite from a to b; left of a, +inf is a wall.  ValueError where too much of e^{−V/kT} lies
    more than 1e11 (b − a) left of a, for then the mean may not exist; 2 kT log|x| is about the slowest growth accepted.
    For smooth V the relative error is up to (h V'/kT)²/6 with h = (b − a)/20 000 or, left of a, (a − x)/4800; a wall
    is seen to within its cell of width h.
    Source: Gardiner, Handbook of Stochastic Methods, §5.2.7.
    """
    _check_positive(kT=kT, gamma=gamma)
    a, b = float(a), float(b)
    if not -np.inf < a < b < np.inf:
        raise ValueError(f"b must lie to the right of a, got a = {a} and b = {b}")
    left = a - (b - a) * np.geomspace(1e12, 1e-6, 200_000)                  # 11 111 nodes per factor of ten
    x = np.append(left, np.linspace(a, b, 20_001))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        U = np.broadcast_to(V(x), x.shape) / kT
        U[:np.flatnonzero(U == np.inf).max(initial=0)] = np.inf             # what is left of a wall is never met
        log_area = np.logaddexp(-U[1:], -U[:-1]) + np.log(np.diff(x) / 2)   # log ∫e^{−U} of each cell: e^{∓U} overflow
        far, near, rest = (np.logaddexp.reduce(part) for part in np.split(log_area, (11_111, 22_222)))  # 2 decades, rest
        if far > min(rest - 25, near - 1):                                  # far must be negligible, and below near/e
            raise ValueError(f"V must grow to the left of a, and faster: e^(−V/kT) is too large beyond x = {left[11_111]:.3g}")
        log_f = np.logaddexp.accumulate(log_area)[len(left) - 1:] + U[len(left):]       # f = e^{U(y)} ∫_{−∞}^y dz e^{−U(z)}
        log_integral = np.logaddexp.reduce(np.logaddexp(log_f[1:], log_f[:-1])) + np.log((b - a) / 40_000)
        if not np.isfinite(log_integral):
            raise ValueError(f"V must return one number for each x, finite from a to b, left of a perhaps +inf; got {V(x)}")
        return gamma / kT * np.exp(log_integral)


# --- The probability of a whole path ----------------------------------------------------------------------------------

def path_log_probability(path, dt, grad_V, kT, gamma=1.0):
    """Log-density of an Euler–Maruyama path (n_steps + 1,), given its start: Σ log N(x_next; x − V'(x) dt/γ, 2D dt)."""
    path = _check_grid(path, "path", dt=dt, kT=kT, gamma=gamma)
    x, step, D = path[:-1], np.diff(path), kT / gamma
    _check_functions(x, grad_V=grad_V)
    return np.sum(-((step + grad_V(x) * (dt / gamma)) ** 2) / (4 * D * dt) - 0.5 * np.log(4 * np.pi * D * dt))


def onsager_machlup_action(path, dt, grad_V, curvature, kT, gamma=1.0):
    """Action S of a path (n_steps + 1,): P[path | start] ∝ exp(−S) as dt -> 0.  grad_V, curvature: (n_steps,) -> (n_steps,).

    S = ∫ [(ẋ + V'/γ)²/4D − V''/2γ] dt (Onsager & Machlup 1953; the V'' term: Stratonovich 1971).  Moving the force from
    a step's start (Itô: path_log_probability) to its midpoint (Stratonovich) brings the V'' term.  This is the chapter's
    "path-integral weight" Eq. 8 for Eq. 1, with λ = 1; it is not the ∫ L dt of mechanics.
    """
    path = _check_grid(path, "path", dt=dt, kT=kT, gamma=gamma)
    x, v, D = (path[:-1] + path[1:]) / 2, np.diff(path) / dt, kT / gamma
    _check_functions(x, grad_V=grad_V, curvature=curvature)
    return dt * np.sum((v + grad_V(x) / gamma) ** 2 / (4 * D) - curvature(x) / gamma / 2)


# --- Checks of input -------------------------------------------------------------------------------------------------

def _check_positive(**values):
    for name, value in values.items():
        if not (np.isscalar(value) and np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value!r}")


def _check_grid(V, name="V", **positive):
    V = np.asarray(V, dtype=float)
    _check_positive(**positive)
    if V.ndim != 1 or len(V) < 2 or not np.isfinite(V).all():
        raise ValueError(f"{name} must hold finite values on a one-dimensional grid of two points or more, got {V}")
    return V


def _check_density(p, V, dx, kT, name="p"):
    p, V = _check_grid(p, name), _check_grid(V, dx=dx, kT=kT)
    if p.shape != V.shape or (p < 0).any() or abs(p.sum() * dx - 1) > 1e-6:
        raise ValueError(f"{name} must be a density on the grid of V, {V.shape}: nowhere negative, and of sum(p) dx = 1; got "
                         f"shape {p.shape}, sum(p) dx = {p.sum() * dx:.6g}")
    return p, V


def _check_functions(x, **functions):
    for name, f in functions.items():
        if f is not None and (np.shape(f(x)) != x.shape or not np.isfinite(f(x)).all()):
            raise ValueError(f"{name} must return one finite number per position, {x.shape}, got {f(x)}")


def _check_simulation(x, grad_V, kT, dt, n_steps, gamma, method, V, record_every):
    _check_positive(kT=kT, dt=dt, gamma=gamma)
    if x.ndim != 1 or not np.isfinite(x).all():
        raise ValueError(f"x0 must be a one-dimensional array of finite positions, got shape {x.shape}")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; accepted: {', '.join(METHODS)}")
    if method == "mala" and V is None:
        raise ValueError("method 'mala' needs the potential V, not only its gradient")
    for name, value, least in (("n_steps", n_steps, 0), ("record_every", 1 if record_every is None else record_every, 1)):
        if not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be a whole number, {least} or more, got {value}")
    _check_functions(x, grad_V=grad_V, V=V)


def main():
    """Print theory beside simulation for Eq. 1–3."""
    rng = np.random.default_rng(0)
    print("Eq. 1   V = x^2/2 with friction 2, kT = 1, dt = 0.4: variance after t = 20, +- one standard error")
    for method, theory in (("euler_maruyama", 1 / (1 - 0.4 / (2 * 2))), ("leimkuhler_matthews", 1), ("mala", 1)):  # dt/2γ
        x = simulate(np.zeros(200_000), lambda x: x, kT=1.0, gamma=2.0, dt=0.4, n_steps=50, rng=rng, method=method,
                     V=lambda x: x * x / 2)
        print(f"        {method:20s} simulated {x.var():.4f} +- {x.var() * np.sqrt(2 / x.size):.4f}   theory {theory:.4f}")

    grid = np.linspace(-2.5, 2.5, 501)
    dx, V = grid[1] - grid[0], double_well(grid)
    print("Eq. 2   double well, E[V] over 20 000 particles that start evenly over both wells")
    for kT in (0.1, 0.5, 1.0, 2.0):
        x = simulate(rng.uniform(-2, 2, 20_000), double_well_gradient, kT=kT, dt=0.01, n_steps=500, rng=rng)
        error = double_well(x).std() / np.sqrt(x.size)
        theory = V @ boltzmann_density(V, dx, kT) * dx
        print(f"        kT = {kT:3.1f}   simulated {double_well(x).mean():.4f} +- {error:.4f}   theory {theory:.4f}")

    print("Eq. 3   double well, kT = 0.5, from N(1, 0.15^2): P(x > 0)")
    p0 = np.exp(-((grid - 1) ** 2) / (2 * 0.15**2))
    x, before = rng.normal(1, 0.15, 20_000), 0.0
    for t, p in zip((0.25, 1.0, 4.0), fokker_planck_evolve(p0 / (p0.sum() * dx), V, dx, 0.5, (0.25, 1.0, 4.0))):
        x = simulate(x, double_well_gradient, kT=0.5, dt=0.002, n_steps=round((t - before) / 0.002), rng=rng)
        before = t
        error, theory = (x > 0).std() / np.sqrt(x.size), (p[grid > 0].sum() + p[grid == 0].sum() / 2) * dx
        print(f"        t = {t:4.2f}   simulated {(x > 0).mean():.4f} +- {error:.4f}   theory {theory:.4f}")

    tau = mean_first_passage_time(double_well, -1.0, 1.0, 0.1)
    print(f"        kT = 0.1: mean time from one well to the other {tau:.0f} (Kramers {1 / kramers_rate(8, -4, 1, 0.1):.0f})")


if __name__ == "__main__":
    main()
