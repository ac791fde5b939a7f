"""Batches for Stable-Baselines3."""

import importlib
import re
import sys

import gymnasium
import numpy as np
import pytest

pytest.importorskip("sb3_contrib")

from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecMonitor

from tests.interop.test_gymnasium import assert_same
from tests.toy import Room
from toolagent_pl.envs.countdown import CountdownEnv
from toolagent_pl.interop.gymnasium import ID, VectorEnv
from toolagent_pl.interop.sb3 import BatchVecEnv

TASK = {"stages": ["T0", "E2"]}


def batch(num_envs=6, autoreset_mode="SameStep", **options):
    return BatchVecEnv(gymnasium.make_vec(ID, num_envs=num_envs, autoreset_mode=autoreset_mode, **{**TASK, **options}))


def test_it_gives_what_stable_baselines_makes_of_single_environments():
    ours, theirs = batch(), make_vec_env(ID, n_envs=6, env_kwargs=TASK)
    for env in (ours, theirs):
        env.seed(3)
    assert_same(ours.reset(), dict(theirs.reset()))
    assert ours.observation_space == theirs.observation_space
    assert is_masking_supported(ours)
    rng, ends, truncations = np.random.default_rng(0), 0, 0
    for _ in range(60):
        masks = get_action_masks(ours)
        np.testing.assert_array_equal(masks, get_action_masks(theirs))
        actions = (masks * rng.random(masks.shape) * [1, 1, 1, 0.3, 1, 1]).argmax(1)  # ANS less often
        one, other = ours.step(actions), theirs.step(actions)
        for a, b in zip(one[:3], other[:3], strict=True):
            assert_same(a, dict(b) if isinstance(b, dict) else b)
        for a, b in zip(one[3], other[3], strict=True):
            b.pop("episode", None)  # Monitor's
            assert_same(a, b)
        for i in one[2].nonzero()[0]:
            assert_same(ours.reset_infos[i], theirs.reset_infos[i])
        ends += one[2].sum()
        truncations += sum(info["TimeLimit.truncated"] for info in one[3])
    assert ends > truncations > 0


@pytest.mark.parametrize("env", [CountdownEnv(["C2"], lookahead=1), Room(["near"], shown=True, masked=True)])
def test_maskable_ppo_takes_any_environment_and_reports_returns(env):
    batch = VecMonitor(BatchVecEnv(VectorEnv(env, 8, autoreset_mode="SameStep")))
    model = MaskablePPO("MultiInputPolicy", batch, n_steps=16, batch_size=64, device="cpu", seed=0).learn(128)
    returns = {episode["r"] for episode in model.ep_info_buffer}
    assert 0 in returns
    assert returns <= {0, 1}


def test_it_is_refused_where_episodes_do_not_follow_one_another_at_once():
    with pytest.raises(ValueError, match="autoreset_mode: got NextStep, expected SameStep"):
        batch(autoreset_mode="NextStep")


@pytest.mark.parametrize(
    ("module", "missing", "line"),
    [
        ("gymnasium", "gymnasium", "needs Gymnasium, pip install 'toolagent_pl[gym]'"),
        ("sb3", "stable_baselines3.common.vec_env", "needs Stable-Baselines3, pip install 'toolagent_pl[sb3]'"),
    ],
)
def test_without_its_library_a_module_says_what_it_needs(monkeypatch, module, missing, line):
    monkeypatch.delitem(sys.modules, f"toolagent_pl.interop.{module}")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=f"^{re.escape(f'toolagent_pl.interop.{module}: {line}')}$"):
        importlib.import_module(f"toolagent_pl.interop.{module}")
