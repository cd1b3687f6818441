"""Change images, tables and configurations at random and keep what reaches new code: `python -m tests.attacks.fuzz`.

It is libFuzzer by way of Atheris (`pip install atheris`). Coverage is that of segdrop's own Python code and of
tifffile's, pydicom's and nibabel's; what the C libraries below them do guides nothing and is only seen where it raises,
hangs, grows or ends the process.
"""

import contextlib
import dataclasses
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro

from .data import coco, labelme
from .images import FORMATS, encoded, values_of
from .structures import CSV, JSON

SUFFIXES = (".png", ".jpg", ".bmp", ".gif", ".ppm", ".tif", ".dcm", ".nii", ".nii.gz")
TABLES = ("splits.csv", "groups.csv", "meta.csv", "list.csv", "classes.json", "annotations.json", "image.json")
STORED = ("config.json", "sweep.json", "classes.json")
STRUCTURED = {".json": list(JSON.values()), ".csv": list(CSV.values())}
SECONDS, MEGABYTES = 20, 3000  # that one input may take


def _image(name: str, content: bytes, folder: Path) -> None:
    path = folder / f"image{name}"
    path.write_bytes(content)
    values_of(path)


def _table(name: str, content: bytes, folder: Path) -> None:
    from segdrop.data.listing import list_csv, list_folder, read_classes

    (folder / name).write_bytes(content)
    if name == "list.csv":
        list_csv(folder / name)
    elif name == "classes.json":
        read_classes(folder)
    else:
        part = "masks" if name.endswith(".csv") else "other"
        (folder / part).mkdir()
        (folder / "images").mkdir()
        for image in (folder / "images" / "image.png", folder / part / "image.png"):
            image.write_bytes(b"")
        if part == "other":
            (folder / part / "image.png").unlink()
        for _, truth in list_folder(folder).pairs.values():
            if truth.drawing is not None and truth.drawing.height * truth.drawing.width < 2**20:
                truth.drawing.draw()


def _stored(name: str, content: bytes, folder: Path) -> None:
    from segdrop.folders.run import open_run
    from segdrop.folders.sweep import open_sweep

    (folder / name).write_bytes(content)
    open_sweep(folder) if name == "sweep.json" else open_run(folder)


@dataclasses.dataclass(frozen=True)
class Target:
    """What is fuzzed: `read(name, content, folder)` may raise InputError and OSError alone.

    Attributes:
        names: what the content may be called.
        seeds: inputs to begin with, each a name and a content.
    """

    names: tuple[str, ...]
    read: Callable[[str, bytes, Path], None]
    seeds: Callable[[], list[tuple[str, bytes]]]


def _seed_images() -> list[tuple[str, bytes]]:
    return [(next(s for s in sorted(SUFFIXES, key=len)[::-1] if name.endswith(s)), encoded(name))
            for name in FORMATS if name.endswith(SUFFIXES)]  # fmt: skip


def _seed_tables() -> list[tuple[str, bytes]]:
    tables = {
        "splits.csv": "id,split\nimage,train\n",
        "groups.csv": "id,group\nimage,a\n",
        "meta.csv": "id,site\nimage,1\n",
    }
    tables |= {"list.csv": "image,mask,split\na.png,b.png,val\n", "classes.json": '{"0": "background", "1": "cell"}'}
    outlines = {"annotations.json": coco(), "image.json": labelme("image")}
    outlines["annotations.json"]["images"][0]["file_name"] = "image.png"
    return [(name, text.encode()) for name, text in (tables | {n: json.dumps(o) for n, o in outlines.items()}).items()]


def _seed_stored() -> list[tuple[str, bytes]]:
    from segdrop import SweepConfig, TrainConfig

    run = {"config": TrainConfig().to_json(), "classes": 1, "class_names": ["background", "cell"]}
    sweep = {"config": SweepConfig(grid={"lr": [0.1]}).to_json(), "data_sha256": "", "random_weights": True}
    return [("config.json", json.dumps(run).encode()), ("sweep.json", json.dumps(sweep).encode())]


