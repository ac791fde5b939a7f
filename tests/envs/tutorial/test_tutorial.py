"""The tutorial's environment against a slow one, and what is odd in it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import padded, tutorial_episode
from tests.strategies import any_action
from toolagent_pl import TutorialEnv
from toolagent_pl.envs.calculator.stages import Stage, Stages
from toolagent_pl.envs.calculator.tools import Token, Vocabulary
from toolagent_pl.envs.tutorial.env import MAX_STEPS
from toolagent_pl.rl.env import PADDING, execute

CALLS = Vocabulary().actions
MUL, ADD, SUB, ANS, STO, RCL = Token.MUL, Token.ADD, Token.SUB, Token.ANS, Token.STO, Token.RCL
digits = st.tuples(*[st.integers(0, 2) | st.integers(0, 9)] * 5)  # small ones meet the goals by luck
plans = st.lists(st.sampled_from([*CALLS, PADDING]) | any_action, max_size=12)
limits = st.none() | st.integers(1, 8)


def run(rows, max_steps=7):
    """(reward, steps) of each (operands, stage, plan)."""
    operands, stage, actions = zip(*rows, strict=True)
    reward, steps = TutorialEnv(max_steps=max_steps).run(
        torch.tensor(operands), torch.tensor(stage), torch.tensor(padded(actions), dtype=torch.int64)
    )
    return list(zip(reward.tolist(), steps.tolist(), strict=True))


@given(st.lists(st.tuples(digits, st.integers(0, 2), plans), min_size=1, max_size=20), limits)
def test_rewards_and_steps_are_those_of_the_slow_environment(rows, max_steps):
    for (reward, steps), (operands, stage, actions) in zip(run(rows, max_steps), rows, strict=True):
        slow_reward, slow_steps = tutorial_episode(operands, stage, actions, max_steps)
        assert reward == pytest.approx(slow_reward, abs=1e-6)
        assert steps == slow_steps


@pytest.mark.parametrize(
    ("stage", "plan", "reward"),
    [
        (0, [MUL, ANS], 1.05),  # graded on a*b
        (0, [MUL, ADD, ANS], 0.1),
        (0, [MUL, STO, RCL, ANS], 1.05),  # STO and RCL leave the value alone
        (1, [MUL, ADD, ANS], 1.1),  # graded on a*b+c
        (1, [MUL, ADD, SUB, ANS], 0.15),
        (2, [MUL, ADD, STO, RCL, ANS], 0.12),  # RCL replaces everything by d*e
        (2, [MUL, ADD, ANS], 0.08),
        (2, [MUL, ADD, SUB, ANS], 1.0),  # graded on a*b+c-d
        (0, [MUL, ADD], 0.0),  # only an answer is paid
    ],
)
def test_what_the_tutorial_pays(stage, plan, reward):
    ((paid, _),) = run([((7, 8, 9, 3, 5), stage, plan)])
    assert paid == pytest.approx(reward)


def problem(stage, index):
    """Problems of the tutorial's stages, by the digits of their operands."""
    return Stages(["T0", "T1", "T2"]).all_problems(stage, torch.tensor(index))


def test_no_value_leaves_64_bits():
    actions = torch.tensor([[MUL] * 30])
    final = execute(TutorialEnv(max_steps=MAX_STEPS).with_all_tokens(), problem(2, [99999]), actions)[-1]
    assert final.value.item() == 9 ** (MAX_STEPS + 1)


def test_a_step_limit_out_of_range_is_refused():
    for steps in (0, -1, MAX_STEPS + 1):
        with pytest.raises(ValueError, match=rf"^max_steps: got {steps}, expected at least 1 and at most 18"):
            TutorialEnv(max_steps=steps)


def test_an_empty_value_is_recalled_as_zero():
    rows = [((0, 8, 9, 3, 5), 0, plan) for plan in ([STO, RCL, ANS], [ANS])]
    assert run(rows) == [(pytest.approx(1.05), 3), (0, 1)]


