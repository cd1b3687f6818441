"""Each check on a data set made to have its fault, and all on one that has none."""

import cv2
import numpy as np
import pytest
from conftest import write_pairs, write_table

from segdrop.cells import draw_cells
from segdrop.data.appearance import outline_fit, signature
from segdrop.data.findings import examine
from segdrop.data.opening import open_dataset

SIDE = 96


def cells_in_colour(seed, side=SIDE):
    image, mask = draw_cells(np.random.default_rng(seed), side)
    return np.repeat(image[..., None], 3, axis=2), mask


@pytest.fixture
def pairs():
    """Ten pictures of cells with their masks."""
    return {f"p{i}": cells_in_colour(i) for i in range(10)}


def found_in(folder, pairs, splits=None, **options):
    """What the checks find: of each its message and the names of the images."""
    write_pairs(folder, pairs)
    if splits:
        write_table(folder / "splits.csv", [{"id": i, "split": s} for i, s in zip(pairs, splits, strict=True)])
    dataset = open_dataset(folder, **options)
    return {
        finding.check: (finding.message, [tuple(dataset.ids[number] for number in case) for case in finding.cases])
        for finding in examine(dataset)[1]
    }


def test_sound_data_are_not_remarked_on(tmp_path, pairs):
    assert found_in(tmp_path, pairs, ["train"] * 6 + ["test"] * 4) == {}


def near_copy(image):
    """Darker, smaller, and through JPEG."""
    darker = cv2.resize((image * 0.8).astype(np.uint8), (72, 72), interpolation=cv2.INTER_AREA)
    return cv2.imdecode(cv2.imencode(".jpg", darker, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)


def test_a_near_copy_in_another_split_is_found(tmp_path, pairs):
    pairs["p9"] = near_copy(pairs["p2"][0]), cv2.resize(pairs["p2"][1], (72, 72), interpolation=cv2.INTER_NEAREST)
    found = found_in(tmp_path, pairs, ["train"] * 6 + ["test"] * 4)
    assert found == {"duplicates": ("1 pair(s) of nearly the same image in different splits", [("p2", "p9")])}


def test_copies_in_the_same_split_or_group_do_no_harm(tmp_path, pairs):
    pairs["p9"] = pairs["p8"][0] // 2, pairs["p8"][1]
    assert found_in(tmp_path / "split", pairs, ["train"] * 6 + ["test"] * 4) == {}
    (tmp_path / "groups").mkdir()
    write_table(tmp_path / "groups" / "groups.csv", [{"id": i, "group": i.replace("9", "8")} for i in pairs])
    assert found_in(tmp_path / "groups", pairs) == {}


def test_without_splits_a_near_copy_is_what_a_random_split_may_part(tmp_path, pairs):
    pairs["p9"] = pairs["p8"][0] // 2, pairs["p8"][1]
    message, cases = found_in(tmp_path, pairs)["duplicates"]
    assert "groups.csv keeps them together" in message
    assert cases == [("p8", "p9")]


def test_signatures_of_a_picture_and_of_its_near_copy_agree(pairs):
    first, other = pairs["p0"][0], pairs["p1"][0]
    assert signature(first) @ signature(near_copy(first)) > 0.9
    assert abs(signature(first) @ signature(other)) < 0.5
    assert not signature(np.full((50, 60, 3), 7, np.uint8)).any()


def test_exchanged_masks_are_found(tmp_path, pairs):
    pairs["p3"], pairs["p7"] = (pairs["p3"][0], pairs["p7"][1]), (pairs["p7"][0], pairs["p3"][1])
    found = found_in(tmp_path, pairs)
    assert list(found) == ["misfits"]
    assert {name for case in found["misfits"][1] for name in case} == {"p3", "p7"}


def test_a_set_whose_masks_are_all_another_image_s_is_found(tmp_path, pairs):
    images, masks = zip(*pairs.values(), strict=True)
    shuffled = dict(zip(pairs, zip(images, masks[1:] + masks[:1], strict=True), strict=True))
    message, _ = found_in(tmp_path, shuffled)["misfits"]
    assert message == "the masks follow their images no better than if they were moved: are they paired rightly?"


def test_outlines_next_to_ignored_pixels_are_no_evidence(pairs):
    image, mask = pairs["p0"]
    assert outline_fit(image, mask) > 5
    assert np.isnan(outline_fit(image, np.where(mask > 0, 1, 255).astype(np.uint8)))
    assert np.isnan(outline_fit(image, np.zeros_like(mask)))


def test_empty_full_and_ignored_masks_are_found(tmp_path, pairs):
    for name, value in (("p1", 0), ("p4", 1), ("p5", 9)):
        pairs[name] = pairs[name][0], np.full((SIDE, SIDE), value, np.uint8)
    dataset = open_dataset(write_pairs(tmp_path, pairs), classes=2, ignore_value=9)
    findings = [(one.message, one.cases) for one in examine(dataset)[1] if one.check == "empty"]
    assert findings == [
        ("1 mask(s) without any foreground", ((1,),)),
        ("1 mask(s) of nothing but foreground", ((4,),)),
        ("1 mask(s) that are ignored as a whole", ((5,),)),
    ]


def test_empty_masks_that_are_common_are_how_the_set_is(tmp_path, pairs):
    for name in ("p0", "p1", "p2"):
        pairs[name] = pairs[name][0], np.zeros((SIDE, SIDE), np.uint8)
    assert "empty" not in found_in(tmp_path, pairs)


def test_inverted_masks_are_found(tmp_path, pairs):
    disc = cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (48, 48), 30, 1, -1)
    pairs["p6"] = np.repeat(disc[..., None] * 200, 3, axis=2), 1 - disc
    assert found_in(tmp_path, pairs)["inverted"] == (
        "1 mask(s) with foreground all around the border: are they inverted?",
        [("p6",)],
    )