TARGETS = {
    "image": Target(SUFFIXES, _image, _seed_images),
    "table": Target(TABLES, _table, _seed_tables),
    "stored": Target(STORED[:2], _stored, _seed_stored),
}


def fault_of(target: str, name: str, content: bytes) -> BaseException | None:
    """What a target raises on an input and must not."""
    from segdrop import InputError

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            TARGETS[target].read(name, content, Path(folder))
        except (InputError, OSError):
            pass
        except Exception as error:
            return error
    return None


@dataclasses.dataclass(frozen=True)
class Options:
    """Fuzz segdrop's readers with Atheris."""

    minutes: float = 10.0
    """In all."""
    out: Path = Path("fuzz")
    """Folder for the inputs that reach something (corpus-TARGET/) and for what was found (found/)."""
    only: str = ""
    """One target alone."""
    seconds: int = 0
    """Fuzz `only` in this process for so long."""


def _fuzz(options: Options) -> None:
    """Fuzz a target in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["segdrop", "tifffile", "pydicom", "nibabel"]):
        for name in ("segdrop.images.opening", "segdrop.data.listing", "segdrop.folders.sweep", "segdrop.folders.run"):
            __import__(name)
    target, known = TARGETS[options.only], set()

    def one(content: bytes) -> None:
        if len(content) < 2:
            return
        name, content = target.names[content[0] % len(target.names)], content[1:]
        error = fault_of(options.only, name, content)
        if error is None:
            return
        from .verdict import place_of

        what = type(error).__name__, place_of(error)
        if what not in known:
            known.add(what)
            digest = hashlib.sha256(content).hexdigest()[:8]
            (
                options.out / "found" / f"{options.only}-{digest}{name if name.startswith('.') else '-' + name}"
            ).write_bytes(content)
            print(f"found: {options.only} {name} {what[0]} {what[1]}: {str(error)[:120]!a}", flush=True)

    def mutated(content: bytes, most: int, seed: int) -> bytes:
        """Half of the changes are libFuzzer's, half keep a table or a document what it is."""
        rng = np.random.default_rng(seed)
        damages = STRUCTURED.get(Path(target.names[content[0] % len(target.names)]).suffix) if content else None
        if damages is not None and rng.random() < 0.5:
            with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Exception):  # no document any more
                path = Path(folder) / "content"
                path.write_bytes(content[1:])
                damages[rng.integers(len(damages))](path, rng)
                return (content[:1] + path.read_bytes())[:most]
        return atheris.Mutate(content, most)

    flags = [
        f"-max_total_time={options.seconds}",
        f"-timeout={SECONDS}",
        f"-rss_limit_mb={MEGABYTES}",
        "-max_len=20000",
    ]
    flags += [f"-artifact_prefix={options.out / 'found' / options.only}-", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *flags, str(options.out / f"corpus-{options.only}")], one, custom_mutator=mutated)
    atheris.Fuzz()


def main(options: Options) -> None:
    if options.seconds:
        _fuzz(options)
        return
    (options.out / "found").mkdir(parents=True, exist_ok=True)
    chosen = [options.only] if options.only else list(TARGETS)
    for name in chosen:
        corpus = options.out / f"corpus-{name}"
        corpus.mkdir(exist_ok=True)
        for number, (of, content) in enumerate(TARGETS[name].seeds()):
            (corpus / f"seed-{number}").write_bytes(bytes([TARGETS[name].names.index(of)]) + content)
        ends = time.monotonic() + 60 * options.minutes / len(chosen)
        while (left := int(ends - time.monotonic())) > 5:  # it ends by itself where an input hangs or grows
            words = ["--only", name, "--seconds", str(left), "--out", str(options.out)]
            done = subprocess.run([sys.executable, "-m", __spec__.name, *words], capture_output=True, text=True)
            told = [
                line
                for line in (done.stdout + done.stderr).splitlines()
                if line.startswith(("found", "stat::num", "SUMMARY"))
            ]
            print(*(f"{name}: {line}" for line in told), sep="\n", flush=True)
            if not told:
                raise RuntimeError(f"the fuzzer did not run: {done.stderr[-500:]}")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(tyro.cli(Options, description=__doc__))
