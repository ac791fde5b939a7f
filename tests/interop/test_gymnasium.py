"""The calculator as an environment of Gymnasium."""

import pickle
import time

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.toy import Room
from toolagent_pl.envs.calculator.single import BLOCK
from toolagent_pl.envs.calculator.stages import Stage
from toolagent_pl.envs.calculator.tools import MUL as MUL_TOOL
from toolagent_pl.envs.calculator.tools import SUB as SUB_TOOL
from toolagent_pl.envs.calculator.tools import Token
from toolagent_pl.envs.countdown import CountdownEnv
from toolagent_pl.gym import ID, Calculator, SingleEnv, VectorEnv

STAGES = ["T0", "E3"]
MUL, ADD, SUB, ANS, STO, RCL = range(6)  # actions


def vector(num_envs=6, stages=STAGES, **options):
    return gymnasium.make_vec(ID, num_envs, "vector_entry_point", stages=stages, **options)


def assert_same(one, other, where=""):
    """The same structure, types and numbers."""
    if isinstance(other, tuple | list):
        assert_same(dict(enumerate(one)), dict(enumerate(other)), where)
    elif isinstance(other, dict):
        assert set(one) == set(other), where
        for name in other:
            assert_same(one[name], other[name], f"{where}/{name}")
    elif isinstance(other, np.ndarray):
        assert one.dtype == other.dtype, where
        assert one.shape == other.shape, where
        for a, b in zip(one, other, strict=True) if other.dtype == object else ():
            assert_same(a, b, where)
        if other.dtype != object:
            np.testing.assert_array_equal(one, other, where)
    else:
        assert one == other, where


@pytest.mark.parametrize("feedback", ["none", "flags", "position", "spans"])
@pytest.mark.filterwarnings("error")
def test_the_checkers_of_gymnasium_and_of_stable_baselines_find_nothing(feedback):
    env = gymnasium.make(ID, stages=STAGES, feedback=feedback)
    check_env(env.unwrapped, skip_render_check=feedback != "spans")
    pytest.importorskip("stable_baselines3.common.env_checker").check_env(env.unwrapped)


