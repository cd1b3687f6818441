"""The report: what a browser makes of it, what it shows, and that it says what it does not have."""

import base64
import hashlib
import html.parser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from conftest import write_pairs, write_table
from scipy.stats import entropy

from segdrop import InputError, TrainConfig
from segdrop.cli.main import read_options
from segdrop.data.opening import open_dataset
from segdrop.files import write_csv, write_json
from segdrop.inference import network
from segdrop.reporting.page import report

HOSTILE = "<script>alert(1)</script>"
HOSTILE_FILE = '<img src="x" onerror="alert(2)">'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: none of its names is on the path")


def threshold_model(rate=0.0):
    """A "network" that calls a pixel foreground where it is brighter than 128."""
    inputs = keras.Input((None, None, 3))
    pick = keras.layers.Conv2D(1, 1, name="pick")
    values = pick(inputs)
    if rate:
        values = keras.layers.SpatialDropout2D(rate, seed=0, name="drop")(values)
    model = keras.Model(inputs, keras.layers.Activation("sigmoid")(values))
    pick.set_weights([np.array([0.01, 0, 0], "float32").reshape(1, 1, 3, 1), np.array([-1.285], "float32")])
    return model


def make_run(folder, pictures, rate=0.0, class_name="cell", dice=None, **options):
    """A finished and evaluated run of the threshold model, whose test split is `pictures`: {id: (image, mask)}.

    Args:
        dice: Dice of each picture as it stands in per_image.csv, "" for undefined.
        options: of its TrainConfig.
    """
    data = write_pairs(folder / "data", pictures)
    write_json(data / "classes.json", {"0": "background", "1": class_name})
    run = folder / "run"
    run.mkdir()
    threshold_model(rate).save(run / "model.keras")
    config = TrainConfig.from_json({"data": str(data), "run_dir": str(run), "crop_size": 64, **options}).to_json()
    record = {
        "config": config,
        "classes": 1,
        "class_names": ["background", class_name],
        "data_sha256": open_dataset(data).digest,
        "warnings": ["The encoder starts from RANDOM weights."],
        "versions": {"python": "3.11.7", "segdrop": "0.3.0"},
    }
    write_json(run / "config.json", record)
    write_csv(run / "split.csv", [{"id": name, "split": "test"} for name in pictures])
    columns = ["loss", "dice", "iou", "val_loss", "val_dice", "val_iou"]
    history = [{"epoch": i, "learning_rate": 1e-3, **dict.fromkeys(columns, i / 10)} for i in range(4)]
    write_csv(run / "history.csv", history)
    dice = dice or [i / 10 for i in range(len(pictures))]
    rows = [
        {
            "split": "test",
            "id": name,
            "dice": score,
            "iou": score,
            f"dice_{class_name}": score,
            f"iou_{class_name}": score,
            f"hd95_{class_name}": "" if i == 0 else 10.0 - i,
            "dice_background": 0.9,
            "entropy": 0.01 * i,
        }
        for i, (name, score) in enumerate(zip(pictures, dice, strict=True))
    ]
    write_csv(run / "per_image.csv", rows)
    write_json(run / "metrics.json", {"test": result(class_name, len(pictures), rate)})
    return run


def result(class_name, images, rate):
    scores = {"dice": 0.5, "dice_interval": [0.4, 0.6], "iou": 0.4, "iou_interval": None, "hd95": 12.3}
    bins = [
        {"low": i / 15, "high": (i + 1) / 15, "count": i, "confidence": (i + 0.5) / 15, "accuracy": i / 20}
        for i in range(15)
    ]
    calibration = {"ece": 0.1, "ece_foreground": 0.2, "brier": 0.3, "reliability": {"all": bins, "foreground": bins}}
    found = {"auroc_pixels": 0.9, "aurc_pixels": 0.01, "risk_coverage": [[0.5, 0.0], [1.0, 0.1]], "auroc_images": None}
    scored = {
        "images": images,
        "groups": None,
        **scores,
        "classes": {"background": {"dice": 0.9, "hd95": None}, class_name: {**scores, "hd95_undefined": 1}},
        "distance_unit": "px",
        "surface_tolerance": 2.0,
        "calibration": calibration,
        "tuned": {"threshold": 0.435, "dice": 0.55, "iou": 0.45},
        "error_detection": {"single_pass_entropy": found},
    }
    if rate:
        kinds = ("single_pass_entropy", "mutual_information")
        sampled = {"samples": 4, "seed": 0, "dice": 0.51, "iou": 0.41, "calibration": calibration}
        scored["uncertainty"] = {**sampled, "scores": dict.fromkeys(kinds, found)}
    return scored


