"""A run's folder: what is in it, under which name."""

import dataclasses
import hashlib
import importlib.metadata
import itertools
import os
import platform
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import MinLen
from pydantic import AfterValidator

from ..config.train import TrainConfig
from ..data.dataset import Dataset
from ..data.values import Values
from ..errors import InputError
from ..files import write_csv, write_json
from ..locks import locked
from ..typed import SCHEMA, fit, is_number, read_json, read_table
from .records import FittedTemperature, Plan, Recalibration, Scores, StartFile, WeightsFile

CONFIG, MODEL, HISTORY, METRICS, SPLIT = "config.json", "model.keras", "history.csv", "metrics.json", "split.csv"
PER_IMAGE = "per_image.csv"
TEMPERATURE = "temperature"  # in metrics.json: of a run's probabilities
SWEEP = "sweep.json"  # of a sweep's folder, whose trainings are runs
ADVICE = "restore it from a copy, or train the run anew"  # where a run's file is damaged
RECALIBRATION = "batchnorm_recalibration"  # in metrics.json, like TEMPERATURE no scores
SCORES_WAIT = 60.0  # seconds that another process may write a run's scores
_BESIDES = {TEMPERATURE: FittedTemperature, RECALIBRATION: Recalibration}
_NAME, _NUMBER = Annotated[str, MinLen(1)], Annotated[str, AfterValidator(is_number)]
PACKAGES = ("segdrop", "tensorflow", "keras", "segmentation-models", "albumentations", "opencv-python-headless")


def create_run(path: Path, needed_bytes: int) -> None:
    """Make the folder of a new run, or take over what a start that was interrupted has left of one.

    Raises:
        FileExistsError: it exists.
        InputError: the disk has less than `needed_bytes` free.
        PermissionError: the place is not writable.
    """
    if path.exists() and not (path.is_dir() and all(_is_nobodys(file) for file in path.iterdir())):
        raise FileExistsError(f"`run_dir` exists: {path}; choose another name, or continue that run with --resume.")
    home = next(parent for parent in path.absolute().parents if parent.exists())
    if not os.access(home, os.W_OK):
        raise PermissionError(f"`run_dir` cannot be made: no permission to write in {home}; choose another place.")
    free = shutil.disk_usage(home).free
    if free < needed_bytes:
        raise InputError(
            f"`run_dir` {path} needs about {needed_bytes / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free; "
            "free some or choose another place."
        )
    path.mkdir(parents=True, exist_ok=True)


def _is_nobodys(file: Path) -> bool:
    """Whether a file in a folder without a config.json belongs to a start that was interrupted."""
    return file.name == SPLIT or file.name.startswith(".")


def lock_training(path: Path) -> AbstractContextManager[None]:
    """What trains into a run's folder holds this, so that no other process does.

    Raises:
        InputError: another process does already.
    """
    return locked(path, "training", "is being trained", "wait for it or choose another run_dir")


def start_run(path: Path, record: "RunRecord", dataset: Dataset, split: Mapping[str, np.ndarray]) -> None:
    """Write into a new run's folder what it is and which images it has; config.json last, without which it is no run.

    Raises:
        FileExistsError: another process has started a run there since `create_run`.
    """
    if (path / CONFIG).exists():
        raise FileExistsError(f"`run_dir` exists: {path}; choose another name, or continue that run with --resume.")
    write_split(path / SPLIT, dataset, split)
    write_json(path / CONFIG, record.to_json())


def is_sweep(folder: str | os.PathLike) -> bool:
    return (Path(folder) / SWEEP).is_file()


