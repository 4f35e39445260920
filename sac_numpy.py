"""Soft Actor-Critic by hand: networks, gradients and the training loop in NumPy, without autograd.   Eq. 18–22

Needs numpy and gymnasium.  `python sac_numpy.py` trains on Pendulum-v1 and reports the evaluation.

    s, a, r, s'   state (obs), action, reward, next state (next_obs)       (N, obs_dim), (N, A), (N,), (N, obs_dim)
    u, a          Gaussian sample; a = tanh u in (−1, 1), the "tanh frame" (N, A); every π is a density over this a
    μ, σ          mean and standard deviation of u = μ + σ·noise, from the actor; noise is standard normal (N, A)
    Q, V          soft action value, of both critics (2, N, 1); soft value (N,)
    α alpha       temperature: the price of one nat of entropy, in units of reward
    H̄             target entropy
    γ gamma       discount (in langevin.py a friction);   τ tau: Polyak rate of the target networks (there a time)
    theta         all parameters of a network, flat: the chapter's θ, φ or φ';   d_x, dx: always ∂Loss/∂x, and of x's shape
"""
import os
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(_variable, "1")        # one BLAS thread is faster at these sizes; must precede import numpy

import argparse
import json
import math
import sys
import time
import timeit
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np

LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0            # σ from 5e-5 to 7.4: float32 still sees it beside μ, and tanh u is not all ±1


