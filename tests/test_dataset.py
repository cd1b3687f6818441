"""Data sets: what is read from disk, what is found wrong before training, how it is split."""

import json
import os
import warnings

import cv2
import numpy as np
import pytest
from conftest import write_pairs, write_table
from PIL import Image

from segdrop import InputError
from segdrop.dataset import IGNORED, open_dataset, split_dataset

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
def test_16_bit_images_keep_their_values(tmp_path, shape, suffix):
    simple(tmp_path, 1)
    image = RNG.integers(0, 65536, shape, np.uint16)
    os.remove(tmp_path / "images" / "p00.png")
    cv2.imwrite(str(tmp_path / "images" / f"p00.{suffix}"), image if image.ndim == 2 else image[..., ::-1])
    read = open_dataset(tmp_path).read(0)[0]
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1))


def test_masks_of_0_and_255_are_binary(tmp_path):
    _, mask = one(tmp_path, grey(), labels(255, 0, 255))
    assert mask.ravel()[:3].tolist() == [1, 0, 1]


def test_the_ignore_value_becomes_ignored_pixels(tmp_path):
    _, mask = one(tmp_path, grey(), labels(1, 9, 2), ignore_value=9, classes=3)
    assert mask.ravel()[:4].tolist() == [1, IGNORED, 2, 0]


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
        (break_colour_mask, r'masks/p01.png: is a colour or palette mask; give each class of classes.json its "color"'),
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
            "unknown split 'dev'; use train, val or test",
        ),
        (
            lambda f: write_table(f / "splits.csv", [{"id": f"p{i:02d}", "split": "train"} for i in range(11)]),
            r"1 id\(s\) in splits.csv have no image; first: p10",
        ),
        (lambda f: (f / "classes.json").write_text("[]"), r"classes.json must look like"),
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
        (several_pages, r"images/p01.tif: has 2 pages; save each as a file of its own"),
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
