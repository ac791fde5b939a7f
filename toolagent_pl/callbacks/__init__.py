"""Lightning callbacks: what happens around the updates."""

from toolagent_pl.callbacks.agreement import RanksAgree
from toolagent_pl.callbacks.checkpoint import Checkpoint
from toolagent_pl.callbacks.curriculum import CurriculumCallback
from toolagent_pl.callbacks.finite import StopOnNonFinite
from toolagent_pl.callbacks.learning_curve import LearningCurve
from toolagent_pl.callbacks.pictures import Pictures
from toolagent_pl.callbacks.polish import Polish
from toolagent_pl.callbacks.progress import EpochLines, ProgressBar
from toolagent_pl.callbacks.samples import PredictionWriter, SampleEpisodes
from toolagent_pl.callbacks.solved import StopWhenSolved
from toolagent_pl.callbacks.throughput import Throughput

__all__ = [
    "Checkpoint",
    "CurriculumCallback",
    "EpochLines",
    "LearningCurve",
    "Pictures",
    "Polish",
    "PredictionWriter",
    "ProgressBar",
    "RanksAgree",
    "SampleEpisodes",
    "StopOnNonFinite",
    "StopWhenSolved",
    "Throughput",
]
