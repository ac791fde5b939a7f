"""Pictures of what an agent does."""

import io

import pytest
import torch
from matplotlib.text import Text

from tests.envs.calculator.scripted import scripted
from toolagent_pl import Problems, TutorialEnv
from toolagent_pl.envs.calculator.figures import episode
from toolagent_pl.envs.tutorial import BlindAgent
from toolagent_pl.rl import Env, collect


def rollouts(agent, env, count=20):
    """One for each stage."""
    number = torch.arange(count)
    stages = [torch.full_like(number, stage) for stage in range(len(env.stages))]
    return [collect(agent, env, env.problems(number, stage, 0, held_out=True)) for stage in stages]


def heights(axes):
    return [bar.get_height() for bar in axes.patches]


@pytest.mark.parametrize("hurried", [False, True])
def test_pictures_say_what_is_right_and_what_is_done_when(hurried):
    solver = scripted(hurried, stages=["E1", "E2"])
    drawn = solver.env.figures(rollouts(solver.agent, solver.env))
    expected = ["accuracy_by_operators", "accuracy_by_shape", "tools_by_step"]
    assert list(drawn) == [*(f"pictures/{name}" for name in expected), "episodes/E1", "episodes/E2"]
    for figure in drawn.values():
        figure.savefig(file := io.BytesIO())
        assert file.getvalue().startswith(b"\x89PNG")
    (axes,) = drawn["pictures/accuracy_by_operators"].axes
    assert heights(axes) == [0.0, 0.0] if hurried else [1.0, 1.0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1\n(20)", "2\n(20)"]
    (axes,) = drawn["pictures/accuracy_by_shape"].axes
    assert {text.get_text().partition(" ")[0] for text in axes.get_yticklabels()} == {"(..)", "((..).)", "(.(..))"}
    # Each episode takes a first step, and those of E1 end with the second one.
    (axes,) = drawn["pictures/tools_by_step"].axes
    steps = [sum(bars) for bars in zip(*[[bar.get_height() for bar in tool] for tool in axes.containers], strict=True)]
    assert steps[0] == pytest.approx(1)
    assert steps[2] <= 0.5 + 1e-6
    texts = [text.get_text() for text in drawn["episodes/E1"].axes[0].texts]
    assert any(text.startswith("ANS  ") for text in texts)


def test_every_environment_has_pictures():
    solver = scripted(stages=["E1", "E2"])
    drawn = Env.figures(solver.env, rollouts(solver.agent, solver.env))
    assert list(drawn) == ["pictures/accuracy_by_stage", "pictures/actions_by_step"]
    (axes,) = drawn["pictures/accuracy_by_stage"].axes
    assert heights(axes) == [1.0, 1.0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["E1\n(20)", "E2\n(20)"]
    env = TutorialEnv()  # whose tools report no positions
    assert "episodes/T2" in env.figures(rollouts(BlindAgent(env), env, 3))


def test_an_episode_of_five_operators_can_be_read_on_a_card_of_tensorboard():
    """Some 300 pixels wide, as wide as each picture is shown there: letters are at least 10 pixels high."""
    solver = scripted(max_steps="auto")
    problems = Problems.from_expressions(["2*(3+4)-(5-(1+2)*3)"])
    drawn = episode(collect(solver.agent, solver.env, problems), solver.env)
    shrunk = min(1, 300 / (drawn.get_size_inches()[0] * drawn.dpi))
    letters = [text for text in drawn.findobj(Text) if text.get_text()]
    assert {"MUL  14", "ANS  18", "next operand"} <= {text.get_text() for text in letters}
    assert min(text.get_fontsize() for text in letters) * drawn.dpi / 72 * shrunk > 10