def squares(names, size=(40, 50)):
    """Pictures with a bright square that is all of the foreground."""
    image = np.full((*size, 3), 40, np.uint8)
    image[5:25, 5:25] = 220
    return {name: (image, (image[..., 0] > 128).astype(np.uint8)) for name in names}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The page of a run with dropout, whose class and one of whose files are named in HTML."""
    names = ["a", "b", HOSTILE_FILE, *(f"p{i}" for i in range(8))]
    dice = [0.25, "", 0.1, 0.9, 0.09, 1.0, 0.5, 0.6, 0.7, 1e-05, 0.8]
    folder = tmp_path_factory.mktemp("hostile")
    run = make_run(folder, squares(names), 0.5, HOSTILE, dice, encoder_dropout=0.5, dropout_kind="spatial")
    return report(run, mc_samples=4)


@pytest.fixture(autouse=True)
def blank_charts(monkeypatch):
    """Charts are drawn for `hostile` alone: they take most of a report's time."""
    monkeypatch.setattr("segdrop.reporting.charts.svg", lambda figure: "data:image/svg+xml;base64,")


@pytest.fixture
def plain(tmp_path):
    """A run without dropout on three pictures."""
    return make_run(tmp_path, squares(["best", "mid", "worst"]), dice=[0.9, 0.5, 0.1])


@pytest.fixture
def evaluations(monkeypatch):
    """What the report asks `evaluate` for, which does nothing."""
    asked = []

    def evaluate(run, **options):
        asked.append(options)
        return json.loads((run / "metrics.json").read_text()).get("test", {})

    monkeypatch.setattr("segdrop.reporting.page.evaluate", evaluate)
    return asked


class _Elements(html.parser.HTMLParser):
    """The start tags of a page with their attributes, and its text outside of scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words, self._inside = [], [], ""
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.words.append(data)


def read(path):
    return _Elements(path.read_text(encoding="utf-8"))


def shown(path):
    """The ids under the headings of the pictures, and the pictures: [(view, RGB)]."""
    page = path.read_text(encoding="utf-8")
    section = page[page.index('<section id="pictures">') : page.index('<section id="certainty">')]
    headings = {
        part.split("</h3>")[0]: re.findall(r"<figcaption><code>(.*?)</code>", part)
        for part in section.split("<h3>")[1:]
    }
    images = [(a["alt"].split(": ")[-1], decode(a["src"])) for t, a in _Elements(section).tags if t == "img"]
    return headings, images


def decode(uri):
    data = np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]


def in_browser(page, folder, script):
    """Open a copy of the page from disk and return what `script` puts into `found`, with the errors on the way."""
    caught = """<head><script>const errors = [], found = {errors};
        console.error = console.warn = (...words) => errors.push(words.join(" "));
        addEventListener("error", event => errors.push(event.message || event.target.outerHTML), true);
        addEventListener("securitypolicyviolation", event => errors.push(event.violatedDirective));
        window.alert = words => errors.push("alert " + words);</script>"""
    run_it = f"""<script>addEventListener("load", () => {{ try {{ {script} }} catch (error) {{ errors.push(error); }}
        const out = document.createElement("pre"); out.id = "found"; document.body.append(out);
        out.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(found)))); }});</script></body>"""
    text = page.read_text(encoding="utf-8").replace("<head>", caught, 1)
    # The page's own policy stays in force; these two scripts alone are let in besides.
    own = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in re.findall("<script>(.*?)</script>", caught + run_it, re.DOTALL)
    )
    scripts = "script-src " if "script-src" in text else "style-src "
    text = text.replace(
        scripts, f"script-src {own} " if scripts == "script-src " else f"script-src {own}; style-src ", 1
    )
    assert text.count("</body>") == 1
    copy = folder / "copy.html"
    copy.write_text(text.replace("</body>", run_it), encoding="utf-8")
    flags = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
        --disable-component-update --disable-sync --virtual-time-budget=4000 --enable-logging=stderr --v=0 --dump-dom"""
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *flags.split(), profile, copy.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert ":CONSOLE:" not in done.stderr, done.stderr
    return json.loads(base64.b64decode(re.search(r'<pre id="found">(.*?)</pre>', done.stdout)[1]))


