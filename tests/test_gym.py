"""The calculator as an environment of Gymnasium."""

import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from toolagent_pl.gym import ID, PROBLEMS_AT_ONCE, Calculator
from toolagent_pl.problems import Stage
from toolagent_pl.tools import MUL as MUL_TOOL
from toolagent_pl.tools import SUB as SUB_TOOL
from toolagent_pl.tools import Token

STAGES = ["T0", "E3"]
MUL, ADD, SUB, ANS, STO, RCL = range(6)  # actions


def vector(num_envs=6, **options):
    return gymnasium.make_vec(
        ID, num_envs=num_envs, vectorization_mode="vector_entry_point", **{"stages": STAGES, **options}
    )


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


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        (AutoresetMode.NEXT_STEP, {}),
        (AutoresetMode.SAME_STEP, {"feedback": "position", "memory_depth": 1, "max_steps": 8}),
    ],
)
def test_a_batch_is_what_gymnasium_makes_of_single_environments(mode, options):
    batch = vector(autoreset_mode=mode, **options)
    single = gymnasium.make_vec(
        ID, num_envs=6, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, stages=STAGES, **options
    )
    assert batch.metadata == single.metadata
    assert batch.observation_space == single.observation_space
    assert batch.action_space == single.action_space
    assert_same(one := batch.reset(seed=7), single.reset(seed=7))
    rng, rewards, ends = np.random.default_rng(0), 0.0, 0
    for _ in range(40):
        actions = rng.integers(0, 6, 6)
        previous = one[0]["previous"][:3]
        actions[:3] = np.select([previous == 6, previous == MUL], [MUL, ADD], ANS)  # solves T0
        one, other = batch.step(actions), single.step(actions)
        assert_same(one, other)
        assert one[0] in batch.observation_space
        rewards, ends = rewards + one[1].sum(), ends + (one[2] | one[3]).sum()
    assert rewards > 0
    assert ends > 10


def test_a_solved_problem_pays_one_at_its_end():
    env = vector(2, stages=["T0"], autoreset_mode="SameStep")
    env.reset(seed=0)
    rewards = [env.step(np.array(actions))[1:4] for actions in ([MUL, MUL], [ADD, SUB], [ANS, STO], [STO, ANS])]
    assert [reward.tolist() for reward, _, _ in rewards] == [[0, 0], [0, 0], [1, 0], [0, 0]]
    assert [terminated.tolist() for _, terminated, _ in rewards] == [
        [False] * 2,
        [False] * 2,
        [True, False],
        [False, True],
    ]


def test_an_episode_without_an_answer_is_truncated():
    env = gymnasium.make(ID, stages=["T0"], max_steps=4)
    env.reset(seed=0)
    ends = [env.step(STO)[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, True)]


def test_the_observation_is_the_problem_and_what_the_tools_report():
    env = gymnasium.make(ID, stages=["T0"])
    observation, _ = env.reset(seed=3)
    assert observation["prompt"][[1, 3, 5]].tolist() == [Token.MUL, Token.ADD, Token.CTX]
    assert set(observation["prompt"][6:].tolist()) == {Token.EOS}
    assert observation["prompt_length"] == 6
    assert observation["previous"] == 6
    assert observation["flags"].tolist() == [0, 0, 0, 1]
    assert observation["places"].tolist() == [0, 8, 8, 8]
    observation = env.step(MUL)[0]
    assert observation["previous"] == MUL
    assert observation["flags"].tolist() == [1, 0, 0, 1]
    assert observation["places"].tolist() == [4, 2, 8, 8]
    assert env.step(RCL)[0]["flags"].tolist() == [1, 0, 0, 0]  # nothing to recall


def test_the_mask_tells_which_actions_would_do_something():
    env = vector(64, autoreset_mode="Disabled")
    observation, infos = env.reset(seed=1)
    rng, running, tried = np.random.default_rng(0), np.ones(64, dtype=bool), []
    for _ in range(9):
        actions = rng.integers(0, 6, 64)
        useful = infos["action_mask"][np.arange(64), actions] == 1
        observation, _, terminated, truncated, infos = env.step(actions)
        assert (observation["flags"][running, 3] == useful[running]).all()
        tried += useful[running].tolist()
        running = ~(terminated | truncated)
    assert min(sum(tried), len(tried) - sum(tried)) > 20


