"""JAX: reader, calculator and PPO as one compiled function, in the manner of PureJaxRL (Lu et al., 2022).

It has less to do than this project: its problems lie ready-made in a pool, numbers have 32 bits, and all shapes are
fixed. It takes nine steps with every problem, about what episodes take on average; what goes on for longer ends there
as failed. The calculator's rules are this project's transition table.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import torch
from jax import Array, lax

from benchmarks.bare import DEFAULT_RUN, STEADY_RATE, steps_of, trained_reader
from toolagent_pl import Problems, ToolAgent
from toolagent_pl.envs.calculator.reader import STEEP
from toolagent_pl.envs.calculator.registers import ACCUMULATOR, COPY, POSITION, VALUE
from toolagent_pl.envs.calculator.tools import Token
from toolagent_pl.rl.env import PADDING
from toolagent_pl.training.stream import ProblemStream

POOL = 2**15  # problems
BALANCE = 1.0  # the reader's
PPO, RATE, BETAS = DEFAULT_RUN["algorithm"], STEADY_RATE, DEFAULT_RUN["betas"]
DECAY = DEFAULT_RUN["weight_decay"]

Weights = dict[str, Array]
State = tuple[Weights, Weights, Weights]  # weights, and Adam's averages of the gradients and of their squares


class Task(NamedTuple):
    """Problems, and the state of their episodes before the first step; ``inside`` says which numbers there are."""

    prompt: Array
    prompt_length: Array
    inside: Array
    registers: Array
    control: Array
    target: Array


class Rules(NamedTuple):
    """Transitions and reports of the calculator, the action ANS, and tokens of multiply, add and subtract."""

    transitions: Array
    reports: Array
    answer: Array
    tools: Array


class Steps(NamedTuple):
    """A record of episodes, ``[T, B, ...]`` each; ``seen`` are the numbers that stand at the reported positions."""

    seen: Array
    present: Array
    flags: Array
    action: Array
    mask: Array
    log_prob: Array
    value: Array


def task_of(module: ToolAgent, problems: Problems) -> tuple[Task, Rules]:
    """What JAX is told of problems."""
    state, width = module.env.reset(problems), problems.operands.shape[1]
    transitions, reports = module.env.tables(width, problems.device)
    transitions = transitions[:, [0, 1, 2, 3, 5, 7]]  # of a register, only where its value is
    transitions[:, 2:5] //= 2
    reports = reports[:: 1 + len(module.env.actions)]  # one for each control state
    inside = torch.arange(width) < problems.length[:, None]
    told = (problems.prompt, problems.prompt_length, inside, state.registers, state.control, problems.target)
    answer = torch.tensor(module.env.tokens.index(Token.ANS))
    rules = (transitions, reports, answer, torch.tensor(module.env.vocabulary.operators))
    task, rest = ([jnp.asarray(x.int().numpy()) for x in part] for part in (told, rules))
    return Task(*task), Rules(*rest)


def weights_of(module: ToolAgent) -> Weights:
    """The reader's weights, by their names."""
    return {name: jnp.asarray(weight.numpy()) for name, weight in module.agent.state_dict().items()}


def linear(weights: Weights, name: str, x: Array) -> Array:
    """A layer."""
    product = x @ weights[f"{name}.weight"].T
    return product + weights[f"{name}.bias"] if f"{name}.bias" in weights else product


def count(task: Task, vocabulary: int) -> tuple[Array, Array]:
    """Tokens in each gap between numbers, ``[B, N + 1, V]``, and the number that each token belongs to."""
    digit = task.prompt <= Token.D9
    last = digit & ~jnp.pad(digit[:, 1:], ((0, 0), (0, 1)))
    number = jnp.pad(last[:, :-1].cumsum(1), ((0, 0), (1, 0)))
    counted = ~digit & (jnp.arange(digit.shape[1]) < task.prompt_length[:, None])
    size, numbers = task.inside.shape
    gaps = jnp.zeros((size, numbers + 1, vocabulary))
    return gaps.at[jnp.arange(size)[:, None], number, task.prompt].add(counted), number