@browser
def test_a_browser_shows_every_picture_and_has_nothing_to_complain_about(hostile, tmp_path):
    found = in_browser(
        hostile,
        tmp_path,
        """found.images = [...document.images].map(one => [one.naturalWidth, one.alt]);
        found.text = document.body.innerText;""",
    )
    assert found["errors"] == []
    # 9 pictures in 5 views, the colour scale, 3 curves, the network, 2 reliability diagrams, the risk-coverage curves.
    assert len(found["images"]) == 9 * 5 + 1 + 3 + 1 + 2 + 1
    assert all(width > 0 and alt for width, alt in found["images"])
    assert HOSTILE in found["text"] and HOSTILE_FILE in found["text"]


SORT = """const table = document.querySelector("table.sortable"), heads = [...table.tHead.rows[0].cells];
    const column = title => heads.findIndex(head => head.textContent.trim().startsWith(title));
    const values = i => [...table.tBodies[0].rows].map(row => row.cells[i].textContent);
    const sorts = () => heads.map(head => head.getAttribute("aria-sort")).filter(Boolean).join();
    const click = title => { const i = column(title); heads[i].querySelector("button").click();
        return [values(i), sorts(), heads[i].getAttribute("aria-sort")]; };
"""


@browser
def test_the_table_sorts_numbers_as_numbers_and_leaves_the_empty_last(hostile, tmp_path):
    found = in_browser(
        hostile,
        tmp_path,
        SORT
        + """found.start = [values(column("Dice")), sorts()];
        found.down = click("Dice"); found.up = click("Dice");
        found.name = click("Image"); found.far = click("HD95");""",
    )
    rising = ["0.000", "0.090", "0.100", "0.250", "0.500", "0.600", "0.700", "0.800", "0.900", "1.000"]
    assert found["errors"] == []
    assert found["start"] == [[*rising, ""], "ascending"]
    assert found["down"] == [[*rising[::-1], ""], "descending", "descending"]
    assert found["up"] == [[*rising, ""], "ascending", "ascending"]
    assert found["name"][0] == [HOSTILE_FILE, "a", "b", *(f"p{i}" for i in range(8))]
    assert found["far"] == [[f"{i}.0" for i in range(10)] + [""], "ascending", "ascending"]


