"""JAX: the whole update, from drawing problems to Adam, is one compiled function, with one forward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.example_libraries import optimizers

from benchmarks.contestants import contestant
from benchmarks.contestants.contestant import ACTIONS, ADD, ANS, CTX, MUL, RCL, STO, SUB, VOCABULARY, Weights

# Share of each goal a*b, a*b+c, a*b+c-d, d*e, a*b+c-d*e in the reward, by stage; the graded goal has 1 more.
PAID = np.array(
    [
        [1 + 0.2 * 0.25, 0.2 * 0.5, 0, 0, 0],
        [0.2 * 0.25, 1 + 0.2 * 0.5, 0.2 * 0.75, 0, 0],
        [0.2 * 0.2, 0.2 * 0.4, 1, 0.2 * 0.6, 0.2 * 0.6],
    ],
    dtype=np.float32,
)

Parameters = dict[str, Array]
Choose = Callable[[Array, Array], Array]
ADAM = optimizers.adam(contestant.LEARNING_RATE)


class State(NamedTuple):
    """State of the tutorial's environment, each ``[B]``."""

    value: Array
    valued: Array
    stored: Array
    answered: Array


def env_step(state: State, operands: Array, stage: Array, action: Array) -> State:
    """Carry out one action for each problem."""
    a, b, c, d, e = operands.T
    value, valued, stored, answered = state
    running = ~answered
    later = stage > 0
    swapped = stored & (stage == 2)
    multiply = running & (action == MUL)
    recall = running & stored & (action == RCL)
    work = running & valued
    product = jnp.where(valued, value * jnp.where(later, d, 1), a * b)
    less = value - jnp.where(swapped, e, jnp.where(later, d, 0))
    value = jnp.where(work & (action == ADD), value + c, value)
    value = jnp.where(work & (action == SUB), less, value)
    value = jnp.where(multiply, product, value)
    value = jnp.where(recall & swapped, d * e, value)  # an empty value is 0 already
    return State(value, valued | multiply | recall, stored | (running & (action == STO)), answered | (action == ANS))


def rewards(state: State, operands: Array, stage: Array) -> Array:
    """Reward of each episode."""
    a, b, c, d, e = operands.T
    total = a * b + c
    goals = jnp.stack([a * b, total, total - d, d * e, total - d * e], 1)
    reached = (goals == state.value[:, None]) & (state.answered & state.valued)[:, None]
    return (reached * jnp.asarray(PAID)[stage]).sum(1)


def loss_of_episodes(
    weights: Parameters, operands: Array, stage: Array, shown: int, given: Array, choose: Choose
) -> tuple[Array, Array]:
    """Loss and mean reward; ``choose`` makes actions ``[B]`` from log-probabilities ``[B, 18]`` and ``given[t]``."""
    batch = len(operands)
    d = weights["embedding"].shape[1]
    count = (operands[:, :shown, None] == jnp.arange(VOCABULARY)).sum((0, 1)).at[CTX].add(batch)
    context = (count / (batch * (shown + 1))) @ weights["embedding"]
    hidden = jnp.tanh(context + jnp.eye(3)[stage] @ weights["stage"])
    table = weights["embedding"] @ weights["gru_input"].T + weights["gru_input_bias"]  # [18, 3d]
    heads = jnp.concatenate([weights["policy"], weights["value"]])
    head_biases = jnp.concatenate([weights["policy_bias"], weights["value_bias"]])

    def step(carry: tuple[Array, Array, State], given: Array) -> tuple[Any, Any]:
        hidden, heard, state = carry
        inputs = table[heard]
        gates = hidden @ weights["gru_hidden"].T + weights["gru_hidden_bias"]
        both = jax.nn.sigmoid(inputs[:, : 2 * d] + gates[:, : 2 * d])
        reset, keep = both[:, :d], both[:, d:]
        new = jnp.tanh(inputs[:, 2 * d :] + reset * gates[:, 2 * d :])
        hidden = new + keep * (hidden - new)
        out = hidden @ heads.T + head_biases
        log_policy = jax.nn.log_softmax(out[:, :VOCABULARY])
        action = choose(lax.stop_gradient(log_policy), given)
        state = env_step(state, operands, stage, action)
        chosen = jnp.take_along_axis(log_policy, action[:, None], 1)[:, 0]
        entropy = -(jnp.exp(log_policy) * log_policy).sum(1)
        return (hidden, action, state), (chosen, entropy, out[:, VOCABULARY])

    no = jnp.zeros(batch, bool)
    start = (hidden, jnp.full(batch, CTX), State(jnp.zeros(batch, jnp.int32), no, no, no))
    (_, _, state), (chosen, entropy, values) = lax.scan(step, start, given, unroll=ACTIONS)
    reward = rewards(state, operands, stage)
    baseline = values.sum(0)
    policy_loss = -(chosen.sum(0) * lax.stop_gradient(reward - baseline)).mean()
    value_loss = jnp.square(baseline - reward).mean()
    return policy_loss + contestant.VF_COEF * value_loss - contestant.ENT_COEF * entropy.mean(), reward.mean()


