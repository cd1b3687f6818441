"""`segdrop data`: what it tells of a data set, in the terminal, as JSON and on a page."""

import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import write_pairs, write_table

from segdrop.cells import write_sample_set
from segdrop.cli.main import main
from segdrop.data.findings import Finding, examine
from segdrop.data.opening import open_dataset
from segdrop.data.overview import overview
from segdrop.reporting.data_page import contact_sheet, write_data_pages
from segdrop.show.data import data_tables, findings_in_lines, short, summary


def two_squares(sides, height=40, width=60):
    """A grey picture of two squares, and their mask."""
    mask = np.zeros((height, width), np.uint8)
    for side, left in zip(sides, (2, 30), strict=True):
        mask[4 : 4 + side, left : left + side] = 1
    return np.repeat(mask[..., None] * 150 + 20, 3, axis=2), mask


@pytest.fixture
def squares(tmp_path):
    """Four images, of which two are held out; groups are patients."""
    folder = tmp_path / "squares"
    pairs = {f"s{i}": two_squares((10 + i, 20)) for i in range(3)} | {"s3": two_squares((12, 14), height=50)}
    write_pairs(folder, pairs)
    homes = {"s0": ("train", "Smith"), "s1": ("train", "Smith"), "s2": ("test", "Jones"), "s3": ("test", "Jones")}
    write_table(folder / "splits.csv", [{"id": i, "split": split} for i, (split, _) in homes.items()])
    write_table(folder / "groups.csv", [{"id": i, "group": group} for i, (_, group) in homes.items()])
    write_table(folder / "meta.csv", [{"id": i, "spacing": "0.5"} for i in pairs])
    (folder / "classes.json").write_text('{"0": "background", "1": "<b>square</b>"}')
    return folder


def test_values_are_told_with_the_types_that_they_are_stored_in(tmp_path):
    image, mask = two_squares((10, 20))
    dataset = open_dataset(
        write_pairs(tmp_path / "data", {"a": (image, mask), "b": (image.astype("uint16") * 9, mask)})
    )
    assert "channels: 3; values: 20 to 1530, stored as uint16, uint8" in summary(overview(dataset, *examine(dataset)))


def test_an_overview_tells_what_was_drawn(squares):
    dataset = open_dataset(squares)
    told = overview(dataset, *examine(dataset))
    areas = [100, 400, 121, 400, 144, 400, 144, 196]
    assert told["images"] == 4
    assert told["groups"] == 2
    assert told["sizes"] == {"different": 2, "smallest": [40, 60], "median": [40, 60], "largest": [50, 60]}
    assert told["stored_values"] == [20, 170]
    assert told["value_types"] == ["uint8"]
    assert told["spacing_mm"] == {"known": 4, "from": [(0.5, 0.5)], "to": [(0.5, 0.5)]}
    assert told["splits"] == {"train": {"images": 2, "groups": 1}, "test": {"images": 2, "groups": 1}}
    square = told["classes"][1]
    assert square["share"] == pytest.approx(sum(areas) / (3 * 40 * 60 + 50 * 60))
    assert square["images"] == 4
    assert square["objects"]["count"] == 8
    assert square["objects"]["per_image"] == [2, 2, 2]
    assert square["objects"]["area"] == pytest.approx(np.percentile(areas, [5, 50, 95]).tolist())
    assert square["objects"]["length"][1] == 13  # of 10, 11, 12, 12, 14, 20, 20, 20
    assert "Smith" not in json.dumps(told)


def test_nothing_that_is_told_is_wider_than_80_columns(squares, capsys):
    names = {number: f"{number} is a very long name of a class of cells " * 3 for number in (0, 1)}
    (squares / "classes.json").write_text(json.dumps(names))
    dataset = open_dataset(squares)
    told = overview(dataset, *examine(dataset))
    told["findings"] = [{"check": "misfits", "message": "words " * 30, "images": [["x" * 90, "y" * 90]] * 5}]
    tables = "\n".join(map(str, data_tables(told))).splitlines()
    lines = [*summary(told), *findings_in_lines(told["findings"])]
    assert max(len(line.rstrip()) for line in [*tables, *lines]) <= 80
    assert lines[-1] == "    and 2 more"
    assert short("x" * 90, 11) == "xxxxx…xxxxx"


