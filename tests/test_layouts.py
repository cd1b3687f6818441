"""Layouts of data sets as they are downloaded: each opens in one call to the right pairs, or is an error that helps."""

import json

import nibabel
import numpy as np
import pytest
import tifffile
from conftest import tiny_training, write_pairs, write_table
from PIL import Image

import segdrop
from segdrop import InputError, TrainConfig
from segdrop.conventions import IGNORED
from segdrop.data.layouts import read_layout
from segdrop.data.opening import open_configured, open_dataset

GREY = np.arange(32 * 40, dtype=np.uint16).reshape(32, 40).astype(np.uint8)
EVERYWHERE = np.full((32, 40), 255, np.uint8)


def square(left, value=255, size=8):
    """A mask that can be told from the others: a square from column `left` on."""
    mask = np.zeros((32, 40), np.uint8)
    mask[8 : 8 + size, left : left + size] = value
    return mask


def lay(folder, files):
    """Write {path: array}, by the suffix; no two of the images, which are GREY, are the same."""
    for shift, (name, array) in enumerate(files.items()):
        path = folder / name
        array = np.roll(GREY, shift, axis=1) if array is GREY else array
        path.parent.mkdir(parents=True, exist_ok=True)
        if ".nii" in path.name:
            nibabel.Nifti1Image(array[..., None], np.eye(4)).to_filename(path)
        else:
            Image.fromarray(array).save(path, **({"quality": 100} if path.suffix == ".jpg" else {}))
    return folder


def left_ends(dataset):
    """By id, the column that a mask's foreground starts at: which of the masks an image was given."""
    masks = {name: dataset.read(i)[1] for i, name in enumerate(dataset.ids)}
    return {name: int(np.flatnonzero((mask == 1).any(axis=0))[0]) for name, mask in masks.items()}


DRIVE = {}
for number, split, column in (("21", "training", 4), ("22", "training", 5), ("01", "test", 6)):
    DRIVE |= {
        f"{split}/images/{number}_{split}.tif": GREY,
        f"{split}/1st_manual/{number}_manual1.gif": square(column),
        f"{split}/mask/{number}_{split}_mask.gif": square(2, size=22),
    }
DRIVE["test/2nd_manual/01_manual2.gif"] = square(9)
STARE = {
    f"{folder}/im000{i}{mark}.ppm": GREY if folder == "stare-images" else square(column + i)
    for folder, mark, column in (("stare-images", "", 0), ("labels-ah", ".ah", 3), ("labels-vk", ".vk", 10))
    for i in (1, 2)
}
CHASE = {}
for i, eye in enumerate(("01L", "01R", "02L")):
    CHASE |= {
        f"Image_{eye}.jpg": GREY,
        f"Image_{eye}_1stHO.png": square(4 + i),
        f"Image_{eye}_2ndHO.png": square(9 + i),
    }
DSB = {"stage1_test/0f/images/0f.png": GREY}
for i, name in enumerate(("c0ffee", "decade")):
    DSB |= {
        f"stage1_train/{name}/images/{name}.png": GREY,
        f"stage1_train/{name}/masks/7a{i}.png": square(4 + i),
        f"stage1_train/{name}/masks/9b{i}.png": square(20 + i),
    }
NNUNET, MSD = {"imagesTs/liver_9_0000.nii.gz": GREY}, {"imagesTs/spleen_9.nii.gz": GREY}
for i in (2, 3):
    NNUNET |= {f"imagesTr/liver_{i}_0000.nii.gz": GREY, f"labelsTr/liver_{i}.nii.gz": square(4 + i, 1)}
    MSD |= {f"imagesTr/spleen_{i}.nii.gz": GREY, f"labelsTr/spleen_{i}.nii.gz": square(4 + i, 1)}
ISIC = {}
for split, number in (("Training", 0), ("Training", 1), ("Validation", 2), ("Test", 3)):
    ISIC |= {
        f"ISIC2018_Task1-2_{split}_Input/ISIC_000000{number}.jpg": GREY,
        f"ISIC2018_Task1_{split}_GroundTruth/ISIC_000000{number}_segmentation.png": square(4 + number),
    }
KVASIR = {}
for i, name in enumerate(("cju0", "cju1")):
    KVASIR |= {f"images/{name}.jpg": GREY, f"masks/{name}.jpg": square(8 + 8 * i)}  # blocks that JPEG keeps
BUSI = {"benign/benign (1)_mask_1.png": square(20)}
for i, kind in enumerate(("benign", "malignant", "normal")):
    BUSI |= {f"{kind}/{kind} (1).png": GREY, f"{kind}/{kind} (1)_mask.png": square(4 + i)}
