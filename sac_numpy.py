"""Soft Actor-Critic by hand: networks, gradients and the training loop in NumPy.   Eq. 18–22

Needs numpy and gymnasium.  `python sac_numpy.py` trains on Pendulum-v1 and evaluates the agent.
The file follows one transition: environment → replay buffer → batch → target → losses → steps.

    N, A         size of a batch, number of action dimensions
    s, s'        state and next state: obs, next_obs                              (N, obs_dim)
    r            reward                                                           (N,)
    u, a         Gaussian sample, and the action a = tanh u in (−1, 1)            (N, A)
    μ, σ         mean and standard deviation of u = μ + σ·noise, from the actor   (N, A)
    π            policy: always a density over a in (−1, 1)^A
    Q            soft action value, of both critics                               (2, N)
    V            soft value                                                       (N,)
    α  alpha     temperature, in units of reward
    H̄            target entropy
    γ  gamma     discount (in the chapter's Eq. 1, γ is the friction)
    τ  tau       rate of Polyak averaging
    θ  theta     all parameters of a network in one vector: the chapter's θ, φ or φ'
    dx, d_theta  ∂Loss/∂x, ∂Loss/∂θ: of the shape of x, θ
"""
import argparse
import copy
import json
import math
import sys
import time
from dataclasses import asdict, dataclass

import gymnasium as gym
import numpy as np

LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0           # bounds of log σ
LEAK = 0.01                                     # slope of the leaky ReLU below 0: no unit dies


@dataclass(frozen=True)
class Settings:
    """The hyperparameters, chosen for some 10 000 steps; the README shows what they buy.

    For a million steps, a constant learning rate of 3e-4, tau 0.005 and batches of 256 are usual.
    An episode begins with random actions, up to random_share of the length of the last episode, so
    that the critic also sees states that the policy avoids.
    """
    hidden: tuple = (64, 64, 64)
    gamma: float = 0.99
    tau: float = 0.04                   # target networks follow within 1/τ = 25 updates
    batch_size: int = 64                # OpenBLAS keeps products up to 64³ on one thread
    learning_rate: float = 8e-3         # of all three optimisers; it falls linearly to the
    final_learning_rate: float = 1e-4   # final one, so that the last steps average out noise
    warmup: int = 1000                  # steps of random actions before the first update
    random_share: float = 0.5
    alpha: float = 0.2                  # temperature: at the start, or fixed without tune_alpha
    tune_alpha: bool = True
    target_entropy: float = None        # H̄ of a in (−1, 1)^A; None stands for −A
    buffer_size: int = 1_000_000        # transitions; then the oldest are overwritten


# --- Networks and their optimiser -----------------------------------------------------------------

class MLP:
    """Affine layers with leaky ReLUs between them, and their gradients.

    sizes (n_in, …, n_out).  copies=2 makes twin networks on a leading axis.  theta is the vector of
    all parameters; change it in place only.
    """

    def __init__(self, sizes, rng, copies=None, dtype=np.float32):
        twins = () if copies is None else (copies,)
        self.layout = []                                        # places and shapes of W, b, W, b, …
        size = 0
        for n_in, n_out in zip(sizes, sizes[1:]):
            for shape in ((*twins, n_in, n_out), (*twins, 1, n_out)):
                end = size + math.prod(shape)
                self.layout.append((slice(size, end), shape))
                size = end
        self.theta = np.zeros(size, dtype)
        for W in self.weights:
            W[:] = rng.normal(0, math.sqrt(2 / W.shape[-2]), W.shape)       # He et al. 2015
        self.weights[-1][:] *= 0.1                              # Q, μ and log σ start near 0

    def views(self, flat):
        """The weights and the biases of all layers as views into a flat vector: no copies."""
        parts = [flat[place].reshape(shape) for place, shape in self.layout]
        return parts[::2], parts[1::2]

    @property
    def weights(self):
        return self.views(self.theta)[0]

    @property
    def biases(self):
        return self.views(self.theta)[1]

    def forward(self, x):
        """x (N, n_in) -> y (N, n_out), or (copies, N, n_out); and the inputs of all layers."""
        inputs = []
        for W, b in zip(*self.views(self.theta)):
            inputs.append(x)
            z = x @ W + b
            x = np.maximum(z, LEAK * z)                         # leaky ReLU
        return z, inputs                                        # none after the last layer

    def backward(self, dy, inputs, with_theta=True):
        """dy, of y's shape -> d_theta, dx (…, N, n_in).  Without with_theta, d_theta stays 0."""
        weights = self.weights
        d_theta = np.zeros_like(self.theta)
        d_weights, d_biases = self.views(d_theta)
        dz = dy
        for layer in reversed(range(len(weights))):
            x, W = inputs[layer], weights[layer]
            if with_theta:                                      # z = x W + b
                d_weights[layer][:] = x.swapaxes(-1, -2) @ dz
                d_biases[layer][:] = dz.sum(axis=-2, keepdims=True)
            dx = dz @ W.swapaxes(-1, -2)
            dz = np.where(x > 0, dx, LEAK * dx)                 # x = max(z, LEAK z) of below
        return d_theta, dx


