"""Networks in files."""

import json
import re
import warnings
import zipfile
from pathlib import Path

import keras
from packaging.version import Version

from .. import layers  # noqa: F401 (registers the layers that a network of segdrop may have)
from ..errors import InputError, first_line
from ..folders.run import open_run
from . import temperature  # noqa: F401 (so does this)


def load_model(path: Path) -> keras.Model:
    """The Keras model in a file; code in it is refused (Keras's safe mode).

    Raises:
        InputError: it is not a Keras model, or not one that can be loaded.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):  # a pipe would be waited for
        raise InputError(f"{path} is not a Keras model that can be loaded: it is damaged, or another kind of file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say comes with the error
            return keras.saving.load_model(path, compile=False)
    except Exception as error:  # whatever the parsers of its parts raise
        if "safe_mode" in str(error):
            raise InputError(f"{path} holds code (a Lambda layer), which is never run; use other layers.") from error
        if unknown := re.search(r"Could not locate class '(\w+)'", str(error)):
            raise InputError(
                f"{path} has a layer of a class that is not known, {unknown[1]}; import the module that registers it, "
                f"on the command line with --import {_module_of(path.parent)}."
            ) from error
        if newer := _newer_keras(path):
            raise InputError(
                f"{path} was written by Keras {newer}, and cannot be read by this older one, {keras.__version__}; "
                f"install that one or a newer one."
            ) from error
        raise InputError(f"{path} is not a Keras model that can be loaded: {first_line(error)}") from error


def _newer_keras(path: Path) -> str | None:
    """The version of Keras that wrote a file, if it is newer than this one."""
    try:
        with zipfile.ZipFile(path) as file:
            written = json.loads(file.read("metadata.json"))["keras_version"]
        return written if Version(written) > Version(keras.__version__) else None
    except Exception:  # whatever the parsers raise of a damaged file, which does not tell
        return None


def _module_of(run: Path) -> str:
    """The module of the user's own dropout layer, which a run names; it is never imported for that."""
    try:
        layer = open_run(run).config.dropout_layer
    except (InputError, OSError):
        layer = None
    return layer.partition(":")[0] if layer else "MODULE"
