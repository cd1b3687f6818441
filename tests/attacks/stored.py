"""Broken files of finished and interrupted runs, of sweeps, of predictions and of exported networks."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from .attack import Case, Plan, replace_bytes
from .bench import TINY, Bench, words
from .damage import BYTES, TEXTS, Damage
from .structures import CSV, JSON, KERAS, NPZ, SQLITE

_RESUME = ("train", "--resume", "--run-dir", "broken")
_FROM_RUN = ("train", "--data", "cells", "--run-dir", "out", *words(TINY), "--init-from", "run")
OF_RUN = (
    ("evaluate", "run"), ("evaluate", "run", "--split", "all", "--mc-samples", "2"),
    ("predict", "run", "cells/images", "--out", "out"), ("predict", "run", "cells/images/cell_1.png", "--out", "out",
    "--mc-samples", "2"),
    ("report", "run"), ("report", "run", "run", "--out", "page.html"), ("export", "run", "--out", "out.onnx"),
    ("inspect", "run"), ("rank", "run", "cells/images", "--count", "2", "--out", "out"), ("view", "run", "--no-open"),
)  # fmt: skip
RUN_FILES: dict[str, tuple] = {
    "config.json": (*OF_RUN, _FROM_RUN),
    "metrics.json": OF_RUN[:7],
    "split.csv": (*OF_RUN[:2], *OF_RUN[4:6], ("inspect", "run", "--sensitivity", "--mc-images", "2")),
    "history.csv": OF_RUN[4:6],
    "per_image.csv": (*OF_RUN[:2], *OF_RUN[4:6]),
    "model.keras": (*OF_RUN, _FROM_RUN),
}
BROKEN_FILES = ("config.json", "split.csv", "state.npz", "model.keras", "history.csv")
_GO_ON = ("sweep", "sweep")
OF_SWEEP = (
    _GO_ON, ("sweep", "sweep", "--report"), ("report", "sweep"), ("predict", "sweep", "cells/images/cell_1.png",
    "--out", "out"),
    ("sweep", "sweep", "--report", "--test"), ("train", "--from-sweep", "sweep", "--run-dir", "out"),
    ("sweep", "new", "--data", "cells", *words(TINY), "--folds", "2", "--dry-run", "--pilot", "sweep"),
)  # fmt: skip
SWEEP_FILES: dict[str, tuple] = {
    "sweep.json": OF_SWEEP,
    "folds.csv": (*OF_SWEEP[:3], *OF_SWEEP[4:6]),
    "chosen.json": (OF_SWEEP[1], *OF_SWEEP[3:6]),
    "sweep.db": (*OF_SWEEP[:3], OF_SWEEP[4], OF_SWEEP[6]),
    "answer.csv": OF_SWEEP[:3],
    "answer.md": OF_SWEEP[:3],
    "test.json": (OF_SWEEP[1], OF_SWEEP[4]),
    "trainings/00000/config.json": (*OF_SWEEP[:4],),
    "trainings/00000/per_image.csv": OF_SWEEP[:3],
    "trainings/00000/metrics.json": OF_SWEEP[:4],
    "trainings/00000/model.keras": OF_SWEEP[3:5],
}


def damages_of(name: str) -> dict[str, Damage]:
    """The ways to break a file of this name."""
    of = {".json": {**TEXTS, **JSON}, ".csv": {**TEXTS, **CSV}, ".npz": NPZ, ".keras": KERAS, ".db": SQLITE}
    return {**BYTES, **of.get(Path(name).suffix, {})}


def _broken(folder: str, name: str, damage: Damage, commands: tuple, bench: Bench, rng: np.random.Generator) -> Plan:
    bench.take("cells", folder)
    path = bench.folder / folder / name
    if name == "test.json":
        bench.take(name).joinpath(name).rename(path)
    elif not path.exists():  # of the trainings, some have a model
        path = next(iter(sorted((bench.folder / folder).glob(f"**/{path.name}"))), path)
    damage(path, rng)
    command = commands[rng.integers(len(commands))]
    return Plan(command, (name, path.name, folder), own=folder if command[:2] == _GO_ON else None)


def _resumed(name: str, damage: Damage, bench: Bench, rng: np.random.Generator) -> Plan:
    bench.take("cells", "broken")
    damage(bench.folder / "broken" / name, rng)
    return Plan(_RESUME, (name, "broken"), ("broken/metrics.json", "broken/model.keras"), own="broken")


_METADATA = (
    "", "{", "[]", "1", '{"format": 2}', '{"format": "2"}', '{"format": 99}', '{"format": 2, "class_names": 5}',
    "[" * 100_000,
)  # fmt: skip


def _metadata(content: str) -> Damage:
    def damage(path: Path, rng: np.random.Generator) -> None:
        import onnx

        model = onnx.load(str(path))
        for entry in model.metadata_props:
            if entry.key == "segdrop":
                entry.value = content
        onnx.save(model, str(path))

    return damage


def _wrong_metadata(damage: Damage) -> Damage:
    """Segdrop's metadata of an ONNX file, broken as a JSON file is."""

    def broken(path: Path, rng: np.random.Generator) -> None:
        import onnx

        model, beside = onnx.load(str(path)), path.with_suffix(".json")
        for entry in model.metadata_props:
            if entry.key == "segdrop":
                beside.write_text(entry.value)
                damage(beside, rng)
                entry.value = beside.read_text(errors="replace")
                beside.unlink()
        replace_bytes(path, model.SerializeToString())

    return broken


