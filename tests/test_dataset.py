"""Data sets: what is read from disk, what is found wrong before training, how it is split."""

import json
import os
import warnings
from collections import Counter

import cv2
import nibabel
import numpy as np
import pytest
import tifffile
from conftest import write_pairs, write_table
from dicom_files import write_dicom
from PIL import Image

from segdrop import InputError
from segdrop.conventions import IGNORED
from segdrop.data.opening import open_dataset
from segdrop.data.splits import cross_validation, part_of, split_dataset
from segdrop.images import opening
from segdrop.images.intensity import Intensity

RNG = np.random.default_rng(0)


def grey(height=40, width=48):
    return RNG.integers(0, 256, (height, width), np.uint8)


def labels(*values, shape=(40, 48)):
    mask = np.zeros(shape, np.uint8)
    mask.ravel()[: len(values)] = values
    return mask


def simple(folder, count=10, values=(1,)):
    return write_pairs(folder, {f"p{i:02d}": (grey(), labels(*values)) for i in range(count)})


def one(folder, image, mask, **options):
    return open_dataset(write_pairs(folder, {"only": (image, mask)}), **options).read(0)


def test_a_grey_image_is_repeated_to_three_channels(tmp_path):
    image = grey()
    read, _ = one(tmp_path, image, labels(1))
    np.testing.assert_array_equal(read, np.repeat(image[..., None], 3, axis=-1))


def test_an_rgb_image_is_read_as_rgb(tmp_path):
    image = RNG.integers(0, 256, (40, 48, 3), np.uint8)
    read, _ = one(tmp_path, image, labels(1))
    np.testing.assert_array_equal(read, image)


def test_alpha_is_dropped_and_palettes_are_expanded(tmp_path):
    simple(tmp_path, 3)
    image = RNG.integers(0, 256, (40, 48, 3), np.uint8)
    rgba = np.dstack([image, np.full((40, 48), 7, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "images" / "p00.png")
    palette = Image.fromarray(image).quantize(16)
    palette.save(tmp_path / "images" / "p01.png")
    dataset = open_dataset(tmp_path)
    np.testing.assert_array_equal(dataset.read(0)[0], image)
    np.testing.assert_array_equal(dataset.read(1)[0], np.array(palette.convert("RGB")))


@pytest.mark.parametrize("shape", [(40, 48), (40, 48, 3)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_images_lose_nothing(tmp_path, shape, suffix):
    simple(tmp_path, 1)
    image = RNG.integers(0, 65536, shape, np.uint16)
    os.remove(tmp_path / "images" / "p00.png")
    cv2.imwrite(str(tmp_path / "images" / f"p00.{suffix}"), image if image.ndim == 2 else image[..., ::-1])
    read = open_dataset(tmp_path).read(0)[0]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(
        np.round(read * 257), image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)
    )


def test_masks_of_0_and_255_are_binary(tmp_path):
    _, mask = one(tmp_path, grey(), labels(255, 0, 255))
    assert mask.ravel()[:3].tolist() == [1, 0, 1]


def test_the_ignore_value_becomes_ignored_pixels(tmp_path):
    _, mask = one(tmp_path, grey(), labels(1, 9, 2), ignore_value=9, classes=3)
    assert mask.ravel()[:4].tolist() == [1, IGNORED, 2, 0]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"ignore_value": 2}, ("background", "nerve")),
        ({"ignore_value": 2, "classes": 3}, ("background", "nerve", "unsure")),  # asked for, and as older runs have it
        ({}, ("background", "nerve", "unsure")),
    ],
)
def test_the_last_class_is_none_where_it_is_ignored(tmp_path, options, names):
    simple(tmp_path, 1)
    cv2.imwrite(str(tmp_path / "masks" / "p00.png"), labels(1, 2, 0))
    (tmp_path / "classes.json").write_text('{"0": "background", "1": "nerve", "2": "unsure"}')
    dataset = open_dataset(tmp_path, **options)
    assert dataset.class_names == names
    assert dataset.read(0)[1].ravel()[:3].tolist() == [1, IGNORED if options else 2, 0]


def test_an_ignore_value_of_255_is_not_foreground(tmp_path):
    _, mask = one(tmp_path, grey(), labels(1, 255, 0), ignore_value=255)
    assert mask.ravel()[:3].tolist() == [1, IGNORED, 0]


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_colour_and_palette_masks_follow_the_mapping(tmp_path, mode):
    simple(tmp_path, 1)
    colours = {0: [0, 0, 0], 1: [255, 0, 0], 2: [0, 0, 255]}
    classes = {str(i): {"name": f"c{i}", "color": colour} for i, colour in colours.items()}
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    wanted = RNG.integers(0, 3, (40, 48), np.uint8)
    picture = Image.fromarray(np.array(list(colours.values()), np.uint8)[wanted])
    (picture.quantize(8, dither=Image.Dither.NONE) if mode == "P" else picture).save(tmp_path / "masks" / "p00.png")
    dataset = open_dataset(tmp_path)
    np.testing.assert_array_equal(dataset.read(0)[1], wanted)
    assert dataset.class_names == ("c0", "c1", "c2")


def test_rows_of_commas_alone_are_as_empty_as_blank_lines(tmp_path):
    simple(tmp_path, 2)
    (tmp_path / "splits.csv").write_text("id,split,,\np00,train,,\n,,,\np01,val,,\n,,,\n")
    assert open_dataset(tmp_path).splits == ("train", "val")


def test_a_table_without_ids_is_not_read_beyond_its_header(tmp_path):
    simple(tmp_path, 2)
    (tmp_path / "measured.csv").write_bytes(b"time,value\n" + b"1,2,3\n" * 10**5 + b"\xff\n")
    assert len(open_dataset(tmp_path)) == 2


def in_greys(folder, greys, values):
    """A mask of one channel that begins with `values`, beside classes of the colours `greys`."""
    simple(folder, 2, values=values)
    entries = {str(i): {"name": f"c{i}", "color": [grey] * 3} for i, grey in greys.items()}
    (folder / "classes.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize(
    ("greys", "values", "expected"),
    [
        ({0: 0, 1: 255}, (255, 0), [1, 0]),
        ({0: 255, 1: 0}, (255, 0), [0, 1]),
        ({0: 0, 1: 128, 2: 255}, (128, 255, 0), [1, 2, 0]),
        ({0: 0, 1: 200, 255: 255}, (200, 0, 255), [1, 0, IGNORED]),
        ({0: 0, 1: 200, 255: 90}, (200, 0, 90), [1, 0, IGNORED]),
        ({0: 1, 1: 0}, (1, 0), [1, 0]),  # class indices, which a mask of one channel has wherever it can
        ({0: 0, 1: 9}, (255, 0), [1, 0]),  # binary: no colour is white
    ],
)
def test_masks_of_one_channel_in_the_grey_colours_of_the_classes_follow_them(tmp_path, greys, values, expected):
    mask = open_dataset(in_greys(tmp_path, greys, values)).read(0)[1]
    assert mask.ravel()[: len(values)].tolist() == expected


