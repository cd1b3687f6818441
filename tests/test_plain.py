"""Any data set, written in the plain layout, opens with no option to the same images, masks, splits and groups."""

import json

import numpy as np
import pytest
from conftest import write_pairs, write_table
from dicom_files import write_dicom
from PIL import Image
from test_layouts import PUBLIC, lay

from segdrop import InputError
from segdrop.data.opening import open_dataset
from segdrop.data.plain import write_plain

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (32, 40), np.uint8)
MASK = (GREY > 99).astype(np.uint8)


def again(dataset, out):
    """What is read of the data set after it was written, and the same of it before."""
    write_plain(dataset, out)
    written = open_dataset(out)
    for index in range(len(dataset)):
        for before, after in zip(dataset.read(index), written.read(index), strict=True):
            np.testing.assert_array_equal(after, before)
    assert (written.splits, written.class_names) == (dataset.splits, dataset.class_names)
    return written


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_set_is_written_plain(tmp_path, name):
    dataset = open_dataset(lay(tmp_path / "set", PUBLIC[name][0]))
    written = again(dataset, tmp_path / "plain")
    assert written.understood.endswith("images/ with masks/, same names")
    assert written.ids == tuple(one.replace("/", "_") for one in dataset.ids)


def test_ignored_pixels_and_colours_stay_what_they_are(tmp_path):
    write_pairs(tmp_path / "set", {"a": (GREY, MASK), "b": (GREY[::-1], MASK)})
    colours = np.array([(0, 0, 0), (200, 0, 0), (0, 0, 200)], np.uint8)
    names = {"0": "tissue", "1": "vein", "255": "ignored"}
    classes = {i: {"name": name, "color": colours[n].tolist()} for n, (i, name) in enumerate(names.items())}
    (tmp_path / "set" / "classes.json").write_text(json.dumps(classes))
    for name in "ab":
        Image.fromarray(colours[RNG.integers(0, 3, (32, 40))]).save(tmp_path / "set" / "masks" / f"{name}.png")
    again(open_dataset(tmp_path / "set"), tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "classes.json").read_text()) == names


def test_frames_of_patients_stay_together_and_no_patient_is_named(tmp_path):
    """Volumes of DICOM frames, one of no known patient; the tables of the folder come along."""
    for part in ("images", "masks"):
        (tmp_path / "set" / part).mkdir(parents=True)
    for number, patient in enumerate(["Doe", "Roe", "Doe", None]):
        frames = np.stack([GREY + number] * 3)
        write_dicom(tmp_path / "set" / "images" / f"s{number}.dcm", frames, frames=True, PatientID=patient)
        pages = [Image.fromarray(np.roll(MASK, page)) for page in range(3)]
        pages[0].save(tmp_path / "set" / "masks" / f"s{number}.tif", save_all=True, append_images=pages[1:])
    write_table(tmp_path / "set" / "meta.csv", [{"id": f"s{number}", "site": "x"} for number in range(4)])
    written = again(open_dataset(tmp_path / "set"), tmp_path / "plain")
    assert written.groups == ("g1",) * 3 + ("g2",) * 3 + ("g1",) * 3 + ("g3",) * 3
    assert "Doe" not in "".join(path.read_text() for path in (tmp_path / "plain").glob("*.*"))
    assert open_dataset(tmp_path / "plain", stratify="site").strata == ("x",) * 12


def test_a_folder_that_is_not_empty_and_a_name_for_two_are_errors(tmp_path):
    files = {}
    for path in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        files |= {f"images/{path}": GREY, f"labels/{path}": MASK}
    files |= {"images/images_a_1.png": GREY, "labels/images_a_1.png": MASK}
    dataset = open_dataset(lay(tmp_path / "set", files))
    with pytest.raises(FileExistsError, match="`out` exists and is not empty: .*set; choose a new folder"):
        write_plain(dataset, tmp_path / "set")
    with pytest.raises(
        InputError, match="images/a/1.png and .*images/images_a_1.png would both be written as images_a_1"
    ):
        write_plain(dataset, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