class Adam:
    """Adam (Kingma & Ba 2015) on one vector theta, which step changes in place."""

    def __init__(self, theta, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
        self.theta = theta
        self.learning_rate = learning_rate
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.m = np.zeros_like(theta)
        self.v = np.zeros_like(theta)
        self.t = 0

    def step(self, d_theta):
        """Move theta against the gradient d_theta."""
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * d_theta
        self.v = self.beta2 * self.v + (1 - self.beta2) * d_theta * d_theta
        m_hat = self.m / (1 - self.beta1**self.t)
        v_hat = self.v / (1 - self.beta2**self.t)
        self.theta -= self.learning_rate * m_hat / (np.sqrt(v_hat) + self.epsilon)


# --- Environment and replay buffer ----------------------------------------------------------------

class Environment:
    """A Gymnasium environment, given itself or by its id, whose outputs are checked.

    Raises ValueError for spaces other than a flat Box of observations and a flat, bounded Box of
    float actions; FloatingPointError for an observation or a reward that is not finite.
    """

    def __init__(self, env):
        self.env = gym.make(env) if isinstance(env, str) else env
        obs, action = self.env.observation_space, self.env.action_space
        if not (isinstance(obs, gym.spaces.Box) and len(obs.shape) == 1):
            raise ValueError(f"observations must be a flat Box, of shape (n,), got {obs}")
        if not (isinstance(action, gym.spaces.Box) and len(action.shape) == 1
                and action.is_bounded() and action.dtype.kind == "f"):
            raise ValueError(f"actions must be a flat, bounded Box of floats, got {action}")
        self.obs_dim = obs.shape[0]
        self.low, self.high = action.low, action.high

    def reset(self, seed=None):
        """-> obs (obs_dim,)."""
        obs, _ = self.env.reset(seed=seed)
        return self.checked(obs)

    def step(self, action):
        """action (A,) -> obs (obs_dim,), reward (float), terminated, truncated (bool)."""
        obs, reward, terminated, truncated, _ = self.env.step(action.astype(self.low.dtype))
        reward = float(reward)
        check_finite("reward", reward)
        return self.checked(obs), reward, bool(terminated), bool(truncated)

    def checked(self, obs):
        """A float32 copy: the environment may write into its own array again."""
        obs = np.array(obs, np.float32)
        if obs.shape != (self.obs_dim,):
            raise ValueError(f"observations must have the shape {(self.obs_dim,)}, got {obs.shape}")
        check_finite("observation", obs)
        return obs


class ReplayBuffer:
    """The chapter's 𝒟: the last `capacity` transitions, a table with named columns."""

    def __init__(self, capacity, obs_dim, action_dim):
        self.rows = np.zeros(capacity, [("obs", "f4", (obs_dim,)), ("a", "f4", (action_dim,)),
                                        ("reward", "f4"), ("next_obs", "f4", (obs_dim,)),
                                        ("terminated", "f4")])
        self.added = 0

    def __len__(self):
        return min(self.added, len(self.rows))

    def add(self, obs, a, reward, next_obs, terminated):
        """Add a transition, in place of the oldest if full.  terminated: not for time limits."""
        self.rows[self.added % len(self.rows)] = obs, a, reward, next_obs, terminated
        self.added += 1

    def sample(self, batch_size, rng):
        """N rows, drawn with replacement.  -> obs, a, reward, next_obs, terminated."""
        batch = self.rows[rng.integers(0, len(self), batch_size)]
        return [batch[name] for name in batch.dtype.names]


# --- Soft Actor-Critic ----------------------------------------------------------------------------

def squashed_gaussian(mu, log_std, noise):
    """a = tanh(μ + σ·noise) and its log π(a).  mu, log_std, noise (N, A) -> a (N, A), (N,).

    log π(a) = Σ [log N(u; μ, σ) − log(1 − tanh² u)], because ∂a/∂u = 1 − tanh² u.  The last term
    is written as 2(log 2 − u − log(1 + e^{−2u})), which stays right where tanh u rounds to ±1.
    """
    u = mu + np.exp(log_std) * noise
    log_normal = -0.5 * noise * noise - log_std - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - u - np.logaddexp(0, -2 * u))     # log(1 − tanh² u)
    return np.tanh(u), (log_normal - log_slope).sum(axis=-1)


