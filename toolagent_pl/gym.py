"""The calculator for Gymnasium: ``toolagent_pl/Calculator-v0``, one environment or a batch of them.

To import this module registers it. A batch is stepped in the tensors that ``fit`` uses, a single environment in plain
Python. ``CalculatorTask`` is what both have in common; ``VectorTask`` knows nothing of calculators.
"""

import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

try:
    import gymnasium
    from gymnasium import spaces
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError:
    raise ImportError("toolagent_pl.gym: needs Gymnasium, pip install 'toolagent_pl[gym]'") from None
import numpy as np

from toolagent_pl.agents import Rollout
from toolagent_pl.drawing import draw
from toolagent_pl.envs import CalculatorEnv, Observation, execute
from toolagent_pl.envs.env import Feedback
from toolagent_pl.envs.registers import RegisterState
from toolagent_pl.envs.single import Operand, SingleCalculator
from toolagent_pl.episodes import episodes
from toolagent_pl.problems import Problems, Stage, Stages
from toolagent_pl.randomness import Purpose, random_below, random_bits
from toolagent_pl.tools import PADDING, TOOLS, Token, Tool, find_tools

ID = "toolagent_pl/Calculator-v0"
METADATA: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 2}
BITS_OF_NUMBERS = 55  # of problems; those of an environment's sequence follow one another from anywhere among them
LARGEST_SEED = 2**62
PROBLEMS_AT_ONCE = 128  # that a single environment makes: one alone takes nearly as long
Arrays = dict[str, np.ndarray]
Stated = Sequence[str | Stage | Mapping[str, Any]]


@contextmanager
def _arguments() -> Iterator[None]:
    """Errors name arguments, not the options of the command line that they belong to."""
    try:
        yield
    except ValueError as error:
        raise ValueError(re.sub(r"^(?:[a-z_]+\.)+(?=[a-z_]+: )", "", str(error))) from None


def _first_number(seed: Tensor) -> Tensor:
    """The number of the problem that a sequence begins with, for each seed."""
    return random_bits(0, Purpose.EPISODE, seed % LARGEST_SEED, bits=BITS_OF_NUMBERS)