COUNTDOWN = CountdownEnv(["C2", "C3"], lookahead=1)
BATCHES = {
    "calculator": (vector, lambda: gymnasium.make(ID, stages=STAGES)),
    "calculator, other options": (
        lambda **mode: vector(feedback="position", memory_depth=1, max_steps=8, **mode),
        lambda: gymnasium.make(ID, stages=STAGES, feedback="position", memory_depth=1, max_steps=8),
    ),
    "countdown": (lambda **mode: VectorEnv(COUNTDOWN, 6, **mode), lambda: SingleEnv(COUNTDOWN)),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_batch_is_what_gymnasium_makes_of_single_environments(name, mode):
    make_batch, make_one = BATCHES[name]
    batch, single = make_batch(autoreset_mode=mode), SyncVectorEnv([make_one] * 6, autoreset_mode=mode)
    assert batch.metadata == single.metadata
    assert batch.observation_space == single.observation_space
    assert batch.action_space == single.action_space
    assert_same(one := batch.reset(seed=7), single.reset(seed=7))
    rng, rewards, ends = np.random.default_rng(0), 0.0, 0
    for _ in range(40):
        mask = one[-1]["action_mask"]
        actions = (mask * rng.random(mask.shape)).argmax(1)
        actions[:2] = rng.integers(0, mask.shape[1], 2)  # which need not be allowed
        if (previous := one[0].get("previous")) is not None:  # solves T0
            actions[3:] = np.select([previous == 6, previous == MUL], [MUL, ADD], ANS)[3:]
        assert_same(one := batch.step(actions), single.step(actions))
        assert one[0] in batch.observation_space
        ended = one[2] | one[3]
        rewards, ends = rewards + one[1].sum(), ends + ended.sum()
        assert set(one[1][~ended]) <= {0}
        if mode is AutoresetMode.SAME_STEP and ended.any():
            assert_same(one[4]["final_info"]["is_success"], one[1] == 1)
    assert rewards > 0
    assert ends > 10


def test_the_observation_is_the_problem_and_what_the_tools_report():
    env = gymnasium.make(ID, stages=["T0"])
    observation, _ = env.reset(seed=3)
    assert observation["prompt"][[1, 3, 5]].tolist() == [Token.MUL, Token.ADD, Token.CTX]
    assert set(observation["prompt"][6:].tolist()) == {Token.EOS}
    assert observation["prompt_length"] == 6
    assert observation["previous"] == 6
    assert observation["flags"].tolist() == [0, 0, 0, 1]
    assert observation["positions"].tolist() == [0, 8, 8, 8]
    observation = env.step(MUL)[0]
    assert observation["previous"] == MUL
    assert observation["flags"].tolist() == [1, 0, 0, 1]
    assert observation["positions"].tolist() == [4, 2, 8, 8]
    assert env.step(RCL)[0]["flags"].tolist() == [1, 0, 0, 0]  # nothing to recall


def test_seeds_decide_the_problems_and_each_environment_has_its_own():
    env, one = vector(4, stages=["E5"]), Calculator(["E5"])
    first = env.reset(seed=5)[0]["prompt"]
    second = env.reset()[0]["prompt"]
    assert (first != second).any(1).all()
    assert len(np.unique(first, axis=0)) == 4
    np.testing.assert_array_equal(env.reset(seed=5)[0]["prompt"], first)
    np.testing.assert_array_equal(env.reset()[0]["prompt"], second)
    np.testing.assert_array_equal(env.reset(seed=6)[0]["prompt"][:3], first[1:])
    assert (env.reset(seed=2**70)[0]["prompt"] != first).any()
    env.reset(seed=5)
    one.reset(seed=5)
    for _ in range(2 * BLOCK):  # it goes on for ever
        assert_same(one.reset()[0]["prompt"], env.reset()[0]["prompt"][0])
    assert_same(pickle.loads(pickle.dumps(one)).reset(), one.reset())


def test_problems_held_out_are_others():
    drawn = [
        {tuple(row) for row in vector(2000, stages=["T0"], held_out=held_out).reset(seed=0)[0]["prompt"].tolist()}
        for held_out in (False, True)
    ]
    assert not drawn[0] & drawn[1]
    assert [len(prompts) for prompts in drawn] == [pytest.approx(900, abs=150), 100]


def test_without_autoreset_an_episode_stays_over_until_it_is_named():
    env = vector(3, autoreset_mode="Disabled")
    before, _ = env.reset(seed=0)
    env.step(np.array([ANS, ANS, STO]))
    after, reward, terminated, _, _ = env.step(np.array([MUL, MUL, STO]))
    assert terminated.tolist() == [True, True, False]
    assert reward.tolist() == [0, 0, 0]
    assert after["previous"].tolist() == [ANS, ANS, STO]
    again, _ = env.reset(options={"reset_mask": np.array([True, False, False])})
    assert again["previous"].tolist() == [6, ANS, STO]
    assert (again["prompt"][0] != before["prompt"][0]).any()
    np.testing.assert_array_equal(again["prompt"][1:], before["prompt"][1:])


def test_an_episode_is_rendered_as_text_while_it_goes_on_and_when_it_is_over():
    env = gymnasium.make(ID, stages=["T0"], render_mode="ansi")
    env.reset(seed=0)
    before = env.render().splitlines()
    assert len(before) == 2  # the expression, and where the next operand stands
    assert before[1].strip() == "N"
    for action in (MUL, ADD):
        env.step(action)
    assert "MUL" in env.render()
    assert "right" not in env.render()
    env.step(ANS)
    assert env.render().splitlines()[0] == before[0]
    assert "right" in env.render()


def test_pictures_show_what_was_called_and_have_one_size():
    env = vector(2, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(np.array([STO, ANS]))
    after = env.render()
    assert {picture.shape for picture in (*before, *after)} == {before[0].shape}
    assert before[0].shape[2] == 3
    assert before[0].dtype == np.uint8
    assert all((one != other).any() for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 2}, "^max_steps: got 2, expected at least 3"),
        ({"render_mode": "human"}, "render_mode: got human, expected None or one of .'ansi', 'rgb_array'"),
        ({"num_envs": 0}, "num_envs: got 0, expected at least 1"),
        ({"autoreset_mode": "Never"}, "'Never' is not a valid AutoresetMode"),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_line(options, message):
    with pytest.raises(ValueError, match=message):
        vector(**{"stages": ["T0"], **options})


def test_actions_must_be_actions_and_come_after_a_reset():
    env = vector(2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.array([0, 0]))
    env.reset(seed=0)
    for actions in ([0, 6], [0, -1], [0]):
        with pytest.raises(ValueError, match=r"^actions: got \[.*\], expected 2 from 0 to 5$"):
            env.step(np.array(actions))
    with pytest.raises(ValueError, match=r"^action: got 6, expected 0 to 5$"):
        Calculator().step(6)
    with pytest.raises(TypeError):
        env.step(np.array([0.0, 1.0]))


def test_a_step_of_one_environment_takes_less_than_100_microseconds():
    env = Calculator(["T0", "E5"])
    env.reset(seed=0)
    times = []
    for _ in range(5):
        start = time.process_time()
        for action in np.random.default_rng(0).integers(0, 6, 300):
            if any(env.step(action)[2:4]):
                env.reset()
        times.append((time.process_time() - start) / 300)
    assert min(times) < 100e-6


@pytest.mark.parametrize("stage", [Stage("twice", pattern="a*(b-c)"), {"name": "twice", "pattern": "a*(b-c)"}])
@pytest.mark.parametrize("tools", [(SUB_TOOL, MUL_TOOL), ["SUB", MUL_TOOL]])
def test_stages_and_tools_of_ones_own_and_names_with_the_module(stage, tools):
    env = gymnasium.make(f"toolagent_pl.gym:{ID}", stages=[stage], tools=tools)
    assert env.reset(seed=0)[0]["prompt_length"] == 8
    assert env.unwrapped.action_names == ("SUB", "MUL", "ANS", "STO", "RCL")


@pytest.mark.filterwarnings("ignore:.*Box observation space")  # a custom environment that states no bounds
@pytest.mark.parametrize("env", [CountdownEnv(["C3"]), CountdownEnv(["C2", "C4"], lookahead=1), Room(masked=True)])
def test_any_environment_is_one_for_the_checkers(env):
    single = SingleEnv(env, render_mode="ansi")
    check_env(single, skip_render_check=False)
    pytest.importorskip("stable_baselines3.common.env_checker").check_env(single)


def test_an_environment_of_ones_own_is_seen_masked_and_told():
    env = VectorEnv(Room(shown=True, masked=True), 64, autoreset_mode="Disabled", render_mode="ansi")
    observation, infos = env.reset(seed=0)
    assert observation["vector"].dtype == np.float32
    assert env.single_observation_space["vector"].shape == (5,)
    assert env.action_names == ("up", "down", "left", "right")
    assert infos["action_mask"].tolist() == [[0, 0, 1, 1]] * 64
    right = observation["vector"][:, 3] > 0
    observation, _, _, _, infos = env.step(np.where(right, 3, 2))
    assert observation["vector"][:, 0].tolist() == np.where(right, 1, -1).tolist()
    assert infos["action_mask"].all()
    assert env.render()[0].endswith(("right", "left"))
    assert ", " not in env.render()[0]  # no verdict yet
