"""Encoder dropout for pretrained U-Nets: build, train and evaluate.

Importing this package imports neither TensorFlow nor Keras: each name is loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import TrainConfig as TrainConfig
    from .dropout import insert_dropout as insert_dropout
    from .errors import InputError as InputError
    from .evaluation import evaluate as evaluate
    from .training import TrainResult as TrainResult
    from .training import train as train
    from .unet import build_unet as build_unet

__version__ = "0.1.0"

_HOME = {
    "build_unet": "unet",
    "insert_dropout": "dropout",
    "train": "training",
    "TrainResult": "training",
    "TrainConfig": "config",
    "evaluate": "evaluation",
    "InputError": "errors",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