def test_the_page_refers_to_nothing_outside_itself(hostile):
    page = hostile.read_text(encoding="utf-8")
    for tag, attributes in read(hostile).tags:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"url\(|@import|https?://", re.sub(r'"data:[^"]*"', "", page))
    policy = next(attributes["content"] for _, attributes in read(hostile).tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")


def test_names_are_shown_as_text(hostile):
    page = read(hostile)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any("onerror" in attributes or attributes.get("src") == "x" for _, attributes in page.tags)
    assert HOSTILE in page.text and HOSTILE_FILE in page.text


def test_titles_sort_by_buttons_that_a_keyboard_reaches(hostile):
    tags = read(hostile).tags
    start = next(i for i, (_, attributes) in enumerate(tags) if attributes.get("class") == "sortable")
    head = [tag for tag, _ in tags[start : start + 13]]
    assert head == ["table", "thead", "tr", *["th", "button"] * 5]


def test_scores_stand_with_their_intervals_and_the_tuned_ones_are_labelled(hostile):
    text = read(hostile).text
    assert "On the 11 test images its Dice is 0.500, with a 95% interval from 0.400 to 0.600." in text
    assert f"{HOSTILE} 0.500 0.400 to 0.600 0.400 12.3" in text
    assert "At threshold 0.435, tuned on validation 0.550 0.450" in text
    assert "Mean of 4 Monte Carlo samples 0.510 0.410" in text
    assert f"{HOSTILE}: undefined and left out of the mean are HD95 in 1 of 11 images." in text
    assert "Warning. The encoder starts from RANDOM weights." in text
    assert "1 image has none: nothing there and nothing found." in text


@pytest.mark.parametrize(
    ("count", "best", "median", "worst"),
    [
        (1, ["p6"], ["p3"], ["p0"]),
        (2, ["p6", "p5"], ["p4", "p3"], ["p1", "p0"]),
        (9, ["p6", "p5"], ["p4", "p3"], ["p1", "p0"]),
    ],
)
def test_the_best_the_middle_and_the_worst_are_shown_and_none_twice(tmp_path, count, best, median, worst):
    run = make_run(tmp_path, squares([f"p{i}" for i in range(7)]))
    headings, _ = shown(report(run, images=count))
    assert headings == {"Best": best, "Median": median, "Worst": worst}


def test_pictures_show_truth_prediction_and_the_entropy_of_a_single_prediction(tmp_path):
    image, mask = squares(["one"])["one"]
    image[30:38, 30:48] = 200  # found, but not there
    out = report(make_run(tmp_path, {"one": (image, mask)}))
    _, pictures = shown(out)
    views = {view: picture.astype(int) for view, picture in pictures[1:]}
    assert [view for view, _ in pictures[1:]] == ["image", "truth", "prediction", "errors", "uncertainty"]
    assert all(picture.shape == (40, 50, 3) for picture in views.values())
    coloured = {view: np.ptp(views[view], axis=-1) > 20 for view in ("image", "truth", "prediction")}
    assert not coloured["image"].any()
    assert (coloured["truth"] == (mask == 1)).mean() > 0.97  # JPEG blurs the border
    assert (coloured["prediction"] == (image[..., 0] > 128)).mean() > 0.97
    assert (np.ptp(views["errors"], axis=-1) > 20).sum() == pytest.approx(8 * 18, abs=20)  # the false one alone
    p = 1 / (1 + np.exp(-(0.01 * np.unique(image) - 1.285)))
    assert f"uncertainty, 0 to {entropy([p, 1 - p]).max():.2g} nats" in read(out).text
    assert "The uncertainty is the entropy of the single prediction, in nats" in read(out).text


def test_mutual_information_is_that_of_a_map_dropped_or_doubled(tmp_path):
    run = make_run(tmp_path, squares(["one"]), rate=0.5)
    text = read(report(run, mc_samples=400)).text
    # Half of the samples see logit 0, the others twice the logit; it differs most where the square is.
    p, q = 0.5, 1 / (1 + np.exp(-2 * (0.01 * 220 - 1.285)))
    expected = entropy([(p + q) / 2, 1 - (p + q) / 2]) - (entropy([p, 1 - p]) + entropy([q, 1 - q])) / 2
    highest = float(re.search(r"uncertainty, 0 to (\S+) nats", text)[1])
    assert highest == pytest.approx(expected, rel=0.1)
    assert "mutual information of 400 Monte Carlo samples" in text


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("predictive_entropy", "predictive entropy of 4 Monte Carlo samples"),
        ("mutual_information", "mutual information of 4 Monte Carlo samples"),
        ("single_pass_entropy", "entropy of the single prediction"),
    ],
)
def test_the_uncertainty_that_finds_errors_best_is_shown(tmp_path, kind, words):
    run = make_run(tmp_path, squares(["one"]), rate=0.5)
    stored = json.loads((run / "metrics.json").read_text())
    scores = {
        name: {"auroc_pixels": 0.7} for name in ("single_pass_entropy", "predictive_entropy", "mutual_information")
    }
    stored["test"]["uncertainty"]["scores"] = scores | {kind: {"auroc_pixels": 0.8}}
    write_json(run / "metrics.json", stored)
    page = report(run, mc_samples=4)
    assert f"The uncertainty is the {words}, in nats, the kind that finds wrong pixels best" in read(page).text
    # Predictive entropy and the single one are of the order of 0.6 nats, mutual information of 0.07.
    highest = float(re.search(r"uncertainty, 0 to (\S+) nats", read(page).text)[1])
    assert (highest < 0.2) is (kind == "mutual_information")


def test_an_uncertainty_that_is_worse_than_chance_is_warned_of(plain, evaluations):
    assert "below the 0.5 of chance" not in read(report(plain, images=0)).text
    stored = json.loads((plain / "metrics.json").read_text())
    stored["test"]["error_detection"] = {"single_pass_entropy": {"auroc_pixels": 0.2, "auroc_images": 0.49}}
    write_json(plain / "metrics.json", stored)
    text = read(report(plain, images=0)).text
    assert (
        "Warning. The entropy of the single prediction does not find wrong pixels: its AUROC is 0.200, below the 0.5 "
        "of chance; do not take it for a sign of errors." in text
    )
    assert "does not find images of low Dice: its AUROC is 0.490" in text


@browser
def test_a_picture_fills_the_window_after_a_click_and_is_small_again_after_another(hostile, tmp_path):
    found = in_browser(
        hostile,
        tmp_path,
        """const picture = document.querySelector(".views img"), wide = () => picture.getBoundingClientRect().width;
        found.before = wide(); picture.click(); found.large = [wide(), document.documentElement.clientWidth];
        picture.click(); found.after = wide();""",
    )
    assert found["errors"] == []
    assert found["large"][0] == found["large"][1] > 2 * found["before"] and found["after"] == found["before"]