def _graph(path: Path, rng: np.random.Generator) -> None:
    """A node of an ONNX file does something unknown, or lacks its input."""
    import onnx

    model = onnx.load(str(path))
    node = model.graph.node[rng.integers(len(model.graph.node))]
    if rng.random() < 0.5:
        node.op_type = "Unknown"
    else:
        node.input[0] = "nowhere"
    replace_bytes(path, model.SerializeToString())


_ENGINES = ("auto", "onnxruntime", "openvino")


def _onnx(damage: Damage, bench: Bench, rng: np.random.Generator) -> Plan:
    bench.take("cells", "bright.onnx")
    damage(bench.folder / "bright.onnx", rng)
    engine = _ENGINES[rng.integers(len(_ENGINES))]
    command = ("predict", "bright.onnx", "cells/images/cell_1.png", "--out", "out", "--engine", engine)
    return Plan(command, ("bright.onnx",), ("out/cell_1.png",))


def _predicted(name: str, damage: Damage, bench: Bench, rng: np.random.Generator) -> Plan:
    """Go on with a prediction whose own files are broken."""
    from segdrop.cli.main import main

    from .bench import inside

    bench.take("cells", "bright")
    command = ("predict", "bright", "cells/images", "--out", "out")
    with inside(bench.folder):
        from .verdict import captured

        with captured():
            main(list(command))
    damage(bench.folder / "out" / name, rng)
    return Plan((*command, "--resume"), (name, "out"), ("out/predictions.csv", "out/cell_1.png"), own="out")


def cases() -> Iterator[Case]:
    for name, commands in RUN_FILES.items():
        for what, damage in damages_of(name).items():
            yield f"run/{name}", what, partial(_broken, "run", name, damage, commands)
    for name in BROKEN_FILES:
        for what, damage in damages_of(name).items():
            yield f"resumed: {name}", what, partial(_resumed, name, damage)
    for name, commands in SWEEP_FILES.items():
        for what, damage in damages_of(name).items():
            if name != "test.json" or what != "missing":
                yield f"sweep/{name}", what, partial(_broken, "sweep", name, damage, commands)
    for name in ("predict.json", "predictions.csv"):
        for what, damage in damages_of(name).items():
            yield f"predicted: {name}", what, partial(_predicted, name, damage)
    own = {f"with the metadata {content[:30]!r}": _metadata(content) for content in _METADATA}
    own |= {f"with metadata {what}": _wrong_metadata(damage) for what, damage in JSON.items()}
    for what, damage in {**BYTES, **own, "with a broken graph": _graph}.items():
        yield "bright.onnx", what, partial(_onnx, damage)
