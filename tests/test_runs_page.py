"""Several runs on one page: what is compared with what, what is not, and the pictures that show it."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import read_csv
from test_reporting import browser, decode, in_browser, make_run, read, squares

from segdrop import InputError
from segdrop.cli.main import main
from segdrop.files import write_csv, write_json
from segdrop.reporting.runs_page import report_runs

NAMES = ["a", "b", "c", "d"]
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def blank_charts(monkeypatch):
    monkeypatch.setattr("segdrop.reporting.charts.svg", lambda figure: "data:image/svg+xml;base64,")


def again(run, name, dice, **options):
    """A copy of a run with other scores of its images, and other options."""
    copy = shutil.copytree(run, run.parent / name)
    rows = [row for row in read_csv(copy / "per_image.csv") if row["id"] in dice]
    write_csv(copy / "per_image.csv", [{**row, "dice": dice[row["id"]]} for row in rows])
    change(copy, config=options)
    return copy


def change(run, config=(), **fields):
    stored = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", {**stored, "config": {**stored["config"], **dict(config)}, **fields})


@pytest.fixture
def first(tmp_path):
    return make_run(tmp_path, squares(NAMES), dice=[0.5, 0.6, 0.7, ""])


@pytest.fixture
def second(first):
    return again(first, "second", dict(zip(NAMES, [0.7, 0.5, 0.7, 0.9], strict=True)), lr=3e-4)


def test_each_run_is_compared_with_the_first_image_by_image(first, second, tmp_path):
    """Of +0.2, -0.1 and 0 the mean is 0.033, and of 27 draws the lowest and the highest mean are -0.1 and 0.2."""
    text = read(report_runs([first, second], tmp_path / "page.html", images=0)).text
    assert "second +0.033 [-0.100, +0.200] 1 1 1 1" in text
    assert "Less the Dice of run, mean over single images [95% interval]" in text
    assert "a bootstrap over images:" in text and "do not have the same images" not in text


def test_images_of_a_patient_are_drawn_together(first, second, tmp_path):
    for run in (first, second):
        rows = read_csv(run / "per_image.csv")
        groups = ["p", "p", "q", "q"]
        write_csv(run / "per_image.csv", [{**row, "group": g} for row, g in zip(rows, groups, strict=True)])
    text = read(report_runs([first, second], tmp_path / "page.html", images=0)).text
    assert "second +0.033 [+0.000, +0.050]" in text  # q has 0; p the mean of 0.2 and -0.1
    assert "a bootstrap over groups of images:" in text


def test_only_images_that_both_have_are_compared(first, tmp_path):
    other = again(first, "other", {"a": 0.9, "b": 0.6})
    text = read(report_runs([first, other], tmp_path / "page.html", images=0)).text
    assert "other +0.200 [+0.000, +0.400] 1 0 1 0" in text
    assert "The runs do not have the same images in this split" in text


def test_options_that_differ_stand_side_by_side_and_no_others(first, second, tmp_path):
    page = report_runs([first, second], tmp_path / "page.html", images=0).read_text(encoding="utf-8")
    section = page[page.index('id="options"') : page.index('id="training"')]
    assert re.findall(r"<t[hd](?: scope=\"col\")?>(.*?)</t[hd]>", section) == [
        "",
        "run",
        "second",
        "lr",
        "0.001",
        "0.0003",
    ]


def test_pictures_are_of_the_images_whose_dice_differs_most_and_then_of_the_lowest(first, second, tmp_path):
    third = again(first, "third", dict(zip(NAMES, [0.5, 0.6, 0.65, 1.0], strict=True)))
    out = report_runs([first, second, third], tmp_path / "page.html", images=1)
    page = out.read_text(encoding="utf-8")
    headings = re.findall(r"<h3>(.*?)</h3>\s*<figure class=\"shown\">\s*<figcaption><code>(.*?)</code>", page)
    assert headings == [("Where they differ most", "a"), ("The lowest of the others", "b")]
    images = [(a["alt"], a["src"]) for tag, a in read(out).tags if tag == "img" and a["alt"].startswith("a: ")]
    assert [alt for alt, _ in images] == [
        *("a: image", "a: truth", "a: run, Dice 0.500", "a: run, errors"),
        *("a: second, Dice 0.700", "a: second, errors", "a: third, Dice 0.500", "a: third, errors"),
    ]
    assert {decode(uri).shape for _, uri in images} == {(40, 50, 3)}


def test_runs_of_one_name_are_told_apart_by_their_paths(first, tmp_path):
    other = shutil.copytree(first, tmp_path / "elsewhere" / "run")
    text = read(report_runs([first, other], tmp_path / "page.html", images=0)).text
    assert f"{other} +0.000 [+0.000, +0.000]" in text


def test_runs_that_cannot_be_compared_are_one_line_and_nothing_is_written(first, second, tmp_path):
    out = tmp_path / "page.html"
    for options, message in (
        ({"class_names": ["background", "cat"]}, "of the same classes: .*second has background, cat, and .*run backgr"),
        ({"data_sha256": "f" * 64}, r"of the same data: .*second has SHA-256 ffffffffffff\.\.\., and"),
    ):
        other = shutil.copytree(second, tmp_path / "odd" / "second")
        change(other, **options)
        with pytest.raises(InputError, match=f"`runs` must be {message}"):
            report_runs([first, other], out)
        shutil.rmtree(tmp_path / "odd")
    for runs in ([first], [first, first], []):
        with pytest.raises(InputError, match="`runs` must be two runs at least, each once, got"):
            report_runs(runs, out)
    with pytest.raises(InputError, match=f"each once, got {first}"):
        report_runs(str(first), out)
    assert not out.exists()


def test_without_the_data_set_there_are_scores_and_no_pictures(first, second, tmp_path):
    shutil.rmtree(tmp_path / "data")
    text = read(report_runs([first, second], tmp_path / "page.html")).text
    assert re.search(r"No pictures: run: `data` does not exist: \S+data\.", text)
    assert "second +0.033" in text


def test_the_command_takes_one_run_or_several(first, second, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(first), str(second), "--images", "0"]) == 0
    assert capsys.readouterr().out == "Report: runs.html\n" and (tmp_path / "runs.html").is_file()
    assert main(["report", str(first), "--images", "0", "--mc-samples", "0"]) == 0
    assert (first / "report.html").is_file()
    assert main(["report"]) == 2
    assert capsys.readouterr().err == "segdrop: `runs` is empty; name the folder of a run, or several to compare.\n"


@browser
def test_the_page_fits_and_a_browser_has_nothing_to_complain_about(first, second, tmp_path, monkeypatch):
    monkeypatch.undo()
    odd = again(first, HOSTILE.replace("/", "|"), dict.fromkeys(NAMES, 0.4))
    page = report_runs([first, second, odd], tmp_path / "page.html", images=1)
    text = page.read_text(encoding="utf-8")
    assert "script-src" not in text  # the page has no scripts
    found = in_browser(
        page,
        tmp_path,
        """found.images = [...document.images].map(one => [one.naturalWidth, one.alt]);
        found.wide = document.documentElement.scrollWidth > innerWidth; found.text = document.body.innerText;""",
    )
    assert found["errors"] == [] and not found["wide"]
    assert len(found["images"]) == 2 + 2 * 8 and all(width and alt for width, alt in found["images"])
    assert "<script>alert(1)<|script>, Dice 0.400" in found["text"]


def test_a_sweep_s_folder_gives_the_page_of_its_answer(tmp_path, capsys):
    sweep = shutil.copytree(Path(__file__).parent / "made_by_0_4" / "sweep", tmp_path / "sweep")
    assert main(["report", str(sweep)]) == 0
    assert capsys.readouterr().out == f"Report: {sweep / 'answer.html'}\n"
    assert main(["report", str(sweep), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page == (sweep / "answer.html").read_text(encoding="utf-8")
    assert "Dropout makes no difference of Dice beyond 0.01 on these data" in page
