"""The calculator against a slow one, and its rules by example."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import ARITHMETIC, Calculator, padded
from tests.strategies import MAX_TOKEN, WITH_MAX, expressions_with_max, expressions_with_plans, random_plans
from toolagent_pl import CalculatorEnv, Problems
from toolagent_pl.envs.calculator.stages import Stage
from toolagent_pl.envs.calculator.tools import Token, Vocabulary
from toolagent_pl.rl.env import PADDING, execute

MUL, ADD, SUB, ANS, STO, RCL = Token.MUL, Token.ADD, Token.SUB, Token.ANS, Token.STO, Token.RCL
batches = st.lists(expressions_with_plans(), min_size=1, max_size=12)
limits = st.none() | st.integers(1, 12) | st.just("auto")
depths = st.integers(1, 3) | st.just(8)
WIDTHS = {"none": (0, 0), "flags": (4, 0), "position": (4, 1), "spans": (4, 4)}


def run(text, *plan, max_steps=None, **options):
    """Outcome of one plan, as plain values."""
    outcome = CalculatorEnv(max_steps=max_steps, **options).run(Problems.from_expressions([text]), torch.tensor([plan]))
    return type(outcome)(*(column.item() for column in outcome))


def assert_same_as_slow(env, texts, plans, tools=ARITHMETIC):
    """Every step of every plan, what is reported of it, and the outcome."""
    env = env.with_all_tokens()  # a plan may say anything
    problems = Problems.from_expressions(texts, env.vocabulary.tools)
    actions = torch.tensor(padded(plans), dtype=torch.int64).view(len(texts), -1)
    states = execute(env, problems, actions)
    outcome = env.outcome(states[-1])
    for row, text in enumerate(texts):
        length = int(problems.length[row])
        limit = 3 * length if env.max_steps == "auto" else env.max_steps
        options = {"max_steps": limit, "memory_depth": env.memory_depth, "tools": tools}
        slow = Calculator(problems.operands[row, :length].tolist(), **options)
        where = Calculator(problems.positions[row, :length].tolist(), **options, join=lambda *joined: joined[2])
        for action, state in zip([PADDING, *actions[row].tolist()], states, strict=True):
            slow.press(action)
            where.press(action)
            assert state.value[row] == (slow.value or 0)
            assert state.valued[row] == (slow.value is not None)
            assert (state.terminated[row], state.truncated[row]) == (slow.answered, slow.truncated)
            assert (state.steps[row], state.noops[row], state.applied[row]) == (slow.steps, slow.noops, slow.applied)
            observed, (flags, positions) = env.observe(state), WIDTHS[env.feedback]
            assert observed.flags[row].tolist() == slow.flags[:flags]
            assert observed.positions[row].tolist() == where.held[:positions]
        answered = slow.answered and slow.value is not None
        assert (outcome.answered[row], outcome.valued[row]) == (slow.answered, answered)
        assert outcome.answer[row] == (slow.value if answered else 0)
        assert outcome.correct[row] == slow.solved(eval(text))
        assert outcome.steps[row] == slow.steps


@given(batches, limits, depths, st.sampled_from([*WIDTHS]))
def test_every_step_is_that_of_the_slow_calculator(batch, max_steps, memory_depth, feedback):
    assert_same_as_slow(
        CalculatorEnv(max_steps=max_steps, memory_depth=memory_depth, feedback=feedback), *zip(*batch, strict=True)
    )


with_max = expressions_with_plans(
    st.lists(st.integers(PADDING, MAX_TOKEN), max_size=24), expressions_with_max, Vocabulary(WITH_MAX)
)


@given(st.lists(with_max, min_size=1, max_size=12), limits)
def test_a_tool_of_ones_own_is_executed_like_the_others(batch, max_steps):
    env = CalculatorEnv(max_steps=max_steps, tools=WITH_MAX)
    assert_same_as_slow(env, *zip(*batch, strict=True), ARITHMETIC | {MAX_TOKEN: max})


@given(expressions_with_plans(), random_plans, limits)
def test_nothing_changes_after_the_end(case, more, max_steps):
    text, plan = case
    env = CalculatorEnv(max_steps=max_steps).with_all_tokens()
    problems = Problems.from_expressions([text])
    ended = execute(env, problems, torch.tensor([[*plan, ANS]]))[-1]
    later = execute(env, problems, torch.tensor([[*plan, ANS, *more]]))[-1]
    assert ended.terminated.item() != ended.truncated.item()
    for before, after in zip(ended, later, strict=True):
        assert torch.equal(before, after)


@given(expressions_with_plans(), st.data())
def test_padding_takes_no_step_wherever_it_stands(case, data):
    text, plan = case
    with_padding = [PADDING]
    for action in plan:
        with_padding += [action, *data.draw(st.lists(st.sampled_from([PADDING, -7]), max_size=2))]
    without = [action for action in plan if action >= 0]
    assert run(text, *with_padding, ANS) == run(text, *without, ANS)


@pytest.mark.parametrize("token", [Token.D7, Token.CTX, Token.EOS, Token.CLOSE, 21, 2**40])  # the last are no tokens
def test_what_is_no_call_takes_a_step_and_changes_nothing(token):
    env, problems = CalculatorEnv(tools=WITH_MAX), Problems.from_expressions(["3-7"], WITH_MAX)
    if token < env.vocabulary.size:
        _, after = execute(env.with_all_tokens(), problems, torch.tensor([[token]]))
        assert (after.steps.item(), after.noops.item(), after.applied.item()) == (1, 1, False)
    assert env.run(problems, torch.tensor([[token, SUB, ANS]])).answer.tolist() == [-4]


@pytest.mark.parametrize(
    ("text", "plan", "left"),
    [
        ("2*3+0", [MUL, ANS], "an operand on the tape"),
        ("(2*1+3)-(0*5)", [MUL, ADD, ANS], "two operands on the tape"),
        ("0+3*1", [STO, MUL, ANS], "a value in memory"),
        ("0+3*1", [STO, MUL, RCL, ANS], "a recalled left operand"),
    ],
)
def test_a_lucky_answer_on_half_done_work_is_wrong(text, plan, left):
    outcome = run(text, *plan)
    assert outcome.answer == eval(text)
    assert not outcome.correct, left


@pytest.mark.parametrize(
    ("text", "plan", "answer"),
    [
        ("2*3+4", [MUL, ADD, ANS], 10),
        ("9-2", [SUB, ANS], 7),
        ("1-(2-(3*4))", [STO, STO, MUL, RCL, SUB, RCL, SUB, ANS], 11),
        ("(7-2)-(8-5)", [SUB, STO, SUB, RCL, SUB, ANS], 2),
        ("8", [STO, RCL, ANS], 8),
    ],
)
def test_plans_that_solve_their_problem(text, plan, answer):
    assert run(text, *plan) == (True, answer, True, True, len(plan))


def test_operands_keep_their_sides():
    assert run("9-(2*3)", STO, MUL, RCL, SUB, ANS).answer == 3  # the recalled one on the left
    assert run("9-(2*3)", SUB, MUL, ANS).answer == 21


def test_memory_holds_eight_values_or_as_many_as_asked_for():
    plan = [STO, STO, MUL, RCL, SUB, RCL, SUB, ANS]
    assert [run("1-(2-(3*4))", *plan, memory_depth=depth).correct for depth in (1, 2, 64)] == [False, True, True]
    # A ninth STO does nothing, so 128 comes back first; then 64-128, 32-(64-128) and so on.
    outcome = run("3-2-4-8-16-32-64-128-256", *[STO] * 9, RCL, *[RCL, SUB] * 6, RCL, MUL, ANS)
    assert outcome.answer == eval("3*(2-(4-(8-(16-(32-(64-128))))))")
    assert not outcome.correct


def test_nothing_is_stored_or_recalled_while_a_left_operand_waits():
    assert run("1-(2*3)", STO, MUL, RCL, STO, RCL, SUB, ANS) == (True, -5, True, True, 7)
    assert run("4-(1-(2*3))", STO, STO, MUL, RCL, RCL, SUB, RCL, SUB, ANS) == (True, 9, True, True, 9)


def test_answering_nothing():
    assert run("1+2", ANS) == (True, 0, False, False, 1)
    assert run("1-1", ANS) == (True, 0, False, False, 1)  # an empty accumulator is not a 0


@pytest.mark.parametrize(("max_steps", "answered"), [(1, False), (2, True), (3, True), (None, True), ("auto", True)])
def test_an_answer_must_come_within_the_step_limit(max_steps, answered):
    outcome = run("2*3", MUL, ANS, max_steps=max_steps)
    assert (outcome.answered, outcome.correct) == (answered, answered)
    assert outcome.answer == (6 if answered else 0)


def test_the_automatic_limit_is_that_of_each_problem():
    """Three an operator and three more; a horizon that no problem of the batch exceeds."""
    env, problems = CalculatorEnv(), Problems.from_expressions(["7", "1+2", "1+2*3-4"])
    final = execute(env, problems, torch.zeros(3, 20, dtype=torch.int64))[-1]
    assert final.steps.tolist() == [3, 6, 12]
    assert final.truncated.all()
    assert not final.terminated.any()
    assert (env.horizon(problems), CalculatorEnv(max_steps=9).horizon(problems)) == (12, 9)
    with pytest.raises(ValueError, match=r"^max_steps: got null"):
        CalculatorEnv(max_steps=None).horizon(problems)


def test_large_values_are_exact():
    assert run("3037000499*3037000499", MUL, ANS).answer == 3037000499**2


def test_actions_that_do_not_fit_are_refused():
    for shape, dtype in (((2, 3), torch.int64), ((1, 3), torch.float32), ((3,), torch.int64)):
        with pytest.raises(ValueError, match=r"^actions: got .*expected int64 of shape \[1, steps\]"):
            CalculatorEnv().run(Problems.from_expressions(["1+2"]), torch.zeros(shape, dtype=dtype))


def test_options_out_of_range_are_named():
    for option, values in (("max_steps", (0, -1, 1025)), ("memory_depth", (0, 65)), ("feedback", ("all",))):
        for value in values:
            with pytest.raises(ValueError, match=rf"^{option}: got {value}, expected"):
                CalculatorEnv(**{option: value})


@pytest.mark.parametrize(
    ("stages", "options", "named"),
    [
        (["T0"], {"max_steps": 2}, "max_steps: got 2, expected at least 3, the length of the longest plan of T0"),
        (["T0", "T2"], {"max_steps": 6}, "max_steps: got 6, expected at least 7, the length of the longest plan of T2"),
        (["E3"], {"max_steps": 7}, "max_steps: got 7, expected at least 8, the length of the longest plan of E3"),
        (["T1"], {"actions": ["MUL", "ADD", "ANS"]}, "actions: got no SUB, expected what a plan of T1 is made of"),
        (["E2"], {"actions": ["MUL", "ADD", "SUB", "ANS"]}, "actions: got no STO, RCL, expected what a plan of E2 is "),
    ],
)
def test_stages_that_cannot_be_solved_are_refused(stages, options, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        CalculatorEnv(stages, **options).check()


def test_stages_that_can_be_solved_are_accepted():
    CalculatorEnv(["T0", "T1", "T2"], max_steps=7).check()
    CalculatorEnv(["E3"], max_steps=8).check()
    CalculatorEnv(["E9"]).check()
    CalculatorEnv(["T0"], actions=["MUL", "ADD", "ANS"], max_steps=4).check()
    CalculatorEnv([Stage("P", operators=1, tools=("ADD",))], actions=["ADD", "ANS"], max_steps=2).check()


def test_actions_are_numbers_in_the_order_of_their_names():
    """And what does not apply at a time is what would change nothing."""
    env, problems = CalculatorEnv(["E1"], actions=["ANS", "ADD", "RCL"]), Problems.from_expressions(["3+4", "5+6"])
    state = env.reset(problems)
    assert env.applies(state).tolist() == [[True, True, False]] * 2
    for action in ([1, 1], [0, 2]):
        state = env.step(state, torch.tensor(action))
    assert env.solved(state).tolist() == [True, False]
    assert state.noops.tolist() == [0, 1]
    assert env.outcome(state).answer.tolist() == [7, 0]