def test_being_right_is_judged_on_the_true_target():
    env = TutorialEnv().with_all_tokens()
    first = env.outcome(execute(env, problem(0, [789, 780]), torch.tensor([[MUL, ANS], [MUL, ANS]]))[-1])
    assert first.answer.tolist() == [56, 56]
    assert first.correct.tolist() == [False, True]  # right only where c is 0
    assert first.answered.tolist() == first.valued.tolist() == [True, True]
    second = env.outcome(execute(env, problem(1, [7893]), torch.tensor([[MUL, ADD, ANS]]))[-1])
    assert (second.answer.item(), second.correct.item(), second.steps.item()) == (65, False, 3)


def test_episodes_are_terminated_or_truncated():
    env = TutorialEnv(max_steps=2).with_all_tokens()
    final = execute(env, problem(0, [123, 123, 123]), torch.tensor([[MUL, ANS, MUL], [MUL, ADD, ANS], [ANS, MUL, MUL]]))
    assert final[1].terminated.tolist() == [False, False, True]
    assert final[-1].terminated.tolist() == [True, False, True]
    assert final[-1].truncated.tolist() == [False, True, False]
    assert env.outcome(final[-1]).steps.tolist() == [2, 2, 1]
    assert env.horizon(problem(0, [1])) == 2
    assert TutorialEnv(max_steps=None).horizon(problem(0, [1])) == MAX_STEPS


def test_calls_that_do_not_apply_are_counted_and_tools_report_nothing():
    env = TutorialEnv().with_all_tokens()
    final = execute(env, problem(2, [12345]), torch.tensor([[ADD, SUB, RCL, 7, MUL, STO, RCL]]))[-1]
    assert (final.steps.item(), final.noops.item(), final.value.item()) == (7, 4, 20)
    observation = env.observe(final)
    assert observation.flags.shape == observation.positions.shape == (1, 0)


@pytest.mark.parametrize("plan", [[MUL, ANS], [MUL, ADD, ANS], [MUL, ADD, SUB, ANS]])
def test_what_the_check_asks_for_reaches_what_is_graded(plan):
    names = ["T0", "T1", "T2"][: len(plan) - 1]
    TutorialEnv(names, [token.name for token in plan], len(plan)).check()
    ((reward, steps),) = run([((7, 8, 9, 3, 5), len(names) - 1, plan)])
    assert (reward, steps) == (pytest.approx(1, abs=0.11), len(plan))
    with pytest.raises(ValueError, match=rf"max_steps: got {len(plan) - 1}, expected at least {len(plan)}"):
        TutorialEnv(names, max_steps=len(plan) - 1).check()
    with pytest.raises(ValueError, match=r"^actions: got no MUL, expected MUL"):
        TutorialEnv(names, [token.name for token in plan[1:]]).check()


def test_other_stages_have_no_meaning():
    for names in ([], ["T1"], ["T1", "T0"], ["T0", "T2"], ["E1"], [Stage("T0", "a*b-c")]):
        with pytest.raises(ValueError, match=r"^stages: got .*expected \['T0', 'T1', 'T2'\] or the first of them"):
            TutorialEnv(names)


@pytest.mark.parametrize(
    ("operands", "stage", "actions", "named"),
    [
        ([[1, 2, 3, 4]], [0], [[MUL]], "operands"),
        ([[1.0] * 5], [0], [[MUL]], "operands"),
        ([[1] * 5], [0, 0], [[MUL]], "stage"),
        ([[1] * 5], [0.0], [[MUL]], "stage"),
        ([[1] * 5], [3], [[MUL]], "stage"),
        ([[1] * 5], [-1], [[MUL]], "stage"),
        ([[1] * 5], [0], [[MUL], [MUL]], "actions"),
        ([[1] * 5], [0], [[1.0]], "actions"),
    ],
)
def test_arguments_that_do_not_fit_are_named(operands, stage, actions, named):
    with pytest.raises(ValueError, match=f"^{named}: got .*expected"):
        TutorialEnv().run(torch.tensor(operands), torch.tensor(stage), torch.tensor(actions))
