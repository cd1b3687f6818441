"""The viewer's server: whom it answers, what it reads, and that its masks are those of `segdrop predict`."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import cv2
import keras
import nibabel
import numpy as np
import pytest
import tifffile
from conftest import brightness_model, randomise, write_run
from dicom_files import write_dicom
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from standin import build_small_unet

from segdrop import predict, predict_uncertainty
from segdrop.cli.main import main
from segdrop.viewing import server, session
from segdrop.viewing.predictions import Course, Stopped
from segdrop.viewing.server import make_app
from segdrop.viewing.session import Session

HOST = "127.0.0.1:5000"
OWN = f"http://{HOST}"
SECRET = "abc"
HOSTILE = "<script>alert(1)</script>"
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 70), np.uint8)


class Page:
    """What the page does, with the server's test client."""

    def __init__(self, session, host=HOST, origin=OWN):
        self.client, self.host = make_app(session, SECRET).test_client(), host
        self.headers = {} if origin is None else {"Origin": origin}

    def get(self, address):
        return self.client.get(f"/{SECRET}/{address}", base_url=f"http://{self.host}", buffered=True)

    def post(self, address, **content):
        return self.client.post(f"/{SECRET}/{address}", base_url=f"http://{self.host}", headers=self.headers, **content)

    def upload(self, name, content):
        return self.post("images", query_string={"name": name}, data=content, content_length=len(content))

    def predict(self, image, samples=0, threshold=None):
        """The address of a finished prediction, and what the server says of it."""
        asked = self.post(f"images/{image}/predictions", json={"samples": samples, "threshold": threshold})
        assert asked.status_code == 200, asked.json
        address = f"images/{image}/predictions/{asked.json['prediction']}"
        pause = threading.Event()
        while (state := self.get(address)).status_code == 200 and not state.json["finished"]:
            pause.wait(0.02)
        return address, state

    def values(self, address, dtype=np.float32):
        return np.frombuffer(self.get(address).data, dtype)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a network with dropout."""
    model = randomise(build_small_unet(encoder_dropout=0.3), seed=1)
    return write_run(tmp_path_factory.mktemp("runs") / "dropped", model)


@pytest.fixture(scope="module")
def opened(run, tmp_path_factory):
    opened = Session(run, (), tmp_path_factory.mktemp("temporary"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(opened):
    return Page(opened)


@pytest.fixture
def plain(tmp_path):
    """A session with a network without dropout that finds bright pixels."""
    (tmp_path / "temporary").mkdir()
    opened = Session(write_run(tmp_path / "plain", brightness_model()), (), tmp_path / "temporary")
    yield opened
    opened.close()


def png(array):
    return cv2.imencode(".png", array)[1].tobytes()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (HOST, 200),
        ("localhost:5000", 200),
        ("127.0.0.1:6000", 200),  # forwarded from another port, as by ssh -L
        ("evil.example", 403),
        ("evil.example:5000", 403),
        ("127.0.0.1.evil.example:5000", 403),
        ("127.0.0.1@evil.example", 403),
        ("10.0.0.1:5000", 403),
    ],
)
def test_only_this_machines_own_names_are_answered(opened, host, status):
    assert Page(opened, host).get("run").status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (OWN, 400),  # let through, to where a file that is no image is refused
        (None, 403),
        ("null", 403),
        ("http://evil.example", 403),
        ("http://127.0.0.1:5001", 403),
        ("https://127.0.0.1:5000", 403),
        ("http://127.0.0.1:5000.evil.example", 403),
    ],
)
def test_only_the_page_itself_may_change_anything(opened, origin, status):
    assert Page(opened, origin=origin).upload("a.png", b"no image").status_code == status


def test_who_does_not_know_the_secret_address_finds_nothing(opened):
    client = make_app(opened, SECRET).test_client()
    for address in ("/", "/run", "/abd/run", "/abc"):
        assert client.get(address, base_url=OWN).status_code in (404, 308)
    assert client.get("/abc/run", base_url=OWN).json["channels"] == ["foreground"]


@pytest.mark.parametrize("address", ["", "view.js", "view.css", "style.css", "run", "nothing", "../session.py"])
def test_every_answer_forbids_what_is_not_from_here(page, address):
    answer = page.get(address)
    assert answer.status_code == (404 if address in ("nothing", "../session.py") else 200)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["connect-src"] == "'self'"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert not any(name.lower().startswith("access-control") for name, _ in answer.headers)


def test_the_page_names_nothing_elsewhere(page):
    for address in ("", "view.js", "view.css", "style.css"):
        assert b"//" not in page.get(address).data.replace(b"// ", b"")


def write_volume(path):
    affine = np.diag([0.5, 0.8, 3, 1])
    nibabel.Nifti1Image(RNG.integers(0, 256, (34, 40, 3), np.uint8), affine).to_filename(path)


FORMATS = {
    "a.png": lambda path: path.write_bytes(png(GREY)),
    "a.JPG": lambda path: path.write_bytes(cv2.imencode(".jpg", GREY)[1].tobytes()),
    "a.tif": lambda path: tifffile.imwrite(
        path, np.stack([GREY] * 3).astype(np.uint16) * 257, photometric="minisblack"
    ),
    "a.nii.gz": write_volume,
    "a.dcm": lambda path: write_dicom(path, GREY),
    "1.2.840": lambda path: write_dicom(path, GREY),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_mask_is_the_file_that_predict_writes(page, run, tmp_path, name):
    FORMATS[name](tmp_path / name)
    looked = page.upload(name, (tmp_path / name).read_bytes()).json
    address, state = page.predict(looked["image"], samples=2, threshold=0.4)
    done = predict(run, tmp_path / name, tmp_path / "out", mc_samples=2, threshold=0.4)
    mask, sent = done.out / done.files[0]["mask"], page.get(f"{address}/file")
    assert sent.headers["Content-Disposition"].partition("filename=")[2] == mask.name
    if name.endswith(".gz"):  # which tells the name of the file within
        (tmp_path / "sent.nii.gz").write_bytes(sent.data)
        one, other = nibabel.load(mask), nibabel.load(tmp_path / "sent.nii.gz")
        assert one.header == other.header
        np.testing.assert_array_equal(one.dataobj, other.dataobj)
    else:
        assert sent.data == mask.read_bytes()
    assert state.json["shares"] == [done.files[0]["share background"], done.files[0]["share foreground"]]
    assert 0 < state.json["shares"][1] < 1


def test_the_maps_are_those_of_predict_uncertainty(page, run, tmp_path):
    image = page.upload("a.png", png(GREY)).json["image"]
    address, _ = page.predict(image, samples=3)
    unsure = predict_uncertainty(run, GREY, samples=3)
    expected = {
        "probability/0": unsure.mean[..., 0],
        "uncertainty/0": unsure.predictive_entropy,
        "uncertainty/1": unsure.expected_entropy,
        "uncertainty/2": unsure.mutual_information,
        "uncertainty/3": unsure.std[..., 0],
    }
    for kind, values in expected.items():
        np.testing.assert_allclose(page.values(f"{address}/{kind}/0"), values.ravel(), atol=5e-4)  # of float16
    np.testing.assert_array_equal(page.values(f"{address}/mask/0/0", np.uint8), (unsure.mean >= 0.5).ravel())
    shown = cv2.imdecode(np.frombuffer(page.get(f"images/{image}/0.png").data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(shown, np.repeat(GREY[..., None], 3, axis=2))


def test_each_slice_of_a_volume_has_its_own_maps(plain, tmp_path):
    page = Page(plain)
    volume = np.zeros((34, 40, 3), np.uint8)
    volume[..., 1] = 255
    nibabel.Nifti1Image(volume, np.eye(4)).to_filename(tmp_path / "a.nii")
    looked = page.upload("a.nii", (tmp_path / "a.nii").read_bytes()).json
    assert {key: looked[key] for key in ("height", "width", "slices")} == {"height": 34, "width": 40, "slices": 3}
    address, _ = page.predict(looked["image"])
    found = [page.values(f"{address}/mask/0/{index}", np.uint8).mean() for index in range(3)]
    likely = [page.values(f"{address}/probability/0/{index}").mean() for index in range(3)]
    assert found == [0, 1, 0] and likely == [0, 1, 0]


def test_of_several_classes_each_has_a_probability_and_a_colour(tmp_path):
    names = ("background", "bright", "never", "dark")
    opened = Session(write_run(tmp_path / "run", brightness_model(classes=4), class_names=names), (), tmp_path)
    page = Page(opened)
    told = page.get("run").json
    assert told["channels"] == list(names) and told["threshold"] is None
    assert told["classes"] == list(names)
    assert [value["classes"] for value in told["values"]] == [[0], [1], [2], [3]]
    colours = [value["colour"] for value in told["values"]]
    assert colours[0] is None and len({tuple(colour) for colour in colours[1:]}) == 3
    image = page.upload("a.png", png(GREY)).json["image"]
    address, _ = page.predict(image)
    labels = page.values(f"{address}/mask/0/0", np.uint8)
    np.testing.assert_array_equal(labels == 3, GREY.ravel() > 128.5)
    total = sum(page.values(f"{address}/probability/{plane}/0") for plane in range(4))
    np.testing.assert_allclose(total, 1, atol=2e-3)
    assert page.get(f"{address}/probability/4/0").status_code == 404
    refused = page.post(f"images/{image}/predictions", json={"samples": 0, "threshold": 0.4})
    assert refused.status_code == 400 and "`threshold` has no effect" in refused.json["error"]


def test_of_overlapping_classes_a_value_of_the_mask_shows_several(tmp_path):
    model = brightness_model(classes=2)
    pick = model.layers[-1]
    pick.activation = keras.activations.sigmoid
    pick.set_weights([pick.get_weights()[0], np.array([9, -128.5])])
    names = ("background", "everywhere", "bright")
    run = write_run(tmp_path / "run", model, class_names=names, multilabel=True)
    page = Page(Session(run, (), tmp_path))
    told = page.get("run").json
    assert told["channels"] == ["everywhere", "bright"] and told["threshold"] is None
    assert [value["classes"] for value in told["values"]] == [[0], [1], [2], [1, 2]]
    assert told["values"][0]["colour"] is None
    image = page.upload("a.png", png(GREY)).json["image"]
    address, _ = page.predict(image)
    mask = page.values(f"{address}/mask/0/0", np.uint8)
    np.testing.assert_array_equal(mask, 1 + 2 * (GREY.ravel() > 128.5))


@pytest.mark.parametrize(
    ("name", "shown", "sent"),
    [
        (f"{HOSTILE}.png", "script>.png", "script>.png"),
        ('"><img src=x onerror=alert(2)>.png', '"><img src=x onerror=alert(2)>.png', None),
        ("../../etc/passwd.png", "passwd.png", "passwd.png"),
        ("..\\..\\boot.png", "boot.png", "boot.png"),
        ("a\r\nSet-Cookie: b=c\x00\x1b[2J.png", "a??Set-Cookie: b=c??[2J.png", None),
        ("\u202egnp.exe.png", "?gnp.exe.png", None),
        ("é ü.png", "é ü.png", None),
        ("..", "image", "image.png"),
        ("", "image", "image.png"),
        (".png", ".png", "mask.png"),
        ("x" * 5000 + ".png", "x" * 116 + ".png", "x" * 116 + ".png"),
    ],
)
def test_hostile_names_are_text(page, opened, name, shown, sent):
    looked = page.upload(name, png(GREY)).json
    assert looked["name"] == shown
    assert [path.name for path in opened._folder.rglob("upload*")] == ["upload" + ".png" * name.endswith(".png")]
    address, _ = page.predict(looked["image"])
    answer = page.get(f"{address}/file")
    assert "Set-Cookie" not in answer.headers and answer.data[:4] == b"\x89PNG"
    if sent:
        assert f"filename={sent}" in answer.headers["Content-Disposition"].replace('"', "")


PROBLEMS = {
    "a.png": (b"", "a.png: the file is empty."),
    "b.png": (png(GREY)[:60], "b.png: cannot be decoded"),
    "c.txt": (b"some words", "c.txt: cannot be decoded"),
    "d.dcm": (b"some words" * 20, "d.dcm: cannot be decoded: it is corrupt, truncated or not a DICOM file."),
    f"{HOSTILE[:8]}.nii": (b"some words" * 90, "<script>.nii: "),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_cannot_be_read_is_told_in_one_line_and_leaves_the_open_image(page, opened, name):
    before = page.upload("fine.png", png(GREY)).json["image"]
    content, words = PROBLEMS[name]
    refused = page.upload(name, content)
    assert refused.status_code == 400 and refused.json["error"].startswith(words)
    assert "\n" not in refused.json["error"] and str(opened._folder) not in refused.json["error"]
    assert page.get(f"images/{before}/0.png").status_code == 200
    assert [path.name for path in opened._folder.iterdir()] == [str(before)]


def test_a_picture_too_large_for_the_browser_is_refused_by_its_size(page, monkeypatch):
    monkeypatch.setattr(session, "LARGEST", GREY.size - 1)
    refused = page.upload("a.png", png(GREY))
    assert refused.status_code == 400
    assert refused.json["error"] == (
        "a.png: has 70 x 40 pixels, too large for the browser, which shows 2,799; use segdrop predict."
    )


def test_a_file_of_too_many_bytes_is_refused_unread(page, opened, monkeypatch):
    monkeypatch.setattr(server, "MOST_BYTES", 1000)
    before = sorted(opened._folder.rglob("*"))
    refused = page.post("images", data=io.BytesIO(b"x" * 1001), content_length=1001)
    assert refused.status_code == 413 and "more than 1,000 bytes" in refused.json["error"]
    assert sorted(opened._folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"samples": 51}, "`samples` must be a whole number from 0 to 50, got 51."),
        ({"samples": -1}, "`samples` must be a whole number from 0 to 50, got -1."),
        ({"samples": True}, "`samples` must be"),
        ({"samples": 0, "threshold": 1}, "`threshold` must be in (0, 1), got threshold=1."),
        ({"samples": 0, "threshold": "x"}, "`threshold` must be"),
        ([], "`samples` must be"),
        ({"samples": 1}, "mc_samples` cannot be drawn from"),
    ],
)
def test_what_cannot_be_predicted_is_told_in_one_line(plain, asked, words):
    page = Page(plain)
    image = page.upload("a.png", png(GREY)).json["image"]
    refused = page.post(f"images/{image}/predictions", json=asked)
    assert refused.status_code == 400 and words in refused.json["error"] and "\n" not in refused.json["error"]


NUMBERS = st.sampled_from([0, 1, 2, -1, 2**63, 10**30, "x", "", "%00", ".."])
PREDICTION = "images/{}/predictions/{}"
ADDRESSES = ["", "run", "images", "files/{}", "images/{}/{}.png", "images/{}/predictions", PREDICTION]
ADDRESSES += [f"{PREDICTION}/{end}" for end in ("file", "mask/{}/{}", "probability/{}/{}", "uncertainty/{}/{}")]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
BODIES = st.one_of(
    st.fixed_dictionaries({}, optional={"samples": LEAVES | st.integers(0, 2), "threshold": LEAVES}).map(json.dumps),
    st.recursive(LEAVES, st.lists, max_leaves=4).map(json.dumps),
    st.sampled_from(["[" * 100_000, "9" * 5000, '{"samples": 1e999}']),
)
anything = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def check_no_fault(answer):
    assert answer.status_code < 500, answer.data
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    if answer.status_code >= 400 and answer.data:
        assert "\n" not in answer.json["error"]


@anything
@given(st.sampled_from(ADDRESSES), st.lists(NUMBERS, min_size=4, max_size=4), st.sampled_from(["GET", "POST", "PUT"]))
def test_no_address_is_answered_with_a_fault(page, address, numbers, method):
    words = {"base_url": OWN, "method": method, "headers": page.headers, "buffered": True}
    check_no_fault(page.client.open(f"/{SECRET}/{address.format(*numbers)}", **words))


@anything
@given(BODIES | st.binary(max_size=50), st.sampled_from(["application/json", "image/png", ""]))
def test_nothing_that_is_asked_of_an_image_is_answered_with_a_fault(plain, body, kind):
    page = Page(plain)
    image = page.upload("a.png", png(GREY)).json["image"]
    check_no_fault(page.post(f"images/{image}/predictions", data=body, content_type=kind))


@anything
@given(st.text(max_size=20), st.binary(max_size=50) | st.integers(1, len(png(GREY))).map(lambda i: png(GREY)[:i]))
def test_no_file_that_is_sent_is_answered_with_a_fault(page, name, content):
    check_no_fault(page.upload(name, content))
    check_no_fault(page.upload(f"{name}.png", content))


def test_what_is_not_there_any_more_is_told(page):
    first = page.upload("a.png", png(GREY)).json["image"]
    address, _ = page.predict(first)
    assert page.get(f"{address}/mask/0/1").status_code == page.get(f"images/{first}/1.png").status_code == 404
    second = page.upload("b.png", png(GREY)).json["image"]
    for gone in (f"images/{first}/0.png", address, f"{address}/mask/0/0", f"images/{second}/predictions/999"):
        answer = page.get(gone)
        assert answer.status_code == 404 and len(answer.json["error"].splitlines()) == 1
    assert page.post("files/0").status_code == 404


def test_the_warnings_are_those_of_predict(plain, tmp_path):
    faint = GREY.astype(np.uint16)
    cv2.imwrite(str(tmp_path / "faint.png"), faint)
    page = Page(plain)
    looked = page.upload("faint.png", (tmp_path / "faint.png").read_bytes()).json
    _, state = page.predict(looked["image"])
    done = predict(plain.network, tmp_path / "faint.png", tmp_path / "out")
    assert state.json["warnings"] == list(done.warnings) and len(done.warnings) == 1


def test_files_of_the_command_line_are_chosen_by_number_and_their_names_are_text(run, tmp_path):
    images = tmp_path / "images"
    (images / "inner").mkdir(parents=True)
    for name in (f"{HOSTILE[:8]}.png", "inner/b\x1b.png"):
        (images / name).write_bytes(png(GREY))
    (tmp_path / "temporary").mkdir()
    opened = Session(run, [str(images)], tmp_path / "temporary")
    page = Page(opened)
    assert page.get("run").json["files"] == ["<script>.png", "inner/b?.png"]
    looked = page.post("files/1").json
    assert looked["name"] == "inner/b?.png" and page.predict(looked["image"])[1].json["finished"]
    opened.close()
    assert sorted(path.name for path in images.rglob("*.png")) == ["<script>.png", "b\x1b.png"]
    assert not list((tmp_path / "temporary").iterdir())


def test_a_prediction_is_kept_until_four_others_have_been_made(page, opened):
    image = page.upload("a.png", png(GREY)).json["image"]
    addresses = [page.predict(image, threshold=threshold)[0] for threshold in (None, 0.1, 0.2, 0.3)]
    assert page.predict(image)[0] == addresses[0]  # and is now the last one used
    page.predict(image, threshold=0.4)
    assert [page.get(address).status_code for address in addresses] == [200, 404, 200, 200]
    assert len(list((opened._folder / str(image)).glob("prediction*"))) == 4


def test_another_image_ends_the_prediction_of_the_one_before(page, opened, monkeypatch):
    begun, release = threading.Event(), threading.Event()

    def slow(images, key):
        begun.set()
        assert release.wait(60)
        return np.full((*images.shape[:3], 3), 0.5, np.float32)

    monkeypatch.setattr(opened, "_function", lambda samples: slow)
    image = page.upload("a.png", png(GREY)).json["image"]
    key = page.post(f"images/{image}/predictions", json={"samples": 0}).json["prediction"]
    prediction = opened.prediction(image, key)
    assert begun.wait(60)
    opening = threading.Thread(target=page.upload, args=("b.png", png(GREY)))
    opening.start()
    assert prediction.course.stopped.wait(60)
    release.set()
    opening.join()
    assert prediction.problem == "The prediction was stopped." and prediction.row == {}
    assert not (opened._folder / str(image)).exists()


def test_a_prediction_that_fails_is_told_and_not_waited_for(page, opened, monkeypatch):
    def fail(images, key):
        raise RuntimeError("no room")

    monkeypatch.setattr(opened, "_function", lambda samples: fail)
    image = page.upload("a.png", png(GREY)).json["image"]
    _, state = page.predict(image)
    assert state.status_code == 400 and state.json["error"] == "The prediction failed: RuntimeError: no room"


def test_the_share_that_is_done_counts_slices_and_tiles():
    course, shares = Course(2), []
    for tiles in (4, 2):
        course.begin(tiles)
        for _ in range(tiles):
            shares.append(course.share)
            course.advance(1)
    assert [*shares, course.share] == [0, 0.125, 0.25, 0.375, 0.5, 0.75, 1]
    course.stopped.set()
    with pytest.raises(Stopped):
        course.advance(1)


def test_a_port_that_is_in_use_is_told_before_the_run_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["view", "no-such-run", "--no-open", "--port", str(port)]) == 2
    words = "cannot be used: Address already in use; choose another, or leave it out for a free one."
    assert capsys.readouterr().err == f"segdrop: `port` {port} {words}\n"


@pytest.mark.parametrize("port", ["70000", "-1"])
def test_a_port_that_is_none_is_told(capsys, port):
    assert main(["view", "no-such-run", "--no-open", "--port", port]) == 2
    assert capsys.readouterr().err == f"segdrop: `port` must be from 0 to 65535, got port={port}.\n"


def test_without_flask_the_command_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "flask", None)
    monkeypatch.delitem(sys.modules, "segdrop.viewing.server")
    assert main(["view", "no-such-run"]) == 2
    assert capsys.readouterr().err == 'segdrop: The viewer needs flask: `pip install "segdrop[view]"`.\n'


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_interrupted_and_leaves_nothing(run, tmp_path, number):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "segdrop.cli", "view", str(run), "--no-open"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    address = process.stdout.readline().split()[-1]
    assert address.startswith("http://127.0.0.1:")
    request = urllib.request.Request(f"{address}images?name=a.png", png(GREY), {"Origin": address[:-24].rstrip("/")})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["width"] == 70
    assert list(tmp_path.rglob("upload.png"))
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and told == "segdrop: interrupted, the viewer has ended.\n"
    assert not list(tmp_path.glob("segdrop-view-*"))
