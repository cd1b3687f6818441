"""Encoder dropout for pretrained U-Nets: build, prove, train, evaluate and predict.

Importing this package imports neither TensorFlow nor Keras: each name is loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .batchnorm import batchnorm_shift as batchnorm_shift
    from .batchnorm import recalibrate_batchnorm as recalibrate_batchnorm
    from .config import SweepConfig as SweepConfig
    from .config import TrainConfig as TrainConfig
    from .dropout import insert_dropout as insert_dropout
    from .dropout import monte_carlo as monte_carlo
    from .dropout import remove_dropout as remove_dropout
    from .errors import InputError as InputError
    from .errors import VerificationError as VerificationError
    from .evaluation import evaluate as evaluate
    from .exporting import export as export
    from .heads import add_head as add_head
    from .inspection import draw_network as draw_network
    from .inspection import dropout_table as dropout_table
    from .loading import Network as Network
    from .loading import load as load
    from .prediction import predict as predict
    from .prediction import predict_uncertainty as predict_uncertainty
    from .reporting import report as report
    from .schedules import DropoutSchedule as DropoutSchedule
    from .schedules import set_dropout_rate as set_dropout_rate
    from .selection import activations as activations
    from .surgery import insert_layers as insert_layers
    from .sweep_folder import chosen_config as chosen_config
    from .sweeps import estimate as estimate
    from .sweeps import sweep as sweep
    from .sweeps import sweep_report as sweep_report
    from .training import TrainResult as TrainResult
    from .training import train as train
    from .uncertainty import Uncertainty as Uncertainty
    from .unet import build_unet as build_unet
    from .verification import verify as verify

__version__ = "0.4.0"

_HOME = {
    "build_unet": "unet",
    "insert_dropout": "dropout",
    "remove_dropout": "dropout",
    "monte_carlo": "dropout",
    "insert_layers": "surgery",
    "activations": "selection",
    "add_head": "heads",
    "dropout_table": "inspection",
    "draw_network": "inspection",
    "verify": "verification",
    "batchnorm_shift": "batchnorm",
    "recalibrate_batchnorm": "batchnorm",
    "DropoutSchedule": "schedules",
    "set_dropout_rate": "schedules",
    "train": "training",
    "TrainResult": "training",
    "TrainConfig": "config",
    "sweep": "sweeps",
    "sweep_report": "sweeps",
    "estimate": "sweeps",
    "SweepConfig": "config",
    "chosen_config": "sweep_folder",
    "evaluate": "evaluation",
    "load": "loading",
    "Network": "loading",
    "predict": "prediction",
    "predict_uncertainty": "prediction",
    "Uncertainty": "uncertainty",
    "report": "reporting",
    "export": "exporting",
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