@browser
def test_nothing_is_wider_than_1280_pixels(hostile, tmp_path):
    found = in_browser(
        hostile,
        tmp_path,
        """document.documentElement.style.width = "1280px";
        found.drawing = document.querySelector(".wide img").getBoundingClientRect().width;""",
    )
    assert 300 < found["drawing"] < 1120


def test_large_pictures_are_made_smaller_and_predicted_in_tiles(tmp_path, monkeypatch):
    run = make_run(tmp_path, squares(["wide"], size=(300, 1000)))
    whole = report(run)
    sizes = []
    monkeypatch.setattr("segdrop.reporting.pictures.TILE", 256)
    monkeypatch.setattr("segdrop.reporting.pictures.OVERLAP", 64)
    load = network.load

    def load_watched(path):
        network = load(path)

        class Watched:
            model, class_names, context_slices = network.model, network.class_names, network.context_slices

            def probabilities(self, images):
                sizes.append(images.shape[1:3])
                return network.probabilities(images)

        return Watched()

    monkeypatch.setattr("segdrop.reporting.page.load", load_watched)
    tiled = report(run, tmp_path / "tiled.html")
    assert set(sizes) == {(256, 256)}
    for (view, picture), (_, other) in zip(shown(whole)[1][1:], shown(tiled)[1][1:], strict=True):
        assert picture.shape == (154, 512, 3), view
        assert np.abs(picture.astype(int) - other).max() <= 2, view


def test_without_dropout_the_page_says_so(plain, evaluations):
    text = read(report(plain)).text
    assert "There is no Monte Carlo uncertainty: the network has no dropout." in text
    assert "The network has no dropout." in text
    assert evaluations == []


@pytest.mark.parametrize(
    ("rate", "samples", "lacks", "asked"),
    [
        (0.5, 4, None, []),
        (0.5, 4, "uncertainty", [{"split": "test", "mc_samples": 4, "seed": 7}]),
        (0.5, 0, "uncertainty", []),
        (0.0, 4, "uncertainty", []),
        (0.0, 4, "scores", [{"split": "test", "mc_samples": 0, "seed": 7}]),
        (0.5, 4, "rows", [{"split": "test", "mc_samples": 4, "seed": 7}]),
    ],
)
def test_only_what_is_missing_is_evaluated(tmp_path, evaluations, rate, samples, lacks, asked):
    run = make_run(tmp_path, squares(["one"]), rate)
    stored = json.loads((run / "metrics.json").read_text())
    if lacks == "uncertainty":
        stored["test"].pop("uncertainty", None)
    elif lacks == "scores":
        stored = {}
    elif lacks == "rows":
        (run / "per_image.csv").unlink()
    write_json(run / "metrics.json", stored)
    report(run, mc_samples=samples, images=0, seed=7)
    assert evaluations == asked


def test_a_run_never_evaluated_is_scored_for_its_report(plain):
    (plain / "per_image.csv").unlink()
    (plain / "metrics.json").unlink()
    write_csv(
        plain / "split.csv",
        [{"id": n, "split": s} for n, s in zip(("best", "mid", "worst"), ("test", "test", "val"), strict=True)],
    )
    text = read(report(plain)).text
    assert "On the 2 test images its Dice is 1.000" in text


def test_without_the_data_set_there_are_scores_and_no_pictures(plain, evaluations):
    shutil.rmtree(plain.parent / "data")
    text = read(report(plain)).text
    assert re.search(r"No pictures: `data` does not exist: \S+data\.", text)
    assert "its Dice is 0.500" in text and "Sizes unknown" in text
    assert evaluations == []


def test_what_an_older_run_has_not_measured_is_left_out(plain):
    shutil.rmtree(plain.parent / "data")
    (plain / "per_image.csv").unlink()
    (plain / "history.csv").unlink()
    old = {"images": 3, "dice": 0.5, "iou": None, "classes": {"background": {"dice": 0.9}, "cell": {"dice": 0.5}}}
    write_json(plain / "metrics.json", {"test": old})
    text = read(report(plain)).text
    assert "Calibration and uncertainty of this split have not been measured." in text
    assert "There are no scores of single images." in text and "The run has no history." in text
    assert "HD95" not in text
    (plain / "metrics.json").unlink()
    assert "This split has not been scored." in read(report(plain)).text


