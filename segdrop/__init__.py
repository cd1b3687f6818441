"""Encoder dropout for pretrained U-Nets: build, prove, train, evaluate and predict.

Importing this package imports neither TensorFlow nor Keras: each name is loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .config.sweep import SweepConfig as SweepConfig
    from .config.train import TrainConfig as TrainConfig
    from .errors import InputError as InputError
    from .errors import VerificationError as VerificationError
    from .folders.sweep import chosen_config as chosen_config
    from .inference.evaluate import evaluate as evaluate
    from .inference.export import export as export
    from .inference.network import Network as Network
    from .inference.network import load as load
    from .inference.predict import predict as predict
    from .inference.predict import predict_uncertainty as predict_uncertainty
    from .inference.ranking import Ranking as Ranking
    from .inference.ranking import rank as rank
    from .inference.sensitivity import sensitivity as sensitivity
    from .nets.batchnorm import batchnorm_shift as batchnorm_shift
    from .nets.batchnorm import rebase_batchnorm as rebase_batchnorm
    from .nets.batchnorm import recalibrate_batchnorm as recalibrate_batchnorm
    from .nets.drawing import draw_network as draw_network
    from .nets.heads import add_head as add_head
    from .nets.inspection import dropout_table as dropout_table
    from .nets.unet import build_unet as build_unet
    from .reporting.page import report as report
    from .reporting.runs_page import report_runs as report_runs
    from .scoring.comparison import compare as compare
    from .scoring.uncertainty import Uncertainty as Uncertainty
    from .surgery.dropout import insert_dropout as insert_dropout
    from .surgery.dropout import remove_dropout as remove_dropout
    from .surgery.fast import fast as fast
    from .surgery.rebuild import insert_layers as insert_layers
    from .surgery.sampling import monte_carlo as monte_carlo
    from .surgery.schedules import DropoutSchedule as DropoutSchedule
    from .surgery.schedules import set_dropout_rate as set_dropout_rate
    from .surgery.selection import activations as activations
    from .surgery.verification import verify as verify
    from .sweeps.sweep import estimate as estimate
    from .sweeps.sweep import sweep as sweep
    from .sweeps.sweep import sweep_report as sweep_report
    from .training.train import TrainResult as TrainResult
    from .training.train import train as train

_HOME = {
    "build_unet": "nets.unet",
    "insert_dropout": "surgery.dropout",
    "remove_dropout": "surgery.dropout",
    "monte_carlo": "surgery.sampling",
    "insert_layers": "surgery.rebuild",
    "fast": "surgery.fast",
    "activations": "surgery.selection",
    "add_head": "nets.heads",
    "dropout_table": "nets.inspection",
    "draw_network": "nets.drawing",
    "verify": "surgery.verification",
    "batchnorm_shift": "nets.batchnorm",
    "recalibrate_batchnorm": "nets.batchnorm",
    "rebase_batchnorm": "nets.batchnorm",
    "DropoutSchedule": "surgery.schedules",
    "set_dropout_rate": "surgery.schedules",
    "train": "training.train",
    "TrainResult": "training.train",
    "TrainConfig": "config.train",
    "sweep": "sweeps.sweep",
    "sweep_report": "sweeps.sweep",
    "estimate": "sweeps.sweep",
    "SweepConfig": "config.sweep",
    "compare": "scoring.comparison",
    "chosen_config": "folders.sweep",
    "evaluate": "inference.evaluate",
    "load": "inference.network",
    "Network": "inference.network",
    "predict": "inference.predict",
    "predict_uncertainty": "inference.predict",
    "Uncertainty": "scoring.uncertainty",
    "rank": "inference.ranking",
    "Ranking": "inference.ranking",
    "sensitivity": "inference.sensitivity",
    "report": "reporting.page",
    "report_runs": "reporting.runs_page",
    "export": "inference.export",
    "InputError": "errors",
    "VerificationError": "errors",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
