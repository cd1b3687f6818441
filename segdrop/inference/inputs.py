"""Which files to predict, and what is there already."""

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import from_json
from typing_extensions import TypedDict

from ..config.predict import PredictOptions
from ..errors import InputError
from ..files import file_digest, write_json
from ..folders.run import MODEL
from ..images.opening import is_image, stem
from ..typed import fit, open_ended, read_json, read_table
from ..version import __version__
from .canvas import file_version
from .network import Network

SETTINGS, PREDICTIONS, LOG = "predict.json", "predictions.csv", ".predictions.partial.jsonl"
ADVICE = "choose a new folder, and predict anew"  # where what an interrupted call has left is damaged
ENDINGS = ("_overlay", "_uncertainty", "_probabilities")  # of the names of further results


@open_ended
class _Row(TypedDict):
    """A line of the log; `mask` and what was measured are in it, too, where the file could be read."""

    file: str
    status: str


@dataclasses.dataclass(frozen=True)
class Job:
    file: Path
    name: str  # of the results, relative to the folder of the output, without suffix


def find_inputs(inputs, out: Path) -> list[Job]:
    """The files to predict, each with the name of its results."""
    jobs: dict[str, Job] = {}
    for given in [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs:
        for home, path in _matches(given, out):
            inside = path.parent.relative_to(home) if path.parent.is_relative_to(home) else Path()
            # A name that is no text (of another encoding) could not be written into the table.
            name = (inside / stem(path)).as_posix().encode("utf-8", "backslashreplace").decode()
            if not stem(path):
                raise InputError(f"`inputs` {path} has no name before its suffix; rename it.")
            earlier = jobs.setdefault(name, Job(path, name)).file
            if _real(earlier) != _real(path):
                raise InputError(f"`inputs` {earlier} and {path} would both be written as {name}; predict them apart.")
    if not jobs:
        raise InputError("`inputs` is empty; give files, folders or globs.")
    for job in jobs.values():
        taken = [f"{job.name}{ending}" for ending in ENDINGS if f"{job.name}{ending}" in jobs]
        if taken:
            raise InputError(f"`inputs` {job.file}: its results could replace those of {taken[0]}; predict them apart.")
        if _real(job.file).parent == _real(out / job.name).parent:
            raise InputError(f"`out` is the folder of {job.file}, whose results could replace it; choose another.")
    return list(jobs.values())


def _matches(given, out: Path) -> list[tuple[Path, Path]]:
    """The image files that one of the inputs names, each after the folder that its place is told from."""
    if not str(given):
        raise InputError("`inputs` has an empty name; give files, folders or globs.")
    matches = [given] if Path(given).exists() else sorted(glob.glob(str(given), recursive=True))
    if not matches:
        raise FileNotFoundError(f"`inputs` names no file: {given}.")
    images = []
    for match in map(Path, matches):
        if not match.is_dir():
            images.append((match.parent, match))
            continue
        inside = [p for p in sorted(match.rglob("*")) if p.is_file() and is_image(p) and not p.name.startswith(".")]
        if not inside:
            raise InputError(f"`inputs` folder holds no image: {match}.")
        if any(_is_within(path, out) for path in inside) and not (out / SETTINGS).is_file():
            raise InputError(f"`out` is the folder of the images, or holds it: {out}; choose another.")
        images += [(match, path) for path in inside if not _is_within(path, out)]
    return images


def is_current(row: dict, job: Job, out: Path) -> bool:
    """Whether a finished file's mask is there and is that of the file as it is now."""
    return (out / row.get("mask", "")).is_file() and job.file.exists() and row.get("version") == file_version(job.file)


def _real(path: Path) -> Path:
    """Where links lead; unlike `Path.resolve` it takes a link that leads to itself for what it is."""
    return Path(os.path.realpath(path))


def _is_within(path: Path, folder: Path) -> bool:
    return _real(path).is_relative_to(_real(folder))


def describe_source(networks: Sequence[Network], options: PredictOptions) -> dict:
    """What the results depend on: an interrupted call is continued with the same only."""
    runs = []
    for network in networks:
        runs.append({"path": str(network.path), "sha256": _digest(network)})
    chosen = {key: value for key, value in dataclasses.asdict(options).items() if key != "ensemble"}
    chosen["threshold"] = options.threshold or networks[0].threshold
    return {"segdrop": __version__, "runs": runs, "class_names": list(networks[0].class_names), **chosen}


def _digest(network: Network) -> str:
    """Of what the network is stored in; of a model that is in memory alone, of its weights."""
    file = network.path / MODEL if network.path.is_dir() else network.path
    if file.is_file() or network.model is None:
        return file_digest(file)
    digest = hashlib.sha256()
    for weight in network.model.get_weights():
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def prepare_jobs(out: Path, settings: dict, resume: bool) -> dict[str, dict]:
    """Make the folder, or check the one that is there; the rows of the files that are finished, by name."""
    if not (out / SETTINGS).is_file():
        if resume and out.exists():
            raise InputError(f"`out` holds no prediction to resume: {out} has no {SETTINGS}.")
        # What a start that was interrupted leaves is hidden.
        if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise FileExistsError(f"`out` is not empty: {out}; choose a new folder.")
        if out.exists() and not out.is_dir():
            raise FileExistsError(f"`out` is a file: {out}; choose a new folder.")
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / SETTINGS, settings)
        except PermissionError as error:
            raise PermissionError(f"`out` cannot be written: no permission in {out}; choose another place.") from error
        return {}
    if not resume:
        raise FileExistsError(f"`out` holds predictions: {out}; continue them with --resume or choose a new folder.")
    stored = read_json(out / SETTINGS, dict[str, Any], ADVICE)
    for key, value in json.loads(json.dumps(settings)).items():
        if key != "segdrop" and stored.get(key) != value:
            raise InputError(f"`{key}` is {value!r}, but {out} was started with {stored.get(key)!r}; resume with that.")
    table = out / PREDICTIONS
    told = read_table(table, {"file": str, "status": str}, ADVICE, unique="file") if table.exists() else []
    if (out / LOG).is_file():
        for line in (out / LOG).read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # the last one may have been cut off
                told.append(fit(_Row, from_json(line), str(out / LOG)))
    return {row["file"]: row for row in told}
