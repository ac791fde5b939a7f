"""What a run is about when: which stages it trains on, how the agent is annealed, when it has learned enough."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.updates import neighbours_of
from toolagent_pl.training.metrics import StageResult, log_metrics
from toolagent_pl.training.module import ToolAgent
from toolagent_pl.training.ranks import threads_for

MIN_PRIORITY = 0.05  # of a stage that is mastered, or out of reach; the highest is 0.25 more
COST_ENDS_AT = 0.8  # share of the annealing after which a step would cost nothing; a quarter is reached at 0.6
MIN_COST = 0.25
MIN_LEARNING_RATE = 0.02
MIN_ENTROPY = 0.1
DIGITS = 6  # that are right in metrics of Lightning, which are float32


class _Schedule(Callback):
    """Decides at the end of an epoch from the last validation. All ranks decide alike: validation is synchronised."""

    kept: tuple[str, ...]  # attributes that are kept in checkpoints; the last one may say that nothing is left to do

    def check(self, module: ToolAgent) -> None:
        """Raise a ValueError for options that do not fit the module."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Check the options before the run; other commands than ``fit`` have no use for them."""
        if stage == "fit":
            self.check(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was killed when all was done has nothing left to do."""
        trainer.should_stop |= getattr(self, self.kept[-1]) is True

    def decide(self, trainer: Trainer, module: ToolAgent) -> None:
        """What comes of an epoch."""
        raise NotImplementedError

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Decide, unless the epoch was cut short: a resumed run goes on with it."""
        if pl_module.epoch_is_whole:
            self.decide(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What was decided."""
        return {name: getattr(self, name) for name in self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        for name in self.kept:
            setattr(self, name, state_dict[name])


def _validated(trainer: Trainer, module: ToolAgent, metric: str = "accuracy") -> list[float]:
    """A metric of each stage that is trained on, at the last validation; not a number where there is none."""
    metrics = trainer.callback_metrics
    return [round(float(metrics.get(f"val/{name}_{metric}", math.nan)), DIGITS) for name in module.env.stages]


class CurriculumCallback(_Schedule):
    """Goes through a list of stages, by the clock, by mastery, or by whichever comes first.

    Args:
        stages: Names of the environment's stages, in the order in which to train on them, a phase for each, of the same
            length; null for all of them in their order. A phase may be a list: the first of its stages is trained on,
            the others join those that came before.
        every_n_epochs: Go on to the next phase after this many epochs; null for never.
        advance_at: Go on to the next other stage once validation accuracy on this one is at least this;
            null for never.
        rehearsal: Share of problems from the stages that came before, in equal parts.
        window: Train on the stages of the last so many phases in equal parts, in place of ``rehearsal``; null for
            ``rehearsal``. With ``advance_at`` it is the window of difficulty of Zeng et al., "RLVE", 2025.
        prioritize: Train on all of these stages, each the more the more there is to learn from it: in proportion to
            ``p (1 - p) + 0.05`` for a validation accuracy p, the variance of an episode's outcome. Source: Rutherford
            et al., "No Regrets", NeurIPS 2024 (learnability), with a floor that, like the staleness of
            Jiang et al., "Prioritized Level Replay", ICML 2021, lets no stage be forgotten.
        ent_targets: Entropy, in nats, that the weight of its bonus is steered to, for each phase; null to leave it to
            the algorithm.
    """

    kept = ("phase", "epochs", "accuracies")

    def __init__(
        self,
        stages: Sequence[str | Sequence[str]] | None = None,
        every_n_epochs: int | None = None,
        advance_at: float | None = 0.9,
        rehearsal: float = 0.3,
        ent_targets: Sequence[float] | None = None,
        window: int | None = None,
        prioritize: bool = False,
    ) -> None:
        if stages is not None and (not stages or not all(stages)):
            raise ValueError(f"curriculum.stages: got {stages}, expected names of stages, or null for all")
        if every_n_epochs is None and advance_at is None:
            raise ValueError("advance_at: got null, as is every_n_epochs, expected one of them")
        check_range(at_least=1, every_n_epochs=every_n_epochs, window=window)
        check_range(above=0, at_most=1, advance_at=advance_at)
        if not 0 <= rehearsal < 1:
            raise ValueError(f"rehearsal: got {rehearsal}, expected at least 0 and less than 1")
        for target in ent_targets or ():
            check_range(at_least=0, ent_targets=target)
        self.names = None if stages is None else [[one] if isinstance(one, str) else list(one) for one in stages]
        self.every_n_epochs, self.advance_at, self.rehearsal = every_n_epochs, advance_at, rehearsal
        self.ent_targets, self.window, self.prioritize = ent_targets, window, prioritize
        self.phases: list[list[int]] = []  # positions in the environment's list of stages
        self.phase = 0
        self.epochs = 0  # finished in this phase
        self.accuracies: list[float] = []  # of the environment's stages, which priorities follow

    @property
    def stage(self) -> int:
        """The current stage, as a position in the environment's list of stages."""
        return self.phases[self.phase][0]

    def mixture(self, count: int) -> list[float]:
        """Share of each of so many stages."""
        first = max(0, self.phase + 1 - self.window) if self.window else 0
        reached = {stage for phase in self.phases[first : self.phase + 1] for stage in phase}
        shares = [0.0] * count
        for stage in reached:
            if self.prioritize:
                accuracy = self.accuracies[stage] if self.accuracies else 0.0
                shares[stage] = accuracy * (1 - accuracy) + MIN_PRIORITY
            elif self.window:
                shares[stage] = 1.0
            elif stage != self.stage:
                shares[stage] = self.rehearsal / (len(reached) - 1)
        if self.window or self.prioritize:
            return [share / sum(shares) for share in shares]
        shares[self.stage] = 1.0 - sum(shares)
        return shares

    def check(self, module: ToolAgent) -> None:
        """Find the phases among the stages; a ValueError says what is not there."""
        names = module.env.stages
        wanted = self.names or [[name] for name in names]
        for name in (name for phase in wanted for name in phase):
            if name not in names:
                raise ValueError(f"curriculum.stages: got {name}, expected some of env.stages, {', '.join(names)}")
        if self.ent_targets is not None and len(self.ent_targets) != len(wanted):
            got = list(self.ent_targets)
            raise ValueError(f"ent_targets: got {got}, expected {len(wanted)} numbers, one for each phase")
        self.phases = [[list(names).index(name) for name in phase] for phase in wanted]

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start where the state says, which may come from a checkpoint. Later, workers would have begun."""
        if self.phase >= len(self.phases):
            count = f"{len(self.phases)} phases, expected more than {self.phase}"
            raise ValueError(f"curriculum.stages: got {count}, where the checkpoint is")
        self._apply(trainer, pl_module)

    def decide(self, trainer: Trainer, module: ToolAgent) -> None:
        """Log the stage, and go on if it is time."""
        log_metrics(trainer, {"train/stage": float(self.stage)}, module.batches_seen - 1)
        self.epochs += 1
        validated = _validated(trainer, module)
        self.accuracies = [0.0 if math.isnan(one) else one for one in validated]
        if self.advance_at is not None and validated[self.stage] >= self.advance_at:
            others = [i for i in range(self.phase, len(self.phases)) if self.phases[i][0] != self.stage]
            if others:
                self.phase, self.epochs = others[0], 0
        elif self.epochs >= (self.every_n_epochs or math.inf) and self.phase + 1 < len(self.phases):
            self.phase, self.epochs = self.phase + 1, 0
        self._apply(trainer, module)

    def _apply(self, trainer: Trainer, module: ToolAgent) -> None:
        """Set what follows from the state."""
        trainer.datamodule.mixture = self.mixture(len(module.env.stages))  # type: ignore[attr-defined]
        if self.ent_targets is not None:
            module.ent_target = self.ent_targets[self.phase]


class Annealing(_Schedule):
    """Lets an agent explore until it has mastered all stages, and anneals it then, for a number of batches.

    While it explores there is much entropy, and steps cost nothing: a cost from the start makes an agent stop trying.
    While it is annealed, steps cost something, entropy is brought down to a tenth of its target, or the weight of its
    bonus to a tenth where there is no target, and the learning rate to a fiftieth, all of it slowly. The cost falls,
    too, to a quarter: late in training it would pay for shortcuts that fail now and then. It does not fall to nothing,
    since then calls that do nothing are repeated for ever.

    Args:
        at: Validation accuracy on every stage at which annealing begins, once the curriculum has come to its last
            phase; null for never.
        batches: How long it takes; training stops at the end of the epoch.
        ent_target: Entropy, in nats, that the weight of its bonus is steered to at first; null to leave it alone.
        step_cost: What each step costs at first.
        decay: Let the learning rate, the entropy target and the cost fall; otherwise all stay as at first, and
            training goes on.
        downsample: Share of the episodes of a batch that are learned from, those with the largest advantages: once
            nearly all are solved, most others have nothing to teach. Losses and entropy are then those of this share.
        average: Decay of an exponential average of the weights, per batch, which the agent ends with; null for the last
            weights, which are now and then worse at one kind of problem than those before. Validation shows the weights
            that are trained. Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging",
            1992.

    Attributes:
        since: Batches seen when annealing began; None while the agent explores.
        averages: Of the agent's weights since then.
        over: Whether it has come to its end.
    """

    kept = ("since", "averages", "over")

    def __init__(
        self,
        at: float | None = None,
        batches: int = 200,
        ent_target: float | None = None,
        step_cost: float = 0.0,
        decay: bool = True,
        downsample: float = 1.0,
        average: float | None = None,
    ) -> None:
        check_range(above=0, at_most=1, at=at, downsample=downsample, average=average)
        check_range(at_least=1, batches=batches)
        check_range(at_least=0, ent_target=ent_target, step_cost=step_cost)
        self.at, self.batches, self.ent_target, self.step_cost, self.decay = at, batches, ent_target, step_cost, decay
        self.downsample, self.average = downsample, average
        self.since: int | None = None
        self.averages: list[Tensor] = []
        self.over = False

    def check(self, module: ToolAgent) -> None:
        """Raise a ValueError now for a batch that could not be shared out then."""
        if self.at is not None:
            size = module.trainer.datamodule.batch_size // module.ranks  # type: ignore[attr-defined]
            neighbours_of(size, module.algorithm.minibatches, self.downsample)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Set what follows from how far the annealing is."""
        if self.since is None:
            return
        left = 1.0
        if self.decay:
            left = max(0.0, 1 - (pl_module.batches_seen - self.since) / self.batches)
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    rate = group.setdefault("lr_before_annealing", group["lr"])  # saved with the optimizer
                    group["lr"] = rate * max(MIN_LEARNING_RATE, left)
        pl_module.downsample = self.downsample
        pl_module.step_cost = self.step_cost * max(MIN_COST, 1 - (1 - left) / COST_ENDS_AT)
        if self.ent_target is not None:
            pl_module.ent_target = self.ent_target * max(MIN_ENTROPY, left)
        elif pl_module.ent_target is None:  # nothing else moves it
            pl_module.ent_coef.fill_(pl_module.algorithm.ent_coef * max(MIN_ENTROPY, left))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Average the weights."""
        if self.since is not None and self.average is not None:
            weights = [weight.detach() for weight in pl_module.agent.parameters()]
            pairs = zip(weights, self.averages or weights, strict=True)
            self.averages = [weight.lerp(average.to(weight.device), self.average) for weight, average in pairs]

    def decide(self, trainer: Trainer, module: ToolAgent) -> None:
        """Begin, or end."""
        seen = module.batches_seen
        log_metrics(trainer, {"train/annealing": float(self.since is not None)}, seen - 1)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set where Lightning connects them
        if self.since is not None:
            if self.decay and seen - self.since >= self.batches:
                rank_zero_info(f"Annealed after {seen} batches.")
                with torch.no_grad():
                    for weight, average in zip(module.agent.parameters(), self.averages, strict=False):
                        weight.copy_(average)
                self.over = trainer.should_stop = True
        elif (
            (at := self.at) is not None
            and all(one.phase + 1 == len(one.phases) for one in callbacks if isinstance(one, CurriculumCallback))
            and all(one >= at for one in _validated(trainer, module))
        ):
            self.since = seen
            rank_zero_info(f"All stages are mastered after {seen} batches: annealing.")


class StopWhenSolved(_Schedule):
    """Stops training once the greedy agent is good enough on every stage that it is trained on.

    When validation says so, the problems of the test are tried: all of those stages that can be enumerated.

    Args:
        accuracy: Share of solved problems that every stage needs; null to go on to the end.
        plan_length: Most actions, as a multiple of the reference plans, of every stage; null for any number.

    Attributes:
        solved: Whether all stages are; the weights do not change any more.
        results: Those of the test that showed it, if it was made in this process.
    """

    kept = ("solved",)

    def __init__(self, accuracy: float | None = 1.0, plan_length: float | None = None) -> None:
        check_range(above=0, at_most=1, accuracy=accuracy)
        check_range(above=0, plan_length=plan_length)
        self.accuracy, self.plan_length = accuracy, plan_length
        self.solved = False
        self.results: list[StageResult] = []

    def check(self, module: ToolAgent) -> None:
        """Raise a ValueError for a limit on plans where there is nothing to compare them with."""
        if self.plan_length is not None and not module.has_reference:
            name = type(module.env).__name__
            raise ValueError(f"plan_length: got {self.plan_length}, expected null: {name} has no reference lengths")

    def is_enough(self, accuracy: float, plan_length: float) -> bool:
        """Whether a stage is solved."""
        assert self.accuracy is not None
        return accuracy >= self.accuracy and (self.plan_length is None or plan_length <= self.plan_length)

    def decide(self, trainer: Trainer, module: ToolAgent) -> None:
        """Make the test if validation is good enough."""
        if self.accuracy is None:
            return
        validated = zip(*(_validated(trainer, module, one) for one in ("accuracy", "plan_length")), strict=True)
        if not all(self.is_enough(*one) for one in validated):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit, not declared
        with torch.no_grad(), threads_for(data.eval_batch_size):
            module.eval()
            for problems in data.test_dataloader():
                module.evaluate(problems)
            results = module.results()
            module.train()
        trained = [result for result in results if result.name in module.env.stages]
        if all(self.is_enough(result.accuracy, result.plan_length) for result in trained):
            self.solved, self.results = True, results
            rank_zero_info(f"Every stage is solved after {module.batches_seen} batches.")
            trainer.should_stop = True
