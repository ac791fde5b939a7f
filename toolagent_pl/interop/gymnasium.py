"""Environments for Gymnasium, one episode or a batch, which is stepped in the tensors that ``fit`` uses.

To import this module registers the calculator as ``toolagent_pl/Calculator-v0``.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

try:
    import gymnasium
    from gymnasium import spaces, vector
    from gymnasium.vector import AutoresetMode
    from gymnasium.vector.utils import batch_space
except ImportError:
    raise ImportError("toolagent_pl.interop.gymnasium: needs Gymnasium, pip install 'toolagent_pl[gym]'") from None
import numpy as np

from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.env import PADDING, Env, execute, over
from toolagent_pl.rl.random_numbers import Purpose, random_below, random_bits
from toolagent_pl.rl.rollout import Rollout
from toolagent_pl.rl.trees import tree_map

ID = "toolagent_pl/Calculator-v0"
BITS_OF_NUMBERS = 55  # of problems; those of an environment's sequence follow one another from anywhere among them
MAX_SEED = 2**62
Arrays = dict[str, np.ndarray]


def first_numbers(seed: int, count: int = 1) -> Tensor:
    """Numbers of the problems that the sequences of this seed and of those after it begin with, int64 ``[count]``."""
    seeds = (seed % MAX_SEED + torch.arange(count)) % MAX_SEED
    return random_bits(0, Purpose.EPISODE, seeds, bits=BITS_OF_NUMBERS)


class VectorEnv(vector.VectorEnv[Arrays, np.ndarray, np.ndarray]):
    """``num_envs`` episodes of any environment at a time, executed together; ``action_names`` are those of its actions.

    An observation is a dictionary of the fields of the environment's own: those that it names in ``observation_bounds``
    as they are, others as float32 without bounds; fields without elements are left out. What agents are told of a
    problem at its start alone (``Agent.prefill``) is not among them: override ``observe`` and ``spaces`` to add it.

    Infos hold ``action_mask``, int8, 1 where an action may be taken, and ``is_success``, whether the episode has ended
    with its problem solved. Such an end pays 1; nothing else pays. Each environment has its own sequence of problems:
    that of environment ``i`` after ``reset(seed=s)`` is that of a single one after ``reset(seed=s + i)``.

    Args:
        env: What is done; problems come from the stages that it trains on, each as likely as the others.
        num_envs: How many episodes.
        held_out: Draw from the part of all problems that is never drawn without it.
        autoreset_mode: When an episode that has ended is followed by the next one. With ``DISABLED`` it stays as it
            is, until ``reset(options={"reset_mask": ...})`` names it.
        render_mode: ``ansi`` for texts.

    Raises:
        ValueError: If an option is out of range.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 2}

    def __init__(
        self,
        env: Env,
        num_envs: int = 1,
        *,
        held_out: bool = False,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        check_range(at_least=1, num_envs=num_envs)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode: got {render_mode}, expected None or one of {self.metadata['render_modes']}")
        env.check()
        self.env = copy.copy(env)
        self.env.static_shapes = True  # episodes begin at different times, and their problems stand in one batch
        self.num_envs, self.render_mode, self.held_out = num_envs, render_mode, held_out
        self.metadata = {**self.metadata, "autoreset_mode": AutoresetMode(autoreset_mode)}
        self.action_names = env.actions
        self._seeded = False
        self._number = torch.arange(num_envs)  # of the next problem of each environment
        self._problems = self.draw(self._number)  # until the first reset only their shapes matter
        self._state = self.env.reset(self._problems)
        self._previous = torch.full_like(self._number, PADDING)
        # Actions of the episodes under way; nothing stands in the last column.
        self._actions = torch.full((num_envs, self.env.horizon(self._problems) + 1), PADDING)
        self.single_observation_space: spaces.Space[Any] = spaces.Dict(self.spaces(self._observation()))
        self.single_action_space: spaces.Space[Any] = spaces.Discrete(len(env.actions))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def observe(self, problems: Any, state: Any, previous: Tensor) -> dict[str, Tensor]:
        """Observations, a row for each episode; ``previous`` are the actions before, int64 ``[N]``, -1 at the start."""
        known, fields = self.env.observation_bounds(), self.env.observe(state)._asdict()
        return {
            name: (field if name in known else field.float()).view(len(field), *(field.shape[1:] or [1]))
            for name, field in fields.items()
            if field[0].numel()
        }

    def spaces(self, observation: Arrays) -> dict[str, spaces.Space[Any]]:
        """The spaces of the fields of an observation."""
        bounds = self.env.observation_bounds()
        return {
            name: spaces.Box(*bounds.get(name, (-np.inf, np.inf)), array.shape[1:], array.dtype.type)
            for name, array in observation.items()
        }

    def allowed(self, state: Any) -> Tensor:
        """Which actions may be taken, bool ``[N, A]``."""
        mask = self.env.action_mask(state)
        return torch.ones(self.num_envs, len(self.action_names), dtype=torch.bool) if mask is None else mask

    def draw(self, number: Tensor) -> Any:
        """Problems of these numbers."""
        stage = random_below(0, Purpose.STAGE, number, torch.tensor(len(self.env.stages)))
        return self.env.problems(number, stage, 0, held_out=self.held_out)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, dict[str, Any]]:
        """Begin new episodes.

        Args:
            seed: Where the sequences of problems begin; without it they go on.
            options: ``reset_mask``, bool ``[N]``, names the environments; all of them without it.
        """
        super().reset(seed=seed)
        chosen = torch.from_numpy((options or {}).get("reset_mask", np.ones(self.num_envs, dtype=np.bool_)))
        if seed is None and not self._seeded:
            seed = int(self.np_random.integers(2**31))
        if seed is not None:
            self._number = torch.where(chosen, first_numbers(seed, self.num_envs), self._number)
            self._seeded = True
        self._begin(chosen)
        return self._observation(), self._infos()

    def step(self, actions: np.ndarray) -> tuple[Arrays, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take an action in each environment, int ``[N]``; where an episode has ended it is ignored.

        Raises:
            ValueError: If there is none of this number, or ``ResetNeeded`` if there was no reset before.
        """
        if not self._seeded:
            raise gymnasium.error.ResetNeeded("step: got no reset before it, expected one")
        given = np.asarray(actions).astype(np.int64, casting="same_kind")  # no fractions
        if not self.action_space.contains(given):
            last = len(self.action_names) - 1
            raise ValueError(f"actions: got {given.tolist()}, expected {self.num_envs} from 0 to {last}")
        before, mode = over(self._state), self.metadata["autoreset_mode"]
        action = torch.from_numpy(given).masked_fill(before, PADDING)
        self._actions.scatter_(1, self._state.steps[:, None], action[:, None])
        self._state = self.env.step(self._state, action)
        self._previous = torch.where(before, self._previous, action)
        reward = (self._solved & ~before).double().numpy()
        if mode is AutoresetMode.NEXT_STEP and bool(before.any()):
            self._begin(before)
        terminated, truncated = self._state.terminated.numpy().copy(), self._state.truncated.numpy().copy()
        final: dict[str, Any] = {}
        if mode is AutoresetMode.SAME_STEP and bool((ended := over(self._state)).any()):
            final = self._final(ended.numpy())
            self._begin(ended)
        return self._observation(), reward, terminated, truncated, {**final, **self._infos()}

    def render(self) -> tuple[Any, ...] | None:
        """The episodes under way, as texts or pictures."""
        return self.drawn(self._problems, self._actions)

    def drawn(self, problems: Any, actions: Tensor) -> tuple[Any, ...] | None:
        """Episodes in the render mode; ``actions`` int64 ``[N, T]``, -1 from where an episode has got to."""
        if self.render_mode is None:
            gymnasium.logger.warn(f"render_mode: got None, expected one of {self.metadata['render_modes']}")
            return None
        *states, final = execute(self.env, problems, actions)
        taken = actions.T
        rollout = Rollout(
            problems=problems,
            samples=1,
            observations=tree_map(lambda *steps: torch.stack(steps), *map(self.env.observe, states)),
            action_mask=None,
            previous=torch.cat([torch.full_like(taken[:1], PADDING), taken[:-1]]),
            actions=taken.clamp(min=0),
            mask=taken.ge(0),
            log_prob=torch.full(taken.shape, float("nan")),
            value=None,
            final=final,
            solved=self.env.solved(final),
        )
        return tuple(self.rendered(rollout))

    def rendered(self, rollout: Rollout) -> Sequence[Any]:
        """Episodes under way in the render mode."""
        ended = zip(self.env.episodes(rollout), over(rollout.final).tolist(), strict=True)
        return [str(episode) if end else f"{episode.problem}: {episode.story}" for episode, end in ended]

    def action_masks(self) -> np.ndarray:
        """Which actions may be taken, bool ``[N, A]``; sb3-contrib's ``MaskablePPO`` asks for it by this name."""
        return self.allowed(self._state).numpy()

    @property
    def _solved(self) -> Tensor:
        return self.env.solved(self._state) & over(self._state)

    def _begin(self, chosen: Tensor) -> None:
        """Begin the next episode of the environments where ``chosen`` (bool ``[N]``) is true."""
        rows = chosen.nonzero()[:, 0]
        problems = self.draw(self._number[rows])
        old, new = (self._problems, self._state), (problems, self.env.reset(problems))
        self._problems, self._state = tree_map(lambda whole, begun: whole.index_copy(0, rows, begun), old, new)
        self._previous = self._previous.masked_fill(chosen, PADDING)
        self._actions.masked_fill_(chosen[:, None], PADDING)
        self._number = (self._number + chosen) % 2**BITS_OF_NUMBERS

    def _observation(self) -> Arrays:
        # Copies: whoever gets them may keep them, and these tensors may live on.
        observation = self.observe(self._problems, self._state, self._previous)
        return {name: tensor.numpy().copy() for name, tensor in observation.items()}

    def _infos(self) -> dict[str, Any]:
        """What Gymnasium makes of the infos of single environments: each name with a mask of where it is set."""
        infos = {"action_mask": self.action_masks().astype(np.int8), "is_success": self._solved.numpy()}
        return infos | {f"_{name}": np.ones(self.num_envs, dtype=np.bool_) for name in infos}

    def _final(self, ended: np.ndarray) -> dict[str, Any]:
        """The observations and infos that episodes end with, where ``ended`` (bool ``[N]``) is true."""
        observation, infos = self._observation(), self._infos()
        last = np.full(self.num_envs, None, dtype=object)
        for row in ended.nonzero()[0]:  # a dictionary for each: this is how Gymnasium hands them out
            last[row] = {name: array[row] for name, array in observation.items()}
        for array in infos.values():
            array[~ended] = 0
        return {"final_obs": last, "_final_obs": ended, "final_info": infos, "_final_info": ended.copy()}


class SingleEnv(gymnasium.Env[Arrays, np.int64]):
    """One episode at a time of any environment; see ``VectorEnv`` for options, observations, rewards and infos.

    After the end of an episode nothing changes, until it is reset.

    Args:
        env: The environment, or a ``VectorEnv`` of one episode, which does not begin the next one by itself.
    """

    metadata = VectorEnv.metadata

    def __init__(self, env: Env | VectorEnv, **options: Any) -> None:
        mode = AutoresetMode.DISABLED
        batch = env if isinstance(env, VectorEnv) else VectorEnv(env, autoreset_mode=mode, **options)
        self._batch, self.render_mode, self.action_names = batch, batch.render_mode, batch.action_names
        self.observation_space, self.action_space = batch.single_observation_space, batch.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, dict[str, Any]]:
        """Begin a new episode; ``seed`` says where the sequence of problems begins, and without it it goes on."""
        super().reset(seed=seed)
        observation, infos = map(_first, self._batch.reset(seed=seed))
        return observation, infos

    def step(self, action: np.int64) -> tuple[Arrays, float, bool, bool, dict[str, Any]]:
        """Take an action; a number that is none is a ValueError."""
        observation, *rest, infos = map(_first, self._batch.step(np.reshape(action, 1)))
        return observation, *rest, infos

    def render(self) -> Any:
        """The episode under way as text, or as a picture."""
        drawn = self._batch.render()
        return drawn and drawn[0]

    def action_masks(self) -> np.ndarray:
        """Which actions may be taken, bool ``[A]``; sb3-contrib's ``MaskablePPO`` asks for it by this name."""
        return np.asarray(self._batch.action_masks()[0])


def _first(batch: Any) -> Any:
    """Of a batch of one, the one."""
    if isinstance(batch, dict):
        return {name: _first(part) for name, part in batch.items() if not name.startswith("_")}
    return batch[0].item() if batch.ndim == 1 else batch[0]


_ROOM = "toolagent_pl.interop.calculator"
gymnasium.register(ID, f"{_ROOM}:Calculator", vector_entry_point=f"{_ROOM}:VectorCalculator")