@pytest.mark.parametrize(
    ("greys", "values"),
    [({0: 0, 1: 128}, (128, 77)), ({0: 0, 1: 255, 255: 128}, (128, 255))],  # of the second 255 is ignored, and a class
)
def test_greys_that_tell_no_classes_are_an_error(tmp_path, greys, values):
    with pytest.raises(InputError, match="values outside the 2 classes"):
        open_dataset(in_greys(tmp_path, greys, values))


def test_class_names_come_from_classes_json_and_its_count_wins(tmp_path):
    simple(tmp_path, 3)
    (tmp_path / "classes.json").write_text('{"0": "background", "1": "nerve", "2": "vessel"}')
    assert open_dataset(tmp_path).class_names == ("background", "nerve", "vessel")


def test_without_classes_json_the_masks_tell_the_classes(tmp_path):
    assert open_dataset(simple(tmp_path, 3, values=(1, 2))).class_names == ("background", "class 1", "class 2")


@pytest.mark.parametrize("values", [(0, 3, 254, 255), (0, 2, 255), (0, 200)])
def test_values_that_are_no_class_indices_are_not_taken_for_classes(tmp_path, values):
    """Masks of a JPEG, with a void class, or of one grey value."""
    with pytest.raises(InputError, match=r"the masks hold the values 0, .*, not 0, 1, 2, ...; say how many classes"):
        open_dataset(simple(tmp_path, 3, values=values))


def test_a_csv_file_lists_pairs_splits_and_groups(tmp_path):
    simple(tmp_path / "set", 3)
    rows = [
        {"image": f"set/images/p{i:02d}.png", "mask": f"set/masks/p{i:02d}.png", "split": s, "group": g}
        for i, (s, g) in enumerate([("train", "a"), ("train", "a"), ("validation", "b")])
    ]
    write_table(tmp_path / "list.csv", rows)
    dataset = open_dataset(tmp_path / "list.csv")
    assert dataset.splits == ("train", "train", "val")
    assert dataset.groups == ("a", "a", "b")
    assert dataset.read(2)[1].ravel()[0] == 1


def test_a_list_with_a_column_twice_is_an_error(tmp_path):
    (tmp_path / "list.csv").write_text("image,mask,mask\na.png,b.png,c.png\n")
    with pytest.raises(InputError, match="list.csv has the column 'mask' twice; rename or remove one"):
        open_dataset(tmp_path / "list.csv")


def test_a_faulty_list_names_lines_and_files_but_no_group(tmp_path):
    simple(tmp_path / "set", 1)
    good = {"image": "set/images/p00.png", "mask": "set/masks/p00.png", "group": "a"}
    rows = [
        good,
        {"image": "x.png", "mask": "", "group": "Jane Doe"},
        {"image": "y.png", "mask": "z.png", "group": "b"},
    ]
    write_table(tmp_path / "list.csv", rows)
    with pytest.raises(
        InputError, match=r"1 row\(s\) without image or mask; first: line 3; 2 file\(s\) do not"
    ) as caught:
        open_dataset(tmp_path / "list.csv")
    assert "Doe" not in str(caught.value)


def test_copies_on_both_sides_of_a_given_split_are_remarked(tmp_path):
    simple(tmp_path, 4)
    for name in ("p00", "p03"):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.zeros((40, 48), np.uint8))
    write_table(tmp_path / "splits.csv", [{"id": f"p{i:02d}", "split": "train" if i else "val"} for i in range(4)])
    with pytest.warns(UserWarning, match=r"1 image\(s\) stand on both sides of the given split"):
        open_dataset(tmp_path)


def test_opening_leaves_the_process_s_warning_filters_alone(tmp_path):
    simple(tmp_path)
    before = list(warnings.filters)
    open_dataset(tmp_path)
    assert warnings.filters == before


def test_what_does_not_fit_into_the_cache_is_read_from_disk(tmp_path):
    simple(tmp_path, 4)
    everything, nothing = open_dataset(tmp_path), open_dataset(tmp_path, cache_mb=0)
    assert (everything.cached, nothing.cached) == (4, 0)
    for index in range(4):
        for cached, fresh in zip(everything.read(index), nothing.read(index), strict=True):
            np.testing.assert_array_equal(cached, fresh)


def test_the_cache_stays_within_its_budget(tmp_path):
    big = {f"p{i}": (np.zeros((512, 512), np.uint8), labels(1, shape=(512, 512))) for i in range(5)}
    assert open_dataset(write_pairs(tmp_path, big), cache_mb=1).cached == 2  # 0.5 MiB a pair


def test_the_digest_follows_the_contents(tmp_path):
    simple(tmp_path, 3)
    before = open_dataset(tmp_path).digest
    assert open_dataset(tmp_path).digest == before
    cv2.imwrite(str(tmp_path / "masks" / "p00.png"), labels(1, 1))
    assert open_dataset(tmp_path).digest != before


def corrupt(folder):
    (folder / "images" / "p01.png").write_bytes(b"not an image")


def truncate(folder):
    path = folder / "images" / "p01.png"
    path.write_bytes(path.read_bytes()[:-30])


def truncate_jpeg(folder):
    os.remove(folder / "images" / "p01.png")
    path = folder / "images" / "p01.jpg"
    cv2.imwrite(str(path), grey())
    path.write_bytes(path.read_bytes()[:-200])


def several_pages(folder):
    os.remove(folder / "images" / "p01.png")
    pages = [Image.fromarray(grey()) for _ in range(2)]
    pages[0].save(folder / "images" / "p01.tif", save_all=True, append_images=pages[1:])


def several_bands(folder):
    import tifffile

    os.remove(folder / "images" / "p01.png")
    tifffile.imwrite(
        folder / "images" / "p01.tif", np.zeros((40, 48, 5), np.uint8), photometric="minisblack", planarconfig="contig"
    )


