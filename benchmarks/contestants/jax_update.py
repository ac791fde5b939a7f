"""JAX: the whole update, from drawing problems to Adam, is one compiled function.

Acting and learning share one forward pass. Weights and the moments of Adam are donated, so that they are updated
in place.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from benchmarks.contestants.contestant import (
    ACTIONS,
    ENTROPY_WEIGHT,
    LARGEST_NORM,
    LEARNING_RATE,
    OPERANDS,
    SHOWN,
    VALUE_WEIGHT,
    VOCABULARY,
    Contestant,
    Weights,
    initial_weights,
)
from toolagent_pl.tokens import Token

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # of Adam
CTX, MUL, ADD, SUB, ANS, STO, RCL = (
    int(token) for token in (Token.CTX, Token.MUL, Token.ADD, Token.SUB, Token.ANS, Token.STO, Token.RCL)
)
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


def make(batch: int, stage: int, seed: int, d: int = 96) -> "JaxUpdate":
    """Build the contestant."""
    return JaxUpdate(batch, stage, seed, d)


class Machine(NamedTuple):
    """State of the tutorial's machine, each ``[B]``."""

    value: Array
    valued: Array
    stored: Array
    answered: Array


def machine_step(machine: Machine, operands: Array, stage: Array, action: Array) -> Machine:
    """Carry out one action for each problem."""
    a, b, c, d, e = operands.T
    value, valued, stored, answered = machine
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
    return Machine(value, valued | multiply | recall, stored | (running & (action == STO)), answered | (action == ANS))


def rewards(machine: Machine, operands: Array, stage: Array) -> Array:
    """Reward of each episode."""
    a, b, c, d, e = operands.T
    total = a * b + c
    goals = jnp.stack([a * b, total, total - d, d * e, total - d * e], 1)
    reached = (goals == machine.value[:, None]) & (machine.answered & machine.valued)[:, None]
    return (reached * jnp.asarray(PAID)[stage]).sum(1)


def loss_of_episodes(
    weights: Parameters, operands: Array, stage: Array, shown: int, given: Array, choose: Choose
) -> tuple[Array, Array]:
    """Loss and mean reward.

    Args:
        operands: int32 ``[B, 5]``.
        stage: int32 ``[B]``.
        shown: How many operands the network sees.
        given: ``[T, B]``, what ``choose`` gets at each step beside the log-probabilities.
        choose: Makes actions ``[B]`` from log-probabilities ``[B, 18]`` and ``given[t]``.
    """
    batch = len(operands)
    d = weights["embedding"].shape[1]
    count = (operands[:, :shown, None] == jnp.arange(VOCABULARY)).sum((0, 1)).at[CTX].add(batch)
    context = (count / (batch * (shown + 1))) @ weights["embedding"]
    hidden = jnp.tanh(context + jnp.eye(3)[stage] @ weights["stage"])
    table = weights["embedding"] @ weights["gru_input"].T + weights["gru_input_bias"]  # [18, 3d]
    heads = jnp.concatenate([weights["policy"], weights["value"]])
    head_biases = jnp.concatenate([weights["policy_bias"], weights["value_bias"]])

    def step(carry: tuple[Array, Array, Machine], given: Array) -> tuple[Any, Any]:
        hidden, heard, machine = carry
        inputs = table[heard]
        gates = hidden @ weights["gru_hidden"].T + weights["gru_hidden_bias"]
        both = jax.nn.sigmoid(inputs[:, : 2 * d] + gates[:, : 2 * d])
        reset, keep = both[:, :d], both[:, d:]
        new = jnp.tanh(inputs[:, 2 * d :] + reset * gates[:, 2 * d :])
        hidden = new + keep * (hidden - new)
        out = hidden @ heads.T + head_biases
        log_policy = jax.nn.log_softmax(out[:, :VOCABULARY])
        action = choose(lax.stop_gradient(log_policy), given)
        machine = machine_step(machine, operands, stage, action)
        chosen = jnp.take_along_axis(log_policy, action[:, None], 1)[:, 0]
        entropy = -(jnp.exp(log_policy) * log_policy).sum(1)
        return (hidden, action, machine), (chosen, entropy, out[:, VOCABULARY])

    no = jnp.zeros(batch, bool)
    start = (hidden, jnp.full(batch, CTX), Machine(jnp.zeros(batch, jnp.int32), no, no, no))
    (_, _, machine), (chosen, entropy, values) = lax.scan(step, start, given, unroll=ACTIONS)
    reward = rewards(machine, operands, stage)
    baseline = values.sum(0)
    policy_loss = -(chosen.sum(0) * lax.stop_gradient(reward - baseline)).mean()
    value_loss = jnp.square(baseline - reward).mean()
    return policy_loss + VALUE_WEIGHT * value_loss - ENTROPY_WEIGHT * entropy.mean(), reward.mean()


