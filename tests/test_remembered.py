"""What a start keeps for the next one: nothing but time depends on it."""

import contextlib
import dataclasses
import json
import os
import stat
import time

import numpy as np
import pytest
from conftest import write_pairs, write_table
from test_dataset import patients, volumes

from segdrop import InputError
from segdrop.cells import draw_cells
from segdrop.data import remembered, scanning, splits
from segdrop.data.fingerprint import fingerprint
from segdrop.data.opening import open_dataset
from segdrop.data.splits import split_dataset
from segdrop.images.intensity import Intensity


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder that whatever was found out is kept in, however quickly."""
    monkeypatch.setattr(remembered, "WORTH", 0)
    monkeypatch.setenv("SEGDROP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def age(folder, seconds=60):
    """Make files older than what may have been changed again within the steps of a clock."""
    for file in folder.rglob("*"):
        os.utime(file, (time.time() - seconds,) * 2)
    return folder


@pytest.fixture
def data(tmp_path):
    """Eight images of cells, one of them in 16 bits."""
    pairs = {f"p{i}": draw_cells(np.random.default_rng(i), 48) for i in range(8)}
    pairs["p7"] = (pairs["p7"][0].astype(np.uint16) * 9, pairs["p7"][1])
    return age(write_pairs(tmp_path / "data", pairs))


def decoded(monkeypatch):
    """Takes the numbers of the files that are scanned from now on."""
    numbers, scan = [], scanning._scan_pair
    monkeypatch.setattr(scanning, "_scan_pair", lambda file, *rest: (numbers.append(file), scan(file, *rest))[1])
    return numbers


def told(dataset):
    """All that a data set says of itself."""
    fields = [field.name for field in dataclasses.fields(dataset) if field.name != "_store"]
    return repr([getattr(dataset, name) for name in fields])


@pytest.mark.parametrize("rule", ["auto", "dtype", "percentiles"])
def test_the_next_start_decodes_nothing_and_finds_the_same(data, cache, monkeypatch, rule):
    options = {"intensity": Intensity(rule)}
    monkeypatch.setenv("SEGDROP_CACHE", "off")
    without = open_dataset(data, **options)
    monkeypatch.setenv("SEGDROP_CACHE", str(cache))
    first = open_dataset(data, **options)
    numbers = decoded(monkeypatch)
    second = open_dataset(data, **options)
    assert (numbers, first.cached, second.cached) == ([], 8, 0)
    assert told(without) == told(first) == told(second)
    splits = [split_dataset(dataset, seed=3) for dataset in (without, second)]
    assert [{name: part.tolist() for name, part in split.items()} for split in splits[:1]] == [
        {name: part.tolist() for name, part in split.items()} for split in splits[1:]
    ]
    for index in range(8):
        for expected, read in zip(without.read(index), second.read(index), strict=True):
            np.testing.assert_array_equal(read, expected)
    assert second.cached == 8  # what was read is held in memory from then on


def test_percentiles_of_each_channel_come_back(tmp_path, cache, monkeypatch):
    rng = np.random.default_rng(0)
    pairs = {f"p{i}": (rng.integers(0, 99, (9, 9, 3), np.uint8), np.eye(9, dtype=np.uint8)) for i in range(3)}
    options = {"intensity": Intensity("percentiles", by_channel=True), "channels": 3}
    data = age(write_pairs(tmp_path / "data", pairs))
    first, numbers = open_dataset(data, **options), decoded(monkeypatch)
    assert told(first) == told(open_dataset(data, **options))
    assert numbers == []


def test_a_file_that_has_changed_is_noticed_and_it_alone_decoded(data, cache, monkeypatch):
    before, numbers = open_dataset(data), decoded(monkeypatch)
    (data / "masks" / "p3.png").write_bytes((data / "masks" / "p4.png").read_bytes())
    age(data / "masks")
    after = open_dataset(data)
    assert 3 in numbers and before.digest != after.digest
    monkeypatch.setenv("SEGDROP_CACHE", "off")
    assert told(after) == told(open_dataset(data))


def test_a_file_whose_size_and_time_are_what_they_were_is_noticed(data, cache):
    image = data / "images" / "p2.png"
    before, was = open_dataset(data), image.stat()
    content = bytearray(image.read_bytes())
    content[-20] ^= 1  # within the last chunk of pixels
    image.write_bytes(content)
    os.utime(image, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (image.stat().st_size, image.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    try:
        assert open_dataset(data).digest != before.digest
    except InputError as error:  # the decoder has noticed, too
        assert "p2.png" in str(error)


def test_files_changed_just_now_are_not_kept(data, cache, monkeypatch):
    age(data, seconds=0)
    open_dataset(data)
    assert not cache.exists()
    age(data)
    os.utime(data / "images" / "p5.png")
    open_dataset(data)
    numbers = decoded(monkeypatch)
    open_dataset(data)
    assert numbers == [5]


@pytest.mark.parametrize(
    "options",
    [{"intensity": Intensity("percentiles")}, {"channels": 1}, {"multilabel": True}, {"slice_axis": 0}],
    ids=lambda options: next(iter(options)),
)
def test_other_options_find_nothing_of_these(data, cache, monkeypatch, options):
    (data / "images" / "p7.png").unlink()
    (data / "masks" / "p7.png").unlink()
    open_dataset(data)
    numbers = decoded(monkeypatch)
    with contextlib.suppress(InputError):  # of masks that are no sums of bits, for instance
        open_dataset(data, **options)
    assert sorted(numbers) == list(range(7))


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: c[:200] + b"x" + c[201:]])
def test_what_is_broken_is_ignored_and_written_anew(data, cache, monkeypatch, damage):
    first = open_dataset(data)
    fingerprint(first)
    for file in cache.iterdir():
        file.write_bytes(damage(file.read_bytes()))
    numbers = decoded(monkeypatch)
    second = open_dataset(data)
    assert told(first) == told(second) and sorted(numbers) == list(range(8))
    np.testing.assert_array_equal(fingerprint(second).shares, fingerprint(first).shares)
    open_dataset(data)
    assert len(numbers) == 8


def test_arrays_of_another_kind_are_ignored(data, cache):
    first = open_dataset(data)
    for file in cache.iterdir():
        np.savez(file, stamps=np.zeros(32, np.uint8), digests=np.zeros(3, np.uint8))
    assert told(open_dataset(data)) == told(first)


def test_fingerprints_are_the_same_and_measure_only_what_is_new(data, cache, monkeypatch):
    dataset = open_dataset(data)
    fingerprint(dataset, range(5))
    read, get = [], type(dataset).read
    monkeypatch.setattr(type(dataset), "read", lambda self, index: (read.append(index), get(self, index))[1])
    again = fingerprint(dataset, [6, 1, 4])
    assert read == [6]
    monkeypatch.setenv("SEGDROP_CACHE", "off")
    assert repr(fingerprint(dataset, [6, 1, 4])) == repr(again)
    monkeypatch.setenv("SEGDROP_CACHE", str(cache))
    read.clear()
    half = fingerprint(dataset.scaled(0.5), [1])  # other masks
    assert read == [1] and half.objects[0].areas.sum() < again.objects[0].areas[again.objects[0].images == 1].sum()


def test_folds_are_the_same_and_cut_once(data, cache, monkeypatch):
    dataset = open_dataset(data)
    first = split_dataset(dataset, 0)
    monkeypatch.setattr(splits, "_homes", None)  # cannot be called
    for name, indices in split_dataset(dataset, 0).items():
        np.testing.assert_array_equal(indices, first[name])
    with pytest.raises(TypeError):
        split_dataset(dataset, 1)  # another cut


def test_little_work_is_not_kept(data, cache, monkeypatch):
    monkeypatch.setattr(remembered, "WORTH", 60)
    fingerprint(open_dataset(data))
    assert not cache.exists()


def test_it_can_be_turned_off(data, cache, monkeypatch):
    monkeypatch.setenv("SEGDROP_CACHE", "off")
    fingerprint(open_dataset(data))
    assert remembered.cache_folder() is None and not cache.exists()


@pytest.mark.parametrize(
    "variables, folder",
    [
        ({"XDG_CACHE_HOME": "/there", "HOME": "/home/me"}, "/there/segdrop"),
        ({"XDG_CACHE_HOME": "not/absolute", "HOME": "/home/me"}, "/home/me/.cache/segdrop"),
        ({"SEGDROP_CACHE": "/mine", "XDG_CACHE_HOME": "/there"}, "/mine"),
    ],
)
def test_it_lies_where_caches_lie(monkeypatch, variables, folder):
    monkeypatch.delenv("SEGDROP_CACHE")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert remembered.cache_folder().as_posix() == folder


def test_a_folder_that_cannot_be_written_does_no_harm(data, cache, monkeypatch):
    cache.write_text("a file where the folder would be")
    first = open_dataset(data)
    assert told(open_dataset(data)) == told(first) and len(fingerprint(first).indices) == 8


def test_nothing_is_left_where_the_disk_is_full(data, cache, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remembered.np, "savez", full)
    open_dataset(data)
    assert list(cache.iterdir()) == []


def test_only_the_user_can_read_it_and_no_name_is_in_it(data, cache):
    write_table(data / "groups.csv", [{"id": f"p{i}", "group": f"Doe {i}"} for i in range(8)])
    fingerprint(open_dataset(data))
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert len(list(cache.iterdir())) == 2
    for file in cache.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        with np.load(file, allow_pickle=False) as stored:
            content = b"".join(stored[name].tobytes() for name in stored.files)
        assert not any(word in content + file.name.encode() for word in (b"Doe", b"p3", b"png", b"images", b"data"))


def test_patients_and_volumes_are_read_at_every_start(tmp_path, cache, monkeypatch):
    named, slices = patients(tmp_path / "named", ["Doe", "Roe", "Doe", "Poe"]), tmp_path / "slices"
    volumes(slices, 3)
    for folder, files in ((age(named), [0, 1, 2, 3]), (age(slices), [0, 1, 2])):
        open_dataset(folder)
        with monkeypatch.context() as patch:
            numbers = decoded(patch)
            open_dataset(folder)
        assert sorted(numbers) == files and not cache.exists()


def test_what_is_wrong_is_said_at_every_start(data, cache):
    (data / "images" / "p1.png").write_bytes(b"no image")
    age(data)
    for _ in range(2):
        with pytest.raises(InputError, match=r"1 unreadable file\(s\); first: images/p1.png"):
            open_dataset(data)


def test_what_nobody_asked_for_in_months_is_removed(data, cache):
    cache.mkdir()
    (cache / "old.npz").touch()
    (cache / "mine.txt").touch()
    age(cache, seconds=100 * 24 * 3600)
    open_dataset(data)
    assert sorted(file.suffix for file in cache.iterdir()) == [".npz", ".txt"] and not (cache / "old.npz").exists()


def test_outlines_are_kept_for_their_classes(tmp_path, cache, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    image = write_pairs(tmp_path / "one", {"a": (np.zeros((20, 20), np.uint8), None)}) / "images" / "a.png"
    image.rename(data / "a.png")
    shape = {"label": "cell", "shape_type": "polygon", "points": [[2, 2], [9, 2], [9, 9], [2, 9]]}
    stored = {"shapes": [shape], "imagePath": "a.png", "imageHeight": 20, "imageWidth": 20}
    (data / "a.json").write_text(json.dumps(stored))
    age(data)
    first, numbers = open_dataset(data), decoded(monkeypatch)
    assert told(open_dataset(data)) == told(first) and numbers == []
    (data / "classes.json").write_text('["background", "debris", "cell"]')
    assert open_dataset(data).class_names == ("background", "debris", "cell") and numbers == [0]