@dataclass(frozen=True)
class RunRecord:
    """What a run's config.json says: what was asked for, and what the training found and used.

    Attributes:
        config: the configuration, with what was chosen in place of an "auto" that depends on the images.
        classes: output channels of the network; 1 for a binary one.
        class_names: names of class 0, 1, ...
        images: number of images of each split.
        data_sha256: the data set's digest.
        encoder_weights: path of the weights that the encoder began with, or "random".
        weights: of a file of PyTorch's what was loaded: file, sha256, tensors, left_out, and the Hub's revision.
        start: of the earlier run that this one starts from what was taken: file, sha256, parts, layers, new.
        plan: what was chosen from the data, as `training.planning.Plan.to_json` gives it; of a sweep's trainings, the
            sweep has it.
        warnings: what the user has to know of the training, one sentence each.
        mixed_precision: off, float16 or bfloat16.
        device: in words.
        values: of the training images, see `data.values.Values`.
        augmentation: as `augment.restore` takes it.
        versions: of the packages that took part.
    """

    config: TrainConfig
    classes: int
    class_names: tuple[str, ...] = ()
    images: Mapping[str, int] = field(default_factory=dict)
    data_sha256: str | None = None
    encoder_weights: str = "unknown"
    weights: WeightsFile | None = None
    start: StartFile | None = None
    plan: Plan | None = None
    warnings: tuple[str, ...] = ()
    mixed_precision: Literal["off", "float16", "bfloat16", "unknown"] = "unknown"
    device: str = "unknown"
    values: Values | None = None
    augmentation: dict[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict:
        """A JSON-ready dict, from which `open_run` makes an equal record."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}


def open_run(path: str | os.PathLike) -> RunRecord:
    """What a run's config.json says.

    Raises:
        FileNotFoundError: there is no such folder.
        InputError: the folder is not a run of segdrop, or one of a version that has other options.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"The run does not exist: {path}.")
    if is_sweep(path):
        raise InputError(
            f"{path} is the folder of a sweep; name one of its trainings (chosen.json tells the best arm's), or a run "
            "that `segdrop train --from-sweep` has made of it."
        )
    if not (path / CONFIG).exists():
        raise InputError(f"{path} is not a run of segdrop: it has no {CONFIG}.")
    return read_json(path / CONFIG, RunRecord, ADVICE, _upgraded)


def _upgraded(stored: dict) -> dict:
    return {**stored, "config": TrainConfig.upgraded(stored["config"])}


def add_warning(path: Path, warning: str) -> None:
    """Put what the user has to know of a training into its config.json while it runs."""
    record = open_run(path)
    write_json(path / CONFIG, dataclasses.replace(record, warnings=(*record.warnings, warning)).to_json())


def stored_temperature(run: Path) -> float:
    """What a run's probabilities are tempered by; 1 where nothing is known."""
    fitted = read_metrics(run).get(TEMPERATURE)
    return 1.0 if fitted is None else fitted["value"]


def model_file(path: Path) -> Path:
    """The file of a run's best model.

    Raises:
        InputError: there is none yet.
    """
    if not (path / MODEL).is_file():
        raise InputError(f"{path} has no {MODEL} yet: no epoch has ended.")
    return path / MODEL


def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # tensorflow-cpu, a vendor's build, a source checkout
            versions[package] = "not installed under this name"
    return versions


OWN_SPLITS = ("train", "val", "test", "all")


def store_scores(run: Path, key: str, result: Mapping, rows: Sequence[Mapping] = ()) -> None:
    """Put a result into the run's metrics.json, and its images' rows into per_image.csv, beside the other splits'.

    Raises:
        InputError: another process does so for a minute already.
    """
    with _lock_scores(run):
        if rows:
            _store_rows(run, key, rows)
        write_json(run / METRICS, {**read_metrics(run), key: result})


def store_all_scores(run: Path, results: Mapping[str, Mapping], rows: Mapping[str, Sequence[Mapping]]) -> None:
    """Write all that a training has scored, in the place of what was there: metrics.json at once, and last."""
    with _lock_scores(run):
        for name in (METRICS, PER_IMAGE):
            (run / name).unlink(missing_ok=True)
        for key, part in rows.items():
            _store_rows(run, key, part)
        write_json(run / METRICS, results)


def _lock_scores(run: Path) -> AbstractContextManager[None]:
    return locked(run, "scores", "has its scores written", "try again", wait=SCORES_WAIT)