def sample(log_policy: Array, noise: Array) -> Array:
    """How many cumulated probabilities lie below the noise."""
    cumulated = jnp.exp(log_policy) @ jnp.triu(jnp.ones((VOCABULARY, VOCABULARY - 1)))  # faster than cumsum
    return (cumulated < noise[:, None]).sum(1)


def clipped_adam(
    weights: Parameters, first: Parameters, second: Parameters, gradients: Parameters, updates: Array
) -> tuple[Parameters, Parameters, Parameters]:
    """Weights and both moments after update number ``updates``, from 1."""
    norm = jnp.sqrt(sum(jnp.square(gradient).sum() for gradient in gradients.values()))
    scale = jnp.minimum(1.0, LARGEST_NORM / (norm + 1e-6))
    correct_1, correct_2 = 1 - BETA_1**updates, 1 - BETA_2**updates
    new: tuple[Parameters, Parameters, Parameters] = ({}, {}, {})
    for name, gradient in gradients.items():
        gradient = gradient * scale
        m = BETA_1 * first[name] + (1 - BETA_1) * gradient
        v = BETA_2 * second[name] + (1 - BETA_2) * jnp.square(gradient)
        step = LEARNING_RATE / correct_1 * m / (jnp.sqrt(v / correct_2) + EPSILON)
        new[0][name], new[1][name], new[2][name] = weights[name] - step, m, v
    return new


@partial(jax.jit, static_argnames="shown", donate_argnames="state")
def update(state: dict[str, Any], stage: Array, shown: int) -> tuple[dict[str, Any], Array, Array]:
    """One whole update: the new state, mean reward and loss."""
    key, problem_key, noise_key = jax.random.split(state["key"], 3)
    operands = jax.random.randint(problem_key, (len(stage), OPERANDS), 0, 10)
    noise = jax.random.uniform(noise_key, (ACTIONS, len(stage)))
    (loss, reward), gradients = jax.value_and_grad(loss_of_episodes, has_aux=True)(
        state["weights"], operands, stage, shown, noise, sample
    )
    updates = state["updates"] + 1
    weights, first, second = clipped_adam(state["weights"], state["first"], state["second"], gradients, updates)
    return {"weights": weights, "first": first, "second": second, "updates": updates, "key": key}, reward, loss


class JaxUpdate(Contestant):
    """The whole update is one compiled function."""

    def __init__(self, batch: int, stage: int, seed: int, d: int) -> None:
        self.shown = SHOWN[stage]
        self.stage = jnp.full(batch, stage)
        weights = jax.tree.map(jnp.array, initial_weights(d, seed))
        zeros = jax.tree.map(jnp.zeros_like, weights)
        self.state = {
            "weights": weights,
            "first": zeros,
            "second": jax.tree.map(jnp.zeros_like, weights),
            "updates": jnp.zeros((), jnp.int32),
            "key": jax.random.key(seed),
        }

    def load(self, weights: Weights) -> None:
        """Take over these weights."""
        self.state["weights"] = jax.tree.map(jnp.array, dict(weights))

    def update(self) -> tuple[Array, Array]:
        """Do one whole update."""
        self.state, reward, loss = update(self.state, self.stage, self.shown)
        return reward, loss

    def loss_and_gradients(self, operands: np.ndarray, actions: np.ndarray) -> tuple[float, Weights]:
        """Loss of given episodes and its gradients."""
        graded = jax.value_and_grad(loss_of_episodes, has_aux=True)
        (loss, _), gradients = jax.jit(graded, static_argnames=("shown", "choose"))(
            self.state["weights"],
            jnp.asarray(operands, jnp.int32),
            jnp.broadcast_to(self.stage[:1], len(operands)),
            shown=self.shown,
            given=jnp.asarray(actions.T, jnp.int32),
            choose=lambda _, action: action,
        )
        return float(loss), jax.tree.map(np.asarray, gradients)
