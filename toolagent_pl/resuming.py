"""What must be as it was when a run goes on, and what may change.

A run that goes on is the run: what decides what is learned is kept in the checkpoint, and compared. Everything else,
such as when the run ends, what it logs and the devices that it uses, may be another.
"""

import json
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from toolagent_pl.trainer_options import PRECISION_ALIASES

KEPT = ("seed_everything", "model", "data", "optimizer", "lr_scheduler", "curriculum", "polish")
FREE = (
    "model.weights",  # where a run began
    "model.accumulate",  # the gradient is that of the whole
    "model.compile_step",
    "model.cuda_graphs",
    "data.unseen",
    "data.test_problems",
    "data.predict_problems",
    "data.eval_batch_size",
    "data.num_workers",
)
TIED = ("model.stages", "model.unseen", "model.tools", "model.seed", "data.seed")  # to other options, which are named

HINT = (
    "as in the checkpoint: --ckpt_path goes on with a run as it was; --model.weights=PATH in its place starts another "
    "one from the same weights"
)
Settings = Mapping[str, str]  # options by name, their values as JSON


def settings_of(options: Namespace) -> dict[str, str]:
    """The options that decide what is learned."""
    found = {}
    for key, value in vars(options.clone().as_flat()).items():
        name = key.replace(".init_args", "").removesuffix(".class_path")
        if key.partition(".")[0] in KEPT and name not in (*FREE, *TIED):
            found[name] = json.dumps(value, default=_plain, sort_keys=True)
    precision = str(options.trainer.precision or "32-true")
    found["trainer.precision"] = json.dumps(PRECISION_ALIASES.get(precision, precision))
    return found


def _plain(value: Any) -> Any:
    """What JSON can write, of anything that an option can be."""
    return vars(value) if hasattr(value, "__dict__") else str(value)


def check_settings(saved: Any, now: Settings) -> None:
    """Refuse to go on with other settings.

    Args:
        saved: What the checkpoint holds.
        now: What the command asks for.

    Raises:
        ValueError: Names the first option that differs, and both values.
    """
    if isinstance(saved, dict) and not saved:
        return  # it was not made by the command line
    if not isinstance(saved, dict) or any(type(text) is not str for pair in saved.items() for text in pair):
        raise ValueError("ckpt_path: got settings in the checkpoint that cannot be read, expected those of a run")
    for option in sorted({*saved, *now}):
        before, after = saved.get(option, "null"), now.get(option, "null")
        if before != after:
            raise ValueError(f"{option}: got {_shown(after)}, expected {_shown(before)} {HINT}")


def _shown(text: str) -> str:
    return text.strip('"') if len(text) < 200 else f"{text[:197]}..."