CVC = {}
CAMVID = {}
for i in (1, 2):
    CVC |= {f"Original/{i}.tif": GREY, f"Ground Truth/{i}.tif": square(4 + i)}
    for part, column in (("train", 5), ("val", 10), ("test", 15)):
        CAMVID |= {f"{part}/000{i}.png": GREY, f"{part}annot/000{i}.png": square(column + i, 1)}
HRF = {}
CARVANA = {}
ADE = {}
LITS = {}
GLAS = {}
for i in (1, 2):
    HRF |= {
        f"images/0{i}_dr.JPG": GREY,
        f"manual1/0{i}_dr.tif": square(4 + i),
        f"mask/0{i}_dr_mask.tif": EVERYWHERE,
    }
    CARVANA |= {f"train/ab_0{i}.jpg": GREY, f"train_masks/ab_0{i}_mask.gif": square(4 + i)}
    LITS |= {f"volume-{i}.nii": GREY, f"segmentation-{i}.nii": square(4 + i, 1)}
    for part, column in (("train", 5), ("testA", 10)):
        GLAS |= {f"{part}_{i}.bmp": GREY, f"{part}_{i}_anno.bmp": square(column + i, 1)}
    for part, column in (("training", 5), ("validation", 10)):
        ADE |= {f"images/{part}/{i}.jpg": GREY, f"annotations/{part}/{i}.png": square(column + i, 1)}

PUBLIC = {
    "DRIVE": (DRIVE, {"01_test": 6, "21_training": 4, "22_training": 5}, ("test", "train", "train")),
    "STARE": (STARE, {"im0001": 4, "im0002": 5}, None),
    "CHASE_DB1": (CHASE, {"Image_01L": 4, "Image_01R": 5, "Image_02L": 6}, None),
    "DSB2018": (DSB, {"c0ffee": 4, "decade": 5}, None),
    "nnU-Net": (NNUNET, {"liver_2_0000#000": 6, "liver_3_0000#000": 7}, None),
    "MSD": (MSD, {"spleen_2#000": 6, "spleen_3#000": 7}, None),
    "ISIC": (ISIC, {f"ISIC_000000{i}": 4 + i for i in range(4)}, ("train", "train", "val", "test")),
    "Kvasir-SEG": (KVASIR, {"cju0": 8, "cju1": 16}, None),
    "BUSI": (BUSI, {"benign (1)": 4, "malignant (1)": 5, "normal (1)": 6}, None),
    "CVC-ClinicDB": (CVC, {"1": 5, "2": 6}, None),
    "CamVid": (
        CAMVID,
        {"test/0001": 16, "test/0002": 17, "train/0001": 6, "train/0002": 7, "val/0001": 11, "val/0002": 12},
        ("test", "test", "train", "train", "val", "val"),
    ),
    "HRF": (HRF, {"01_dr": 5, "02_dr": 6}, None),
    "Carvana": (CARVANA, {"ab_01": 5, "ab_02": 6}, None),
    "LiTS": (LITS, {"volume-1#000": 5, "volume-2#000": 6}, None),
    "GlaS": (GLAS, {"testA_1": 11, "testA_2": 12, "train_1": 6, "train_2": 7}, None),
    "ADE20K": (
        ADE,
        {"images/training/1": 6, "images/training/2": 7, "images/validation/1": 11, "images/validation/2": 12},
        ("train", "train", "val", "val"),
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_set_opens_as_downloaded(tmp_path, name):
    files, expected, splits = PUBLIC[name]
    dataset = open_dataset(lay(tmp_path, files))
    assert left_ends(dataset) == expected
    assert dataset.splits == splits
    assert dataset.understood.startswith(f"{len(expected)} pairs: ")


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_set_opens_from_the_folder_above_too(tmp_path, name):
    files, expected, _ = PUBLIC[name]
    lay(tmp_path / "unpacked" / "set", files)
    assert sorted(left_ends(open_dataset(tmp_path)).values()) == sorted(expected.values())


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            [
                f"{name}.gif"
                for i in (21, 22)
                for name in (f"images/{i}_test", f"1st_manual/{i}_manual1", f"mask/{i}_test_mask")
            ],
            "2 pairs: images/*_test.gif with 1st_manual/*_manual1.gif; field of view from mask/",
        ),
        (
            list(DSB),
            "2 pairs: stage1_train/*/images/*.png with all of stage1_train/*/masks/; 2 image(s) have a mask for each "
            "object, taken as one; 1 image(s) without masks left out, first stage1_test/0f/images/0f.png",
        ),
        (list(STARE), "2 pairs: stare-images/*.ppm with labels-ah/*.ah.ppm; annotator ah of ah, vk"),
        (
            list(CAMVID),
            "6 pairs: test/*.png with testannot/*.png (2), train/*.png with trainannot/*.png (2), val/*.png with "
            "valannot/*.png (2); 2 train, 2 val, 2 test",
        ),
        (
            [f"{x}/{part}/1.png" for x in "abcd" for part in ("images", "labels")],
            "4 pairs: a/images/*.png with a/labels/*.png (1), b/images/*.png with b/labels/*.png (1), c/images/*.png "
            "with c/labels/*.png (1), and 1 more kinds",
        ),
    ],
)
def test_what_was_understood_is_said_in_one_line(files, said):
    assert read_layout(files).said == said