class CalculatorTask:
    """Problems, spaces and pictures of the calculator.

    Args:
        stages: That problems are drawn from, each as likely as the others: names, stages, or their arguments.
        feedback: What the tools report: ``none``, ``flags``, ``position`` or ``spans``.
        max_steps: Actions after which an episode is truncated; ``auto`` for three an operator and three more.
        memory_depth: Most values in memory.
        tools: What expressions are made of: tools, or their names.
        held_out: Draw from the tenth of all problems that is never drawn without it.

    Attributes:
        env: The environment, an ``Env``.
        tokens: int64 ``[A]``, token of each action.
        action_names: Names of the actions, in order.
        horizon: Most actions of an episode.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        stages: Stated = ("T0", "T1", "T2"),
        *,
        feedback: Feedback = "spans",
        max_steps: int | Literal["auto"] = "auto",
        memory_depth: int = 8,
        tools: Sequence[str | Tool] = TOOLS,
        held_out: bool = False,
    ) -> None:
        self._held_out = held_out
        with _arguments():
            found = find_tools(tools)
            self.env = CalculatorEnv(max_steps, memory_depth, feedback, found)
            self._stages = Stages(stages, found)
            vocabulary = self.env.vocabulary
            self.env.check(self._stages, vocabulary.actions)
            self.horizon = self.env.horizon(self.draw(torch.zeros(1, dtype=torch.int64)))
        self.action_names = tuple(vocabulary.name(token) for token in vocabulary.actions)
        self.tokens = torch.tensor(vocabulary.actions)
        parts: dict[str, spaces.Space[Any]] = {
            "prompt": spaces.MultiDiscrete([vocabulary.size] * self.width),
            "prompt_length": spaces.Discrete(self.width + 1),
            "previous": spaces.Discrete(len(self.tokens) + 1),
        }
        if self.env.flags:
            parts["flags"] = spaces.MultiBinary(self.env.flags)
        if self.env.places:
            parts["places"] = spaces.MultiDiscrete([self.width + 1] * self.env.places)
        self.observation_space = spaces.Dict(parts)

    @property
    def width(self) -> int:
        """Tokens of the longest prompt."""
        return self._stages.longest_prompt

    def draw(self, number: Tensor) -> Problems:
        """Problems of these numbers, their prompts padded to the width of all."""
        stage = random_below(0, Purpose.STAGE, number, torch.tensor(len(self._stages)))
        problems = self._stages.draw(number, stage, 0, Purpose.PROBLEM, held_out=self._held_out)
        short = self.width - problems.prompt.shape[1]
        return problems._replace(prompt=torch.nn.functional.pad(problems.prompt, (0, short), value=int(Token.EOS)))

    def observe(self, problems: Problems, state: RegisterState, previous: Tensor) -> dict[str, Tensor]:
        """Observations, a row for each environment.

        Args:
            previous: int64 ``[N]``, the actions before.
        """
        flags, places = self.env.observe(state)
        observation = {"prompt": problems.prompt, "prompt_length": problems.prompt_length, "previous": previous}
        if self.env.flags:
            observation["flags"] = flags.to(torch.int8)
        if self.env.places:
            observation["places"] = places.masked_fill(places.lt(0), self.width)
        return observation

    def mask(self, state: RegisterState) -> Tensor:
        """Which actions would do something, bool ``[N, A]``."""
        return self.env.applies(state, self.tokens)

    def solved(self, state: RegisterState) -> Tensor:
        """Whether the problems have been solved, bool ``[N]``."""
        return self.env.outcome(state).correct

    def texts(self, problems: Problems, calls: Tensor) -> list[str]:
        """Episodes under way.

        Args:
            calls: int64 ``[N, horizon + 1]``, their tokens, ``PADDING`` behind them.
        """
        rollout, state = self._record(problems, calls)
        places, over = self.env.observe(state).places.tolist(), (state.terminated | state.truncated).tolist()
        return [
            draw(episode.expression, episode, self.env.vocabulary, next_places=None if ended else now)
            for episode, now, ended in zip(episodes(rollout, self.env), places, over, strict=True)
        ]

    def pictures(self, problems: Problems, calls: Tensor) -> list[np.ndarray]:
        """The same as pictures, uint8 ``[height, width, 3]``, all of one size."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes half a second to load

        from toolagent_pl import figures

        rollout, _ = self._record(problems, calls)
        pictures = []
        for row in range(problems.size):
            canvas = FigureCanvasAgg(figures.episode(rollout, self.env, row, (self.width - 1, self.horizon)))
            canvas.draw()
            pictures.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        return pictures

    def _record(self, problems: Problems, calls: Tensor) -> tuple[Rollout, RegisterState]:
        """The record of episodes, in which the log-probabilities are not known, and what they have come to."""
        *states, last = execute(self.env, problems, calls)
        tokens = calls.T
        start = torch.full_like(tokens[:1], int(Token.CTX))
        rollout = Rollout(
            problems=problems,
            samples=1,
            observations=Observation(*map(torch.stack, zip(*map(self.env.observe, states), strict=True))),
            previous=torch.cat([start, tokens[:-1]]),
            actions=tokens[..., None].eq(self.tokens).long().argmax(-1),
            tokens=tokens,
            mask=tokens.ge(0),
            log_prob=torch.full(tokens.shape, float("nan")),
            value=None,
            terminated=last.terminated,
            truncated=last.truncated,
            idle=last.idle,
            outcome=self.env.outcome(last),
        )
        return rollout, last