def break_colour_mask(folder):
    cv2.imwrite(str(folder / "masks" / "p01.png"), RNG.integers(0, 255, (40, 48, 3), np.uint8))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: os.remove(f / "masks" / "p01.png"), r"1 image\(s\) have no mask in masks/; first: p01.png"),
        (lambda f: os.remove(f / "images" / "p01.png"), r"1 mask\(s\) have no image in images/; first: p01.png"),
        (corrupt, r"1 unreadable file\(s\); first: images/p01.png: cannot be decoded"),
        (truncate, r"images/p01.png: cannot be decoded: it is corrupt, truncated"),
        (truncate_jpeg, r"images/p01.jpg: cannot be decoded: it is corrupt, truncated"),
        (lambda f: (f / "images" / "p01.png").write_bytes(b""), "images/p01.png: the file is empty"),
        (
            break_colour_mask,
            r"1 mask\(s\) in colours that classes.json does not name: \d{4} of them, \d+.\d\d% of the pixels in ones "
            r"that less than a pixel in 1,000 has, .*; first: masks/p01.png",
        ),
        (
            lambda f: cv2.imwrite(str(f / "masks" / "p01.png"), labels(1, shape=(30, 48))),
            r"1 pair\(s\) differ in size; first: p01.png is 48x40, its mask 48x30",
        ),
        (
            lambda f: cv2.imwrite(str(f / "masks" / "p01.png"), labels(1, 7)),
            r"1 mask\(s\) with values outside the 2 classes 0..1; first: p01.png has \[7\]",
        ),
        (
            lambda f: cv2.imwrite(str(f / "masks" / "p01.png"), np.full((40, 48), 900, np.uint16)),
            "masks/p01.png: holds the value 900; masks hold class indices",
        ),
        (
            lambda f: cv2.imwrite(str(f / "images" / "p01.jpg"), grey()),
            "two files for one id in images/: p01.jpg, p01.png",
        ),
        (
            lambda f: write_table(f / "splits.csv", [{"id": "p00", "split": "train"}]),
            r"9 image\(s\) without a split; first: p01",
        ),
        (
            lambda f: write_table(f / "splits.csv", [{"id": f"p{i:02d}", "split": "dev"} for i in range(10)]),
            "unknown split 'dev' in splits.csv; use train, val or test",
        ),
        (
            lambda f: write_table(f / "splits.csv", [{"id": f"p{i:02d}", "split": "train"} for i in range(11)]),
            r"1 id\(s\) in splits.csv have no image; first: p10",
        ),
        (lambda f: (f / "classes.json").write_text("[]"), r"classes.json must look like .*: 0 class\(es\)\."),
        *(
            (lambda f, stored=stored: (f / "classes.json").write_text(stored), f"classes.json must look like .*{fault}")
            for stored, fault in (
                ('["a", 1]', "'int' object is not subscriptable"),
                ('["a", "a"]', "the names must be text, and each another."),
                ('{"0": {"name": 5, "color": [0, 0, 0]}, "1": {"name": [], "color": [9, 0, 0]}}', "must be text"),
                ('{"0": {"name": "a", "color": [0, 0, 0]}, "1": {"name": "b", "color": [0, 0, 0]}}', "or one colour"),
                ('{"0": "a", "1": "b", "01": "c"}', "two classes have one number"),
                ('{"0": "a", "1": "b", "1": "c"}', "the key '1' is there twice"),
            )
        ),
        (
            lambda f: (f / "groups.csv").write_text("id;group\np00;a\n"),
            "groups.csv needs a header with the columns id and group",
        ),
        (
            lambda f: write_table(f / "splits.csv", [{"image": "p00", "split": "train"}]),
            "splits.csv needs a header with the columns id and split",
        ),
        (
            lambda f: write_table(f / "groups.csv", [{"id": f"p{i % 10:02d}", "group": i} for i in range(11)]),
            r"1 id\(s\) stand twice in groups.csv; first: p00",
        ),
        (
            lambda f: (f / "meta.csv").write_text("id,stain\np00,a,b\n"),
            "meta.csv has more fields than columns in line 2",
        ),
        (
            lambda f: (f / "splits.csv").write_text("id,split,split\np00,train,test\n"),
            "splits.csv has the column 'split' twice; rename or remove one",
        ),
        (
            lambda f: (f / "splits.csv").write_text("split,id\ntrain,p00\n\ntrain\n"),
            r"1 row\(s\) without id in splits.csv; first: line 4;",
        ),
        (
            lambda f: (f / "meta.csv").write_text("stain,id\na,p00\nb,\n"),
            r"1 row\(s\) without id in meta.csv; first: line 3",
        ),
        (several_pages, r"1 pair\(s\) differ in the number of slices; first: p01.tif has 2, its mask 1"),
        (several_bands, r"images/p01.tif: cannot be decoded"),
    ],
)
def test_a_fault_is_found_and_named(tmp_path, damage, message):
    damage(simple(tmp_path))
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(tmp_path, classes=2)
    assert "\n" not in str(caught.value)


def test_all_faults_are_reported_at_once(tmp_path):
    simple(tmp_path)
    os.remove(tmp_path / "masks" / "p01.png")
    (tmp_path / "images" / "p02.png").write_bytes(b"")
    cv2.imwrite(str(tmp_path / "masks" / "p03.png"), labels(9))
    with pytest.raises(InputError, match=r"no mask in masks/.*unreadable.*outside the 2 classes"):
        open_dataset(tmp_path, classes=2)


def test_a_group_on_both_sides_of_a_given_split_is_a_fault_and_stays_unnamed(tmp_path):
    simple(tmp_path, 4)
    write_table(tmp_path / "splits.csv", [{"id": f"p{i:02d}", "split": "train" if i else "val"} for i in range(4)])
    write_table(tmp_path / "groups.csv", [{"id": f"p{i:02d}", "group": "Jane Doe"} for i in range(4)])
    with pytest.raises(InputError, match=r"1 group\(s\) on both sides of the given split") as caught:
        open_dataset(tmp_path)
    assert "Jane" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [("nowhere", "`data` does not exist: .*nowhere"), ("", "has no folder images/")],
)
def test_a_missing_folder_is_named(tmp_path, path, message):
    with pytest.raises(FileNotFoundError, match=message):
        open_dataset(tmp_path / path)


def test_no_pairs_is_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match="no image and mask pairs in"):
        open_dataset(tmp_path)


def test_an_unknown_column_to_stratify_by_lists_those_there_are(tmp_path):
    simple(tmp_path)
    write_table(tmp_path / "meta.csv", [{"id": f"p{i:02d}", "stain": "a", "site": "b"} for i in range(10)])
    with pytest.raises(InputError, match="`stratify` names no column: 'colour'; there are: site, stain"):
        open_dataset(tmp_path, stratify="colour")


def split_sizes(dataset, **options):
    return {name: len(indices) for name, indices in split_dataset(dataset, 0, **options).items()}


def test_without_a_split_validation_and_test_are_cut(tmp_path):
    dataset = open_dataset(simple(tmp_path, 20))
    split = split_dataset(dataset, seed=0, fraction=0.2)
    assert {name: len(i) for name, i in split.items()} == {"train": 12, "val": 4, "test": 4}
    assert sorted(np.concatenate(list(split.values()))) == list(range(20))


def test_the_cut_repeats_with_its_seed_and_differs_with_another(tmp_path):
    dataset = open_dataset(simple(tmp_path, 20))
    first, again, other = (split_dataset(dataset, seed)["test"].tolist() for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        (["train"] * 12 + ["val"] * 3 + ["test"] * 5, {"train": 12, "val": 3, "test": 5}),
        (["train"] * 15 + ["test"] * 5, {"train": 12, "val": 3, "test": 5}),
        (["train"] * 15 + ["val"] * 5, {"train": 12, "val": 3, "test": 5}),
    ],
)
def test_a_given_split_is_kept_and_what_lacks_is_cut_from_train(tmp_path, given, sizes):
    simple(tmp_path, 20)
    write_table(tmp_path / "splits.csv", [{"id": f"p{i:02d}", "split": s} for i, s in enumerate(given)])
    split = split_dataset(open_dataset(tmp_path), 0, fraction=0.2)
    assert {name: len(i) for name, i in split.items()} == sizes
    assert split["test"].tolist() == list(range(15, 20))


