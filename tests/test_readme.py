"""What the README shows works as it stands there."""

import re
from pathlib import Path

import cv2
import keras
import numpy as np
from conftest import write_run

from segdrop import build_unet, export

ROOT = Path(__file__).parents[1]


def test_the_library_examples_run(capsys, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    # What the examples take for granted: a finished run, and an image.
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "first", build_unet("resnet18", encoder_weights=None, encoder_dropout=0.2))
    export("runs/first", "runs/first/model.onnx", tolerance=0.01)  # random weights magnify what is rounded
    names = {"image": np.full((50, 70), 9, np.uint8)}
    cv2.imwrite("image.png", names["image"])
    for code in blocks:
        exec(code, names)
    assert isinstance(names["model"], keras.Model)
    assert sum(isinstance(layer, keras.layers.SpatialDropout2D) for layer in names["model"].layers) == 8
    assert "stage3_unit1_relu2" in capsys.readouterr().out
    assert sum(layer.name.endswith("_dropout") for layer in names["dropped"].layers) == 2
    assert names["labels"].shape == (50, 70) and names["unsure"].mutual_information.shape == (50, 70)


def test_relative_links_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "data" / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
