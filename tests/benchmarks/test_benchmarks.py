"""Every benchmark runs, in a tiny setting."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from benchmarks import ablations, compare, countdown, gpu, overhead, reasoning_gym_eval, sb3, throughput, time_to_solve
from benchmarks.bare import DEFAULT_RUN, make_module, steps_of, trained_reader
from toolagent_pl import Problems
from toolagent_pl.cli.main import main as command_line
from toolagent_pl.rl import collect
from toolagent_pl.training.stream import ProblemStream

TINY = ["--trainer.accelerator=cpu", "--data.val_problems=20", "--data.test_problems=50", "--data.batch_size=64"]
TINY += ["--curriculum.stages=null", "--curriculum.ent_targets=null", "--curriculum.every_n_epochs=1"]


def test_contestants_are_measured(tmp_path):
    output = tmp_path / "throughput.json"
    small = ["--batch", "16", "--repetitions", "1", "--seconds", "0.05", "--patience", "0", "--output", str(output)]
    assert throughput.main([*small, "--contestants", "reader", "products"]) == 0
    ours, limit = json.loads(output.read_text())["results"]
    assert ours["tokens_per_second"] == pytest.approx(ours["tokens"] / ours["seconds"])
    assert limit["tokens"] == 16 * steps_of("E5")
    assert limit["tokens_per_second"] > ours["tokens_per_second"]


def test_the_update_that_is_measured_is_that_of_the_default_run():
    module = make_module("reader", ["E5"], **DEFAULT_RUN)
    model = yaml.safe_load((Path(__file__).parents[2] / "configs/default.yaml").read_text())["model"]
    for name, value in model["algorithm"]["init_args"].items():
        assert getattr(module.algorithm, name) == value
    for name in ("learning_rate", "weight_decay"):
        assert getattr(module, name) == model[name]
    assert list(module.betas) == model["betas"]


def test_jax_does_the_same_work():
    """The same log-probabilities and values for the same weights, and the same episodes for the same actions."""
    jax = pytest.importorskip("jax")
    from benchmarks.contestants import jax_reader

    module = trained_reader("E5", 96)
    problems = ProblemStream(module.env, 3, 64, batches=1).batch(0)
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
    assert torch.equal(rollout.solved, torch.from_numpy(np.array(solved)))
    assert int(rollout.solved.sum()) > 10
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
    small = ["--env.stages=[T0,E1]", "--env.unseen=[E2]", "--checkpoint.every_n_batches=10"]
    assert overhead.main([*options, "--", *TINY, *small]) == 0
    document = json.loads(output.read_text())
    (result,) = document["results"]
    assert result["same_weights"]
    assert len(result["fit"]) == len(result["bare"]) == 4


def test_time_to_solve_reads_what_a_run_logged(tmp_path):
    config, output = tmp_path / "config.yaml", tmp_path / "time_to_solve.json"
    env = "env: {class_path: CalculatorEnv, init_args: {stages: [T0, T1], unseen: [E1]}}\n"
    config.write_text(f"{env}data: {{batches_per_epoch: 10}}\ntrainer: {{max_epochs: 2}}\n")
    options = ["--config", str(config), "--seeds", "0", "--patience", "0", "--output", str(output)]
    assert time_to_solve.main([*options, "--", *TINY]) in (0, 1)
    document = json.loads(output.read_text())
    (run,) = document["runs"]
    assert run["error"] is None
    assert run["batches"] == document["batches"]["worst"] == 20
    assert 64 * 20 <= run["tokens"] <= 15 * 64 * 20
    assert {name for name in run if name.endswith("_accuracy")} == {"T0_accuracy", "T1_accuracy", "E1_accuracy"}
    mean = (1000 * run["T0_accuracy"] + 50 * run["T1_accuracy"]) / 1050  # a sample of T1, which was not learned
    assert run["solved"] == pytest.approx(mean, abs=1e-6)
    found = time_to_solve.summary([{"solved": 1, "E1_accuracy": accuracy} for accuracy in (0.5, 0.7, 0.9)])
    assert found["E1_accuracy"] == {"median": 0.7, "worst": 0.5}


def test_an_ablation_is_judged(tmp_path, capsys):
    pytest.importorskip("scipy")
    config, output = tmp_path / "config.yaml", tmp_path / "ablations.jsonl"
    env = "env: {class_path: CalculatorEnv, init_args: {stages: [E1, E2], unseen: [E3]}}\n"
    config.write_text(f"{env}data: {{batches_per_epoch: 1}}\n")
    options = ["--config", str(config), "--seeds", "0", "--tokens", "200", "--problems", "20", "--patience", "0"]
    options += ["--output", str(output), "--variants", "no memory", "--"]
    assert ablations.main([*options, *TINY]) == 0
    run = json.loads(output.read_text())
    assert run["curve"][-1][0] >= 200
    assert {f"accuracy on {name}" for name in ("E1", "E2", "E3")} <= set(run["figures"])
    assert run["figures"]["needs no memory: E1"] == 1
    assert run["figures"]["plans on 10,000 of E5"] >= 1
    assert "no memory (1)" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:  # runs with other settings are in the file
        ablations.main([*options, *TINY, "--model.learning_rate=1"])
    assert stopped.value.code == 2


def test_a_comparison_goes_on_where_it_was(tmp_path, capsys):
    pytest.importorskip("scipy")
    output = tmp_path / "comparison.jsonl"
    options = ["--tokens", "100", "--variants", compare.BASE, "--algorithms", "GRPO", "--output", str(output)]
    options += ["--seeds", "1", "--", "--data.val_problems=20", "--data.batch_size=16", "--data.batches_per_epoch=1"]
    assert compare.main(options) == 0
    first = output.read_text()
    output.write_text(first + '{"key": ["GRPO"')  # a process that was killed
    assert compare.main(options) == 0
    assert output.read_text() == first
    run = json.loads(output.read_text())
    assert all(len(point) == 5 for point in run["curve"])
    assert output.with_suffix(".png").is_file()
    assert "reach 99%" in capsys.readouterr().out


def test_a_comparison_counts_what_was_reached_within_the_budget():
    pytest.importorskip("scipy")
    fast = compare.Run("PPO", "as it is", 0, [[10, 1.0, 0.5, 0.5], [20, 2.0, 1.0, 1.0]])
    slow = compare.Run("A2C", "as it is", 0, [[10, 1.0, 1.0, 0.2], [30, 3.0, 1.0, 0.98]])
    assert [fast.at(tokens) for tokens in (9, 10, 19, 20, 100)] == [0, 0.5, 0.5, 1, 1]
    rows = compare.table([fast, slow, fast._replace(seed=1), slow._replace(seed=1)], "algorithm", "PPO", 100)
    _, _, _, solved, tokens, *_ = [list(column.cells) for column in rows.columns]
    assert [solved, tokens] == [["2 of 2", "0 of 2"], ["20", "not by half"]]


def test_every_algorithm_and_variant_of_the_comparison_can_be_built():
    pytest.importorskip("optuna")
    from toolagent_pl.cli.sweep import DryCLI

    cells = [(name, compare.BASE) for name in compare.ALGORITHMS] + [("PPO", variant) for variant in compare.VARIANTS]
    for name, variant in cells:
        words = [*compare.COMMON, *compare.ALGORITHMS[name], *compare.VARIANTS[variant]]
        cli = command_line(["fit", *words], DryCLI)
        data, algorithm = cli.datamodule, cli.model.algorithm
        assert type(algorithm).__name__ == name
        assert data.batch_size * algorithm.samples_per_problem == compare.UPDATE * algorithm.minibatches
        assert data.batch_size * algorithm.samples_per_problem * data.batches_per_epoch == compare.EPOCH


def test_expressions_are_read_from_questions():
    read = reasoning_gym_eval.expression_of
    assert read("Calculate 5 - 3 * ( 2 + 1 ).") == "5 - 3 * ( 2 + 1 )"
    assert [read(f"Calculate {text}.") for text in ("2 - -1", "6 / 3", "it")] == [None] * 3
    assert read("Calculate -7 - -1 * ( -3 + 2 ).", signed=True) == "(0-7) -(0-1) * ((0-3) + 2 )"


def test_reasoning_gym_scores_what_is_within_the_language():
    pytest.importorskip("reasoning_gym")

    def solve(expressions):  # all sums of two wrongly
        targets = Problems.from_expressions(expressions).target.tolist()
        wrong = [len(text.split()) == 3 for text in expressions]
        return [SimpleNamespace(answer=target + off) for target, off in zip(targets, wrong, strict=True)]

    solver = SimpleNamespace(solve=solve)
    options = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 2}
    result = reasoning_gym_eval.evaluate(solver, "chain_sum", options, 50, 0)
    assert result["within_the_language"] == result["answered"] == 50
    assert 0 < result["right"] < 50
    result = reasoning_gym_eval.evaluate(solver, "basic_arithmetic", options, 50, 0)
    assert 0 < result["within_the_language"] < 50
    assert result["score_of_all"] < result["score"]


def test_agents_of_countdown_are_trained_and_measured(tmp_path, monkeypatch):
    pytest.importorskip("reasoning_gym")
    for name, value in (("PROBLEMS", 20), ("SAMPLED", 5), ("JUDGED", 4)):
        monkeypatch.setattr(countdown, name, value)
    output, small = tmp_path / "out.json", ["data.batch_size=8", "model.agent.init_args.hidden=8"]
    config = str(Path(__file__).parents[2] / "configs/countdown.yaml")
    countdown.main([f"--config={config}", "--seconds=0.1", f"--out={output}", "--set", *small])
    trained = json.loads(output.read_text())["curve"][-1]["cells"]
    countdown.main(["--ckpt=countdown-ahead", f"--out={output}"])
    measured = json.loads(output.read_text())
    for cells, names in ((trained, ["C3", "C3_new"]), (measured["cells"], ["C3", "C4", "C3_new", "C4_new"])):
        assert list(cells) == names
        assert all(cell["solved"] <= cell["first_move_kept"] for cell in cells.values())
    assert measured["cells"]["C3"]["pass@16"] > 90 > trained["C3"]["pass@16"]
    judged = measured["reasoning_gym"]
    assert [row["refused"] for row in judged] == [0, 0, 0, 0, 4, 4, 4, 4]
    assert judged[1]["right"] == 100  # three numbers in the ranges trained on
    assert all(row["right"] <= row["solvable_by_the_rules_here"] for row in judged)


def test_what_is_checked_on_a_gpu_can_be_checked_on_a_cpu(capsys, tmp_path):
    names = ["envs", "gradients"]  # the others take long, or are skipped
    assert gpu.main(["--check", "--device", "cpu", "--checks", *names]) == 0
    assert capsys.readouterr().out.count("\nok ") == len(names)
    output = tmp_path / "gpu.json"
    small = ["--device", "cpu", "--batch", "16", "--seconds", "0.01", "--agents", "blind", "--output", str(output)]
    assert gpu.main(["--measure", *small]) == 0
    assert len(json.loads(output.read_text())["results"]) == len(gpu.PRECISIONS)
    assert torch.get_float32_matmul_precision() == "highest"