def test_groups_are_never_divided(tmp_path):
    simple(tmp_path, 20)
    write_table(tmp_path / "groups.csv", [{"id": f"p{i:02d}", "group": f"g{i // 2}"} for i in range(20)])
    split = split_dataset(open_dataset(tmp_path), 0, fraction=0.2)
    sides = [{f"g{i // 2}" for i in indices} for indices in split.values()]
    assert sum(map(len, sides)) == 10


def test_copies_of_one_image_stay_together(tmp_path):
    twin = grey()
    pairs = {f"p{i:02d}": (twin if i < 8 else grey(), labels(1)) for i in range(16)}
    split = split_dataset(open_dataset(write_pairs(tmp_path, pairs)), 0, fraction=0.2)
    assert sorted(len(set(indices) & set(range(8))) for indices in split.values()) == [0, 0, 8]


def test_strata_are_balanced(tmp_path):
    simple(tmp_path, 40)
    write_table(tmp_path / "meta.csv", [{"id": f"p{i:02d}", "stain": "ab"[i % 4 == 0]} for i in range(40)])
    split = split_dataset(open_dataset(tmp_path, stratify="stain"), 0, fraction=0.2)
    assert [sum(i % 4 == 0 for i in split[name]) for name in ("val", "test")] == [2, 2]


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images_for_a_validation_split_is_an_error(tmp_path, count):
    dataset = open_dataset(simple(tmp_path, count))
    with pytest.raises(InputError, match="the validation split would be empty"):
        split_dataset(dataset, 0)


def test_a_given_split_without_training_images_is_an_error(tmp_path):
    simple(tmp_path, 4)
    write_table(tmp_path / "splits.csv", [{"id": f"p{i:02d}", "split": "val"} for i in range(4)])
    with pytest.raises(InputError, match="the val split is empty|the train split is empty"):
        split_dataset(open_dataset(tmp_path), 0)


# Volumes


def volume(name, part, array, folder, spacing=(0.5, 0.8, 3), suffix="nii.gz"):
    (folder / part).mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array, np.diag([*spacing, 1])).to_filename(folder / part / f"{name}.{suffix}")


def volumes(folder, count=3, slices=5, dtype=np.int16, mask_dtype=np.uint8):
    """NIfTI images and masks (16, 20, slices); the truth is where the image is above 0."""
    arrays = {}
    for i in range(count):
        arrays[f"v{i}"] = RNG.integers(-500, 500, (16, 20, slices)).astype(dtype)
        volume(f"v{i}", "images", arrays[f"v{i}"], folder)
        volume(f"v{i}", "masks", (arrays[f"v{i}"] > 0).astype(mask_dtype), folder)
    return arrays


WINDOW = Intensity("window", window=(-500, 500))


@pytest.mark.parametrize("mask_dtype", [np.uint8, np.float32, np.int16])
def test_every_slice_of_a_volume_is_an_image(tmp_path, mask_dtype):
    arrays = volumes(tmp_path, 2, mask_dtype=mask_dtype)
    dataset = open_dataset(tmp_path, intensity=WINDOW)
    assert dataset.ids == tuple(f"v{v}#{i:03d}" for v in range(2) for i in range(5))
    assert dataset.sizes.tolist() == [[16, 20]] * 10
    for index in range(10):
        stored = arrays[f"v{index // 5}"][..., index % 5]
        image, mask = dataset.read(index)
        assert (image.dtype, mask.dtype) == (np.float32, np.uint8)
        np.testing.assert_allclose(image, np.repeat((stored[..., None] + 500) / 1000 * 255, 3, axis=-1), atol=1e-3)
        np.testing.assert_array_equal(mask, stored > 0)


def test_the_slice_axis_is_a_choice(tmp_path):
    arrays = volumes(tmp_path, 1)
    dataset = open_dataset(tmp_path, intensity=WINDOW, slice_axis=0)
    assert len(dataset) == 16 and dataset.ids[3] == "v0#003"
    np.testing.assert_array_equal(dataset.read(3)[1], arrays["v0"][3] > 0)


def test_a_tiff_of_pages_may_be_the_mask_of_a_volume(tmp_path):
    arrays = volumes(tmp_path, 1)
    os.remove(tmp_path / "masks" / "v0.nii.gz")
    pages = np.moveaxis(arrays["v0"] > 0, 2, 0).astype(np.uint8)
    tifffile.imwrite(tmp_path / "masks" / "v0.tif", pages, photometric="minisblack")
    dataset = open_dataset(tmp_path, intensity=WINDOW)
    np.testing.assert_array_equal([dataset.read(i)[1] for i in range(5)], pages)


