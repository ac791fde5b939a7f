"""Countdown: its rules, its problems, its solver, and an agent that learns it."""

import io
import json
import sys
from itertools import combinations

import pytest
import torch
from lightning.pytorch import Trainer

from toolagent_pl import Solver
from toolagent_pl.cli.export import main as export
from toolagent_pl.cli.solve import main
from toolagent_pl.envs.countdown import CountdownEnv, CountdownSolver
from toolagent_pl.envs.countdown.problems import is_held_out, solvable
from toolagent_pl.rl import GRPO, saved
from toolagent_pl.rl.env import execute
from toolagent_pl.rl.rollout import collect
from toolagent_pl.training import ProblemDataModule, ToolAgent


def can_make(numbers, target):
    """The same by trying all, one number after another."""
    if len(numbers) == 1:
        return numbers[0] == target
    for i, j in combinations(range(len(numbers)), 2):
        y, x = sorted((numbers[i], numbers[j]))
        rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
        made = {x + y, x - y, x * y} | ({x // y} if y and x % y == 0 else set())
        if any(can_make([*rest, value], target) for value in made):
            return True
    return False


def test_solver_is_exact():
    generator = torch.Generator().manual_seed(0)
    for count, rows, high in ((1, 50, 30), (2, 2000, 40), (3, 400, 100), (4, 60, 100), (5, 2, 100)):
        numbers = torch.randint(0, high, (rows, count), generator=generator)
        target = torch.randint(10, 101, (rows,), generator=generator)
        expected = [can_make(*row) for row in zip(numbers.tolist(), target.tolist(), strict=True)]
        assert solvable(numbers, target).tolist() == expected


def test_problems_can_be_solved_and_belong_to_their_part():
    env = CountdownEnv(
        stages=["C2", "C3", {"name": "small", "numbers": 3, "high": 9, "target_low": 20, "target_high": 29}],
        unseen=["C4", "C3_new"],
    )
    number = torch.arange(400)
    for held_out in (False, True):
        problems = env.problems(number, number % 5, 7, held_out=held_out)
        sizes = torch.tensor([2, 3, 3, 4, 3])[number % 5]
        assert problems.numbers.ge(0).sum(1).equal(sizes)
        for n in (2, 3, 4):
            assert solvable(problems.numbers[sizes == n, :n], problems.target[sizes == n]).all()
        new = problems.target % 10 == 3
        assert new.tolist() == number.remainder(5).eq(4).tolist()
        assert (is_held_out(problems.numbers, problems.target) == held_out)[~new].all()
        small = problems.stage == 2
        assert problems.numbers[small].max() <= 9
        assert problems.target[small].min() >= 20
        assert problems.target[small].max() <= 29
    some = number[100:130]  # whatever else is in the batch
    again = env.problems(some, some % 5, 7, held_out=True)
    assert all(x.equal(y[100:130]) for x, y in zip(again, problems, strict=True))


def test_an_episode_is_shown_as_an_expression():
    env = CountdownEnv(stages=["C4"])
    problems = env.read(["7 25 4 3 = 216", "7 25 4 = 72", "6 6 4 3=1", "5 2 9 = 7"])

    def plan(*calls):
        return [env.actions.index(call) for call in calls] + [-1] * (3 - len(calls))

    actions = torch.tensor([
        plan("d-c", "c*b", "b*a"),  # 3 4 7 25, 3 4 18, 3 72
        plan("c-b", "b*a"),  # 4 7 25, 4 18
        plan("d/c", "c-b", "b-a"),  # 3 4 6 6, 1 3 4, 1 1
        plan("b/a"),  # 2 5 9: not allowed
    ])  # fmt: skip
    states = execute(env, problems, actions)
    assert env.solved(states[-1]).tolist() == [True, True, False, False]
    assert states[-1].terminated.all()
    assert states[-1].steps.tolist() == [3, 2, 3, 1]
    assert not env.action_mask(states[0])[3, actions[3, 0]]
    agent = _agent(env)
    episodes = env.episodes(collect(agent, env, problems, actions=actions.clamp(min=0).T.contiguous()))
    shown = [episode.story for episode in episodes[:3]]
    assert shown == ["(25-7)*4*3 = 216", "(25-7)*4 = 72", "4-3-6/6 = 0"]
    assert episodes[0].plan == ["25-7=18", "18*4=72", "72*3=216"]
    assert (episodes[0].expression, episodes[0].value) == ("(25-7)*4*3", 216)
    assert episodes[3].story == "2 5 9"


@pytest.mark.parametrize("line", ["25 7", "25 = 7", "1 2 3 4 5 = 9", "25 -7 = 3", "500 2 = 3", "two 3 = 5"])
def test_bad_problems_are_refused_in_one_line(line):
    with pytest.raises(ValueError, match=r"^problem: got .*expected") as caught:
        CountdownEnv().read([line])
    assert "\n" not in str(caught.value)


def test_lookahead_shows_what_calls_would_make():
    env = CountdownEnv(stages=["C3"], lookahead=1)
    problems = env.read(["12 4 5 = 8"])
    state = env.reset(problems)
    results = dict(zip(env.actions, env.observe(state).results[0].tolist(), strict=True))
    assert (results["c/a"], results["c-b"], results["c*b"], results["b/a"]) == (3, 7, 60, -1)
    assert env.action_mask(state)[0].tolist() == [value >= 0 for value in results.values()]
    assert CountdownEnv(stages=["C3"]).observe(state).results.shape == (1, 0)


def _agent(env, **options):
    import pkgutil

    torch.manual_seed(0)
    return pkgutil.resolve_name(env.default_agent)(env, **options)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_agents_evaluate_what_they_did(lookahead):
    """The same from a whole rollout as step by step, and gradients for all weights that decide."""
    env = CountdownEnv(stages=["C3", "C4"], lookahead=lookahead)
    agent = _agent(env, frequencies=4, width=16, hidden=16)
    number = torch.arange(60)
    rollout = collect(agent, env, env.problems(number, number % 2, 0, held_out=False), samples_per_problem=3, seed=0)
    evaluation = agent(rollout)
    assert torch.allclose(evaluation.log_prob[rollout.mask], rollout.log_prob[rollout.mask], atol=1e-5)
    assert torch.allclose(evaluation.value[rollout.mask], rollout.value[rollout.mask], atol=1e-5)
    assert (rollout.steps == 2 + number.repeat_interleave(3) % 2).all()
    evaluation.log_prob.sum().backward()
    assert all(scorer.policy.weight.grad.any() for scorer in agent.scorers[: 1 if lookahead else 3])


def save(folder, env, **options):
    described = {
        "env": {"class_path": "toolagent_pl.envs.countdown.CountdownEnv", "init_args": {"stages": env.stages}},
        "agent": {"class_path": env.default_agent, "init_args": options},
    }
    saved.write(folder, _agent(env, **options), env, described, {})


def test_solve_answers_lines_and_names_bad_ones(tmp_path, capsys, monkeypatch):
    save(tmp_path / "agent", CountdownEnv(stages=["C3"]), frequencies=4, width=16, hidden=16)
    monkeypatch.setattr(sys, "stdin", io.StringIO("25 7 = 18\n1 2 3 4 = 9\n\n4 7 25 = 72\n"))
    page = tmp_path / "page.html"
    assert main(["--env=countdown", f"--ckpt_path={tmp_path / 'agent'}", "--json", "-", f"--html={page}"]) == 2
    out, err = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert list(first) == ["numbers", "target", "expression", "correct"]
    assert (first["numbers"], second["target"]) == ([7, 25], 72)
    assert all(one["correct"] == (eval(one["expression"]) == one["target"]) for one in (first, second))
    assert err.startswith("error: line 2: problem: got '1 2 3 4 = 9', expected 2 to 3 numbers")
    assert err.count("\n") == 1
    solver = CountdownSolver.from_checkpoint(tmp_path / "agent")
    episode = solver.solve("4 7 25 = 72")
    assert episode.expression == second["expression"]
    (choices,) = solver.choices(["4 7 25 = 72"])
    assert [actions[0][0] for _, actions in choices] == episode.plan  # the one taken first, which is the likeliest
    assert all(actions[0][1] == max(p for _, p in actions) for _, actions in choices)
    assert sum(p for _, p in choices[1].actions) == pytest.approx(1)
    assert choices[0].seen == "4 7 25"
    assert all(call in page.read_text() for call in episode.plan)


def test_agents_come_with_the_package(capsys):
    problem = "25 7 4 = 72"
    for name in ("countdown", "countdown-ahead"):
        solver = Solver.from_checkpoint(name)  # the calculator's hands over
        assert isinstance(solver, CountdownSolver)
        assert solver.env.lookahead == (name == "countdown-ahead")
        number = torch.arange(500)
        problems = solver.env.problems(number, 0 * number, 2**40, held_out=True)
        assert collect(solver.agent, solver.env, problems).solved.float().mean() > 0.9
        assert main([f"--ckpt_path={name}", problem]) == 0
        assert capsys.readouterr().out == f"{solver.solve(problem)}\n"
    assert main(["--env=countdown", problem]) == 0
    assert capsys.readouterr().out == f"{Solver.from_checkpoint('countdown').solve(problem)}\n"
    assert main(["--ckpt_path=countup", problem]) == 2
    assert capsys.readouterr().err.endswith("or one of calculator, countdown, countdown-ahead\n")


def test_exported_matrices_are_rounded_and_the_results_are_of_them(tmp_path):
    save(tmp_path / "agent", CountdownEnv(stages=["C2"]), frequencies=4, width=16, hidden=16)
    words = ["--format=safetensors", f"--ckpt_path={tmp_path / 'agent'}", f"--output={tmp_path / 'small'}"]
    assert export([*words, "--dtype=float8_e4m3fn", "--test_problems=200"]) == 0
    full, small = (saved.read(tmp_path / name) for name in ("agent", "small"))
    for name, weight in full.weights.items():
        expected = weight.to(torch.float8_e4m3fn) if weight.ndim > 1 else weight
        assert small.weights[name].dtype == expected.dtype
        assert small.weights[name].float().equal(expected.float())
    agent, env = saved.build(small)
    assert next(agent.parameters()).dtype == torch.float32
    problems = env.problems(torch.arange(200), torch.zeros(200, dtype=torch.int64), 2**40 + 2, held_out=True)
    assert small.description["figures"]["C2"]["right"] == int(collect(agent, env, problems).solved.sum())


def test_a_policy_alone_learns_small_numbers():
    env = CountdownEnv(stages=[{"name": "small", "numbers": 2, "high": 9, "target_high": 50}])
    agent, number = _agent(env, frequencies=8, width=64, hidden=64), torch.arange(256)
    module = ToolAgent(env, lambda _: agent, algorithm=GRPO(minibatches=1, ent_coef=0.02), learning_rate=3e-3)
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, limit_val_batches=0,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    held_out = env.problems(number, 0 * number, 1, held_out=True)
    before = collect(agent, env, held_out).solved.float().mean()
    trainer.fit(module, datamodule=ProblemDataModule(env, batch_size=128, batches_per_epoch=30))
    assert before < 0.6
    assert collect(agent, env, held_out).solved.float().mean() > 0.9