def test_a_class_that_is_nowhere_or_not_in_a_split_is_found(tmp_path, pairs):
    image, mask = pairs["p0"]
    pairs["p0"] = image, np.where(mask > 0, 2, 0).astype(np.uint8)
    dataset = open_dataset(write_pairs(tmp_path, pairs), classes=4)
    assert [one.message for one in examine(dataset)[1]] == ["no image has the class 'class 3'"]
    found = found_in(tmp_path, pairs, ["train"] * 6 + ["val"] * 2 + ["test"] * 2, classes=3)
    assert found == {"absent": ("no image of val and test has the class 'class 2'", [])}


def test_black_images_and_images_of_one_colour_are_found(tmp_path, pairs):
    pairs["p2"] = pairs["p2"][0] // 128, pairs["p2"][1]
    assert found_in(tmp_path / "scaled", pairs)["dark"] == (
        "1 image(s) of values in 0..1, which are nearly black in 0..255; see --intensity",
        [("p2",)],
    )
    pairs["p2"] = np.full((SIDE, SIDE, 3), 90, np.uint8), pairs["p2"][1]
    assert found_in(tmp_path / "flat", pairs)["dark"] == ("1 image(s) of one colour", [("p2",)])


def test_a_split_of_another_stain_is_found_and_chance_is_not(tmp_path):
    pairs = {f"p{i:02}": cells_in_colour(i, 48) for i in range(30)}
    splits = ["train"] * 20 + ["test"] * 10
    assert "shifted" not in found_in(tmp_path / "chance", pairs, splits)
    for name in list(pairs)[20:]:
        image, mask = pairs[name]
        pairs[name] = (image * [1, 1, 0.3]).astype(np.uint8), mask
    message, cases = found_in(tmp_path / "stain", pairs, splits)["shifted"]
    assert message.startswith("test images look unlike train images: mean of blue is ")
    assert len(cases) == 3
    assert all(name >= "p20" for (name,) in cases)
