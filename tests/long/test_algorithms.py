"""Each algorithm solves the tutorial's stages, all 111,000 problems of them."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import BLIND
from toolagent_pl.cli.main import main

ALGORITHMS = {
    "A2C": [],
    "PPO": ["--model.algorithm.minibatches=4"],
    "GRPO": ["--model.algorithm.samples_per_problem=8", "--model.algorithm.minibatches=2", "--data.batch_size=64"],
    # With the fixed weight of the entropy bonus that does for the others it stayed at 14% of T2.
    "RLOO": [
        *("--model.algorithm.samples_per_problem=4", "--data.batch_size=128"),
        *("--model.algorithm.ent_coef=0.15", "--model.algorithm.ent_target=1.0"),
    ],
}


@pytest.mark.long
@pytest.mark.parametrize("name", ALGORITHMS)
def test_it_solves_the_stages(name, tmp_path):
    options = [f"--model.algorithm={name}", "--model.algorithm.ent_coef=0.05", *ALGORITHMS[name]]
    options += ["--annealing.at=null", "--solved.plan_length=null", "--trainer.accelerator=cpu"]
    main(["fit", BLIND, *options, f"--trainer.default_root_dir={tmp_path}"])
    events = EventAccumulator(str(tmp_path / "lightning_logs/version_0"))
    events.Reload()
    assert events.Scalars("hp/solved")[-1].value == 1
