"""Every benchmark runs, in a tiny setting."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from benchmarks import ablations, compare, gpu, overhead, reasoning_gym_eval, sb3, throughput, time_to_solve
from benchmarks.bare import DEFAULT_RUN, make_module, steps_of, trained_reader
from toolagent_pl.cli import main as command_line
from toolagent_pl.learning.rollout import collect
from toolagent_pl.problems import Problems
from toolagent_pl.problems.stream import ProblemStream

TINY = ["--trainer.accelerator=cpu", "--data.val_problems=20", "--data.test_problems=50", "--data.batch_size=64"]
TINY += ["--curriculum.stages=null", "--curriculum.ent_targets=null", "--curriculum.every_n_epochs=1"]


def test_contestants_are_measured(tmp_path):
    output = tmp_path / "throughput.json"
    small = ["--batch", "16", "--repetitions", "1", "--seconds", "0.05", "--patience", "0", "--output", str(output)]
    assert throughput.main([*small, "--contestants", "reader", "products"]) == 0
    ours, limit = json.loads(output.read_text())["results"]
    assert ours["contestant"] == "reader"
    assert ours["tokens_per_second"] == pytest.approx(ours["tokens"] / ours["seconds"])
    assert limit["tokens"] == 16 * steps_of("E5")
    assert limit["tokens_per_second"] > ours["tokens_per_second"]


def test_the_update_that_is_measured_is_that_of_the_default_run():
    module = make_module("reader", ["E5"], **DEFAULT_RUN)
    model = yaml.safe_load((Path(__file__).parents[1] / "configs/default.yaml").read_text())["model"]
    for name, value in model["algorithm"]["init_args"].items():
        assert getattr(module.algorithm, name) == value
    assert [module.learning_rate, list(module.betas)] == [model["learning_rate"], model["betas"]]


def test_jax_does_the_same_work():
    """The same log-probabilities and values for the same weights, and the same episodes for the same actions."""
    jax = pytest.importorskip("jax")
    from benchmarks.contestants import jax_reader

    module = trained_reader("E5", 96)
    problems = ProblemStream(module.stages, 3, 64, batches=1).batch(0)
    task, rules = jax_reader.task_of(module, problems)
    weights = jax_reader.weights_of(module)
    gaps, number = jax_reader.count(task, len(weights["count"]))
    encoded = jax_reader.encode(weights, gaps, gaps.cumsum(1), task.inside)
    noise = jax.random.uniform(jax.random.key(0), (18, 64))  # as many steps as the calculator allows
    steps, solved = jax.jit(jax_reader.act)(weights, encoded, number, task, rules, noise)
    theirs = {name: torch.from_numpy(np.array(value)) for name, value in steps._asdict().items()}
    rollout = collect(module.agent, module.env, problems, actions=theirs["action"].long())
    mask = torch.zeros_like(theirs["mask"])
    mask[: len(rollout.mask)] = rollout.mask
    assert torch.equal(mask, theirs["mask"])
    assert torch.equal(rollout.outcome.correct, torch.from_numpy(np.array(solved)))
    assert int(rollout.outcome.correct.sum()) > 10
    evaluation = module.agent(rollout)
    for name in ("log_prob", "value"):
        torch.testing.assert_close(getattr(evaluation, name)[rollout.mask], theirs[name][mask], rtol=1e-4, atol=1e-5)


def test_stable_baselines_learns_the_same_task(tmp_path):
    pytest.importorskip("sb3_contrib")
    output = tmp_path / "sb3.json"
    words = ["--tasks", "T0", "--seeds", "0", "--most_tokens", "1000000", "1", "--patience", "0"]
    assert sb3.main([*words, "--output", str(output)]) == 0
    ours, *theirs = json.loads(output.read_text())["results"]
    assert ours["accuracy"] >= sb3.SOLVED
    assert [one["name"] for one in theirs] == ["PPO", "MaskablePPO"]
    assert all(0 < one["tokens"] < ours["tokens"] and 0 <= one["accuracy"] <= 1 for one in theirs)


def test_fit_and_the_bare_loop_do_the_same_work(tmp_path):
    output = tmp_path / "overhead.json"
    options = ["--turns", "4", "--repetitions", "1", "--batch", "16", "--patience", "0", "--output", str(output)]
    small = ["--data.stages=[T0,E1]", "--data.unseen=[E2]", "--checkpoint.every_n_batches=10"]
    assert overhead.main([*options, "--", *TINY, *small]) == 0
    document = json.loads(output.read_text())
    (result,) = document["results"]
    assert result["same_weights"]
    assert len(result["fit"]) == len(result["bare"]) == 4


def test_time_to_solve_reads_what_a_run_logged(tmp_path):
    config, output = tmp_path / "config.yaml", tmp_path / "time_to_solve.json"
    config.write_text("data: {stages: [T0, T1], unseen: [E1], batches_per_epoch: 10}\ntrainer: {max_epochs: 2}\n")
    options = ["--config", str(config), "--seeds", "0", "--patience", "0", "--output", str(output)]
    assert time_to_solve.main([*options, "--", *TINY]) in (0, 1)
    document = json.loads(output.read_text())
    (run,) = document["runs"]
    assert run["error"] is None
    assert run["batches"] == document["batches"]["worst"] == 20
    assert 64 * 20 <= run["tokens"] <= 15 * 64 * 20
    assert {name for name in run if name.endswith("_accuracy")} == {"T0_accuracy", "T1_accuracy", "E1_accuracy"}
    tried = 50  # of T1, which was not learned; all of T0
    mean = (1000 * run["T0_accuracy"] + tried * run["T1_accuracy"]) / (1000 + tried)
    assert run["solved"] == pytest.approx(mean, abs=1e-6)


def test_worst_is_the_least_accuracy_and_the_longest_plan():
    runs = [
        {"seconds": s, "solved": 1, "E1_accuracy": a, "E1_plan_length": n}
        for s, a, n in ((1, 0.5, 1.5), (3, 0.7, None), (2, 0.9, 1.0))
    ]
    found = time_to_solve.summary(runs)
    assert found["seconds"] == {"median": 2, "worst": 3}
    assert found["E1_accuracy"] == {"median": 0.7, "worst": 0.5}
    assert found["E1_plan_length"] == {"median": 1.25, "worst": 1.5}


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_ablations_go_on_where_they_were(tmp_path, capsys):
    pytest.importorskip("scipy")
    config, output = tmp_path / "config.yaml", tmp_path / "ablations.jsonl"
    config.write_text(
        "data: {stages: [E1, E2], unseen: [E3], batches_per_epoch: 1}\n"
        "model: {agent: {class_path: Reader}, env: {class_path: CalculatorEnv, init_args: {max_steps: auto}}}\n"
    )
    options = ["--config", str(config), "--seeds", "0", "--tokens", "200", "--problems", "20", "--patience", "0"]
    options += ["--output", str(output)]
    for variants in (["no memory"], ["no memory", "blind"]):
        assert ablations.main([*options, "--variants", *variants, "--", *TINY]) == 0
    runs = lines(output)
    assert [run["key"] for run in runs] == [["no memory", 0], ["blind", 0]]
    assert runs[0]["curve"][-1][0] >= 200
    figures = runs[0]["figures"]
    assert {f"accuracy on {name}" for name in ("E1", "E2", "E3")} <= set(figures)
    assert figures["needs no memory: E1"] == 1
    assert figures["plans on 10,000 of E5"] >= 1
    assert "plans on 10,000 of E5" not in runs[1]["figures"]  # it is told the stage, and was not trained on it
    with pytest.raises(SystemExit) as stopped:
        ablations.main([*options, "--variants", "blind", "--", *TINY, "--model.learning_rate=1"])
    assert stopped.value.code == 2
    assert "blind (1)" in capsys.readouterr().out


def test_a_comparison_goes_on_where_it_was(tmp_path, capsys):
    pytest.importorskip("scipy")
    output = tmp_path / "comparison.jsonl"
    options = ["--tokens", "100", "--variants", compare.BASE, "--jobs", "2", "--output", str(output)]
    options += ["--algorithms", "A2C", "GRPO"]
    small = ["--", "--data.val_problems=20", "--data.batch_size=16", "--data.batches_per_epoch=1"]
    assert compare.main([*options, "--seeds", "1", *small]) == 0
    first = output.read_text()
    output.write_text(first + '{"key": ["A2C"')  # a process that was killed
    assert compare.main([*options, "--seeds", "1", *small]) == 0
    assert output.read_text() == first
    assert sorted(run["key"] for run in lines(output)) == [["A2C", "as it is", 0], ["GRPO", "as it is", 0]]
    assert all(len(point) == 5 for run in lines(output) for point in run["curve"])
    assert output.with_suffix(".png").is_file()
    assert "reach 99%" in capsys.readouterr().out


def test_a_comparison_counts_what_was_reached_within_the_budget():
    pytest.importorskip("scipy")
    fast = compare.Run("PPO", "as it is", 0, [[10, 1.0, 0.5, 0.5], [20, 2.0, 1.0, 1.0]])
    slow = compare.Run("A2C", "as it is", 0, [[10, 1.0, 1.0, 0.2], [30, 3.0, 1.0, 0.98]])
    assert [fast.at(tokens) for tokens in (9, 10, 19, 20, 100)] == [0, 0.5, 0.5, 1, 1]
    assert fast.solved() == [20, 2.0]
    assert slow.solved() == [float("inf")] * 2
    rows = compare.table([fast, slow, fast._replace(seed=1), slow._replace(seed=1)], "algorithm", "PPO", 100)
    cells = [list(column.cells) for column in rows.columns]
    assert cells[0] == ["PPO", "A2C"]
    assert cells[3] == ["2 of 2", "0 of 2"]
    assert cells[4] == ["20", "not by half"]
    assert cells[6][1].startswith("0.000")


def test_every_cell_of_the_comparison_is_a_run_that_can_be_built():
    """And all of them learn from as many episodes in an epoch."""
    pytest.importorskip("optuna")
    from toolagent_pl.sweep import DryCLI

    for name, words in compare.ALGORITHMS.items():
        for variant in compare.VARIANTS.values():
            cli = command_line(["fit", *compare.COMMON, *words, *variant], DryCLI)
            data, algorithm = cli.datamodule, cli.model.algorithm
            assert type(algorithm).__name__ == name
            assert data.batch_size * algorithm.samples_per_problem == compare.UPDATE * algorithm.minibatches
            assert data.batch_size * algorithm.samples_per_problem * data.batches_per_epoch == compare.EPOCH


@pytest.mark.parametrize(
    ("question", "expression"),
    [
        ("Calculate 5 - 3 * ( 2 + 1 ).", "5 - 3 * ( 2 + 1 )"),
        ("State the final answer to the following arithmetic problem: 40 - 4 + 16 =", "40 - 4 + 16"),
        ("Calculate 2 - -1.", None),
        ("Calculate -( 2 + 3 ).", None),
        ("Calculate 6 / 3.", None),
        ("What is it?", None),
    ],
)
def test_expressions_are_read_from_questions(question, expression):
    assert reasoning_gym_eval.expression_of(question) == expression


def test_negative_numbers_can_be_written_otherwise():
    question = "Calculate -7 - -1 * ( -3 + 2 )."
    assert reasoning_gym_eval.expression_of(question, signed=True) == "(0-7) -(0-1) * ((0-3) + 2 )"


class Calculator:
    """Answers all but single numbers, and all sums of two wrongly."""

    def solve(self, expressions):
        targets = Problems.from_expressions(expressions).target.tolist()
        wrong = [len(text.split()) == 3 for text in expressions]
        return [SimpleNamespace(answer=target + off) for target, off in zip(targets, wrong, strict=True)]


def test_reasoning_gym_scores_what_is_within_the_language():
    pytest.importorskip("reasoning_gym")
    options = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 2}
    result = reasoning_gym_eval.evaluate(Calculator(), "chain_sum", options, 50, 0)
    assert result["within_the_language"] == result["answered"] == 50
    assert 0 < result["right"] < 50
    result = reasoning_gym_eval.evaluate(Calculator(), "basic_arithmetic", options, 50, 0)
    assert 0 < result["within_the_language"] < 50
    assert result["score_of_all"] < result["score"]
    options |= reasoning_gym_eval.PLAIN
    result = reasoning_gym_eval.evaluate(Calculator(), "basic_arithmetic", options, 50, 0, signed=True)
    assert result["within_the_language"] == 50


def test_what_is_checked_on_a_gpu_can_be_checked_on_a_cpu(capsys, tmp_path):
    names = [name for name in gpu.CHECKS if name != "compiled"]  # which takes a minute: see test_compile.py
    assert gpu.main(["--check", "--device", "cpu", "--checks", *names]) == 0
    assert capsys.readouterr().out.count("\nok ") == len(names)
    output = tmp_path / "gpu.json"
    small = ["--device", "cpu", "--batch", "16", "--seconds", "0.01", "--precision", "float32", "bf16"]
    assert gpu.main(["--measure", *small, "--output", str(output)]) == 0
    assert len(json.loads(output.read_text())["results"]) == 4
    assert torch.get_float32_matmul_precision() == "highest"