def squashed_gaussian_backward(da, d_log_prob, a, log_std, noise):
    """The chain rule back through squashed_gaussian, noise held fixed.  -> d_mu, d_log_std (N, A).

    da (N, A) is ∂Loss/∂a, and d_log_prob is ∂Loss/∂(log π), a number.
    """
    du = da * (1 - a * a) + d_log_prob * 2 * a          # a = tanh u; log π holds −log(1 − tanh² u)
    d_mu = du                                           # u = μ + σ·noise
    d_log_std = du * noise * np.exp(log_std) - d_log_prob           # and log π holds −log σ
    return d_mu, d_log_std


class SAC:
    """Soft Actor-Critic with two critics and a tuned temperature.

    Observations (obs_dim,) are taken as they are; best are numbers of order 1.  Actions reach from
    action_low to action_high (A,).  Source: Haarnoja et al. 2018, arXiv:1812.05905.
    """

    def __init__(self, obs_dim, action_low, action_high, settings=Settings(), seed=0,
                 dtype=np.float32):
        s = self.settings = settings
        self.low, self.high = np.array(action_low, float), np.array(action_high, float)
        self.obs_dim = obs_dim
        self.action_dim = A = len(self.low)
        self.dtype = np.dtype(dtype)
        self.rng = np.random.default_rng(seed)
        self.actor = MLP((obs_dim, *s.hidden, 2 * A), self.rng, dtype=dtype)
        self.critic = MLP((obs_dim + A, *s.hidden, 1), self.rng, 2, dtype)
        self.critic_target = copy.deepcopy(self.critic)
        self.log_alpha = np.array([math.log(s.alpha)])          # α = exp(log α) stays positive
        self.target_entropy = -A if s.target_entropy is None else s.target_entropy
        self.critic_adam = Adam(self.critic.theta, s.learning_rate)
        self.actor_adam = Adam(self.actor.theta, s.learning_rate)
        self.alpha_adam = Adam(self.log_alpha, s.learning_rate)

    @property
    def alpha(self):
        return math.exp(self.log_alpha[0])

    def act(self, obs, deterministic=False):
        """Action in the environment's units.  obs (obs_dim,) -> (A,), or (N, obs_dim) -> (N, A)."""
        obs = np.asarray(obs, self.dtype)
        a = self.sample(np.atleast_2d(obs), deterministic)                  # (N, A)
        return self.to_environment(a.reshape(*obs.shape[:-1], self.action_dim))

    def sample(self, obs, deterministic=False):
        """a in (−1, 1)^A, drawn from π, or tanh μ if deterministic.  obs (N, obs_dim) -> (N, A)."""
        mu, log_std, _ = self.policy(obs)
        if deterministic:
            return np.tanh(mu)
        return np.tanh(mu + np.exp(log_std) * self.rng.standard_normal(mu.shape, self.dtype))

    def to_environment(self, a):
        """From (−1, 1) to the environment's bounds."""
        return np.clip(self.low + (a + 1) / 2 * (self.high - self.low), self.low, self.high)

    def policy(self, obs):
        """μ, log σ (N, A), and the actor's cache.  obs (N, obs_dim)."""
        y, cache = self.actor.forward(obs)                                  # (N, 2A)
        mu, log_std = y[:, :self.action_dim], y[:, self.action_dim:]
        return mu, np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX), cache

    def q_values(self, critic, obs, a):
        """Q of both critics (2, N), and their cache."""
        Q, cache = critic.forward(np.concatenate((obs, a), axis=1))         # (2, N, 1)
        return Q[..., 0], cache

    def target(self, reward, next_obs, terminated, noise):
        """Eq. 19; after a terminal state there is no future, which the chapter leaves out.

        noise (N, A): standard normal, for the next action.  -> y (N,).
        """
        mu, log_std, _ = self.policy(next_obs)
        next_a, log_prob = squashed_gaussian(mu, log_std, noise)
        Q, _ = self.q_values(self.critic_target, next_obs, next_a)          # (2, N)
        V = np.minimum(Q[0], Q[1]) - self.alpha * log_prob      # Eq. 15, from a single action
        return reward + self.settings.gamma * (1 - terminated) * V          # Eq. 19 (target)

    def critic_loss(self, obs, a, y):
        """Eq. 18 summed over both critics, y held fixed.  -> loss, d_theta."""
        Q, cache = self.q_values(self.critic, obs, a)                       # (2, N)
        loss = np.mean((Q - y) ** 2, axis=1).sum()              # Eq. 18 (critic loss)
        dQ = 2 * (Q - y) / len(y)
        d_theta, _ = self.critic.backward(dQ[..., None], cache)
        return loss, d_theta

    def actor_loss(self, obs, noise):
        """Eq. 20, of the smaller critic, to be minimised.  -> loss, d_theta, log π (N,).

        noise (N, A): standard normal, for the action.  Averaged over it, each state contributes
        α KL(π ‖ exp(Q/α)/Z) − α log Z, Eq. 21: π is drawn towards the Boltzmann policy.
        """
        N = len(obs)
        mu, log_std, cache = self.policy(obs)
        a, log_prob = squashed_gaussian(mu, log_std, noise)
        Q, critic_cache = self.q_values(self.critic, obs, a)                # (2, N)
        Q_min = np.minimum(Q[0], Q[1])
        loss = np.mean(self.alpha * log_prob - Q_min)           # Eq. 20 (actor loss)

        smaller = Q.argmin(axis=0) == [[0], [1]]                # (2, N), one True in each column
        dQ = -smaller.astype(self.dtype) / N
        _, d_input = self.critic.backward(dQ[..., None], critic_cache, with_theta=False)
        da = d_input.sum(axis=0)[:, self.obs_dim:]              # both critics saw this a; (N, A)
        d_mu, d_log_std = squashed_gaussian_backward(da, self.alpha / N, a, log_std, noise)
        unclipped = (LOG_STD_MIN < log_std) & (log_std < LOG_STD_MAX)
        dy = np.concatenate((d_mu, d_log_std * unclipped), axis=1)          # (N, 2A)
        d_theta, _ = self.actor.backward(dy, cache)
        return loss, d_theta, log_prob

    def temperature_loss(self, log_prob):
        """Eq. 22, log π (N,) held fixed.  -> loss, d_log_alpha, which is the same number."""
        loss = -self.alpha * np.mean(log_prob + self.target_entropy)        # Eq. 22
        return loss, loss                                       # d(α c)/d log α = α c

    def update(self, batch):
        """One step of critics, actor, temperature and target networks, in this order.

        batch: obs, a, reward, next_obs, terminated.  -> dict of the losses, α and the entropy.
        Raises FloatingPointError if a loss is not finite.
        """
        obs, a, reward, next_obs, terminated = batch
        next_noise, noise = self.rng.standard_normal((2, *a.shape), self.dtype)

        y = self.target(reward, next_obs, terminated, next_noise)
        critic_loss, d_theta = self.critic_loss(obs, a, y)
        check_finite("critic's loss", critic_loss)
        self.critic_adam.step(d_theta)

        actor_loss, d_theta, log_prob = self.actor_loss(obs, noise)
        check_finite("actor's loss", actor_loss)
        self.actor_adam.step(d_theta)

        if self.settings.tune_alpha:
            _, d_log_alpha = self.temperature_loss(log_prob)
            self.alpha_adam.step(d_log_alpha)

        tau = self.settings.tau                                             # Polyak averaging:
        self.critic_target.theta += tau * (self.critic.theta - self.critic_target.theta)
        return {"critic_loss": float(critic_loss), "actor_loss": float(actor_loss),
                "alpha": self.alpha, "entropy": -float(log_prob.mean())}

    def set_learning_rate(self, progress):
        """On the straight line from the first learning rate to the final one, progress 0 to 1."""
        s = self.settings
        rate = (1 - progress) * s.learning_rate + progress * s.final_learning_rate
        for adam in (self.critic_adam, self.actor_adam, self.alpha_adam):
            adam.learning_rate = rate

    def save(self, path):
        """Write networks, α, bounds and settings to an .npz file; Adam's moments are not kept."""
        settings = json.dumps(asdict(self.settings), default=np.generic.item)
        with open(path, "wb") as file:
            np.savez(file, settings=settings, obs_dim=self.obs_dim, low=self.low, high=self.high,
                     log_alpha=self.log_alpha, actor=self.actor.theta, critic=self.critic.theta,
                     critic_target=self.critic_target.theta)

    @classmethod
    def load(cls, path):
        """The agent that save wrote.  Raises ValueError for a damaged file or another kind."""
        with open(path, "rb") as file:
            try:
                data = dict(np.load(file, allow_pickle=False))
                settings = json.loads(str(data["settings"]))
                settings["hidden"] = tuple(settings["hidden"])
                agent = cls(int(data["obs_dim"]), data["low"], data["high"], Settings(**settings),
                            dtype=data["actor"].dtype)
                for name in ("actor", "critic", "critic_target"):
                    getattr(agent, name).theta[:] = data[name]
                agent.log_alpha[:] = data["log_alpha"]
            except Exception as error:                  # a file can be damaged in many ways
                raise ValueError(f"{path} is not a file written by SAC.save ({error})") from None
        return agent