def encode(weights: Weights, gaps: Array, before: Array, inside: Array) -> Array:
    """All numbers, and zeros behind them, ``[B, N + 1, S + d]``; ``before`` are the sums of the gaps so far."""
    behind = jnp.pad(gaps[:, 1:], ((0, 0), (0, 1), (0, 0))) @ weights["count"]
    scores = before @ (STEEP * weights["depth"]) + linear(weights, "score", behind)
    change = scores[:, 1:] - scores[:, :-1] + weights["change_bias"]
    symbols = jnp.tanh(linear(weights, "symbol", jnp.minimum(gaps[:, 1:], 1) @ weights["count"]))
    encoded = jnp.concatenate([scores[:, :-1], symbols, jnp.tanh(change)], 2) * inside[..., None]
    return jnp.pad(encoded, ((0, 0), (0, 1), (0, 0)))


def decide(weights: Weights, looked: Array, present: Array, flags: Array) -> tuple[Array, Array]:
    """Log-policy ``[..., A]`` and value, from what stands at the reported positions, ``[..., P, S + d]``."""
    scores = weights["change_bias"].shape[0]
    score, bounded = looked[..., :scores], looked[..., scores:]
    both = (present[..., 1:] * present[..., :-1])[..., None]
    compared = jnp.tanh(score[..., 1:, :] - score[..., :-1, :] + weights["pair_bias"]) * both
    flat = (*looked.shape[:-2], -1)
    seen = jnp.concatenate([bounded.reshape(flat), compared.reshape(flat), present, flags], -1)
    hidden = linear(weights, "look", seen)
    width = weights["mix.bias"].shape[0]
    actor = jax.nn.relu(linear(weights, "mix", jax.nn.relu(hidden[..., :width])))
    critic = jax.nn.relu(hidden[..., width:] + linear(weights, "level", score.reshape(flat)))
    return jax.nn.log_softmax(linear(weights, "policy", actor)), linear(weights, "value", critic)[..., 0]


def looked_at(encoded: Array, seen: Array) -> Array:
    """The numbers ``seen``, ``[..., B, P]``, of each problem."""
    return encoded[jnp.arange(len(encoded))[:, None], seen]


def act(weights: Weights, encoded: Array, number: Array, task: Task, rules: Rules, noise: Array) -> tuple[Any, Array]:
    """Episodes: their steps, and which were solved."""
    pairs = len(rules.transitions) // len(rules.reports)
    rows, register = jnp.arange(len(number)), jnp.arange(task.registers.shape[1])
    none = task.inside.shape[1]

    def step(carry: tuple[Array, ...], noise: Array) -> tuple[Any, Steps]:
        registers, control, over, applied, _ = carry
        report = rules.reports[control // pairs]
        flags = jnp.concatenate([report[:, :3], applied[:, None]], 1).astype(jnp.float32)
        positions = registers[rows[:, None], report[:, 3:], POSITION]
        seen = jnp.where(positions >= 0, number[rows[:, None], positions], none)
        present = (positions >= 0).astype(jnp.float32)
        log_policy, value = decide(weights, looked_at(encoded, seen), present, flags)
        below = jnp.exp(log_policy).cumsum(1)[:, :-1]
        action = (noise[:, None] > below).sum(1)
        log_prob = jnp.take_along_axis(log_policy, action[:, None], 1)[:, 0]
        called = jnp.where(over, PADDING, action)
        control, tool, left, right, target, noops = rules.transitions[control + called].T
        left, right = registers[rows, left], registers[rows, right]
        a, b = left[:, VALUE], right[:, VALUE]
        result = jnp.select([tool == one for one in rules.tools], [a * b, a + b, a - b], a)
        written = jnp.stack([result, jnp.where(tool == COPY, left[:, POSITION], right[:, POSITION])], 1)
        registers = jnp.where((register == target[:, None])[..., None], written[:, None], registers)
        answered = called == rules.answer
        right_answer = (registers[:, ACCUMULATOR, VALUE] == task.target) & (control < 2 * pairs)
        solved = answered & right_answer & (control // pairs % 2 == 1)
        taken = Steps(seen, present, flags, action, ~over, log_prob, value)
        return (registers, control, over | answered, jnp.where(over, applied, noops == 0), carry[4] | solved), taken

    no = jnp.zeros(len(number), bool)
    (*_, solved), steps = lax.scan(step, (task.registers, task.control, no, ~no, no), noise)
    return steps, solved


def ppo_loss(weights: Weights, told: tuple[Array, ...], steps: Steps, advantages: Array, returns: Array) -> Array:
    """The loss of a minibatch, as ``toolagent_pl.rl.ppo.PPO`` has it, and the reader's auxiliary loss."""
    log_policy, value = decide(weights, looked_at(encode(weights, *told), steps.seen), steps.present, steps.flags)
    log_prob = jnp.take_along_axis(log_policy, steps.action[..., None], -1)[..., 0]
    ratio = jnp.exp(jnp.where(steps.mask, log_prob - steps.log_prob, 0))
    clipped = jnp.clip(ratio, 1 - PPO.clip_range, 1 + PPO.clip_range)
    policy = -jnp.minimum(ratio * advantages, clipped * advantages)
    entropy = -(jnp.exp(log_policy) * log_policy).sum(-1)
    loss = policy + (PPO.vf_coef * jnp.square(returns - value) - PPO.ent_coef * entropy)
    _, before, _ = told
    own = BALANCE * jnp.square(before[:, -1] @ (STEEP * weights["depth"])).sum()
    return ((loss * steps.mask).sum() + own) / steps.mask.sum()


def optimized(state: State, gradients: Weights, updates: Array) -> State:
    """Clipped gradients, and AdamW."""
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in gradients.values()))
    scale = jnp.minimum(1, 1 / norm)
    weights, first, second = state
    first = jax.tree.map(lambda m, g: BETAS[0] * m + (1 - BETAS[0]) * scale * g, first, gradients)
    second = jax.tree.map(lambda v, g: BETAS[1] * v + (1 - BETAS[1]) * jnp.square(scale * g), second, gradients)
    left = [1 - beta ** (updates + 1.0) for beta in BETAS]

    def moved(name: str) -> Array:
        kept = 1 - RATE * DECAY if name.endswith(".weight") else 1.0  # of linear layers
        return kept * weights[name] - RATE * first[name] / left[0] / (jnp.sqrt(second[name] / left[1]) + 1e-8)

    return {name: moved(name) for name in weights}, first, second