def recorded_split(run: Path, dataset: Dataset, split: str) -> np.ndarray:
    """Indices of the images that the run's split.csv has in `split` ("all": in any)."""
    wanted = [row["id"] for row in read_split(run) if split in (row["split"], "all")]
    position = {name: i for i, name in enumerate(dataset.ids)}
    missing = [name for name in wanted if name not in position]
    if missing:
        raise InputError(f"{dataset.path} lacks {len(missing)} image(s) that {run / SPLIT} names; first: {missing[0]}.")
    return np.array([position[name] for name in wanted], int)


def _store_rows(run: Path, key: str, rows: Sequence[Mapping]) -> None:
    """Replace the rows of a split in per_image.csv; those of an own split get the group of the run's split.csv."""
    recorded = read_split(run) if key in OWN_SPLITS and (run / SPLIT).exists() else []
    groups = {row["id"]: row["group"] for row in recorded if "group" in row}
    fresh = [
        {"split": key, "id": row["id"], **({"group": groups.get(row["id"])} if groups else {}), **row} for row in rows
    ]
    kept = [row for row in read_images(run) if row["split"] != key]
    columns = list(dict.fromkeys(itertools.chain.from_iterable([*fresh, *kept])))
    write_csv(run / PER_IMAGE, [*kept, *fresh], columns)


def read_metrics(run: Path) -> dict[str, Any]:
    """What metrics.json holds: `Scores` by split, and what is besides; {} where nothing is scored yet."""
    path = run / METRICS
    if not path.exists():
        return {}
    stored = read_json(path, dict[str, Any], ADVICE)
    return {key: fit(_BESIDES.get(key, Scores), value, f"{path}, {key}", ADVICE) for key, value in stored.items()}


def stored_scores(run: Path) -> dict[str, Scores]:
    """The scores of a run, by split."""
    return {key: scores for key, scores in read_metrics(run).items() if key not in _BESIDES}


def read_split(run: Path) -> list[dict[str, str]]:
    """The rows of split.csv: id, split and, where there are groups, group."""
    columns = {"id": _NAME, "split": Literal["train", "val", "test"]}
    rows = read_table(run / SPLIT, columns, ADVICE, unique="id")
    counts = Counter(row["split"] for row in rows)
    for name, count in open_run(run).images.items():
        if counts[name] != count:
            raise InputError(f"{run / SPLIT} is damaged: it has {counts[name]} of {count} images of {name}; {ADVICE}.")
    if not rows:
        raise InputError(f"{run / SPLIT} is damaged: it has no images; {ADVICE}.")
    return rows


def read_images(run: Path, split: str | None = None) -> list[dict[str, str]]:
    """The rows of per_image.csv, all or those of a split: id, split and numbers as text; none where there is none."""
    path = run / PER_IMAGE
    if not path.exists():
        return []
    rows = read_table(path, {"split": _NAME, "id": _NAME, "dice": _NUMBER}, ADVICE, _NUMBER)
    return [row for row in rows if split in (None, row["split"])]


def read_history(run: Path) -> list[dict[str, float]]:
    """The rows of history.csv: the epoch, counted from 0, and what was measured in it; none where there is none."""
    path = run / HISTORY
    if not path.exists():
        return []
    rows = read_table(path, {"epoch": int}, ADVICE, _NUMBER)
    if [row["epoch"] for row in rows] != list(range(len(rows))):
        raise InputError(f"{path} is damaged: its epochs are not 0, 1, 2 ...; {ADVICE}.")
    return [
        {key: value if key == "epoch" else float(value) for key, value in row.items() if value != ""} for row in rows
    ]


def write_split(path: Path, dataset: Dataset, split: Mapping[str, np.ndarray]) -> None:
    """Which image is in which split; groups as hashes salted anew, so that no name or id can be recovered."""
    salt = os.urandom(16)
    home = {int(index): name for name, indices in split.items() for index in indices}
    rows = []
    for index, name in enumerate(dataset.ids):
        if index not in home:  # a part of the training images that is not used
            continue
        row = {"id": name, "split": home[index]}
        if dataset.grouped:
            row["group"] = hashlib.blake2b(dataset.groups[index].encode(), key=salt, digest_size=8).hexdigest()
        rows.append(row)
    write_csv(path, rows)
