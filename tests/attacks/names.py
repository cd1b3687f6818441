"""Files and folders of names that no one expects."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from .attack import Case, Plan
from .bench import TINY, Bench, words

NAMES = (
    "with blanks", " leading", "trailing ", "new\nline", "tab\tin it", "carriage\rreturn", "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07", "bell\x07",
    "\udcff\udcfe", "é", "e\u0301", "日本語", "\u202egnp.evil", "\u200b", "x" * 240, "é" * 120, "-x", "--out", "-",
    "..a", "...", "~", "~root",
    "$HOME", "%s%n", "*", "[a-z]", "?", "a,b", 'a"b', "a'b", "a;b", "a|b", "a&b", "<b>bold", "{x}",
    "[bold red]x", "#a", "a#001", "con", "nul",
    "a.b.c", "1e5", "nan", "None", "true", "=1+1", "\\", "a\\b", "\x7f", "\x85", "C:", "100%", ":", "@", "!", "`id`",
)  # fmt: skip


def _renamed(name: str, part: str, bench: Bench, rng: np.random.Generator) -> Plan:
    """An image and its mask, the run, the data set or the output is called so."""
    folder = bench.take("cells", "bright")
    usual = ("train", "--data", "cells", "--run-dir", "out", *words(TINY))
    shown = (repr(name)[1:-1], name, "cell", "`", "out")
    if part == "image":
        data = folder / "cells"
        for table in ("splits.csv", "groups.csv", "meta.csv"):
            (data / table).unlink()
        for inside in ("images", "masks"):
            os.rename(data / inside / "cell_1.png", data / inside / f"{name}.png")
        commands = (
            usual,
            ("data", "cells", "--out", "page"),
            ("data", "cells", "--to", "plain"),
            ("data", "cells", "--json"),
        )
        return Plan(commands[rng.integers(len(commands))], shown)
    if part == "input":
        os.rename(folder / "cells/images/cell_1.png", folder / f"{name}.png")
        given = f"{name}.png" if rng.random() < 0.5 else f"./{name}.png"
        return Plan(
            ("predict", "bright", given, "--out", "out"), (*shown, "inputs", "nrecognized"), ("out/predictions.csv",)
        )
    if part == "run":
        os.rename(folder / "bright", folder / name)
        return Plan(("predict", f"./{name}", "cells/images", "--out", "out"), shown, ("out/predictions.csv",))
    if part == "data set":
        os.rename(folder / "cells", folder / name)
        return Plan(("train", "--data", f"./{name}", "--run-dir", "out", *words(TINY)), shown, ("out/model.keras",))
    if part == "output":
        return Plan(("predict", "bright", "cells/images", "--out", f"./{name}"), shown)
    if part == "new run":
        return Plan(("train", "--data", "cells", "--run-dir", f"./{name}", *words(TINY)), shown)
    (folder / "cells" / "classes.json").write_text(_classes(name))
    return Plan(("data", "cells"), shown)


def _classes(name: str) -> str:
    import json

    return json.dumps({"0": "background", "1": name})


PARTS = ("image", "input", "run", "data set", "output", "new run", "class")


def _id(name: str, table: str, bench: Bench, rng: np.random.Generator) -> Plan:
    """A table names an image, a group or a split so."""
    folder = bench.take("cells")
    path: Path = folder / "cells" / table
    text = path.read_text().replace(
        "cell_1" if rng.random() < 0.5 else ("train", "patient 1")[table == "groups.csv"], name
    )
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return Plan(
        ("data", "cells") if rng.random() < 0.7 else ("train", "--data", "cells", "--run-dir", "out", *words(TINY))
    )


def cases() -> Iterator[Case]:
    for name in NAMES:
        shown = name if len(name) < 30 else f"{name[:5]}...({len(name)})"
        for part in PARTS:
            yield part, ascii(shown), partial(_renamed, name, part)
        for table in ("splits.csv", "groups.csv"):
            yield table, f"with {shown!a}", partial(_id, name, table)
