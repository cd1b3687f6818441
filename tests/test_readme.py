"""What the README shows works as it stands there."""

import re
from pathlib import Path

import keras

ROOT = Path(__file__).parents[1]


def test_the_library_examples_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {}
    for code in blocks:
        exec(code, names)
    assert isinstance(names["model"], keras.Model)
    assert sum(isinstance(layer, keras.layers.SpatialDropout2D) for layer in names["model"].layers) == 8
    assert "stage3_unit1_relu2" in capsys.readouterr().out
    assert sum(layer.name.endswith("_dropout") for layer in names["dropped"].layers) == 2


def test_relative_links_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "data" / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