def check_finite(name, value):
    if not np.isfinite(value).all():
        raise FloatingPointError(f"the {name} is not finite: {value}")


# --- Training and evaluation ----------------------------------------------------------------------

def train(env, settings=Settings(), seed=0, n_steps=10_000, progress=None):
    """Train on an environment, an id or a gymnasium.Env, for n_steps steps.  -> agent, log.

    log holds arrays: per update "step", "critic_loss", "actor_loss", "alpha", "entropy"; per
    finished episode "episode_step", "episode_return", random actions included; "observations"
    (n, obs_dim).  If given, progress(step, agent, log) is called after every step, when log still
    holds lists.  To evaluate there, take a second environment.

    Ctrl-C ends the training and returns what was learned.  Raises ValueError for spaces that
    Environment refuses; FloatingPointError, which names the step, if a number is not finite.
    """
    s = settings
    if n_steps <= s.warmup:
        raise ValueError(f"n_steps must exceed the {s.warmup} steps of warm-up, got {n_steps}")
    env = Environment(env)
    agent = SAC(env.obs_dim, env.low, env.high, s, seed)
    buffer = ReplayBuffer(min(n_steps, s.buffer_size), env.obs_dim, agent.action_dim)
    log = {name: [] for name in ("step", "critic_loss", "actor_loss", "alpha", "entropy",
                                 "episode_step", "episode_return")}
    obs = env.reset(int(seed))
    episode_start, episode_return = 0, 0.0
    random_until = s.warmup
    try:
        for step in range(1, n_steps + 1):
            if step <= random_until:
                a = agent.rng.uniform(-1, 1, agent.action_dim)
            else:
                a = agent.sample(obs[None])[0]
            next_obs, reward, terminated, truncated = env.step(agent.to_environment(a))
            buffer.add(obs, a, reward, next_obs, terminated)
            obs = next_obs
            episode_return += reward

            if terminated or truncated:
                log["episode_step"].append(step)
                log["episode_return"].append(episode_return)
                most_random = int(s.random_share * (step - episode_start))
                random_until = max(s.warmup, step + agent.rng.integers(most_random + 1))
                obs = env.reset()
                episode_start, episode_return = step, 0.0

            if step > s.warmup:
                agent.set_learning_rate((step - s.warmup) / (n_steps - s.warmup))
                metrics = agent.update(buffer.sample(s.batch_size, agent.rng))
                log["step"].append(step)
                for name, value in metrics.items():
                    log[name].append(value)
            if progress:
                progress(step, agent, log)
    except KeyboardInterrupt:
        pass
    except FloatingPointError as error:
        raise FloatingPointError(f"training stopped at step {step}: {error}") from error
    log = {name: np.array(values) for name, values in log.items()}
    log["observations"] = buffer.rows["obs"][:len(buffer)].copy()
    return agent, log