@pytest.mark.parametrize("rule", [Intensity("percentiles", (2, 98)), WINDOW])
def test_all_slices_of_a_volume_have_the_same_bounds(tmp_path, rule):
    arrays = volumes(tmp_path, 1)
    ramp = (np.arange(5) * 100 + np.zeros((16, 20, 5))).astype(np.int16)
    volume("v0", "images", ramp, tmp_path)
    dataset = open_dataset(tmp_path, intensity=rule)
    low, high = np.percentile(ramp, (2, 98)) if rule.rule == "percentiles" else (-500, 500)
    expected = np.clip((np.arange(5) * 100 - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose([dataset.read(i)[0].mean() for i in range(5)], expected, rtol=1e-5)
    assert len(arrays) == 1


def test_the_slices_of_a_volume_stay_together(tmp_path):
    volumes(tmp_path, 6)
    dataset = open_dataset(tmp_path)
    assert dataset.grouped
    sides = split_dataset(dataset, 0, 0.2)
    of_volume = [{dataset.ids[i].partition("#")[0] for i in indices} for indices in sides.values()]
    assert sum(map(len, of_volume)) == 6


def test_a_row_of_a_volume_holds_for_its_slices_unless_they_have_their_own(tmp_path):
    volumes(tmp_path, 2, slices=3)
    write_table(tmp_path / "splits.csv", [{"id": "v0", "split": "train"}, {"id": "v1", "split": "val"}])
    rows = [{"id": "v0", "stain": "a"}, {"id": "v1", "stain": "b"}, {"id": "v1#001", "stain": "c"}]
    write_table(tmp_path / "meta.csv", rows)
    dataset = open_dataset(tmp_path, stratify="stain")
    assert dataset.splits == ("train",) * 3 + ("val",) * 3
    assert dataset.strata == ("a", "a", "a", "b", "c", "b")


def test_groups_may_be_given_by_slice(tmp_path):
    volumes(tmp_path, 1, slices=3)
    write_table(tmp_path / "groups.csv", [{"id": f"v0#00{i}", "group": f"g{i // 2}"} for i in range(3)])
    assert open_dataset(tmp_path).groups == ("g0", "g0", "g1")


def test_a_slice_that_there_is_not_is_a_fault(tmp_path):
    volumes(tmp_path, 1, slices=3)
    write_table(tmp_path / "groups.csv", [{"id": name, "group": "a"} for name in ("v0", "v0#002", "v0#003")])
    with pytest.raises(InputError, match=r"1 id\(s\) in groups.csv have no image; first: v0#003"):
        open_dataset(tmp_path)


def test_a_file_with_the_id_of_a_slice_is_a_fault(tmp_path):
    volumes(tmp_path, 1)
    for part in ("images", "masks"):
        cv2.imwrite(str(tmp_path / part / "v0#003.png"), np.zeros((16, 20), np.uint8))
    with pytest.raises(InputError, match=r"1 id\(s\) of a slice and of a file are the same; first: v0#003"):
        open_dataset(tmp_path)


def test_a_volume_on_both_sides_of_a_given_split_is_a_fault_unless_groups_say_otherwise(tmp_path):
    volumes(tmp_path, 2, slices=2)
    rows = [("v0#000", "train"), ("v0#001", "val"), ("v1", "train")]
    write_table(tmp_path / "splits.csv", [{"id": name, "split": split} for name, split in rows])
    with pytest.raises(InputError, match=r"1 patient\(s\) or volume\(s\) on both sides of the given split"):
        open_dataset(tmp_path)
    write_table(tmp_path / "groups.csv", [{"id": name, "group": name} for name, _ in rows])
    assert open_dataset(tmp_path).splits == ("train", "val", "train", "train")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: volume("v1", "masks", np.zeros((16, 20, 4), np.uint8), f),
            r"1 pair\(s\) differ in the number of slices; first: v1.nii.gz has 5, its mask 4",
        ),
        (
            lambda f: volume("v1", "masks", np.zeros((16, 21, 5), np.uint8), f),
            r"1 pair\(s\) differ in size; first: v1.nii.gz is 20x16, its mask 21x16",
        ),
        (
            lambda f: volume("v1", "masks", np.full((16, 20, 5), 0.5, np.float32), f),
            r"masks/v1.nii.gz: holds the value 0.5; masks hold class indices",
        ),
        (
            lambda f: volume("v1", "images", np.zeros((16, 20, 5), np.float32), f),
            r"1 image\(s\) that the intensity rule cannot map; first: images/v1.nii.gz: holds floating-point or 32-bit",
        ),
        (
            lambda f: volume("v1", "images", np.zeros((16, 20, 5), np.int16), f, suffix="nii"),
            "two files for one id in images/: v1.nii, v1.nii.gz",
        ),
        (
            lambda f: (f / "images" / "v1.nii.gz").write_bytes(b"nothing"),
            r"1 unreadable file\(s\); first: images/v1.nii.gz: cannot be decoded: it is corrupt, truncated or not",
        ),
    ],
)
def test_a_fault_of_a_volume_is_found_and_named(tmp_path, damage, message):
    volumes(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_mask_that_lies_elsewhere_than_its_image_is_remarked(tmp_path):
    arrays = volumes(tmp_path, 2)
    volume("v1", "masks", (arrays["v1"] > 0).astype(np.uint8), tmp_path, spacing=(-0.5, 0.8, 3))
    with pytest.warns(UserWarning, match=r"1 mask\(s\) lie elsewhere in space than their image.*first: v1\."):
        open_dataset(tmp_path)


def test_a_volume_that_is_not_held_is_decoded_once_for_all_its_slices(tmp_path, monkeypatch):
    volumes(tmp_path, 4)
    dataset, held = open_dataset(tmp_path, cache_mb=0), open_dataset(tmp_path)
    assert (dataset.cached, held.cached) == (0, 20)
    opened, make = [], opening.open_image
    for reader in ("store", "truth"):
        monkeypatch.setattr(
            f"segdrop.data.{reader}.open_image", lambda path, **options: (opened.append(path), make(path))[1]
        )
    for index in range(20):
        for fresh, cached in zip(dataset.read(index), held.read(index), strict=True):
            np.testing.assert_array_equal(fresh, cached)
    assert len(opened) == len(set(opened)) == 8


def test_what_is_held_of_a_volume_is_no_view_of_the_whole(tmp_path):
    volumes(tmp_path, 1)
    dataset = open_dataset(tmp_path)
    assert all(array.base is None for pair in dataset._store.slices.values() for array in pair)


# Patients


def patients(folder, ids, **attributes):
    """A DICOM image per patient id given, with a PNG mask."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for i, patient in enumerate(ids):
        image = RNG.integers(0, 4096, (40, 48), np.uint16)
        write_dicom(folder / "images" / f"p{i:02d}.dcm", image, BitsStored=12, PatientID=patient, **attributes)
        cv2.imwrite(str(folder / "masks" / f"p{i:02d}.png"), (image > 2000).astype(np.uint8))
    return folder


def test_the_images_of_a_patient_are_one_group(tmp_path):
    dataset = open_dataset(patients(tmp_path / "set", ["Doe", "Roe", "Doe", ""]))
    assert dataset.grouped and dataset.groups[:3] == ("Doe", "Roe", "Doe")
    assert len(dataset.groups[3]) == 64  # the file's digest


def test_given_groups_come_before_patients(tmp_path):
    patients(tmp_path / "set", ["Doe"] * 3)
    write_table(tmp_path / "set" / "groups.csv", [{"id": f"p{i:02d}", "group": f"g{i}"} for i in range(3)])
    assert open_dataset(tmp_path / "set").groups == ("g0", "g1", "g2")


def test_a_patient_on_both_sides_of_a_given_split_is_a_fault_and_stays_unnamed(tmp_path):
    folder = patients(tmp_path / "set", ["Doe"] * 3)
    write_table(folder / "splits.csv", [{"id": f"p{i:02d}", "split": "train" if i else "val"} for i in range(3)])
    with pytest.raises(InputError, match=r"1 patient\(s\) or volume\(s\) on both sides") as caught:
        open_dataset(folder)
    assert "Doe" not in str(caught.value)


def test_a_data_set_shows_no_patient(tmp_path):
    assert "Doe" not in repr(open_dataset(patients(tmp_path / "set", ["Doe", "Roe"])))


def test_a_12_bit_dicom_is_scaled_by_the_bits_it_stores(tmp_path):
    folder = patients(tmp_path / "set", ["Doe"])
    image = RNG.integers(0, 4096, (40, 48), np.uint16)
    write_dicom(folder / "images" / "p00.dcm", image, BitsStored=12)
    np.testing.assert_allclose(open_dataset(folder).read(0)[0][..., 1], image / 4095 * 255, rtol=1e-5)


def test_8_bit_values_of_fewer_bits_are_scaled_too(tmp_path):
    folder = patients(tmp_path / "set", ["Doe"])
    image = RNG.integers(0, 64, (40, 48), np.uint8)
    write_dicom(folder / "images" / "p00.dcm", image, BitsStored=6)
    np.testing.assert_allclose(open_dataset(folder).read(0)[0][..., 1], image / 63 * 255, rtol=1e-5)


def test_the_files_own_windows_are_followed(tmp_path):
    folder = patients(tmp_path / "set", ["Doe", "Roe"], WindowCenter=100.5, WindowWidth=201)
    image = RNG.integers(0, 401, (40, 48), np.uint16)
    write_dicom(folder / "images" / "p00.dcm", image, WindowCenter=100.5, WindowWidth=201)
    read, _ = open_dataset(folder, intensity=Intensity("window")).read(0)
    np.testing.assert_allclose(read[..., 0], np.minimum(image / 200, 1) * 255, rtol=1e-5)
    with pytest.raises(InputError, match=r"2 image\(s\) that the intensity rule cannot map; .* has no window of its"):
        open_dataset(patients(tmp_path / "other", ["Doe", "Roe"]), intensity=Intensity("window"))


# Spacing


def test_images_and_masks_are_resampled_to_one_spacing(tmp_path):
    """Rows of 0.5 mm and columns of 0.8 mm to 0.4 mm; a square of 4 x 4 mm stays one."""
    image = np.zeros((40, 48, 1), np.int16)
    image[8:16, 10:15] = 100
    volume("v", "images", image, tmp_path)
    volume("v", "masks", (image > 0).astype(np.uint8) * 2, tmp_path)  # an interpolated edge would hold a 1
    rule = Intensity("window", window=(0, 100))
    dataset = open_dataset(tmp_path, intensity=rule, spacing=0.4, classes=3)
    assert dataset.sizes.tolist() == [[50, 96]]
    picture, mask = dataset.read(0)
    assert (picture.shape, picture.dtype, mask.shape) == ((50, 96, 3), np.float32, (50, 96))
    assert set(np.unique(mask)) == {0, 2} and mask[10:20, 20:30].all() and mask.sum() == 200
    np.testing.assert_allclose(picture.sum() / 3 / 255, 100, rtol=0.03)
    np.testing.assert_allclose(dataset.spacing_of(0), (0.4, 0.4))


def test_shrinking_averages_over_areas(tmp_path):
    image = RNG.integers(0, 256, (40, 48), np.uint8)
    simple(tmp_path, 1)
    cv2.imwrite(str(tmp_path / "images" / "p00.png"), image)
    write_table(tmp_path / "meta.csv", [{"id": "p00", "spacing": "0.25"}])
    read, _ = open_dataset(tmp_path, spacing=1).read(0)
    expected = image.reshape(10, 4, 12, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(read[..., 0], expected, atol=1e-3)


def test_the_spacing_of_a_file_without_one_comes_from_a_table(tmp_path):
    simple(tmp_path, 2)
    write_table(tmp_path / "meta.csv", [{"id": "p00", "spacing": "0.25"}, {"id": "p01", "spacing": ""}])
    dataset = open_dataset(tmp_path)
    assert (dataset.spacing_of(0), dataset.spacing_of(1)) == ((0.25, 0.25), None)
    with pytest.raises(InputError, match=r"1 image\(s\) without a spacing, which a column spacing.*; first: p01"):
        open_dataset(tmp_path, spacing=0.5)


def test_images_that_would_become_huge_are_told_with_their_names(tmp_path):
    simple(tmp_path, 2)
    write_table(tmp_path / "meta.csv", [{"id": "p00", "spacing": "0.5"}, {"id": "p01", "spacing": "500"}])
    with pytest.raises(InputError, match=r"1 image\(s\) cannot be resampled; first: p01: "):
        open_dataset(tmp_path, spacing=0.5)


def test_two_tables_that_say_different_things_of_an_image_are_an_error_where_it_matters(tmp_path):
    simple(tmp_path, 2)
    write_table(tmp_path / "a.csv", [{"id": f"p0{i}", "spacing": "0.25", "stain": "h", "dice": "0.5"} for i in "01"])
    rows = [{"id": "p00", "spacing": "", "stain": "h", "dice": "0.6"}, {"id": "p01", "spacing": "", "stain": "e"}]
    write_table(tmp_path / "b.csv", [{"dice": "0.7", **row} for row in rows])
    assert open_dataset(tmp_path).spacing_of(0) == (0.25, 0.25)
    with pytest.raises(InputError, match=r"1 image\(s\) with two values of stain, in two CSV files; .* first: p01"):
        open_dataset(tmp_path, stratify="stain")
    write_table(tmp_path / "c.csv", [{"id": "p00", "spacing": "0.5"}])
    with pytest.raises(InputError, match=r"1 image\(s\) with two values of spacing, in two CSV files; .* first: p00"):
        open_dataset(tmp_path)


def test_the_spacing_of_a_listed_image_comes_from_the_list(tmp_path):
    simple(tmp_path / "set", 1)
    row = {"image": "set/images/p00.png", "mask": "set/masks/p00.png", "spacing": "2"}
    write_table(tmp_path / "list.csv", [row])
    assert open_dataset(tmp_path / "list.csv", spacing=1).sizes.tolist() == [[80, 96]]


def test_the_spacing_of_a_file_comes_before_that_of_a_table(tmp_path):
    volumes(tmp_path, 1)
    write_table(tmp_path / "meta.csv", [{"id": "v0", "spacing": "7"}])
    np.testing.assert_allclose(open_dataset(tmp_path).spacing_of(0), (0.5, 0.8))


def test_a_table_of_spacings_whose_ids_are_no_image_s_is_remarked(tmp_path):
    simple(tmp_path, 2)
    write_table(tmp_path / "meta.csv", [{"id": f"p0{i}.png", "spacing": "0.25"} for i in range(2)])
    with pytest.warns(UserWarning, match=r"a spacing of 2 id\(s\), of which .*: p00.png, where an image is p00\."):
        assert open_dataset(tmp_path).spacing_of(0) is None


@pytest.mark.parametrize("value", ["0", "-1", "x", "nan", "inf", "1_0"])
def test_a_spacing_that_is_no_length_is_a_fault(tmp_path, value):
    simple(tmp_path, 1)
    write_table(tmp_path / "meta.csv", [{"id": "p00", "spacing": value}])
    with pytest.raises(InputError, match=f"a `spacing` in a table is no positive number of mm: '{value}'"):
        open_dataset(tmp_path)


def test_resampling_to_the_spacing_that_there_is_changes_nothing(tmp_path):
    simple(tmp_path, 1)
    write_table(tmp_path / "meta.csv", [{"id": "p00", "spacing": "0.5"}])
    same, plain = open_dataset(tmp_path, spacing=0.5).read(0), open_dataset(tmp_path).read(0)
    assert same[0].dtype == np.uint8
    for one, other in zip(same, plain, strict=True):
        np.testing.assert_array_equal(one, other)


def shares_of(folder, shares, **tables):
    """One image for each row of {class: share of the pixels}, of 20 x 20 pixels; further columns as CSV files."""
    pairs = {}
    for number, row in enumerate(shares):
        values = [value for value, share in row.items() for _ in range(round(share * 400))]
        image = np.random.default_rng(number).integers(0, 256, (20, 20), np.uint8)  # its digest decides on the folds
        pairs[f"p{number:02d}"] = (image, labels(*values, shape=(20, 20)))
    write_pairs(folder, pairs)
    for column, values in tables.items():
        name = "groups.csv" if column == "group" else "meta.csv"
        write_table(folder / name, [{"id": i, column: v} for i, v in zip(pairs, values, strict=True)])
    return open_dataset(folder, stratify="site" if "site" in tables else None)


def counts(parts, values):
    """How often each value occurs in each fold."""
    return [{value: [values[i] for i in part].count(value) for value in sorted(set(values))} for part in parts]


@pytest.mark.parametrize("seed", [0, 1, (0, 1)])
def test_folds_have_equally_many_images_of_little_of_some_and_of_much_foreground(tmp_path, seed):
    """Of 18 images 6 are in each third of the share, which is 2 in each of 3 folds; 6 without foreground, 2 in each."""
    sizes = ["none"] * 6 + ["little"] * 6 + ["some"] * 6 + ["much"] * 6
    dataset = shares_of(tmp_path, [{}] * 6 + [{1: n / 20} for n in range(1, 19)])
    parts = cross_validation(dataset, np.arange(24), 3, seed)
    assert counts(parts, sizes) == [{"none": 2, "little": 2, "some": 2, "much": 2}] * 3
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(24))


def test_folds_have_equally_many_images_of_each_value_of_the_column(tmp_path):
    sites = ["far"] * 4 + ["near"] * 8
    dataset = shares_of(tmp_path, [{1: 0.5}] * 12, site=sites)
    assert counts(cross_validation(dataset, np.arange(12), 4, 0), sites) == [{"far": 1, "near": 2}] * 4


def test_folds_have_equally_many_images_of_each_combination_of_classes(tmp_path):
    kinds = [{1: 0.2}] * 4 + [{2: 0.2}] * 4 + [{1: 0.1, 2: 0.1}] * 2 + [{}] * 2
    dataset = shares_of(tmp_path, kinds)
    found = counts(cross_validation(dataset, np.arange(12), 2, 0), [str(kind) for kind in kinds])
    assert found == [{str(kind): kinds.count(kind) // 2 for kind in kinds}] * 2


def test_folds_divide_no_group(tmp_path):
    groups = [f"patient {i // 3}" for i in range(18)]
    dataset = shares_of(tmp_path, [{1: n / 20} for n in range(1, 19)], group=groups)
    parts = cross_validation(dataset, np.arange(18), 3, 0)
    homes = [{groups[i] for i in part} for part in parts]
    assert [len(part) for part in parts] == [6, 6, 6] and [len(home) for home in homes] == [2, 2, 2]
    assert len(set.union(*homes)) == 6


def test_folds_are_of_the_images_that_are_asked_for_alone(tmp_path):
    dataset = shares_of(tmp_path, [{1: 0.5}] * 9)
    inside = np.array([0, 2, 3, 5, 7, 8])
    parts = cross_validation(dataset, inside, 3, 0)
    assert [len(part) for part in parts] == [2, 2, 2] and sorted(np.concatenate(parts)) == inside.tolist()


def test_folds_repeat_with_the_seed_and_differ_with_another(tmp_path):
    dataset = shares_of(tmp_path, [{1: n / 20} for n in range(1, 13)])
    zero, again, one, tuple_of_it = (
        [part.tolist() for part in cross_validation(dataset, np.arange(12), 3, seed)] for seed in (0, 0, 1, (0, 1))
    )
    assert zero == again and zero != one and zero != tuple_of_it


def test_another_division_is_taken_where_a_fold_of_the_first_lacks_a_class(tmp_path):
    """Each class is in 3 of 12 images, in combinations that occur once: stratifying by these alone would not do."""
    kinds = [{1: 0.1}, {1: 0.1, 2: 0.1}, {1: 0.1, 3: 0.1}, {2: 0.1}, {2: 0.1, 3: 0.1, 4: 0.1}, {3: 0.1}, {4: 0.1}]
    dataset = shares_of(tmp_path, [*kinds, {4: 0.2}, *[{}] * 4])
    for part in cross_validation(dataset, np.arange(12), 3, 1):
        assert set().union(*(np.unique(dataset.read(i)[1]).tolist() for i in part)) == {0, 1, 2, 3, 4}


def test_fewer_groups_than_folds_are_told(tmp_path):
    dataset = shares_of(tmp_path / "a", [{1: 0.5}] * 6, group=["a", "b"] * 3)
    with pytest.raises(InputError, match=r"a has 2 group\(s\) to divide into folds=3; use fewer folds."):
        cross_validation(dataset, np.arange(6), 3, 0)
    dataset = shares_of(tmp_path / "b", [{1: 0.5}] * 4)
    with pytest.raises(InputError, match=r"b has 2 different image\(s\) to divide into folds=3; use fewer folds."):
        cross_validation(dataset, np.arange(2), 3, 0)


def test_a_class_that_a_fold_lacks_is_named(tmp_path):
    dataset = shares_of(tmp_path / "a", [{1: 0.5}] * 5 + [{1: 0.2, 2: 0.2}])
    message = (
        r"a: fold [12] of 2 has no image with the class 'class 2' to (train|validate) with \(1 image\(s\) have it\)"
    )
    with pytest.raises(InputError, match=message):
        cross_validation(dataset, np.arange(6), 2, 0)
    dataset = shares_of(tmp_path / "b", [{1: 0.2, 2: 0.2}] * 3 + [{1: 0.5}] * 5, group=[*"xxxabcde"])
    with pytest.raises(InputError, match=r"'class 2' to (train|validate) with \(3 image\(s\) have it\)"):
        cross_validation(dataset, np.arange(8), 2, 0)


def test_a_part_of_the_images_holds_whole_groups_and_lies_in_larger_parts(tmp_path):
    groups = [f"patient {i // 2}" for i in range(20)]
    dataset = shares_of(tmp_path, [{1: 0.5}] * 20, group=groups)
    half, most = (part_of(dataset, np.arange(20), fraction, 3) for fraction in (0.5, 0.8))
    assert len(half) == 10 and len(most) == 16 and set(half) < set(most)
    for part in (half, most):
        assert sorted(part) == part.tolist() and all((i ^ 1) in part for i in part)
    np.testing.assert_array_equal(part_of(dataset, np.arange(20), 1.0, 3), np.arange(20))
    assert part_of(dataset, np.arange(20), 0.5, 4).tolist() != half.tolist()


def test_a_part_has_the_share_of_each_stratum_and_at_least_a_group(tmp_path):
    sites = ["far"] * 2 + ["near"] * 10
    dataset = shares_of(tmp_path, [{1: 0.5}] * 12, site=sites)
    assert counts([part_of(dataset, np.arange(12), 0.3, 0)], sites) == [{"far": 1, "near": 3}]
    assert counts([part_of(dataset, np.arange(12), 0.01, 0)], sites) == [{"far": 1, "near": 1}]


def test_a_part_has_no_image_more_for_a_rounding_error(tmp_path):
    """0.14 * 50 is a little more than 7."""
    dataset = shares_of(tmp_path, [{1: 0.5}] * 50)
    assert 0.14 * 50 > 7 and len(part_of(dataset, np.arange(50), 0.14, 0)) == 7


# Masks as people save them


def test_a_list_in_classes_json_names_the_classes_in_their_order(tmp_path):
    simple(tmp_path, 3)
    (tmp_path / "classes.json").write_text('["background", "nerve", "vessel"]')
    assert open_dataset(tmp_path).class_names == ("background", "nerve", "vessel")


def test_the_usual_words_for_splits_are_understood(tmp_path):
    simple(tmp_path, 4)
    words = ["training", "validation", "valid", "testing"]
    write_table(tmp_path / "splits.csv", [{"id": f"p{i:02d}", "split": word} for i, word in enumerate(words)])
    assert open_dataset(tmp_path).splits == ("train", "val", "val", "test")


def jpeg_masks(folder, square, quality):
    """Three pairs whose masks are a white square on black, or of other values, saved as JPEG."""
    simple(folder, 3)
    for i in range(3):
        os.remove(folder / "masks" / f"p{i:02d}.png")
        Image.fromarray(square).save(folder / "masks" / f"p{i:02d}.jpg", quality=quality)
    return folder


def test_a_jpeg_mask_tells_the_share_of_odd_pixels(tmp_path):
    disc = cv2.circle(np.zeros((40, 48), np.uint8), (21, 19), 12, 255, -1)
    folder = jpeg_masks(tmp_path, disc, quality=90)
    stored = np.array(Image.open(folder / "masks" / "p00.jpg"))
    share = ((stored != 0) & (stored != 255)).mean()
    assert 0.01 < share < 0.9
    with pytest.raises(InputError, match=rf"3 JPEG mask\(s\), in which compression gave {share:.2%} of the pixels"):
        open_dataset(folder, classes=1)


def test_a_jpeg_mask_that_compression_left_alone_is_read(tmp_path):
    blocks = np.kron(np.array([[0, 255, 0], [255, 255, 0]], np.uint8), np.ones((16, 16), np.uint8))
    folder = jpeg_masks(tmp_path, np.pad(blocks, ((0, 8), (0, 0))), quality=100)
    np.testing.assert_array_equal(open_dataset(folder).read(0)[1], np.pad(blocks, ((0, 8), (0, 0))) // 255)


BLACK, RED, BLUE, GREEN = (0, 0, 0), (200, 0, 0), (0, 0, 200), (0, 99, 0)


def colour_masks(folder, shares, mode="RGB"):
    """A pair for each mapping of colours to their number of pixels; what is left is green."""
    simple(folder, len(shares))
    wanted = {}
    for i, counts in enumerate(shares):
        pixels = [colour for colour, count in counts.items() for _ in range(count)]
        mask = np.array(pixels + [GREEN] * (40 * 48 - len(pixels)), np.uint8).reshape(40, 48, 3)
        picture = Image.fromarray(mask)
        (picture.quantize(8, dither=Image.Dither.NONE) if mode == "P" else picture).save(
            folder / "masks" / f"p{i:02d}.png"
        )
        wanted[f"p{i:02d}"] = mask
    return wanted


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_colours_without_classes_are_proposed_whole_and_the_proposal_opens(tmp_path, mode):
    """Also a colour that only a mask of one colour has, which is grey by itself."""
    masks = colour_masks(tmp_path, [{RED: 30, BLUE: 20}, {BLUE: 60}, {BLACK: 40 * 48}], mode)
    with pytest.raises(InputError, match=r"2 mask\(s\) in colours that classes.json does not name") as caught:
        open_dataset(tmp_path)
    proposal = json.loads(str(caught.value).partition("your names: ")[2].partition("; first: masks/p00.png")[0])
    order = [GREEN, BLACK, BLUE, RED]  # by their pixels
    assert proposal == {
        str(i): {"name": f"class {i}" if i else "background", "color": list(colour)} for i, colour in enumerate(order)
    }
    (tmp_path / "classes.json").write_text(json.dumps(proposal))
    dataset = open_dataset(tmp_path)
    for index, name in enumerate(dataset.ids):
        np.testing.assert_array_equal(np.array(order)[dataset.read(index)[1]], masks[name])


@pytest.mark.parametrize(
    ("colour", "index"), [((0, 99, 0), 1), ((0, 99 << 8, 0), None), ((99 << 8, 0, 0), None), ((0, 0, 99 << 8), None)]
)
def test_a_colour_of_16_bits_is_none_of_8(tmp_path, colour, index):
    simple(tmp_path, 1)
    entries = {str(i): {"name": f"c{i}", "color": c} for i, c in enumerate([BLACK, GREEN, (99, 0, 0), (0, 0, 99)])}
    (tmp_path / "classes.json").write_text(json.dumps(entries))
    cv2.imwrite(str(tmp_path / "masks" / "p00.png"), np.full((40, 48, 3), colour[::-1], np.uint16))
    if index is None:
        with pytest.raises(InputError, match=r"1 mask\(s\) in colours that classes.json does not name"):
            open_dataset(tmp_path)
    else:
        assert (open_dataset(tmp_path).read(0)[1] == index).all()


def test_colours_that_classes_lack_are_added_to_those_there_are(tmp_path):
    colour_masks(tmp_path, [{RED: 30}, {BLUE: 60, BLACK: 9}])
    there = {
        "0": {"name": "tissue", "color": list(GREEN)},
        "1": {"name": "vein", "color": list(BLUE)},
        "255": {"name": "ignored", "color": list(BLACK)},
    }
    (tmp_path / "classes.json").write_text(json.dumps(there))
    with pytest.raises(InputError, match="1 mask") as caught:
        open_dataset(tmp_path)
    proposal = json.loads(str(caught.value).partition("your names: ")[2].partition("; first: masks/p00.png")[0])
    assert proposal == {**there, "2": {"name": "class 2", "color": list(RED)}}
    (tmp_path / "classes.json").write_text(json.dumps(proposal))
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("tissue", "vein", "class 2")
    assert np.bincount(dataset.read(1)[1].ravel(), minlength=256)[[0, 1, 2, IGNORED]].tolist() == [1851, 60, 0, 9]


def test_a_mask_of_very_many_colours_is_refused_in_time_that_grows_with_them(tmp_path, monkeypatch):
    simple(tmp_path, 1)
    y, x = np.mgrid[:40, :48]
    cv2.imwrite(str(tmp_path / "masks" / "p00.png"), np.stack([y, x, x * 0], axis=-1).astype(np.uint8))
    sums, total = [], Counter.total
    monkeypatch.setattr(Counter, "total", lambda counts: sums.append(1) or total(counts))
    with pytest.raises(InputError, match="does not name: 1920 of them, 100.00% of the pixels"):
        open_dataset(tmp_path)
    assert len(sums) == 1


def test_colour_masks_of_a_jpeg_are_no_classes(tmp_path):
    colour_masks(tmp_path, [{RED: 300}])
    Image.open(tmp_path / "masks" / "p00.png").save(tmp_path / "masks" / "p00.jpg")
    os.remove(tmp_path / "masks" / "p00.png")
    with pytest.raises(InputError, match=r"colours that classes.json does not name: \d+ of them, .*as JPEG and smooth"):
        open_dataset(tmp_path)