def test_groups_are_counted_and_shown_as_hashes_alone(plain):
    write_table(plain.parent / "data" / "groups.csv", [{"id": n, "group": "JaneDoe"} for n in ("best", "mid", "worst")])
    for name in ("split.csv", "per_image.csv"):
        with (plain / name).open(newline="") as file:
            header, *lines = file.read().splitlines()
        (plain / name).write_text("\n".join([f"{header},group", *(f"{line},c0ffee00" for line in lines)]) + "\n")
    page = report(plain)
    assert "JaneDoe" not in page.read_text(encoding="utf-8")
    assert "c0ffee00" in read(page).text and "Split Images Groups test 3 1" in read(page).text


def test_a_training_without_validation_is_not_said_to_have_a_best_epoch(plain):
    assert (
        "Its best epoch by validation Dice is 4 of 4. It was still improving: train longer" in read(report(plain)).text
    )
    rows = [{"epoch": i, "learning_rate": 1e-3, "loss": 1.0, "dice": 0.5} for i in range(4)]
    write_csv(plain / "history.csv", rows)
    page = read(report(plain))
    assert "It was trained for 4 epochs, without validation." in page.text
    assert "the network of this report is that of the last epoch, 4." in page.text
    described = " ".join(attributes.get("alt", "") for _, attributes in page.tags)
    assert "best epoch" not in (page.text + described).lower()


def test_changed_data_and_an_unfinished_training_are_warned_of(plain):
    write_pairs(plain.parent / "data", squares(["best"], size=(64, 64)))
    (plain / "state.npz").touch()
    text = read(report(plain)).text
    assert "Warning. The data set has changed since the training" in text
    assert "Warning. The training is not finished" in text


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"spatial": True, "encoder_dropout": {"stage3": 0.1, "stage4_unit1": 0.2}},
        {
            "encoder_dropout": (0.05, 0.3),
            "dropout_blocks": ("stage3", "stage4_unit*"),
            "dropout_placement": "branch_end",
        },
        {"lr": 3e-05, "classes": 2, "stratify": "a column", "patience": 3},
        {"intensity": "window", "intensity_window": (-160.0, 240.0), "spacing": 0.5},
        {"intensity": "percentiles", "intensity_percentiles": (1.0, 99.0)},
    ],
)
def test_the_command_to_train_means_the_run_s_own_configuration(tmp_path, evaluations, options):
    run = make_run(tmp_path, squares(["one"]), **options)
    page = report(run, images=0).read_text(encoding="utf-8")
    train, evaluate, again = html.unescape(re.search(r"<pre>(.*?)</pre>", page, re.DOTALL)[1]).split("\n")
    words = shlex.split(train)
    assert words[:2] == ["segdrop", "train"]
    assert read_options(words[1:]) == TrainConfig.from_json(
        {"data": str(tmp_path / "data"), "crop_size": 64, **options}
    )
    assert shlex.split(evaluate)[:3] == ["segdrop", "evaluate", str(run)]
    assert shlex.split(again)[:3] == ["segdrop", "report", str(run)]


def test_changed_options_stand_before_those_at_their_defaults(plain):
    text = read(report(plain)).text
    assert text.index("crop_size 64") < text.index("Options at their defaults") < text.index("val_fraction 0.15")


def test_the_report_goes_where_it_is_told_and_leaves_nothing_else(plain, tmp_path):
    before = sorted(path.name for path in plain.iterdir())
    out = tmp_path / "page.html"
    out.write_text("<!DOCTYPE html>old")
    assert report(plain, out) == out
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in plain.iterdir()) == before
    assert report(plain) == plain / "report.html"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "`split` must be one of train, val, test, all, got 'dev'"),
        ({"mc_samples": -1}, "`mc_samples` must be a whole number of at least 0"),
        ({"images": 1.5}, "`images` must be a whole number of at least 0"),
    ],
)
def test_wrong_options_are_errors(plain, options, message):
    with pytest.raises(InputError, match=message):
        report(plain, **options)


def test_a_missing_folder_is_an_error_before_any_work(plain, evaluations):
    with pytest.raises(FileNotFoundError, match=r"`out` has no folder: \S+nowhere; make it first"):
        report(plain, plain / "nowhere" / "page.html")
    with pytest.raises(FileNotFoundError, match="The run does not exist"):
        report(Path("nowhere"))
