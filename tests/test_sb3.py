"""Batches for Stable-Baselines3."""

import importlib
import sys

import gymnasium
import numpy as np
import pytest

pytest.importorskip("sb3_contrib")

from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecMonitor

from tests.test_gym import assert_same
from toolagent_pl.gym import ID
from toolagent_pl.sb3 import BatchVecEnv

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


def test_ppo_learns_on_it_and_reports_returns():
    env = VecMonitor(batch(8))
    model = PPO("MultiInputPolicy", env, n_steps=16, batch_size=64, device="cpu", seed=0).learn(128)
    assert 0 <= np.mean([episode["r"] for episode in model.ep_info_buffer]) <= 1


def test_pictures_are_those_of_the_batch():
    env = batch(2, render_mode="rgb_array")
    env.reset()
    assert env.render().ndim == 3
    assert [picture.shape[2] for picture in env.get_images()] == [3, 3]


def test_it_is_refused_where_episodes_do_not_follow_one_another_at_once():
    with pytest.raises(ValueError, match="autoreset_mode: got NextStep, expected SameStep"):
        batch(autoreset_mode="NextStep")


def test_without_stable_baselines_the_module_says_what_it_needs(monkeypatch):
    monkeypatch.delitem(sys.modules, "toolagent_pl.sb3")
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.vec_env", None)
    message = r"^toolagent_pl.sb3: needs Stable-Baselines3, pip install 'toolagent_pl\[sb3\]'$"
    with pytest.raises(ImportError, match=message):
        importlib.import_module("toolagent_pl.sb3")