def test_seeds_decide_the_problems_and_each_environment_has_its_own():
    env = vector(4, stages=["E5"])
    first = env.reset(seed=5)[0]["prompt"]
    second = env.reset()[0]["prompt"]
    assert (first != second).any(1).all()
    assert len(np.unique(first, axis=0)) == 4
    np.testing.assert_array_equal(env.reset(seed=5)[0]["prompt"], first)
    np.testing.assert_array_equal(env.reset()[0]["prompt"], second)
    np.testing.assert_array_equal(env.reset(seed=6)[0]["prompt"][:3], first[1:])
    assert (env.reset(seed=2**70)[0]["prompt"] != first).any()


def test_problems_held_out_are_others():
    drawn = [
        {tuple(row) for row in vector(2000, stages=["T0"], held_out=held_out).reset(seed=0)[0]["prompt"].tolist()}
        for held_out in (False, True)
    ]
    assert not drawn[0] & drawn[1]
    assert [len(prompts) for prompts in drawn] == [pytest.approx(900, abs=150), 100]


def test_stages_are_equally_likely():
    prompts = vector(2000, stages=["T0", "T1"]).reset(seed=0)[0]["prompt_length"]
    assert (prompts == 6).mean() == pytest.approx(0.5, abs=0.05)


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


def test_wrappers_of_gymnasium_count_episodes():
    env = RecordEpisodeStatistics(vector(2, stages=["T0"], autoreset_mode="SameStep"))
    env.reset(seed=0)
    for action in (MUL, ADD, ANS):
        infos = env.step(np.array([action, STO if action == MUL else ANS]))[4]
    assert env.episode_count == 3
    assert list(env.return_queue) == [0, 1, 0]
    assert list(env.length_queue) == [2, 3, 1]
    assert infos["_episode"].tolist() == [True, True]


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
        ({"feedback": "all"}, "^feedback: got all, expected none, flags, position, spans"),
        ({"max_steps": 2}, "^max_steps: got 2, expected at least 3"),
        ({"tools": ["MULL"]}, "^tools: got MULL, expected MUL, ADD, SUB or the path of a Tool"),
        ({"stages": ["T9"]}, "^stages: got unknown 'T9'"),
        ({"render_mode": "human"}, "render_mode: got human, expected ansi or rgb_array"),
        ({"num_envs": 0}, "num_envs: got 0, expected at least 1"),
        ({"autoreset_mode": "Never"}, "autoreset_mode: got Never, expected NextStep, SameStep, Disabled"),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_line(options, message):
    with pytest.raises(ValueError, match=message):
        vector(**{"stages": ["T0"], **options})


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0, 6], "expected 0 to 5"),
        ([0, -1], "expected 0 to 5"),
        ([0], r"got int64 of shape \[1\], expected int of shape \[2\]"),
        ([0.0, 1.0], "got float64"),
    ],
)
def test_actions_must_be_actions(actions, message):
    env = vector(2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(np.array(actions))


def test_to_step_before_a_reset_is_refused():
    with pytest.raises(gymnasium.error.ResetNeeded):
        vector(2).step(np.array([0, 0]))


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


def test_one_environment_goes_on_in_its_sequence_of_problems_for_ever():
    env, other = Calculator(["E5"]), vector(1, stages=["E5"])
    env.reset(seed=4)
    other.reset(seed=4)
    for _ in range(2 * PROBLEMS_AT_ONCE):
        assert_same(env.reset()[0]["prompt"], other.reset()[0]["prompt"][0])


@pytest.mark.parametrize("stage", [Stage("twice", pattern="a*(b-c)"), {"name": "twice", "pattern": "a*(b-c)"}])
@pytest.mark.parametrize("tools", [(SUB_TOOL, MUL_TOOL), ["SUB", MUL_TOOL]])
def test_stages_and_tools_of_ones_own_and_names_with_the_module(stage, tools):
    env = gymnasium.make(f"toolagent_pl.gym:{ID}", stages=[stage], tools=tools)
    assert env.reset(seed=0)[0]["prompt_length"] == 8
    assert env.unwrapped.action_names == ("SUB", "MUL", "ANS", "STO", "RCL")


def test_without_gymnasium_the_package_works_and_the_module_says_what_it_needs():
    code = "import sys; sys.modules['gymnasium'] = None; import toolagent_pl.solver, toolagent_pl.cli, toolagent_pl.gym"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    line = "ImportError: toolagent_pl.gym: needs Gymnasium, pip install 'toolagent_pl[gym]'"
    assert done.stderr.splitlines()[-1] == line


def test_nothing_is_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = vector(2)
        env.reset(seed=0)
        env.step(env.action_space.sample())
        env.close()