def test_object_masks_are_joined_and_keep_their_value(tmp_path):
    dataset = open_dataset(lay(tmp_path, DSB))
    np.testing.assert_array_equal(dataset.read(0)[1], (square(4) | square(20)) // 255)
    busi = open_dataset(lay(tmp_path / "busi", BUSI))
    np.testing.assert_array_equal(busi.read(0)[1], (square(4) | square(20)) // 255)


def test_outside_of_the_field_of_view_is_ignored(tmp_path):
    mask = open_dataset(lay(tmp_path, DRIVE)).read(1)[1]
    inside = square(2, size=22) > 0
    assert (mask[~inside] == IGNORED).all()
    np.testing.assert_array_equal(mask[inside], square(4)[inside] // 255)


@pytest.mark.parametrize(("slices", "seen"), [(5, 3), (3, 5), (None, 3)])
def test_a_field_of_view_of_other_slices_than_the_mask_s_is_an_error(tmp_path, slices, seen):
    for folder, name, count in (("images", "a", slices), ("1st_manual", "a_manual1", slices), ("mask", "a_mask", seen)):
        (tmp_path / folder).mkdir()
        array = np.stack([square(4)] * count) if count else square(4)
        tifffile.imwrite(tmp_path / folder / f"{name}.tif", array, photometric="minisblack")
    with pytest.raises(InputError, match=f"a_mask.tif: the field of view has {seen} slices, the mask {slices or 1}"):
        open_dataset(tmp_path)


def test_a_further_value_is_ignored_beside_the_field_of_view(tmp_path):
    files = {name: square(4, 2) | square(14, 1) if "manual" in name else array for name, array in DRIVE.items()}
    mask = open_dataset(lay(tmp_path, files), classes=2, ignore_value=2).read(1)[1]
    assert mask[10, [0, 4, 3, 14]].tolist() == [IGNORED, IGNORED, 0, 1]


def test_another_annotator_s_masks_are_taken_when_asked_for(tmp_path):
    lay(tmp_path / "stare", STARE), lay(tmp_path / "drive", DRIVE)
    assert left_ends(open_dataset(tmp_path / "stare", annotator="vk")) == {"im0001": 11, "im0002": 12}
    second = open_dataset(tmp_path / "drive", annotator="2")
    assert left_ends(second) == {"01_test": 9}
    assert "annotator 2 of 1, 2; 2 image(s) without masks left out" in second.understood


def test_the_plain_layout_comes_first_whatever_lies_beside_it(tmp_path):
    write_pairs(tmp_path, {"a": (GREY, square(4)), "b": (GREY, square(5))})
    lay(tmp_path, {"labels/a.png": square(9), "1st_manual/a_manual1.gif": square(9), "a.png": GREY})
    dataset = open_dataset(tmp_path)
    assert left_ends(dataset) == {"a": 4, "b": 5}
    assert dataset.understood == "2 pairs: images/ with masks/, same names"


def test_images_in_subfolders_of_the_plain_layout_are_left_out_and_it_is_said(tmp_path):
    write_pairs(tmp_path, {"a": (GREY, square(4))})
    lay(tmp_path, {"images/val/c.png": GREY, "images/train/b.png": GREY, "masks/train/b.png": square(5)})
    dataset = open_dataset(tmp_path)
    assert dataset.ids == ("a",)
    assert dataset.understood == (
        "1 pair: images/ with masks/, same names; 2 image(s) in subfolders left out, first images/train/b.png"
    )


def test_tables_beside_a_layout_are_read_and_their_splits_come_first(tmp_path):
    lay(tmp_path, ISIC)
    ids = [f"ISIC_000000{i}" for i in range(4)]
    write_table(
        tmp_path / "splits.csv", [{"id": i, "split": s} for i, s in zip(ids, ["val", *3 * ["train"]], strict=True)]
    )
    write_table(tmp_path / "groups.csv", [{"id": i, "group": g} for i, g in zip(ids, "abcc", strict=True)])
    dataset = open_dataset(tmp_path)
    assert dataset.splits == ("val", "train", "train", "train")
    assert dataset.groups == ("a", "b", "c", "c")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"background": 0, "spleen": 1}, ("background", "spleen")),
        ({"0": "background", "1": "spleen"}, ("background", "spleen")),
        ({"background": 0, "spleen": 1, "ignore": 2}, ("background", "foreground")),
        ({"0": "background", "1": 5}, ("background", "foreground")),
        ({"0": None, "1": {}}, ("background", "foreground")),
        ({"0": "spleen", "1": "spleen"}, ("background", "foreground")),
    ],
)
def test_class_names_come_from_nnunet_s_dataset_json(tmp_path, labels, names):
    (lay(tmp_path, MSD) / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert open_dataset(tmp_path).class_names == names


def test_what_systems_leave_behind_is_passed_over(tmp_path):
    lay(tmp_path, CVC)
    for name in ("Original/._1.tif", "__MACOSX/Original/1.tif", ".cache/Original/3.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"none")
    assert left_ends(open_dataset(tmp_path)) == {"1": 5, "2": 6}


TWO_KINDS = [f"{part}/{i}.png" for part in ("JPEGImages", "SegmentationClass", "SegmentationObject") for i in "12"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            TWO_KINDS,
            "can be read in two ways: JPEGImages/1.png with SegmentationClass/1.png or with SegmentationObject/1.png; "
            "say which: --images 'a/",
        ),
        (
            [f"{kind}/{part}/1.{kind}" for kind in ("PNG", "TIF") for part in ("Original", "Ground Truth")],
            "two ways: PNG/Original/1.PNG with PNG/Ground Truth/1.PNG, or TIF/Original/1.TIF with TIF/Ground Truth/1.T",
        ),
        (
            ["imagesTr/p_0000.nii.gz", "imagesTr/p_0001.nii.gz", "labelsTr/p.nii.gz"],
            r"2 files for the channels of p, from imagesTr/p_0000.nii.gz on; put them into one file for --channels 2, "
            r"or take one of them: --images 'imagesTr/\*_0000.nii.gz' --masks 'labelsTr/\*.nii.gz'",
        ),
    ],
)
def test_what_can_be_read_in_two_ways_shows_both(files, message):
    with pytest.raises(InputError, match=message):
        read_layout(files)


