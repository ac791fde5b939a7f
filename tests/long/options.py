"""Generated options: of all that there are one or two, with values at boundaries, of wrong types, and own classes."""

import os
import random
from collections.abc import Sequence
from pathlib import Path

import torch

# Boundaries, wrong types, and places where nothing can be written.
VALUES = ["-1", "0", "1", "2", "3", "7", "-0.5", "0.0", "0.5", "0.001", "1.0", "1e30", "-1e30", ".nan", ".inf"]
VALUES += [str(2**31), str(2**63), "null", "true", "false", "foo", "''", "[]", "{}", "[1]", "[1, 2]", "{a: 1}", "é"]
VALUES += ["nowhere/deep", ".", "/dev/full", "/dev/null", "/proc/nothing", "options.yaml", "~/there", "x" * 300]
CHOICES = {
    "trainer.accelerator": ["cpu", "auto", "gpu", "tpu", "mps"],
    "trainer.strategy": ["auto", "ddp_spawn", "fsdp", "deepspeed", "DDPStrategy", "SingleDeviceStrategy", "xla"],
    "trainer.precision": ["32", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "transformer-engine"],
    "trainer.logger": ["true", "false", "CSVLogger", "TensorBoardLogger", "WandbLogger"],
    "trainer.callbacks": ["EarlyStopping", "ModelCheckpoint", "Timer", "LearningRateMonitor", "BatchSizeFinder"],
    "trainer.profiler": ["simple", "advanced", "xla"],
    "trainer.max_time": ["00:00:00:30", "00:00:00:00", "1", "00:00:00:00:01"],
    "model.agent": ["Reader", "BlindAgent", "TransformerReader", "Agent", "own_parts.Raises", "own_parts.Wide"],
    "model.env": ["CalculatorEnv", "TutorialEnv", "Env", "own_parts.Shrinks", "own_parts.Nothing"],
    "model.reward": ["OutcomeReward", "ProgressReward", "TutorialReward", "own_parts.Flat", "own_parts.Broken"],
    "model.algorithm": ["A2C", "PPO", "GRPO", "RLOO", "TutorialA2C", "own_parts.NoLoss", "own_parts.Late"],
    "optimizer": ["SGD", "Adam", "AdamW", "LBFGS", "SparseAdam", "Optimizer"],
    "lr_scheduler": ["StepLR", "CosineAnnealingLR", "ReduceLROnPlateau", "OneCycleLR"],
    "ckpt_path": ["last", "auto", "best", "options.yaml"],
    "data.stages": ["[T0]", "[E1]", "[{name: A, pattern: a-b}]", "[{name: B, operators: 2, digits: 3}]", "[X]"],
    "data.tools": ["[ADD]", "[MUL,ADD,SUB,own_parts.MAX]", "[own_parts.BAD]", "[own_parts.NONE]"],
}
# Of these, large values are within bounds, and only take memory and time; and several processes take a machine.
LEFT_OUT = {"config", "print_config", "help", "data.num_workers", "trainer.devices", "trainer.num_nodes"}
OWN_PARTS = """
import torch
from toolagent_pl import CalculatorEnv, Tool
from toolagent_pl.agents import BlindAgent, Policy
from toolagent_pl.learning import A2C, OutcomeReward

class Raises(BlindAgent):
    def prefill(self, problems):
        raise KeyError("x")

class Wide(BlindAgent):
    def decode(self, *args):
        policy, cache = super().decode(*args)
        return Policy(policy.logits.repeat(1, 2), policy.value), cache

class Shrinks(CalculatorEnv):
    def step(self, state, action):
        return super().step(state, action)._replace(steps=state.steps[:1])

class Nothing(CalculatorEnv):
    def reset(self, problems):
        return None

class Flat(OutcomeReward):
    def __call__(self, env, rollout):
        return rollout.outcome.correct.float()

class Broken(OutcomeReward):
    def __init__(self):
        raise AttributeError("broken")

class NoLoss(A2C):
    def loss(self, *args):
        return None

class Late(A2C):
    def advantages(self, *args):
        raise ZeroDivisionError("late")

MAX = Tool("MAX", "max", 3, torch.maximum)
BAD = Tool("BAD", "bad", 3, lambda a, b: a.float() / 0)
NONE = Tool("NONE", "none", 3, lambda a, b: None)
"""
UPDATES = 2  # batches of an epoch, and steps of the optimizer: the base configuration makes one in each


def words(rng: random.Random, options: Sequence[str]) -> list[str]:
    """One option or two, of all that there are; now and then an abbreviation."""
    found = []
    for _ in range(rng.choice([1, 2])):
        name = rng.choice(list(options) if rng.random() < 0.7 else list(CHOICES))
        value = rng.choice(CHOICES[name]) if name in CHOICES and rng.random() < 0.7 else rng.choice(VALUES)
        if rng.random() < 0.03:
            name = name[: -rng.randrange(1, 4)]
        found.append(f"--{name}={value}")
    return found


def without_effect(given: dict[str, str], directory: Path) -> str | None:
    """What a run that was taken did not do, although it was asked for.

    Args:
        given: Options of ``fit``, beside those of the base configuration.
        directory: Where it ran.
    """
    if given.get("trainer.fast_dev_run", "false") not in ("false", "0", "null"):
        return None
    path = directory / "lightning_logs/version_0/checkpoints/last.ckpt"
    for option, below in (("checkpoint.dirpath", ""), ("trainer.default_root_dir", path.relative_to(directory).parent)):
        if given.get(option, "null") != "null":
            path = Path(os.path.expanduser(given[option])) / below / "last.ckpt"
            break
    if not path.exists():
        return f"no {path}"
    state = torch.load(path, weights_only=True)
    header, group = state["toolagent_pl"], state["optimizer_states"][0]["param_groups"][0]
    rates = ("optimizer", "lr_scheduler", "polish", "ckpt_path", "config")
    rate = float(given.get("model.learning_rate", "0.003"))
    if not any(name.startswith(rates) for name in given) and group["lr"] != rate:
        return f"a learning rate of {group['lr']} in place of {rate}"
    counted = {"trainer.max_epochs", "trainer.max_steps", "data.batch_size", "model.learning_rate", "model.betas"}
    if set(given) <= counted | {"trainer.log_every_n_steps", "data.val_problems"}:
        batches = int(given.get("trainer.max_epochs", "1")) * UPDATES
        steps = int(given.get("trainer.max_steps", "-1"))
        batches = min(batches, steps) if steps > 0 and batches > 0 else max(batches, steps)
        if header["batches_seen"] != batches or state["global_step"] != batches:
            return f"{header['batches_seen']} batches in place of {batches}"
    return None