class VectorTask(VectorEnv[Arrays, np.ndarray, np.ndarray]):
    """``num_envs`` episodes of a task at a time, executed together.

    Infos hold ``action_mask``, int8, 1 where an action would do something, and ``is_success``, whether the problem has
    been solved. A solved problem pays 1, at its end; nothing else pays.

    Each environment has its own sequence of problems: that of environment ``i`` after ``reset(seed=s)`` is that of a
    single one after ``reset(seed=s + i)``.

    Args:
        task: What is done.
        num_envs: How many environments.
        autoreset_mode: When an environment whose episode is over begins the next one. With ``DISABLED`` it stays as it
            is, until ``reset(options={"reset_mask": ...})`` names it.
        render_mode: ``ansi`` for text, ``rgb_array`` for pictures, all of one size.

    Attributes:
        action_names: Names of the actions, in order.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        task: CalculatorTask,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs: got {num_envs}, expected at least 1")
        modes = {mode.value: mode for mode in AutoresetMode}
        mode = autoreset_mode if isinstance(autoreset_mode, AutoresetMode) else modes.get(autoreset_mode)
        if mode is None:
            raise ValueError(f"autoreset_mode: got {autoreset_mode}, expected {', '.join(modes)}")
        self.num_envs, self.render_mode = num_envs, _checked_mode(render_mode)
        self.metadata = {**METADATA, "autoreset_mode": mode}
        self._task, self._env = task, task.env
        self.action_names, self._actions = task.action_names, len(task.tokens)
        self.single_observation_space = task.observation_space
        self.single_action_space = spaces.Discrete(self._actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._seeded = False
        self._number = torch.arange(num_envs)  # of the next problem of each environment
        self._problems = task.draw(self._number)  # until the first reset only their shapes matter
        self._state = self._env.reset(self._problems)
        self._previous = torch.full_like(self._number, self._actions)
        # Tokens of the episodes under way; nothing stands in the last column.
        self._calls = torch.full((num_envs, task.horizon + 1), PADDING)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, dict[str, Any]]:
        """Begin new episodes.

        Args:
            seed: Where the sequences of problems begin; without it they go on.
            options: ``reset_mask``, bool ``[N]``, names the environments; all of them without it.

        Raises:
            ValueError: If a mask is something else.
        """
        super().reset(seed=seed)
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=np.bool_))
        if not (isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (self.num_envs,)):
            raise ValueError(f"reset_mask: got {mask!r}, expected an array of bool, of shape [{self.num_envs}]")
        chosen = torch.from_numpy(mask)
        if seed is None and not self._seeded:
            seed = int(self.np_random.integers(2**31))
        if seed is not None:
            seeds = seed % LARGEST_SEED + torch.arange(self.num_envs)
            self._number = torch.where(chosen, _first_number(seeds), self._number)
            self._seeded = True
        self._begin(chosen)
        return self._observation(), self._infos()

    def step(self, actions: np.ndarray) -> tuple[Arrays, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take an action in each environment.

        Args:
            actions: int ``[N]``. Where an episode is over they are ignored.

        Raises:
            ValueError: If they are anything else.
            ResetNeeded: If there was no reset before.
        """
        if not self._seeded:
            raise gymnasium.error.ResetNeeded("step: got no reset before it, expected one")
        action = self._checked(actions)
        over, state, mode = self._over, self._state, self.metadata["autoreset_mode"]
        token = self._task.tokens[action].masked_fill(over, PADDING)
        self._calls.scatter_(1, state.steps[:, None], token[:, None])
        self._state = self._env.step(state, token)
        self._previous = torch.where(over, self._previous, action)
        reward = (self._task.solved(self._state) & ~over).double().numpy()
        if mode is AutoresetMode.NEXT_STEP and bool(over.any()):
            self._begin(over)
        terminated, truncated = self._state.terminated.numpy().copy(), self._state.truncated.numpy().copy()
        final: dict[str, Any] = {}
        if mode is AutoresetMode.SAME_STEP and bool((ended := self._over).any()):
            final = self._final(ended.numpy())
            self._begin(ended)
        return self._observation(), reward, terminated, truncated, {**final, **self._infos()}

    def render(self) -> tuple[Any, ...] | None:
        """The episodes under way as texts, or as pictures, uint8 ``[height, width, 3]``."""
        return _drawn(self._task, self.render_mode, self._problems, self._calls)

    def action_masks(self) -> np.ndarray:
        """Which actions would do something, bool ``[N, A]``; sb3-contrib's ``MaskablePPO`` asks for it by this name."""
        return self._task.mask(self._state).numpy()

    def _checked(self, actions: np.ndarray) -> Tensor:
        """Actions as int64 ``[N]``."""
        given = np.asarray(actions)
        if given.shape != (self.num_envs,) or given.dtype.kind not in "iu":
            raise ValueError(
                f"actions: got {given.dtype} of shape {list(given.shape)}, expected int of shape [{self.num_envs}]"
            )
        if given.min() < 0 or given.max() >= self._actions:
            raise ValueError(f"actions: got {given.tolist()}, expected 0 to {self._actions - 1}")
        return torch.from_numpy(given.astype(np.int64))

    @property
    def _over(self) -> Tensor:
        """Whether the episodes are over, bool ``[N]``."""
        return self._state.terminated | self._state.truncated

    def _begin(self, chosen: Tensor) -> None:
        """Begin the next episode of the environments where ``chosen`` (bool ``[N]``) is true."""
        rows = chosen.nonzero()[:, 0]
        problems = self._task.draw(self._number[rows])

        def put(new: Any, old: Any) -> Any:
            return type(old)(*(one.index_copy(0, rows, other) for one, other in zip(old, new, strict=True)))

        self._problems, self._state = put(problems, self._problems), put(self._env.reset(problems), self._state)
        self._previous = self._previous.masked_fill(chosen, self._actions)
        self._calls.masked_fill_(chosen[:, None], PADDING)
        self._number = (self._number + chosen) % 2**BITS_OF_NUMBERS

    def _observation(self) -> Arrays:
        # Copies: whoever gets them may keep them, and these tensors may live on.
        observation = self._task.observe(self._problems, self._state, self._previous)
        return {name: tensor.numpy().copy() for name, tensor in observation.items()}

    def _infos(self) -> dict[str, Any]:
        """What Gymnasium makes of the infos of single environments: each name with a mask of where it is set."""
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        return {
            "action_mask": self.action_masks().astype(np.int8),
            "_action_mask": everyone,
            "is_success": self._task.solved(self._state).numpy(),
            "_is_success": everyone.copy(),
        }

    def _final(self, ended: np.ndarray) -> dict[str, Any]:
        """The observations and infos that episodes end with, where ``ended`` (bool ``[N]``) is true."""
        observation, infos = self._observation(), self._infos()
        last = np.full(self.num_envs, None, dtype=object)
        for row in ended.nonzero()[0]:  # a dictionary for each: this is how Gymnasium hands them out
            last[row] = {name: array[row] for name, array in observation.items()}
        for array in infos.values():
            array[~ended] = 0
        return {"final_obs": last, "_final_obs": ended, "final_info": infos, "_final_info": ended.copy()}


