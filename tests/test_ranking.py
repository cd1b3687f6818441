"""`segdrop rank`: which unlabelled images should be annotated next."""

import json

import cv2
import numpy as np
import pytest
from conftest import brightness_model, randomise, read_csv, write_run
from standin import build_small_unet

import segdrop
from segdrop import InputError
from segdrop.cli.main import main
from segdrop.inference.ranking import choose

RNG = np.random.default_rng(0)


def test_of_each_cluster_one_is_chosen_however_uncertain_the_others_are():
    clusters = np.repeat([[0.0, 0], [10, 0], [0, 10]], [6, 3, 3], axis=0)
    features = clusters + RNG.normal(0, 0.1, clusters.shape)
    uncertainty = np.array([0.9] * 6 + [0.5] * 3 + [0.1] * 3)
    chosen = choose(uncertainty, features, 3)
    assert [tuple(clusters[index]) for index in chosen] == [(0, 0), (10, 0), (0, 10)]  # the most uncertain first
    assert choose(uncertainty, features, 3) == chosen


def test_the_least_uncertain_images_are_not_chosen_however_different_they_are():
    features = RNG.normal(0, 1, (40, 3))
    features[30:] += 100
    uncertainty = np.linspace(1, 0, 40)
    assert max(choose(uncertainty, features, 2)) < 20  # of ten for each to choose


def test_copies_are_chosen_once_as_long_as_there_are_others():
    features = np.array([[0.0, 0], [0, 0], [0, 0], [1, 0], [0, 1]])
    uncertainty = np.array([0.9, 0.9, 0.9, 0.2, 0.1])
    assert choose(uncertainty, features, 3) == [0, 3, 4]
    assert choose(uncertainty, features, 4) == [0, 1, 3, 4]
    assert sorted(choose(np.zeros(5), features, 5)) == [0, 1, 2, 3, 4]


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", randomise(build_small_unet(encoder_dropout=0.3)))


@pytest.fixture
def images(tmp_path):
    """Three kinds of images, two of each that hardly differ, and a file that is none."""
    folder = tmp_path / "new"
    folder.mkdir()
    for kind, base in {"dark": np.full((64, 96, 3), 20), "red": np.full((64, 96, 3), (30, 30, 220))}.items():
        for number in range(2):
            image = (base + RNG.integers(0, 3, base.shape)).astype(np.uint8)
            cv2.imwrite(str(folder / f"{kind}{number}.png"), image)
    for number in range(2):
        noise = np.random.default_rng(1).integers(0, 256, (80, 64, 3)).astype(np.uint8) // 2 + number
        cv2.imwrite(str(folder / f"noise{number}.png"), noise)
    return folder


def test_images_are_ranked_by_what_samples_disagree_on_and_by_features(run, images):
    ranked = segdrop.rank(run, images, count=3, samples=5)
    assert [row["rank"] for row in ranked.images] == [1, 2, 3, 4, 5, 6]
    assert [row["chosen"] for row in ranked.images] == [True] * 3 + [False] * 3
    chosen = [row["image"].rpartition("/")[2].rstrip("01.png") for row in ranked.images[:3]]
    assert sorted(chosen) == ["dark", "noise", "red"]
    assert ranked.images[0]["distance"] == "" and all(row["distance"] >= 0 for row in ranked.images[1:])
    rest = [row["uncertainty"] for row in ranked.images[3:]]
    assert rest == sorted(rest, reverse=True)
    assert segdrop.rank(run, images, count=3, samples=5).images == ranked.images
    # The mean over the pixels of the map that predict_uncertainty gives.
    assert ranked.measure == "mutual_information"
    first = ranked.images[0]
    unsure = segdrop.predict_uncertainty(run, first["image"], samples=5)
    assert first["uncertainty"] == pytest.approx(unsure.mutual_information.mean(), rel=1e-3)


def test_without_dropout_the_entropy_of_the_prediction_counts(tmp_path, images):
    model = randomise(build_small_unet())
    ranked = segdrop.rank(model, images, count=2)
    assert ranked.measure == "entropy"
    first = ranked.images[0]
    p = segdrop.load(model).predict(cv2.imread(first["image"])[..., ::-1]).astype(np.float64)
    assert first["uncertainty"] == pytest.approx(-(p * np.log(p) + (1 - p) * np.log(1 - p)).mean(), rel=1e-3)


def test_the_command_writes_a_page_and_a_table(run, images, capsys, tmp_path):
    (images / "broken.png").write_bytes(b"no image")
    out = tmp_path / "ranking"
    assert main(["rank", str(run), str(images), "--count", "2", "--mc-samples", "2", "--out", str(out)]) == 1
    told = capsys.readouterr()
    assert "broken.png" in told.err and told.err.count("\n") == 1
    assert max(map(len, told.out.replace(str(out), "").splitlines())) <= 80
    rows = read_csv(out / "ranking.csv")
    assert len(rows) == 6 and [row["chosen"] for row in rows].count("True") == 2
    page = (out / "ranking.html").read_text()
    assert page.count("<figure>") == 2 and rows[0]["image"] in page and "broken.png" in page
    assert main(["rank", str(run), str(images / "red0.png"), "--count", "1", "--json", "--out", str(out)]) == 0
    told, error = capsys.readouterr()
    assert json.loads(told)["images"][0]["image"].endswith("red0.png") and error == ""


def test_what_cannot_be_ranked_is_one_line(run, images, tmp_path):
    with pytest.raises(InputError, match="`count` is 7, but there are 6 image"):
        segdrop.rank(run, images, count=7)
    with pytest.raises(InputError, match="has no encoder with the names"):
        segdrop.rank(write_run(tmp_path / "other", brightness_model()), images, count=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        segdrop.rank(run, tmp_path / "empty", count=1)
    with pytest.raises(InputError, match="`count` must be"):
        segdrop.rank(run, images, count=0)
