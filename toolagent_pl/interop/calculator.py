"""The calculator for Gymnasium: one, in plain Python, or a batch of them."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolagent_pl.envs.calculator.env import CalculatorEnv
from toolagent_pl.envs.calculator.problems import Problems
from toolagent_pl.envs.calculator.registers import RegisterState
from toolagent_pl.envs.calculator.single import BLOCK, SingleCalculator, SingleProblem, single_problems
from toolagent_pl.envs.calculator.text import draw
from toolagent_pl.envs.calculator.tools import Token
from toolagent_pl.interop.gymnasium import (  # Gymnasium too: that module says if it is missing
    BITS_OF_NUMBERS,
    Arrays,
    AutoresetMode,
    SingleEnv,
    VectorEnv,
    first_numbers,
    gymnasium,
    spaces,
)
from toolagent_pl.rl.env import PADDING, over
from toolagent_pl.rl.rollout import Rollout

STAGES = ("T0", "T1", "T2")
GENERAL_OPTIONS = {"held_out", "autoreset_mode", "render_mode"}  # of VectorEnv, beside those of an environment


class VectorCalculator(VectorEnv):
    """``num_envs`` calculators at a time; see ``VectorEnv`` for rewards, infos and sequences of problems.

    An action is a position in the list of tools, behind which come ANS, STO and RCL; the mask has those that would do
    something. Observations:

    - ``prompt``: tokens of the expression, then CTX, then EOS as padding;
    - ``prompt_length``: how many of them there are, CTX included;
    - ``previous``: the action before; the number of actions where there is none;
    - ``flags``: is there an accumulator, a left operand, something in memory; did the last call apply;
    - ``positions``: where in the prompt the next operand stands, and the values in the accumulator, on top of memory
      and as left operand end; the width of the prompt where there is none. Only the first with the feedback
      ``position``.

    Args:
        stages: That problems are drawn from: names, stages, or their options.
        options: ``tools``, ``feedback``, ``max_steps``, ``memory_depth`` of ``CalculatorEnv``, and those of
            ``VectorEnv``, with the render mode ``rgb_array`` for pictures.

    Raises:
        ValueError: If an option is out of range.
    """

    metadata = {**VectorEnv.metadata, "render_modes": ["ansi", "rgb_array"]}
    env: CalculatorEnv

    def __init__(self, num_envs: int = 1, stages: Sequence[Any] = STAGES, **options: Any) -> None:
        general = {name: options.pop(name) for name in GENERAL_OPTIONS & options.keys()}
        super().__init__(CalculatorEnv(stages, **options), num_envs, **general)

    @property
    def width(self) -> int:
        """Tokens of the longest prompt."""
        return int(self._problems.prompt.shape[1])

    def observe(self, problems: Problems, state: RegisterState, previous: Tensor) -> dict[str, Tensor]:
        """Observations; see the class."""
        flags, positions = self.env.observe(state)
        fields = {
            "prompt": problems.prompt,
            "prompt_length": problems.prompt_length,
            "previous": previous.masked_fill(previous.lt(0), len(self.action_names)),
            "flags": flags.to(torch.int8),
            "positions": positions.masked_fill(positions.lt(0), self.width),
        }
        return {name: field for name, field in fields.items() if field[0].numel()}

    def spaces(self, observation: Arrays) -> dict[str, spaces.Space[Any]]:
        """The spaces of the fields of an observation."""
        known: dict[str, spaces.Space[Any]] = {
            "prompt": spaces.MultiDiscrete([self.env.vocabulary.size] * self.width),
            "prompt_length": spaces.Discrete(self.width + 1),
            "previous": spaces.Discrete(len(self.action_names) + 1),
        }
        if self.env.flags:
            known["flags"] = spaces.MultiBinary(self.env.flags)
        if self.env.positions:
            known["positions"] = spaces.MultiDiscrete([self.width + 1] * self.env.positions)
        return known

    def allowed(self, state: RegisterState) -> Tensor:
        """Which actions would do something, bool ``[N, A]``."""
        return self.env.applies(state)

    def rendered(self, rollout: Rollout) -> Sequence[Any]:
        """Episodes under way, as texts or as pictures, uint8 ``[height, width, 3]``, all of one size."""
        if self.render_mode == "rgb_array":
            return [self._picture(rollout, row) for row in range(len(rollout.solved))]
        positions, ended = self.env.observe(rollout.final).positions.tolist(), over(rollout.final).tolist()
        return [
            draw(episode.problem, episode, self.env.vocabulary, next_positions=None if end else now)
            for episode, now, end in zip(self.env.episodes(rollout), positions, ended, strict=True)
        ]

    def _picture(self, rollout: Rollout, row: int) -> np.ndarray:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes half a second to load

        from toolagent_pl.envs.calculator.figures import episode

        canvas = FigureCanvasAgg(episode(rollout, self.env, row, (self.width - 1, len(rollout.mask) - 1)))
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class Calculator(SingleEnv):
    """One calculator at a time, in plain Python; see ``VectorCalculator`` for options, observations and actions."""

    metadata = VectorCalculator.metadata
    _batch: VectorCalculator

    def __init__(self, stages: Sequence[Any] = STAGES, **options: Any) -> None:
        super().__init__(VectorCalculator(1, stages, autoreset_mode=AutoresetMode.DISABLED, **options))
        self._env, self._calculator = self._batch.env, SingleCalculator(self._batch.env)
        self._number: int | None = None  # of the next problem
        self._made: list[SingleProblem] = []  # the block of problems that it is in

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, dict[str, Any]]:
        """Begin a new episode; see ``SingleEnv``."""
        gymnasium.Env.reset(self, seed=seed)
        if seed is None and self._number is None:
            seed = int(self.np_random.integers(2**31))
        if seed is not None:
            self._number = int(first_numbers(seed))
        self._calculator.reset(problem := self._problem(int(self._number or 0)))
        self._number = (problem.number + 1) % 2**BITS_OF_NUMBERS
        self._prompt = np.full(self._batch.width, int(Token.EOS))
        self._prompt[: len(problem.prompt)] = problem.prompt
        self._actions = list[int]()
        return self._observation(), self._info()

    def step(self, action: np.int64) -> tuple[Arrays, float, bool, bool, dict[str, Any]]:
        """Take an action; a number that is none is a ValueError."""
        number, one, reward = operator.index(action), self._calculator, 0.0
        if not 0 <= number < len(self.action_names):
            raise ValueError(f"action: got {number}, expected 0 to {len(self.action_names) - 1}")
        if not one.over:
            self._actions.append(number)
            one.step(number)
            reward = float(one.solved)
        return self._observation(), reward, one.terminated, one.truncated, self._info()

    def render(self) -> Any:
        """The episode under way as text, or as a picture, uint8 ``[height, width, 3]``."""
        actions = torch.full_like(self._batch._actions, PADDING)
        actions[0, : len(self._actions)] = torch.tensor(self._actions)
        drawn = self._batch.drawn(self._batch.draw(torch.tensor([self._calculator.problem.number])), actions)
        return drawn and drawn[0]

    def action_masks(self) -> np.ndarray:
        """Which actions would do something, bool ``[A]``; sb3-contrib's ``MaskablePPO`` asks for it by this name."""
        return np.array([self._calculator.applies(action) for action in range(len(self.action_names))])

    def _problem(self, number: int) -> SingleProblem:
        first = number - number % BLOCK
        if not self._made or self._made[0].number != first:
            self._made = single_problems(self._env, self._batch.draw(torch.arange(first, first + BLOCK)))
        return self._made[number % BLOCK]

    def _observation(self) -> Arrays:
        fields: dict[str, Any] = {
            "prompt": self._prompt.copy(),
            "prompt_length": np.int64(len(self._calculator.problem.prompt)),
            "previous": np.int64(self._actions[-1] if self._actions else len(self.action_names)),
        }
        if self._env.flags:
            fields["flags"] = np.array(self._calculator.flags, dtype=np.int8)
        if self._env.positions:
            width = self._batch.width
            fields["positions"] = np.array([width if at < 0 else at for at in self._calculator.positions])
        return fields

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self.action_masks().astype(np.int8), "is_success": self._calculator.solved}