class VectorCalculator(VectorTask):
    """``num_envs`` calculators at a time; see ``VectorTask`` for infos, rewards and sequences of problems.

    An action is a position in the list of tools, behind which come ANS, STO and RCL. Observations:

    - ``prompt``: tokens of the expression, then CTX, then EOS as padding;
    - ``prompt_length``: how many of them there are, CTX included;
    - ``previous``: the action before; the number of actions where there is none;
    - ``flags``: is there an accumulator, a left operand, something in memory; did the last call apply;
    - ``places``: where in the prompt the next operand stands, and the values in the accumulator, on top of memory and
      as left operand end; the width of the prompt where there is none. Only the first with the feedback ``position``.

    Args:
        num_envs, autoreset_mode, render_mode: See ``VectorTask``.
        stages, options: The arguments of ``CalculatorTask``.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        num_envs: int = 1,
        stages: Stated = ("T0", "T1", "T2"),
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        task = CalculatorTask(stages, **options)
        super().__init__(task, num_envs, autoreset_mode=autoreset_mode, render_mode=render_mode)


class Calculator(gymnasium.Env[Arrays, np.int64]):
    """One episode at a time, in plain Python; see ``VectorCalculator`` for observations, actions, rewards and infos.

    After the end of an episode nothing changes, until it is reset.

    Args:
        stages, options: The arguments of ``CalculatorTask``.
        render_mode: ``ansi`` for text, ``rgb_array`` for pictures, all of one size.

    Attributes:
        action_names: Names of the actions, in order.

    Raises:
        ValueError: If an option is out of range.
    """

    metadata = METADATA

    def __init__(self, stages: Stated = ("T0", "T1", "T2"), *, render_mode: str | None = None, **options: Any) -> None:
        self.render_mode = _checked_mode(render_mode)
        self._task = task = CalculatorTask(stages, **options)
        self.observation_space: spaces.Space[Any] = task.observation_space
        self.action_names = task.action_names
        self.action_space = spaces.Discrete(len(task.tokens))
        self._tokens: list[int] = task.tokens.tolist()
        self._calculator = SingleCalculator(task.env.vocabulary.by_token, task.env.memory_depth)
        self._number: int | None = None  # of the next problem
        self._made: list[tuple[Problems, int]] = []  # problems before that one, the next one last, with their limits

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, dict[str, Any]]:
        """Begin a new episode.

        Args:
            seed: Where the sequence of problems begins; without it it goes on.
            options: None that mean anything.
        """
        super().reset(seed=seed)
        if seed is None and self._number is None:
            seed = int(self.np_random.integers(2**31))
        if seed is not None:
            self._number, self._made = int(_first_number(torch.tensor(seed % LARGEST_SEED))), []
        self._problem, limit = self._next_problem()
        self._prompt, self._length = self._problem.prompt[0].numpy(), self._problem.prompt_length.numpy()[0]
        tape = zip(self._problem.operands[0].tolist(), self._problem.places[0].tolist(), strict=True)
        operands = [Operand(value, place) for value, place in tape if place >= 0]
        self._calculator.reset(operands, int(self._problem.target), limit)
        self._previous, self._calls = len(self._tokens), list[int]()
        return self._observation(), self._info()

    def step(self, action: np.int64) -> tuple[Arrays, float, bool, bool, dict[str, Any]]:
        """Take an action.

        Raises:
            ValueError: If it is none.
            ResetNeeded: If there was no reset before.
        """
        if self._number is None:
            raise gymnasium.error.ResetNeeded("step: got no reset before it, expected one")
        position, one = operator.index(action), self._calculator
        if not 0 <= position < len(self._tokens):
            raise ValueError(f"action: got {position}, expected 0 to {len(self._tokens) - 1}")
        reward = 0.0
        if not one.over:
            self._previous = position
            self._calls.append(self._tokens[position])
            one.step(self._tokens[position])
            reward = float(one.solved)
        return self._observation(), reward, one.terminated, one.truncated, self._info()

    def render(self) -> Any:
        """The episode under way as text, or as a picture, uint8 ``[height, width, 3]``."""
        calls = torch.tensor([[*self._calls, *[PADDING] * (self._task.horizon + 1 - len(self._calls))]])
        drawn = _drawn(self._task, self.render_mode, self._problem, calls)
        return drawn and drawn[0]

    def action_masks(self) -> np.ndarray:
        """Which actions would do something, bool ``[A]``; sb3-contrib's ``MaskablePPO`` asks for it by this name."""
        return np.array([self._calculator.applies(token) for token in self._tokens])

    def _next_problem(self) -> tuple[Problems, int]:
        """The next problem and its step limit."""
        if not self._made:
            assert self._number is not None
            numbers = (self._number + torch.arange(PROBLEMS_AT_ONCE)) % 2**BITS_OF_NUMBERS
            self._number = int(numbers[-1] + 1) % 2**BITS_OF_NUMBERS
            problems = self._task.draw(numbers)
            limits = self._task.env.reset(problems).limit.tolist()
            rows = [Problems(*row) for row in zip(*(column.split(1) for column in problems), strict=True)]
            self._made = list(zip(rows, limits, strict=True))[::-1]
        return self._made.pop()

    def _observation(self) -> Arrays:
        env, width = self._task.env, self._task.width
        observation = {
            "prompt": self._prompt.copy(),
            "prompt_length": self._length,
            "previous": np.int64(self._previous),
        }
        if env.flags:
            observation["flags"] = np.array(self._calculator.flags, dtype=np.int8)
        if env.places:
            places = self._calculator.places[: env.places]
            observation["places"] = np.array([width if place < 0 else place for place in places])
        return observation

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self.action_masks().astype(np.int8), "is_success": self._calculator.solved}


def _checked_mode(render_mode: str | None) -> str | None:
    if render_mode not in (None, *METADATA["render_modes"]):
        raise ValueError(f"render_mode: got {render_mode}, expected {' or '.join(METADATA['render_modes'])}, or None")
    return render_mode


def _drawn(task: CalculatorTask, render_mode: str | None, problems: Problems, calls: Tensor) -> tuple[Any, ...] | None:
    """Episodes under way; see ``CalculatorTask.texts``."""
    if render_mode is None:
        gymnasium.logger.warn("render_mode: got None, expected ansi or rgb_array, when the environment is made")
        return None
    return tuple(task.texts(problems, calls) if render_mode == "ansi" else task.pictures(problems, calls))


gymnasium.register(
    ID, entry_point="toolagent_pl.gym:Calculator", vector_entry_point="toolagent_pl.gym:VectorCalculator"
)