def test_numbered_frames_are_no_channels():
    files = [f"{part}/frame_000{i}.png" for part in ("imagesTr", "labelsTr") for i in range(3)]
    assert len(read_layout(files).pairs) == 3


def test_an_unknown_annotator_lists_those_there_are():
    with pytest.raises(InputError, match="`annotator` must be one of .*, of whom there are ah, vk, got annotator='3'"):
        read_layout(list(STARE), annotator="3")


def without(files, *names):
    return {name: array for name, array in files.items() if name not in names}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            without(CARVANA | {"train/ab_03.jpg": GREY, "train_masks/ab_04_mask.gif": square(4)}),
            r"1 image\(s\) have no mask; first: train/ab_03.jpg; 1 mask\(s\) have no image; first: train_masks/ab_04_",
        ),
        (
            without(DRIVE, "training/mask/21_training_mask.gif"),
            r"1 image\(s\) have no mask of the field of view; first: training/images/21_training.tif",
        ),
        (
            DRIVE | {"training/mask/21_training_mask.gif": EVERYWHERE[:-1]},
            "mask/21_training_mask.gif: the field of view is 40x31, the mask 40x32",
        ),
        (
            DSB | {"stage1_train/decade/masks/9b1.png": square(4) | square(9, 7)},
            "masks/9b1.png: a mask of one object is one image of 0 and another value",
        ),
        (
            DSB | {"stage1_train/decade/masks/9b1.png": square(4)[:-1]},
            "masks/9b1.png: its size differs from that of the image's other objects",
        ),
    ],
)
def test_a_fault_of_a_layout_is_found_and_named(tmp_path, files, message):
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(lay(tmp_path, files))
    assert "\n" not in str(caught.value)


def test_a_folder_that_nothing_pairs_in_says_what_could(tmp_path):
    lay(tmp_path, {"a/1.png": GREY, "b/1.png": square(4)})
    with pytest.raises(
        FileNotFoundError, match=r"has no folder images/, and its 2 image file\(s\) pair in no other way"
    ):
        open_dataset(tmp_path)


# Patterns