@partial(jax.jit, static_argnames=("batch", "length"), donate_argnames="state")
def update(
    state: State, updates: Array, key: Array, pool: Task, rules: Rules, batch: int, length: int
) -> tuple[State, Array]:
    """One whole update: the new weights with the state of Adam, and the loss of the last minibatch."""
    drawn, acted, shuffled = jax.random.split(jax.random.fold_in(key, updates), 3)
    chosen = jax.random.randint(drawn, (batch,), 0, len(pool.target))
    task = Task(*(x[chosen] for x in pool))
    gaps, number = count(task, len(state[0]["count"]))
    told = gaps, gaps.cumsum(1), task.inside
    steps, solved = act(
        state[0], encode(state[0], *told), number, task, rules, jax.random.uniform(acted, (length, batch))
    )
    returns = solved * steps.mask
    gained = (returns - steps.value) * steps.mask
    taken = steps.mask.sum()
    mean = gained.sum() / taken
    deviation = jnp.sqrt(jnp.maximum(jnp.square(gained).sum() / taken - mean**2, 0))
    advantages = (gained - mean) / (deviation + 1e-8)
    for i, rows in enumerate(jnp.split(jax.random.permutation(shuffled, batch), PPO.minibatches)):
        part = Steps(*(x[:, rows] for x in steps))
        given = tuple(x[rows] for x in told), part, advantages[:, rows], returns[:, rows]
        loss, gradients = jax.value_and_grad(ppo_loss)(state[0], *given)
        state = optimized(state, gradients, updates * PPO.minibatches + i)
    return state, loss


class Update:
    """The whole update is one compiled function."""

    def __init__(self, batch: int, stage: str, width: int) -> None:
        module, self.length = trained_reader(stage, width), steps_of(stage)
        self.pool, self.rules = task_of(module, ProblemStream(module.env, 0, POOL, batches=1).batch(0))
        weights = weights_of(module)
        self.state: State = (weights, *(jax.tree.map(jnp.zeros_like, weights) for _ in range(2)))
        self.batch, self.key, self.updates, self.actions = batch, jax.random.key(0), 0, 0

    def update(self) -> Array:
        """Do one whole update."""
        self.state, loss = update(self.state, self.updates, self.key, self.pool, self.rules, self.batch, self.length)
        self.updates += 1
        self.actions += self.batch * self.length
        return loss