def sample(log_policy: Array, noise: Array) -> Array:
    """How many cumulated probabilities lie below the noise."""
    cumulated = jnp.exp(log_policy) @ jnp.triu(jnp.ones((VOCABULARY, VOCABULARY - 1)))  # faster than cumsum
    return (cumulated < noise[:, None]).sum(1)


@partial(jax.jit, static_argnames="shown", donate_argnames="state")
def update(state: Any, updates: Array, key: Array, stage: Array, shown: int) -> tuple[Any, Array]:
    """One whole update: the new state of the optimizer, and the loss."""
    problem_key, noise_key = jax.random.split(jax.random.fold_in(key, updates))
    operands = jax.random.randint(problem_key, (len(stage), contestant.OPERANDS), 0, 10)
    noise = jax.random.uniform(noise_key, (ACTIONS, len(stage)))
    graded = jax.value_and_grad(loss_of_episodes, has_aux=True)
    (loss, _), gradients = graded(ADAM.params_fn(state), operands, stage, shown, noise, sample)
    return ADAM.update_fn(updates, optimizers.clip_grads(gradients, contestant.LARGEST_NORM), state), loss


class Update(contestant.Contestant):
    """The whole update is one compiled function."""

    def __init__(self, batch: int, stage: int, seed: int, d: int) -> None:
        self.shown, self.key, self.updates = contestant.SHOWN[stage], jax.random.key(seed), 0
        self.stage = jnp.full(batch, stage)
        self.load(contestant.initial_weights(d, seed))

    def load(self, weights: Weights) -> None:
        """Take over these weights."""
        self.state = ADAM.init_fn(jax.tree.map(jnp.array, dict(weights)))

    def update(self) -> Array:
        """Do one whole update."""
        self.state, loss = update(self.state, self.updates, self.key, self.stage, self.shown)
        self.updates += 1
        self.actions += len(self.stage) * ACTIONS
        return loss

    def _graded(self, operands: np.ndarray, given: Array, choose: Choose) -> Any:
        """Loss and mean reward, and gradients."""
        graded = jax.jit(jax.value_and_grad(loss_of_episodes, has_aux=True), static_argnums=(3, 5))
        stage = jnp.broadcast_to(self.stage[:1], len(operands))
        return graded(ADAM.params_fn(self.state), jnp.asarray(operands), stage, self.shown, given, choose)

    def loss_and_gradients(self, operands: np.ndarray, actions: np.ndarray) -> tuple[float, Weights]:
        """Loss of given episodes and its gradients."""
        (loss, _), gradients = self._graded(operands, jnp.asarray(actions.T, jnp.int32), lambda _, action: action)
        return float(loss), jax.tree.map(np.asarray, gradients)

    def mean_reward(self, operands: np.ndarray) -> float:
        """Mean reward of actions that it draws itself."""
        noise = jax.random.uniform(self.key, (ACTIONS, len(operands)))
        return float(self._graded(operands, noise, sample)[0][1])
