"""The calculator for Gymnasium: ``toolagent_pl/Calculator-v0``, one environment or a batch of them.

To import this module registers it. There is one implementation: the single environment is a batch of one.
"""

from collections.abc import Sequence
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
from toolagent_pl.episodes import episodes
from toolagent_pl.problems import Problems, Stage, Stages
from toolagent_pl.randomness import Purpose, random_below, random_bits
from toolagent_pl.tools import PADDING, TOOLS, Token, Tool

ID = "toolagent_pl/Calculator-v0"
RENDER_MODES = ("ansi", "rgb_array")
BITS_OF_NUMBERS = 55  # of problems; those of an environment's sequence follow one another from anywhere among them
LARGEST_SEED = 2**62
Arrays = dict[str, np.ndarray]


class VectorCalculator(VectorEnv[Arrays, np.ndarray, np.ndarray]):
    """``num_envs`` episodes at a time, executed together.

    An action is a position in the list of tools, behind which come ANS, STO and RCL. Observations:

    - ``prompt``: tokens of the expression, then CTX, then EOS as padding;
    - ``prompt_length``: how many of them there are, CTX included;
    - ``previous``: the action before; the number of actions where there is none;
    - ``flags``: is there an accumulator, a left operand, something in memory; did the last call apply;
    - ``places``: where in the prompt the next operand stands, and the values in the accumulator, on top of memory and
      as left operand end; the width of the prompt where there is none. Only the first with the feedback ``position``.

    Infos hold ``action_mask``, int8, 1 where an action would do something, and ``is_success``, whether the problem has
    been solved. A solved problem pays 1, at its end; nothing else pays.

    Each environment has its own sequence of problems: that of environment ``i`` after ``reset(seed=s)`` is that of a
    single one after ``reset(seed=s + i)``.

    Args:
        num_envs: How many environments.
        stages: That problems are drawn from, each as likely as the others.
        feedback: What the tools report: ``none``, ``flags``, ``position`` or ``spans``.
        max_steps: Actions after which an episode is truncated; ``auto`` for three an operator and three more.
        memory_depth: Most values in memory.
        tools: What expressions are made of.
        held_out: Draw from the tenth of all problems that is never drawn without it.
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
        num_envs: int = 1,
        stages: Sequence[str | Stage] = ("T0", "T1", "T2"),
        *,
        feedback: Feedback = "spans",
        max_steps: int | Literal["auto"] = "auto",
        memory_depth: int = 8,
        tools: Sequence[Tool] = TOOLS,
        held_out: bool = False,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs: got {num_envs}, expected at least 1")
        if render_mode not in (None, *RENDER_MODES):
            raise ValueError(f"render_mode: got {render_mode}, expected {' or '.join(RENDER_MODES)}, or None")
        modes = {mode.value: mode for mode in AutoresetMode}
        mode = autoreset_mode if isinstance(autoreset_mode, AutoresetMode) else modes.get(autoreset_mode)
        if mode is None:
            raise ValueError(f"autoreset_mode: got {autoreset_mode}, expected {', '.join(modes)}")
        self.num_envs, self.render_mode, self.held_out = num_envs, render_mode, held_out
        self.metadata = {**Calculator.metadata, "autoreset_mode": mode}
        self._env = CalculatorEnv(max_steps, memory_depth, feedback, tools)
        self._stages = Stages(stages, tools)
        vocabulary = self._env.vocabulary
        self._env.check(self._stages, vocabulary.actions)
        self.action_names = tuple(vocabulary.name(token) for token in vocabulary.actions)
        self._tokens = torch.tensor(vocabulary.actions)
        self._width, self._actions = self._stages.longest_prompt, len(vocabulary.actions)
        parts: dict[str, spaces.Space[Any]] = {
            "prompt": spaces.MultiDiscrete([vocabulary.size] * self._width),
            "prompt_length": spaces.Discrete(self._width + 1),
            "previous": spaces.Discrete(self._actions + 1),
        }
        if self._env.flags:
            parts["flags"] = spaces.MultiBinary(self._env.flags)
        if self._env.places:
            parts["places"] = spaces.MultiDiscrete([self._width + 1] * self._env.places)
        self.single_observation_space = spaces.Dict(parts)
        self.single_action_space = spaces.Discrete(self._actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._seeded = False
        self._number = torch.arange(num_envs)  # of the next problem of each environment
        self._problems = self._draw(self._number)  # until the first reset only their shapes matter
        self._state = self._env.reset(self._problems)
        self._previous = torch.full_like(self._number, self._actions)
        # Tokens of the episodes under way; nothing stands in the last column.
        self._calls = torch.full((num_envs, self._env.horizon(self._problems) + 1), PADDING)

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
            seeds = (seed % LARGEST_SEED + torch.arange(self.num_envs)) % LARGEST_SEED
            self._number = torch.where(
                chosen, random_bits(0, Purpose.EPISODE, seeds, bits=BITS_OF_NUMBERS), self._number
            )
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
        token = self._tokens[action].masked_fill(over, PADDING)
        self._calls.scatter_(1, state.steps[:, None], token[:, None])
        self._state = self._env.step(state, token)
        self._previous = torch.where(over, self._previous, action)
        reward = (self._env.outcome(self._state).correct & ~over).double().numpy()
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
        if self.render_mode is None:
            gymnasium.logger.warn("render_mode: got None, expected ansi or rgb_array, when the environment is made")
            return None
        rollout = self._rollout()
        if self.render_mode == "rgb_array":
            return tuple(self._picture(rollout, row) for row in range(self.num_envs))
        places, over = self._env.observe(self._state).places.tolist(), self._over.tolist()
        return tuple(
            draw(episode.expression, episode, self._env.vocabulary, next_places=None if ended else now)
            for episode, now, ended in zip(episodes(rollout, self._env), places, over, strict=True)
        )

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

    def _draw(self, number: Tensor) -> Problems:
        """Problems of these numbers, their prompts padded to the width of all."""
        stage = random_below(0, Purpose.STAGE, number, torch.tensor(len(self._stages)))
        problems = self._stages.draw(number, stage, 0, Purpose.PROBLEM, held_out=self.held_out)
        short = self._width - problems.prompt.shape[1]
        return problems._replace(prompt=torch.nn.functional.pad(problems.prompt, (0, short), value=int(Token.EOS)))

    def _begin(self, chosen: Tensor) -> None:
        """Begin the next episode of the environments where ``chosen`` (bool ``[N]``) is true."""
        rows = chosen.nonzero()[:, 0]
        problems = self._draw(self._number[rows])

        def put(new: Tensor, old: Tensor) -> Tensor:
            return old.index_copy(0, rows, new)

        self._problems = Problems(*map(put, problems, self._problems))
        self._state = RegisterState(*map(put, self._env.reset(problems), self._state))
        self._previous = self._previous.masked_fill(chosen, self._actions)
        self._calls.masked_fill_(chosen[:, None], PADDING)
        self._number = (self._number + chosen) % 2**BITS_OF_NUMBERS

    def _observation(self) -> Arrays:
        flags, places = self._env.observe(self._state)
        observation = {
            "prompt": self._problems.prompt,
            "prompt_length": self._problems.prompt_length,
            "previous": self._previous,
        }
        if self._env.flags:
            observation["flags"] = flags.to(torch.int8)
        if self._env.places:
            observation["places"] = places.masked_fill(places.lt(0), self._width)
        # Copies: whoever gets them may keep them, and these tensors may live on.
        return {name: tensor.numpy().copy() for name, tensor in observation.items()}

    def _infos(self) -> dict[str, Any]:
        """What Gymnasium makes of the infos of single environments: each name with a mask of where it is set."""
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        return {
            "action_mask": self._env.applies(self._state, self._tokens).to(torch.int8).numpy(),
            "_action_mask": everyone,
            "is_success": self._env.outcome(self._state).correct.numpy(),
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

    def _rollout(self) -> Rollout:
        """The record of the episodes under way; the log-probabilities are not known."""
        states = execute(self._env, self._problems, self._calls)[:-1]
        tokens = self._calls.T
        start = torch.full_like(tokens[:1], int(Token.CTX))
        return Rollout(
            problems=self._problems,
            samples=1,
            observations=Observation(*map(torch.stack, zip(*map(self._env.observe, states), strict=True))),
            previous=torch.cat([start, tokens[:-1]]),
            actions=tokens[..., None].eq(self._tokens).long().argmax(-1),
            tokens=tokens,
            mask=tokens.ge(0),
            log_prob=torch.full(tokens.shape, float("nan")),
            value=None,
            terminated=self._state.terminated,
            truncated=self._state.truncated,
            idle=self._state.idle,
            outcome=self._env.outcome(self._state),
        )

    def _picture(self, rollout: Rollout, row: int) -> np.ndarray:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes half a second to load

        from toolagent_pl import figures

        room = self._width - 1, self._calls.shape[1] - 1
        canvas = FigureCanvasAgg(figures.episode(rollout, self._env, row, room))
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class Calculator(gymnasium.Env[Arrays, np.int64]):
    """One episode at a time; see ``VectorCalculator`` for observations, actions, rewards and infos.

    After the end of an episode nothing changes, until it is reset.

    Args:
        options: Those of ``VectorCalculator``, except ``num_envs`` and ``autoreset_mode``.

    Raises:
        ValueError: If an option is out of range.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 2}

    def __init__(self, **options: Any) -> None:
        self._batch = VectorCalculator(num_envs=1, autoreset_mode=AutoresetMode.DISABLED, **options)
        self.render_mode = self._batch.render_mode
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space
        self.action_names = self._batch.action_names

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, dict[str, Any]]:
        """Begin a new episode.

        Args:
            seed: Where the sequence of problems begins; without it it goes on.
            options: None that mean anything.
        """
        super().reset(seed=seed)
        observation, infos = self._batch.reset(seed=seed)
        return _first(observation), self._info(infos)

    def step(self, action: np.int64) -> tuple[Arrays, float, bool, bool, dict[str, Any]]:
        """Take an action.

        Raises:
            ValueError: If it is none.
        """
        observation, reward, terminated, truncated, infos = self._batch.step(np.asarray(action).reshape(1))
        return _first(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), self._info(infos)

    def render(self) -> Any:
        """The episode under way as text, or as a picture, uint8 ``[height, width, 3]``."""
        drawn = self._batch.render()
        return drawn and drawn[0]

    def action_masks(self) -> np.ndarray:
        """Which actions would do something, bool ``[A]``; sb3-contrib's ``MaskablePPO`` asks for it by this name."""
        return self._batch._infos()["action_mask"][0].astype(np.bool_)

    @staticmethod
    def _info(infos: dict[str, Any]) -> dict[str, Any]:
        return {"action_mask": infos["action_mask"][0], "is_success": bool(infos["is_success"][0])}


def _first(observation: Arrays) -> Arrays:
    """Of a batch of one, the one."""
    return {name: array[0] for name, array in observation.items()}


gymnasium.register(
    ID, entry_point="toolagent_pl.gym:Calculator", vector_entry_point="toolagent_pl.gym:VectorCalculator"
)