def test_the_terminal_shows_classes_objects_splits_and_findings(squares, capsys):
    assert main(["data", str(squares)]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    assert "4 images with masks in 2 groups\nsize: 40 x 60 to 50 x 60, median 40 x 60\n" in out
    assert "spacing: 0.5 x 0.5 to 0.5 x 0.5 mm" in out
    assert re.search(r"<b>square</b> +18\.\d% +4 +8 +2 \[2, 2\]", out)
    assert re.search(r"test +2 +1", out)
    # Two of the drawings differ in one row and column alone.
    assert "pair(s) of nearly the same image in different splits\n    s1 = s2\n" in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_terminal_says_so_where_nothing_looks_wrong(tmp_path, capsys):
    write_sample_set(tmp_path / "cells")
    assert main(["data", str(tmp_path / "cells")]) == 0
    assert capsys.readouterr().out.endswith("\nNothing looks wrong.\n")


def test_json_is_what_the_page_is_made_of(squares, tmp_path, capsys):
    assert main(["data", str(squares), "--json", "--out", str(tmp_path / "new" / "look")]) == 0
    out, error = capsys.readouterr()
    told = json.loads(out)
    assert told["findings"][0]["check"] == "duplicates"
    assert told == json.loads((tmp_path / "new" / "look" / "data.json").read_text())
    assert error == ""


def test_the_page_holds_all_it_needs_and_takes_names_for_text(squares, tmp_path):
    assert main(["data", str(squares), "--out", str(tmp_path / "look")]) == 0
    page = (tmp_path / "look" / "data.html").read_text()
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,)', page) == []
    assert "<b>" not in page
    assert "&lt;b&gt;square&lt;/b&gt;" in page
    assert page.count("<figure>") == 4 + 2 * len(
        json.loads((tmp_path / "look" / "data.json").read_text())["findings"][0]["images"]
    )


def test_of_many_cases_the_page_shows_six_and_names_the_rest(squares, tmp_path):
    dataset = open_dataset(squares)
    found, _ = examine(dataset)
    findings = [Finding("empty", "look here", ((0,), (1,), (2,), (3,), (0,), (1,), (2,), (3,)))]
    write_data_pages(dataset, overview(dataset, found, findings), findings, tmp_path)
    page = (tmp_path / "data.html").read_text()
    assert page.count("<figure>") == 4 + 6
    assert "And <code>s2</code>, <code>s3</code>." in page


def test_the_contact_sheet_shows_each_image_in_its_place():
    red, blue = np.zeros((50, 100, 3), np.uint8), np.zeros((300, 100, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = np.asarray(contact_sheet([("red", red)] * 6 + [("blue ✓", blue)]))
    assert sheet.shape == (2 * 226 + 8, 6 * 208 + 8, 3)
    assert sheet[8 + 100, 5 * 208 + 8 + 100].tolist() == [255, 0, 0]
    assert sheet[226 + 8 + 100, 8 + 100].tolist() == [0, 0, 255]
    assert sheet[226 + 8 + 100, 208 + 8 + 100].tolist() == [255, 255, 255]


def test_masks_are_coloured_on_the_sheet(squares, tmp_path):
    assert main(["data", str(squares), "--out", str(tmp_path)]) == 0
    sheet = cv2.imread(str(tmp_path / "contact_sheet.png"))
    first = sheet[8 + 80 : 8 + 120, 8 + 70 : 8 + 130]  # of 40 x 60 pixels, which are not enlarged
    coloured = np.ptp(first.astype(int), axis=2) > 10
    assert coloured[4:14, 2:12].all()
    assert not coloured[20:, :28].any()


def test_data_are_read_as_a_training_would(squares, capsys):
    assert main(["data", str(squares), "--spacing", "1", "--ignore-value", "1", "--classes", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sizes"]["largest"] == [25, 30]
    assert 0.1 < told["ignored"] < 0.3
    assert len(told["classes"]) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "must be a folder, but {} is a file; choose another name."),
        (["--epochs", "3"], "--epochs"),
        (["--intensity-window", "1", "2"], "`intensity_window` needs intensity='window'"),
    ],
)
def test_wrong_options_are_told_in_one_line(squares, words, message, capsys):
    file = squares / "classes.json"
    assert main(["data", str(squares), *(words or ["--out", str(file)])]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert message.format(file) in error
    assert error.count("\n") == 1


def test_it_does_not_wait_for_tensorflow(squares):
    code = "import sys; from segdrop.cli.main import main; main(sys.argv[1:]); print('tensorflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "data", str(squares)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_a_layout_of_any_kind_is_written_in_the_plain_one(tmp_path, capsys):
    image, mask = two_squares((10, 20))
    for name, array in (("scan", image), ("scan_mask", mask * 255)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), array)
    assert main(["data", str(tmp_path), "--to", str(tmp_path / "plain")]) == 0
    assert "In the plain layout" in capsys.readouterr().out
    written, given = open_dataset(tmp_path / "plain"), two_squares((10, 20))
    for found, expected in zip(written.read(0), given, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert main(["data", str(tmp_path / "plain"), "--to", str(tmp_path / "plain")]) == 2
    assert "`to` exists and is not empty" in capsys.readouterr().err