ODD = {
    f"{part}/{i}{end}": GREY if part == "a" else square(4 + i)
    for part, end in (("a", ".tif"), ("b", "_x.gif"))
    for i in (1, 2)
}


def test_patterns_pair_what_their_wildcards_share(tmp_path):
    dataset = open_dataset(lay(tmp_path, ODD), images="a/*.tif", masks="b/*_x.gif")
    assert left_ends(dataset) == {"1": 5, "2": 6}
    assert dataset.understood == "2 pairs: a/*.tif with b/*_x.gif"


def test_patterns_choose_among_readings_and_reach_into_folders(tmp_path):
    lay(tmp_path, {name: GREY if "Images" in name else square(9 if "Obj" in name else 4) for name in TWO_KINDS})
    chosen = open_dataset(tmp_path, images="JPEGImages/*.png", masks="SegmentationObject/*.png")
    assert left_ends(chosen) == {"1": 9, "2": 9}
    lay(tmp_path / "deep", ADE)
    deep = open_dataset(tmp_path / "deep", images="images/**/?.jpg", masks="annotations/**/?.png")
    assert left_ends(deep) == PUBLIC["ADE20K"][1]
    assert deep.splits == PUBLIC["ADE20K"][2]


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (
            "c/*.tif",
            "b/*_x.gif",
            r"`images` matches none of the 4 image file\(s\) in `data`, such as a/1.tif, got images='c",
        ),
        ("a/*.tif", "b/*_y.gif", "`masks` matches none of the 4 image file"),
        ("a/*.tif", "*/*_x.gif", r"must have the same wildcards, .* got 'a/\*.tif' with 1 and '\*/\*_x.gif' with 2"),
        ("a/*.tif", "b/[12]_x.gif", "must have the same wildcards"),
        (
            "a/[1].tif",
            "b/[12]_x.gif",
            "`masks` matches two files for one pair: b/1_x.gif and b/2_x.gif; make it narrower",
        ),
        (
            "a/*.tif",
            "b/*1_x.gif",
            r"2 image\(s\) have no mask; first: a/1.tif; 1 mask\(s\) have no image; first: b/1_x.gif",
        ),
    ],
)
def test_patterns_that_do_not_pair_are_errors(tmp_path, images, masks, message):
    with pytest.raises(InputError, match=message):
        open_dataset(lay(tmp_path, ODD), images=images, masks=masks)


@pytest.mark.parametrize("other", ["1.PNG", "1.bmp"])
def test_images_of_one_folder_whose_names_differ_in_their_ends_alone_are_an_error(tmp_path, other):
    lay(tmp_path, {f"{part}/{name}": GREY if part == "a" else square(4) for part in "ab" for name in ("1.png", other)})
    images = sorted([f"a/{other}", "a/1.png"])
    with pytest.raises(InputError, match="`data` has two images of the id a/1: {} and {}; rename one".format(*images)):
        open_dataset(tmp_path, images="a/*.*", masks="b/*.*")


def test_one_pattern_alone_and_patterns_for_a_list_are_errors(tmp_path):
    with pytest.raises(InputError, match="`masks` needs images, the pattern of the other files, got masks alone"):
        TrainConfig(masks="b/*.png")
    write_table(tmp_path / "list.csv", [{"image": "a", "mask": "b"}])
    with pytest.raises(InputError, match="`images` is for a folder; .*list.csv lists its pairs itself"):
        open_dataset(tmp_path / "list.csv", images="*", masks="*")


def test_patterns_are_the_configured_folder_s_alone(tmp_path):
    lay(tmp_path / "odd", ODD), lay(tmp_path / "cvc", CVC)
    config = TrainConfig(data=tmp_path / "odd", images="a/*.tif", masks="b/*_x.gif")
    assert len(open_configured(config)) == len(open_configured(config, tmp_path / "odd")) == 2
    assert open_configured(config, tmp_path / "cvc").ids == ("1", "2")


def test_a_training_says_what_was_understood_and_is_scored_on_the_same_pairs(tmp_path, small_unet, capsys):
    files = {}
    for i in range(8):
        files |= {f"{i}.png": GREY, f"{i}_1stHO.png": square(4 + i), f"{i}_2ndHO.png": square(9)}
    config = tiny_training(lay(tmp_path / "chase", files), run_dir=str(tmp_path / "run"), annotator="2")
    result = segdrop.train(config)
    assert "Data:    8 pairs: *.png with *_2ndHO.png; annotator 2 of 1, 2\n" in capsys.readouterr().out
    assert segdrop.evaluate(tmp_path / "run")["dice"] == pytest.approx(result.metrics["test"]["dice"])
