"""Stored files are read against a type, and what does not fit is one line: which file, where in it, what to do."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from conftest import Variable
from typing_extensions import TypedDict

from segdrop import InputError, TrainConfig
from segdrop.files import write_csv, write_json
from segdrop.folders.run import open_run, read_history, read_images, read_metrics, read_split, store_scores
from segdrop.folders.state import load_history, restore_state, save_state
from segdrop.typed import LARGEST, fit, open_ended, read_json, read_table

SCORES = {"images": 2, "dice": 0.5, "iou": None, "classes": {"cell": {"dice": 0.5, "dice_interval": [0.4, None]}}}


@open_ended
class Point(TypedDict):
    x: float
    names: list[str]


@pytest.fixture
def point(tmp_path):
    return tmp_path / "point.json"


def test_a_record_comes_back_with_what_it_does_not_name(point):
    write_json(point, {"x": 1, "names": ["a"], "later": {"y": 2}})
    assert read_json(point, Point, "restore it") == {"x": 1.0, "names": ["a"], "later": {"y": 2}}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is damaged: EOF while parsing"),
        (b'{"x": 1', "is damaged: EOF while parsing"),
        (b"[1]", "is damaged: it holds no record, but [1]"),
        (b'{"x": 1}', "lacks `names`"),
        (b'{"x": "1", "names": []}', "does not fit: `x` should be a valid number, got '1'"),
        (b'{"x": true, "names": []}', "does not fit: `x` should be a valid number, got True"),
        (b'{"x": 1, "names": ["a", 2]}', "does not fit: `names.1` should be a valid string, got 2"),
        (b'{"x": 1, "names": "a\\u001b[31m"}', r"does not fit: `names` should be a valid array, got 'a\x1b[31m'"),
        (b'{"x": 1, "names": [], "schema": 9}', "was made by another version of segdrop: its `schema` is 9"),
        (b'\xff\xfe{"x": 1}', "is damaged: byte 0 is no UTF-8"),
        (b'{"x":' * 100_000, "is damaged: recursion limit exceeded"),
        (b"[" * 1_000_000, "is damaged: recursion limit exceeded"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_told_in_one_line(point, content, told):
    point.write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_json(point, Point, "restore it")
    line = str(raised.value)
    assert line.startswith(f"{point} {told}") and line.isprintable(), line
    assert line.endswith(("restore it.", "install that version."))


def test_a_folder_in_place_of_a_file_is_told(point):
    point.mkdir()
    with pytest.raises(InputError, match="point.json is a folder, or no file of any kind; restore it"):
        read_json(point, Point, "restore it")


def test_a_file_of_no_measure_is_not_read(point):
    with point.open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(InputError, match="is damaged: it has 268 MB"):
        read_json(point, Point, "restore it")


def test_a_long_value_is_told_by_its_beginning():
    with pytest.raises(InputError) as raised:
        fit(Point, {"x": "y" * 1000, "names": []}, "It")
    assert len(str(raised.value)) < 150


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no column `id`"),
        ("id\na\n", "has no column `n`"),
        ("id,n,n\na,1,1\n", "a column is there twice"),
        ("id,n\na,1\nb\n", "line 3 has 1 of 2 fields"),
        ("id,n\na,1,2\n", "line 2 has 3 of 2 fields"),
        ("id,n\na,1\nb,one\n", "line 3, `n` does not fit: should be a valid integer"),
        ("id,n\na,1\na,2\n", "`id` 'a' is there twice"),
        ('id,n\n"a,1\n', "line 2: unexpected end of data"),
        ("id,n\n" + "a" * 200_000 + ",1\n", "line 2: field larger than field limit"),
    ],
    ids=lambda value: value[:20],
)
def test_a_table_that_does_not_fit_is_told_by_its_line(tmp_path, text, told):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        read_table(path, {"id": str, "n": int}, "restore it", unique="id")
    assert told in str(raised.value) and str(path) in str(raised.value)


def test_a_table_comes_back_in_its_types(tmp_path):
    write_csv(tmp_path / "t.csv", [{"id": "a", "n": 1, "more": 0.5}])
    assert read_table(tmp_path / "t.csv", {"id": str, "n": int}, "restore it") == [{"id": "a", "n": 1, "more": "0.5"}]


@pytest.fixture
def run(tmp_path):
    """A run without a model: what is read of its other files."""
    (tmp_path / "run").mkdir()
    record = {"config": TrainConfig().to_json(), "classes": 1, "class_names": ["background", "cell"]}
    write_json(tmp_path / "run" / "config.json", record)
    return tmp_path / "run"


def change(path, **fields):
    write_json(path, {**json.loads(path.read_text()), **fields})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"classes": "one"}, "`classes` should be a valid integer, got 'one'"),
        ({"class_names": [1, 2]}, "`class_names.0` should be a valid string, got 1"),
        ({"warnings": "none"}, "`warnings` should be a valid array"),
        ({"mixed_precision": "float8"}, "`mixed_precision` should be 'off', 'float16', 'bfloat16' or 'unknown'"),
        ({"values": {"stored": [0, 1]}}, "lacks `values.mapped`"),
        ({"plan": {"seconds": 1, "choices": {"lr": 3}}}, "`plan.choices.lr` should be an object, got 3"),
        ({"config": {"lr": -1}}, "`lr` must be a positive number, got lr=-1.0"),
        ({"config": {"spatial": "yes"}}, "`config.spatial` should be a valid boolean, got 'yes'"),
        ({"config": {"colour": 1}}, "has `config.colour`, which this version of segdrop does not know"),
        ({"config": []}, "`config` should be"),
    ],
    ids=str,
)
def test_a_run_s_record_names_the_field_that_does_not_fit(run, fields, told):
    change(run / "config.json", **fields)
    with pytest.raises(InputError) as raised:
        open_run(run)
    assert told in str(raised.value) and str(raised.value).startswith(f"{run / 'config.json'} ")


def test_a_run_s_record_comes_back(run):
    record = dataclasses.replace(open_run(run), warnings=("random weights",), config=TrainConfig(encoder_dropout=0.2))
    write_json(run / "config.json", record.to_json())
    assert open_run(run) == record
    assert json.loads((run / "config.json").read_text())["schema"] == 1


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("val", {"images": 2}, "val lacks `dice`"),
        ("val", {**SCORES, "dice": "high"}, "val does not fit: `dice` should be a valid number"),
        ("val", {**SCORES, "dice_interval": [1, 2, 3]}, "`dice_interval` should have at most 2 items"),
        ("val", {**SCORES, "classes": {"cell": {"hd95": []}}}, "`classes.cell.hd95` should be a valid number"),
        ("temperature", {"value": 0, "nll_before": 1, "nll_after": 1, "pixels": 1}, "greater than 0"),
        ("batchnorm_recalibration", {"kept": "yes"}, "batchnorm_recalibration lacks `val_dice_before`"),
    ],
    ids=str,
)
def test_metrics_name_the_score_that_does_not_fit(run, key, value, told):
    write_json(run / "metrics.json", {key: value})
    with pytest.raises(InputError) as raised:
        read_metrics(run)
    assert "metrics.json" in str(raised.value) and told in str(raised.value)


def test_scores_come_back_as_they_were_stored(run):
    store_scores(run, "val", SCORES)
    store_scores(run, "temperature", {"value": 1.5, "nll_before": 1.0, "nll_after": 0.5, "pixels": 10})
    assert read_metrics(run)["val"] == {**SCORES, "classes": {"cell": {"dice": 0.5, "dice_interval": (0.4, None)}}}
    assert json.loads((run / "metrics.json").read_text())["val"] == SCORES


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("split.csv", "id,split\na,trian\n", read_split),
        ("split.csv", "id,split\na,val\na,test\n", read_split),
        ("split.csv", "id,split\n,val\n", read_split),
        ("per_image.csv", "split,id,dice\nval,a,high\n", read_images),
        ("per_image.csv", "split,id,dice,entropy\nval,a,0.5,x\n", read_images),
        ("history.csv", "epoch,loss\n0,0.5\n2,0.4\n", read_history),
        ("history.csv", "epoch,loss\n0,low\n", read_history),
    ],
)
def test_a_run_s_tables_name_what_does_not_fit(run, name, text, read):
    (run / name).write_text(text)
    with pytest.raises(InputError, match=rf"{name}.*; restore it from a copy, or train the run anew\."):
        read(run)


@pytest.fixture
def two_epochs(tmp_path):
    """The folder of a run after two epochs."""
    for epoch in range(2):
        variables = [Variable(np.arange(4.0) + epoch), Variable(np.uint32(epoch))]
        save_state(tmp_path, variables, [{"epoch": i, "loss": 0.5} for i in range(epoch + 1)])
    return tmp_path


def cut(content):
    return content[: len(content) // 2]


def doubled(content):
    return content + content


def changed(content):
    place = content.index(np.float64([1, 2]).tobytes())  # within the weights
    return content[:place] + b"\x01" + content[place + 1 :]


@pytest.mark.parametrize("damage", [cut, doubled, changed, lambda content: b"", lambda content: b"PK\x03\x04" * 100])
def test_a_damaged_state_gives_way_to_that_of_the_epoch_before(two_epochs, damage):
    path = two_epochs / "state.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="state.npz is damaged: .*; going on from the state of the epoch before"):
        assert [row["epoch"] for row in load_history(two_epochs)] == [0]
    restored = [Variable(np.zeros(4)), Variable(np.uint32(9))]
    restore_state(two_epochs, restored)
    assert restored[0].value.tolist() == [0, 1, 2, 3] and restored[1].value == 0


def test_a_state_of_which_a_bit_is_another_is_damaged_or_says_the_same(two_epochs):
    """Bits in dates change nothing; one in the kind of compression has any decoder raise its own error."""
    path, same = two_epochs / "state.npz", 0
    (two_epochs / "state.previous.npz").unlink()
    content, history = path.read_bytes(), load_history(two_epochs)
    for place, bit in itertools.product(range(len(content)), range(8)):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        try:
            assert load_history(two_epochs) == history
        except InputError as error:
            assert "state.npz is damaged: " in str(error)
        else:
            same += 1
    assert same < 0.3 * 8 * len(content)


def test_where_both_states_are_damaged_the_run_is_not_resumed(two_epochs):
    for name in ("state.npz", "state.previous.npz"):
        (two_epochs / name).write_bytes(b"not a state")
    with pytest.raises(InputError, match=r"state\.npz is damaged: File is not a zip file; there is no whole state"):
        load_history(two_epochs)


def test_a_pickle_in_a_state_is_not_opened(two_epochs):
    (two_epochs / "state.previous.npz").unlink()
    history = np.array(json.dumps([{"epoch": 0}]))
    np.savez(two_epochs / "state.npz", history=history, v0=np.array([{}], object))
    with pytest.raises(InputError, match="an array in it is not what its header says"):
        load_history(two_epochs)


def test_an_array_that_claims_to_be_larger_than_its_file_is_not_made(two_epochs):
    path = two_epochs / "state.npz"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(4,)", b"(9,)"))
    with pytest.warns(UserWarning, match="is damaged"):
        load_history(two_epochs)


def test_the_state_of_another_network_is_told(two_epochs):
    with pytest.raises(InputError, match=r"state\.npz is another network's"):
        restore_state(two_epochs, [Variable(np.zeros(5)), Variable(np.uint32(0))])


def test_a_split_that_has_lost_images_is_told(run):
    change(run / "config.json", images={"train": 2, "val": 1})
    (run / "split.csv").write_text("id,split\na,train\nb,train\n")
    with pytest.raises(InputError, match=r"split\.csv is damaged: it has 0 of 1 images of val"):
        read_split(run)