def evaluate(agent, env, seeds, most_steps=100_000):
    """Undiscounted returns of one episode from each env.reset(seed=…), with a = tanh μ.

    seeds (n,) -> (n,).  Raises ValueError if the agent was made for other sizes or bounds, or if
    an episode does not end.
    """
    env = Environment(env)
    same_bounds = np.array_equal(env.low, agent.low) and np.array_equal(env.high, agent.high)
    if agent.obs_dim != env.obs_dim or not same_bounds:
        raise ValueError("the agent was made for another environment: it sees "
                         f"{agent.obs_dim} numbers and acts from {agent.low} to {agent.high}, not "
                         f"{env.obs_dim} and from {env.low} to {env.high}")
    returns = np.zeros(len(seeds))
    for i, seed in enumerate(seeds):
        obs = env.reset(int(seed))
        for _ in range(most_steps):
            action = agent.act(obs, deterministic=True)
            obs, reward, terminated, truncated = env.step(action)
            returns[i] += reward
            if terminated or truncated:
                break
        else:
            raise ValueError(f"an episode did not end within {most_steps} steps: limit it with "
                             "gymnasium.wrappers.TimeLimit")
    return returns


# --- Command line ---------------------------------------------------------------------------------

class ProgressLine:
    """A progress callback for train: keeps one line of the terminal up to date."""

    def __init__(self, n_steps):
        self.n_steps = n_steps
        self.start = time.monotonic()

    def __call__(self, step, agent, log):
        if step % 100 == 0 or step == self.n_steps:
            last = log["episode_return"][-1] if log["episode_return"] else math.nan
            text = (f"step {step}/{self.n_steps}, {time.monotonic() - self.start:.0f} s, alpha "
                    f"{agent.alpha:.3f}, last return {last:.1f} (with random actions)")
            print(f"\r{text:79.79}", end="", file=sys.stderr, flush=True)


def main():
    """Train, or load, an agent and evaluate it on 100 fixed starts."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--env", default="Pendulum-v1", help="id of a Gymnasium environment")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of training")
    parser.add_argument("--seed", type=int, default=0)
    file = parser.add_mutually_exclusive_group()
    file.add_argument("--save", metavar="FILE", help="write the trained agent, also after Ctrl-C")
    file.add_argument("--load", metavar="FILE", help="evaluate this agent instead of training one")
    args = parser.parse_args()
    try:
        if args.load:
            agent = SAC.load(args.load)
        else:
            if args.save:
                open(args.save, "ab").close()           # can it be written?  Better to know now
            agent, _ = train(args.env, seed=args.seed, n_steps=args.steps,
                             progress=ProgressLine(args.steps))
            print(file=sys.stderr)                      # ends the progress line
            if args.save:
                agent.save(args.save)
        returns = evaluate(agent, args.env, range(100))
    except (ValueError, FloatingPointError, OSError, gym.error.Error) as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"mean return over 100 episodes from reset(seed=0..99): {returns.mean():.1f} "
          f"(standard deviation {returns.std():.1f})")


if __name__ == "__main__":
    main()