@dataclass(frozen=True)
class Settings:
    """The settings, most with a reason.  Chosen on Pendulum-v1, see the README."""
    hidden: tuple = (64, 64, 64)        # two layers leave twice the regret: the value has cliffs
    gamma: float = 0.998                # with 0.99 the median start loses half as much again, the mean a sixth more
    tau: float = 0.04                   # target networks follow within 1/τ = 25 updates; 0.08 is as good
    batch_size: int = 160               # 128 and 192 do as well, within the scatter of seeds; the time grows with it
    learning_rate: float = 8e-3         # of all three optimisers; falls linearly: the last, small steps average out the noise
    final_learning_rate: float = 1e-4
    warmup: int = 1000                  # steps of random actions before the first update
    random_steps: int = 100             # later episodes begin with up to this many: the critic must know what the policy avoids
    alpha: float = 0.2                  # temperature, in units of reward: at the start, or throughout if not tuned
    tune_alpha: bool = True
    target_entropy: float = None        # H̄ in the tanh frame; None: −1 per action dimension (Haarnoja et al. 2018b)
    q_scale: float = 10.0               # Q when the critic's last layer gives 1: lets Adam reach Q = −300 in few steps
    buffer_size: int = 1_000_000        # transitions; older ones are overwritten

    def __post_init__(self):
        for name, value in asdict(self).items():
            object.__setattr__(self, name, np.array(value).tolist())        # a NumPy float64 would make all arithmetic float64
        object.__setattr__(self, "hidden", tuple(self.hidden))              # a list, or an array, will do
        for name in ("tau", "learning_rate", "final_learning_rate", "alpha", "q_scale", "batch_size", "warmup", "buffer_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"setting {name} must be a positive number, got {getattr(self, name)}")
        for name in ("batch_size", "warmup", "random_steps", "buffer_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 0:
                raise ValueError(f"setting {name} must be a whole number, not negative, got {getattr(self, name)}")
        if not all(isinstance(n, int) and n > 0 for n in self.hidden):
            raise ValueError(f"setting hidden must hold positive whole numbers, got {self.hidden}")
        if not (0 <= self.gamma < 1 and self.tau <= 1 and math.isfinite(self.target_entropy or 0)):
            raise ValueError(f"settings need 0 ≤ gamma < 1, tau ≤ 1 and a finite target_entropy, got {self}")


# --- Networks, their optimiser, the replay buffer ---------------------------------------------------------------------

class MLP:
    """Affine layers with a smooth ReLU between them.  sizes (n_in, …, n_out);  copies=2: twin networks on a leading axis.

    theta is the vector of all parameters: change it in place, for Adam holds it too.  Weights and biases are views into it,
    layer by layer: W (…, n_in, n_out), b (…, 1, n_out).  The output is multiplied by scale.
    """

    def __init__(self, sizes, rng, copies=None, dtype=np.float32, scale=1.0):
        lead = () if copies is None else (copies,)
        self.scale = scale
        shapes = [lead + shape for n_in, n_out in zip(sizes, sizes[1:]) for shape in ((n_in, n_out), (1, n_out))]
        ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
        self.layout = list(zip([0] + ends, ends, shapes))                   # start, end, shape of each part: W, b, W, b, …
        self.theta = np.zeros(ends[-1], dtype)
        for W in self.weights:                                              # He et al. 2015: signals keep roughly their size
            W[...] = rng.normal(0, math.sqrt(2 / W.shape[-2]), W.shape)
        self.biases[0][...] = rng.uniform(-1, 1, self.biases[0].shape)      # spreads the first bends over the input
        self.weights[-1][...] *= 0.1                                        # Q starts near 0, π near the middle

    weights = property(lambda self: self.views(self.theta)[0])
    biases = property(lambda self: self.views(self.theta)[1])

    def views(self, flat):
        """The weights and the biases that a flat vector holds, without copying."""
        parts = [flat[start:end].reshape(shape) for start, end, shape in self.layout]
        return tuple(parts[::2]), tuple(parts[1::2])

    def forward(self, x):
        """x (N, n_in) -> y (N, n_out) or (copies, N, n_out), and for backward each layer's input x and root."""
        *hidden, (W_last, b_last) = zip(*self.views(self.theta))
        cache = [(x, None)]
        for W, b in hidden:
            z = x @ W + b
            root = np.sqrt(z * z + 0.5)
            x = 0.5 * (z + root)                                            # a smooth ReLU, squareplus (Barron 2021)
            cache.append((x, root))
        return self.scale * (x @ W_last + b_last), cache

    def backward(self, dy, cache, with_theta=True):
        """dy, of y's shape -> d_theta, dx: the gradients of Σ y·dy.  Unless with_theta, d_theta stays 0, which saves time."""
        d_theta = np.zeros_like(self.theta)
        dz, ones = self.scale * dy, np.ones((1, dy.shape[-2]), dy.dtype)
        for (x, root), W, dW, db in reversed([*zip(cache, self.weights, *self.views(d_theta))]):
            if with_theta:
                np.matmul(x.swapaxes(-1, -2), dz, out=dW)                   # z = x W + b:  dW = xᵀ dz
                np.matmul(ones, dz, out=db)                                 # db = Σ dz over the batch (faster than sum)
            WT = W.swapaxes(-1, -2)
            dx = dz @ WT if W.shape[-1] > 1 else dz * WT                    # dx = dz Wᵀ (the same; for one column faster)
            if root is not None:
                dz = dx * x / root                                          # x = (z + root)/2 has the slope dx/dz = x/root
        return d_theta, dx.sum(axis=0) if dx.ndim > x.ndim else dx          # x: now the net's input, which twins share


class Adam:
    """Adam (Kingma & Ba 2015) on one flat vector, which step updates in place."""

    def __init__(self, theta, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
        self.theta, self.learning_rate = theta, learning_rate
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.m, self.v, self.t = np.zeros_like(theta), np.zeros_like(theta), 0

    def step(self, d_theta):
        """Move θ by −learning_rate · m̂ / (√v̂ + ε).  correct_m and root hold the factors 1 − β that m and v lack."""
        self.t += 1
        self.m = self.beta1 * self.m + d_theta
        self.v = self.beta2 * self.v + d_theta * d_theta
        correct_m = (1 - self.beta1) / (1 - self.beta1**self.t)             # m̂ = correct_m m: 1 − β, and bias correction
        root = math.sqrt((1 - self.beta2) / (1 - self.beta2**self.t))       # √v̂ = root √v, likewise
        self.theta -= self.learning_rate * correct_m / root * (self.m / (np.sqrt(self.v) + self.epsilon / root))


class ReplayBuffer:
    """The chapter's 𝒟: the last `capacity` transitions (s, a, r, s', terminated), float32; memory is taken as it fills."""

    def __init__(self, capacity, obs_dim, action_dim):
        self.rows = np.zeros(capacity, [("obs", "f4", (obs_dim,)), ("a", "f4", (action_dim,)), ("reward", "f4"),
                                        ("next_obs", "f4", (obs_dim,)), ("terminated", "f4")])
        self.added = 0

    def __len__(self):
        return min(self.added, len(self.rows))

    def add(self, obs, a, reward, next_obs, terminated):
        """Store one transition over the oldest.  a in the tanh frame; terminated: s' is terminal, not merely a time limit."""
        self.rows[self.added % len(self.rows)] = obs, a, reward, next_obs, terminated
        self.added += 1

    def sample(self, batch_size, rng):
        """A batch drawn uniformly with replacement: obs (N, obs_dim), a (N, A), reward (N,), next_obs, terminated (N,)."""
        batch = self.rows[rng.integers(0, len(self), batch_size)]
        return [batch[name] for name in batch.dtype.names]


# --- Soft Actor-Critic ------------------------------------------------------------------------------------------------

def squashed_gaussian(mu, log_std, noise):
    """a = tanh(μ + σ·noise) (N, A) and its log π(a) (N,), a density over a in (−1, 1)^A.  All inputs (N, A).

    log π(a) = Σ [log N(u; μ, σ) − log(1 − tanh² u)] (Haarnoja et al. 2018, app. C).  The last logarithm is computed as
    2(log 2 − u − log(1 + e^{−2u})), exact for every u; log(1 − a² + 1e-6) stops at −13.8, where its gradient vanishes.
    """
    u = mu + np.exp(log_std) * noise
    log_normal = -0.5 * noise * noise - log_std - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - u - np.logaddexp(0, -2 * u))             # log(1 − tanh² u)
    return np.tanh(u), (log_normal - log_slope).sum(axis=-1)


class SAC:
    """An agent for observations (obs_dim,), best of order 1, and actions between action_low and action_high (A,), both finite.

    Source: Haarnoja et al. 2018b (arXiv:1812.05905): two critics, no value network, α tuned.  Equal seeds, equal agents.
    """

    def __init__(self, obs_dim, action_low, action_high, settings=Settings(), seed=0, dtype=np.float32):
        s = self.settings = settings
        self.low, self.high = np.array((action_low, action_high), float).reshape(2, -1)
        if not (np.isfinite(self.high - self.low) & (self.low < self.high)).all():
            raise ValueError(f"actions need finite bounds low < high, got {action_low} and {action_high}")
        np.empty(16_000_000, np.uint8)  # not used: freed at once, it makes glibc reuse large arrays; fewer page faults
        A = self.action_dim = len(self.low)
        self.obs_dim, self.dtype, self.rng = int(obs_dim), np.dtype(dtype), np.random.default_rng(seed)
        self.actor = MLP((obs_dim, *s.hidden, 2 * A), self.rng, dtype=dtype)
        self.critic = MLP((obs_dim + A, *s.hidden, 1), self.rng, copies=2, dtype=dtype, scale=s.q_scale)
        self.critic_target = MLP((obs_dim + A, *s.hidden, 1), self.rng, copies=2, dtype=dtype, scale=s.q_scale)
        self.critic_target.theta[:] = self.critic.theta
        self.log_alpha = np.array([math.log(s.alpha)])
        self.target_entropy = -A if s.target_entropy is None else s.target_entropy
        self.optimisers = [Adam(theta, s.learning_rate) for theta in (self.critic.theta, self.actor.theta, self.log_alpha)]

    alpha = property(lambda self: math.exp(self.log_alpha[0]))             # kept as its logarithm

    def policy(self, obs):
        """μ and log σ (N, A), a mask (N, A) that is False where log σ was clipped, and the actor's cache."""
        y, cache = self.actor.forward(obs)
        mu, raw = y[..., :self.action_dim], y[..., self.action_dim:]
        log_std = np.clip(raw, LOG_STD_MIN, LOG_STD_MAX)
        return mu, log_std, raw == log_std, cache

    def act(self, obs, deterministic=False):
        """Action in the environment's units.  obs (obs_dim,) -> (A,), or (N, obs_dim) -> (N, A).  deterministic: tanh μ.

        ValueError for another shape; FloatingPointError if obs is not finite, or so large that the actor overflows.
        """
        obs = self.checked(obs, 2)
        a = self.sample(np.atleast_2d(obs), deterministic)
        return self.to_environment(a if obs.ndim > 1 else a[0])

    def sample(self, obs, deterministic=False):
        """Action in the tanh frame.  obs (N, obs_dim) -> (N, A)."""
        mu, log_std, *_ = self.policy(obs)
        a = np.tanh(mu if deterministic else mu + np.exp(log_std) * self.rng.standard_normal(mu.shape, self.dtype))
        check_finite("action", a)
        return a

    def checked(self, obs, most_axes=1):
        """A copy of obs (…, obs_dim), because the environment may overwrite it.  Errors: see act."""
        obs = np.array(obs, self.dtype)
        if obs.ndim > most_axes or obs.shape[-1:] != (self.obs_dim,):
            raise ValueError(f"the observation must have {self.obs_dim} numbers, got the shape {obs.shape}")
        check_finite("observation", obs)
        return obs

    def to_environment(self, a):
        """From (−1, 1) to [low, high]."""
        return np.clip(self.low + (a + 1) * (0.5 * (self.high - self.low)), self.low, self.high)

    def target(self, reward, next_obs, terminated, noise):
        """y (N,) for the critics, a' drawn with noise (N, A).  A time limit is not `terminated`: there the future counts."""
        mu, log_std, *_ = self.policy(next_obs)
        a, log_prob = squashed_gaussian(mu, log_std, noise)
        Q, _ = self.critic_target.forward(np.concatenate((next_obs, a), axis=1))             # (2, N, 1): both critics
        V = np.minimum(Q[0], Q[1])[:, 0] - self.alpha * log_prob            # one sample of Eq. 15, of the smaller critic
        return reward + self.settings.gamma * (1 - terminated) * V          # Eq. 19 (soft Bellman target)

    def critic_loss(self, obs, a, y):
        """Batch mean of (Q(s, a) − y)², summed over both critics; a in the tanh frame, y (N,) held fixed;  its d_theta."""
        if np.shape(y) != (len(obs),):                                      # from rewards (N, 1) target makes y (N, N)
            raise ValueError(f"y must be of shape {(len(obs),)}, got {np.shape(y)}")
        Q, cache = self.critic.forward(np.concatenate((obs, a), axis=1))
        error = Q[..., 0] - y
        loss = np.vdot(error, error) / len(y)                               # Eq. 18 (critic loss)
        dQ = (2 / len(y)) * error[..., None]
        return loss, self.critic.backward(dQ, cache)[0]

    def actor_loss(self, obs, noise):
        """Batch mean of α log π(a|s) − min Q(s, a), obs (N, obs_dim), a drawn with noise (N, A);  its d_theta;  log π (N,).

        Its mean over noise, per state, is α KL(π ‖ exp(Q/α)/Z) − α log Z (Eq. 21): it draws π towards the Boltzmann policy.

        φ, α and the noise are held fixed.  u = μ + σ·noise: ∂u/∂μ = 1, ∂u/∂log σ = σ·noise, da/du = 1 − a².  In log π the
        term −log(1 − tanh² u) has the slope 2a in u, and log N changes only by −1 per log σ (noise is fixed).
        """
        N, alpha = len(obs), self.alpha
        mu, log_std, free, cache = self.policy(obs)
        a, log_prob = squashed_gaussian(mu, log_std, noise)
        Q, critic_cache = self.critic.forward(np.concatenate((obs, a), axis=1))
        first = Q[0] <= Q[1]
        loss = (alpha * log_prob.sum() - np.minimum(Q[0], Q[1]).sum()) / N                   # Eq. 20 (actor loss)
        dQ = np.stack((first, ~first)).astype(self.dtype) * (-1 / N)        # only the smaller critic is seen
        d_input = self.critic.backward(dQ, critic_cache, with_theta=False)[1]
        du = d_input[:, self.obs_dim:] * (1 - a * a) + (2 * alpha / N) * a  # ∂Loss/∂u: from −min Q; from α log π
        d_log_std = (du * noise * np.exp(log_std) - alpha / N) * free
        return loss, self.actor.backward(np.concatenate((du, d_log_std), axis=1), cache)[0], log_prob

    def temperature_loss(self, log_prob):
        """−α mean(log π + H̄), log π held fixed;  and its gradient in log α: the same number, > 0 while H > H̄, so α falls."""
        loss = -self.alpha * (float(log_prob.mean()) + self.target_entropy)                  # Eq. 22 (temperature loss)
        return loss, loss                                                   # d(α c)/d log α = α c

    def update(self, batch):
        """One step on each of the four: critics, actor, temperature, target networks -> dict of losses, α and entropy.

        batch: obs, a, reward, next_obs, terminated.  FloatingPointError if a gradient is not finite; its network stays.
        """
        obs, a, reward, next_obs, terminated = batch
        noise = self.rng.standard_normal((2, *a.shape), self.dtype)
        critic_adam, actor_adam, alpha_adam = self.optimisers
        critic_loss, d_theta = self.critic_loss(obs, a, self.target(reward, next_obs, terminated, noise[0]))
        check_finite("critic's squared gradient", np.vdot(d_theta, d_theta))
        critic_adam.step(d_theta)
        actor_loss, d_theta, log_prob = self.actor_loss(obs, noise[1])
        check_finite("actor's squared gradient", np.vdot(d_theta, d_theta))
        actor_adam.step(d_theta)
        if self.settings.tune_alpha:
            alpha_adam.step(self.temperature_loss(log_prob)[1])
        self.critic_target.theta += self.settings.tau * (self.critic.theta - self.critic_target.theta)   # Polyak averaging
        return {"critic_loss": float(critic_loss), "actor_loss": float(actor_loss),
                "alpha": self.alpha, "entropy": -float(log_prob.mean())}

    def save(self, path):
        """Write the agent to an .npz file, whole or not at all: networks, α, bounds, settings, random state; no pickle.

        Adam's means are not kept: update after load would start them, and the learning rate, afresh.
        """
        about = json.dumps({"obs_dim": self.obs_dim, "settings": asdict(self.settings), "rng": self.rng.bit_generator.state})
        part = Path(f"{path}.part")
        try:
            with open(part, "wb") as file:
                np.savez(file, about=about, low=self.low, high=self.high, log_alpha=self.log_alpha,
                         actor=self.actor.theta, critic=self.critic.theta, critic_target=self.critic_target.theta)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path):
        """The agent that save wrote: it acts bitwise as before.  ValueError if the file is damaged or something else."""
        with open(path, "rb") as file:
            try:
                data = dict(np.load(file, allow_pickle=False))
                about = json.loads(str(data["about"]))
                settings = Settings(**about["settings"])
                agent = cls(about["obs_dim"], data["low"], data["high"], settings, dtype=data["actor"].dtype)
                for name in ("actor", "critic", "critic_target"):
                    theta = getattr(agent, name).theta
                    theta[:] = data[name].reshape(theta.shape)              # a single number must not fill it
                    check_finite(name, theta)
                agent.log_alpha[:] = data["log_alpha"]
                check_finite("temperature", agent.alpha)
                agent.rng.bit_generator.state = about["rng"]
            except Exception as error:                                      # every way in which a file can be damaged
                raise ValueError(f"{path} is not a whole file written by SAC.save ({error})") from None
        return agent


def check_finite(name, value):
    """FloatingPointError, with the name, if any number is NaN or infinite."""
    if not np.isfinite(value).all():
        raise FloatingPointError(f"the {name} is not finite: {value}")


# --- Training ---------------------------------------------------------------------------------------------------------

@contextmanager
def environment(env):
    """The gymnasium.Env that an id names, closed afterwards, or env itself.  ValueError for spaces that are not flat Boxes;
    what gymnasium.make raises for an id it cannot make."""
    with gym.make(env) if isinstance(env, str) else nullcontext(env) as env:
        obs, action = env.observation_space, env.action_space
        if not isinstance(obs, gym.spaces.Box) or len(obs.shape) != 1:
            raise ValueError(f"observations must be a flat Box, of shape (n,), got {obs}")
        if not isinstance(action, gym.spaces.Box) or len(action.shape) != 1 or not np.issubdtype(action.dtype, np.floating):
            raise ValueError(f"actions must be a flat Box of floats with finite bounds, got {action}")
        yield env


def train(env, settings=Settings(), seed=0, n_steps=10_000, progress=None):
    """Train on an environment (an id or a gymnasium.Env) for n_steps steps -> agent, log.

    log holds arrays: per update "step", "critic_loss", "actor_loss", "alpha", "entropy"; per finished episode
    "episode_step", "episode_return"; "observations", the states in the buffer (n, obs_dim); "n_steps", how many were taken.
    progress(step, agent, log), if given, is called after every step; log then holds lists, and not yet the last two.
    Ctrl-C ends the training early and returns.  FloatingPointError tells what was not finite, and when.
    """
    if not isinstance(n_steps, (int, np.integer)) or n_steps <= settings.warmup:
        raise ValueError(f"n_steps must be a whole number above the {settings.warmup} steps of warm-up, got {n_steps}")
    n_steps = int(n_steps)                                                  # a NumPy integer would make Adam float64
    log = {key: [] for key in ("step", "critic_loss", "actor_loss", "alpha", "entropy", "episode_step", "episode_return")}
    with environment(env) as env:
        agent = SAC(env.observation_space.shape[0], env.action_space.low, env.action_space.high, settings, seed)
        buffer = ReplayBuffer(min(n_steps, settings.buffer_size), agent.obs_dim, agent.action_dim)
        try:
            learn(agent, env, buffer, log, seed, n_steps, progress)
        except KeyboardInterrupt:
            pass                                                            # the log tells how far it got
        except FloatingPointError as error:
            raise FloatingPointError(f"training stopped after {buffer.added} steps: {error}") from error
    log = {key: np.array(values) for key, values in log.items()}
    return agent, log | {"observations": buffer.rows["obs"][:len(buffer)].copy(), "n_steps": buffer.added}


def learn(agent, env, buffer, log, seed, n_steps, progress):
    """The loop of train, which changes agent, buffer and log: one step in the environment, one update."""
    s = agent.settings
    slope = (s.final_learning_rate - s.learning_rate) / (n_steps - s.warmup)
    obs, episode_return, random_left = agent.checked(env.reset(seed=int(seed))[0]), 0.0, 0
    for step in range(1, n_steps + 1):
        if step <= s.warmup or random_left > 0:
            a = agent.rng.uniform(-1, 1, agent.action_dim)
        else:
            a = agent.sample(obs[None])[0]
        action = agent.to_environment(a).astype(env.action_space.dtype)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        next_obs = agent.checked(next_obs)
        if np.ndim(reward):
            raise ValueError(f"the reward must be a number, got {reward!r}")
        check_finite("reward", np.float32(reward))                          # as the buffer will hold it
        buffer.add(obs, a, reward, next_obs, terminated)
        obs, episode_return, random_left = next_obs, episode_return + float(reward), random_left - 1
        if terminated or truncated:
            log["episode_step"].append(step)
            log["episode_return"].append(episode_return)
            obs, episode_return, random_left = agent.checked(env.reset()[0]), 0.0, agent.rng.integers(s.random_steps + 1)
        if step > s.warmup:
            for optimiser in agent.optimisers:                              # learning rates fall linearly
                optimiser.learning_rate += slope
            metrics = agent.update(buffer.sample(s.batch_size, agent.rng))
            for name, value in {"step": step, **metrics}.items():
                log[name].append(value)
        if progress:
            progress(step, agent, log)


def evaluate(agent, env, seeds):
    """Returns (len(seeds),) of the deterministic policy, undiscounted, one episode from each env.reset(seed=…).

    env must end its episodes, by itself or by a time limit.  ValueError if agent was made for other bounds or sizes;
    FloatingPointError if an observation or an action is not finite.
    """
    returns = np.zeros(len(seeds))
    with environment(env) as env:
        box = env.action_space
        if not np.array_equal(np.array((agent.low, agent.high), box.dtype), (box.low, box.high)):     # rounded alike
            raise ValueError(f"the agent is of another environment: it acts between {agent.low} and {agent.high}, not in {box}")
        for i, seed in enumerate(seeds):
            obs, terminated, truncated = env.reset(seed=int(seed))[0], False, False
            while not (terminated or truncated):
                action = agent.act(agent.checked(obs), deterministic=True).astype(box.dtype)
                obs, reward, terminated, truncated, _ = env.step(action)
                returns[i] += reward
    return returns


# --- Command line -----------------------------------------------------------------------------------------------------

def bare_products(agent, N):
    """The matrix products of one update, as pairs of factors; without the sums for d_biases."""
    for net, n_forward in ((agent.actor, 2), (agent.critic, 3)):
        for W in net.weights:
            x, z = (np.zeros((*W.shape[:-2], N, n), W.dtype) for n in W.shape[-2:])
            yield from n_forward * [(x, W)]                                 # z = x W
            yield x.swapaxes(-1, -2), z                                     # dW = xᵀ dz
            if W.shape[-1] > 1:                                             # else backward needs no product
                yield from (n_forward - 1) * [(z, W.swapaxes(-1, -2))]      # dx = dz Wᵀ


def benchmark():
    """Print the time of one update beside that of its matrix products alone, of one environment step, and the memory."""
    milliseconds = lambda f, n=100: 1e3 * min(timeit.repeat(f, number=n, repeat=9)) / n
    env = gym.make("Pendulum-v1").unwrapped
    env.reset(seed=0)
    print(f"one step of Pendulum-v1: {milliseconds(lambda: env.step(np.zeros(1))):.3f} ms")
    for hidden, N in (((64, 64), 128), ((256, 256), 256)):
        agent, buffer = SAC(3, [-2], [2], Settings(hidden=hidden)), ReplayBuffer(10_000, 3, 1)
        for row in agent.rng.uniform(-1, 1, (10_000, 8)):
            buffer.add(row[:3], row[3], row[4], row[5:], False)
        pairs = [*bare_products(agent, N)]
        update = milliseconds(lambda: agent.update(buffer.sample(N, agent.rng)))
        products = milliseconds(lambda: [x @ y for x, y in pairs])
        print(f"hidden {hidden}, batch {N}: one update {update:.3f} ms, its matrix products {products:.3f} ms, ratio "
              f"{update / products:.2f}; memory: networks {agent.actor.theta.nbytes + 2 * agent.critic.theta.nbytes:,} bytes, "
              f"replay buffer {buffer.rows.nbytes:,} bytes per 10 000 steps")


def progress_line(n_steps):
    """A progress callback that keeps one line up to date: step, last return, α, entropy, steps per second, time left."""
    seen = [0, time.monotonic()]                                            # step and time of the line before

    def show(step, agent, log):
        """Renew the line, every 100 steps."""
        if step % 100 == 0 or step == n_steps:
            now = time.monotonic()
            rate, seen[:] = (step - seen[0]) / max(now - seen[1], 1e-9), (step, now)
            last, entropy = (log[key][-1] if log[key] else math.nan for key in ("episode_return", "entropy"))
            print(f"\rstep {step}/{n_steps}   last return {last:7.1f}   α {agent.alpha:.4f}   entropy {entropy:5.2f}   "
                  f"{rate:5.0f} steps/s   {(n_steps - step) / rate:4.0f} s left ", end="", file=sys.stderr, flush=True)
    return show


def main():
    """The command line -> exit status: None, 2 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description="Train Soft Actor-Critic and evaluate it on 100 fixed starts.")
    parser.add_argument("--env", default="Pendulum-v1", help="id of a Gymnasium environment (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10_000, help="environment steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    file = parser.add_mutually_exclusive_group()
    file.add_argument("--save", type=Path, metavar="FILE", help="write the trained agent, also after Ctrl-C")
    file.add_argument("--load", metavar="FILE", help="evaluate this agent instead of training one")
    parser.add_argument("--benchmark", action="store_true", help="time one update against its bare matrix products")
    args = parser.parse_args()
    try:
        if args.benchmark:
            return benchmark()
        if args.save:
            if args.save.is_dir():
                raise IsADirectoryError(f"cannot write {args.save}: it is a folder")
            part = Path(f"{args.save}.part")                                # what agent.save will write first:
            open(part, "xb").close(), part.unlink()                         # better an error now than after training
        if args.load is not None:
            agent = SAC.load(args.load)
        else:
            try:
                agent, log = train(args.env, seed=args.seed, n_steps=args.steps, progress=progress_line(args.steps))
            finally:
                print(file=sys.stderr)                                      # ends the progress line
            if args.save:
                agent.save(args.save)
            if log["n_steps"] < args.steps:
                raise KeyboardInterrupt(f"after {log['n_steps']} of {args.steps} steps")
        returns = evaluate(agent, args.env, range(100))
        print(f"mean return over 100 episodes from reset(seed=0..99): {returns.mean():.1f} "
              f"(standard deviation {returns.std():.1f})")
    except KeyboardInterrupt as interrupt:
        print(f"{parser.prog}: interrupted {interrupt}", file=sys.stderr)
        return 130
    except Exception as error:                                              # one line, whatever an environment raises
        print(f"{parser.prog}: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
