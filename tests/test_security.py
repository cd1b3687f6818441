"""What files from elsewhere cannot do: run, reach out, name patients, tell passwords, or move a terminal."""

import ast
import base64
import hashlib
import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import albumentations as A
import cv2
import keras
import numpy as np
import pytest
from conftest import randomise, tiny_training, write_pairs, write_run
from dicom_files import write_dicom
from onnx import TensorProto, helper
from selenium.webdriver.support.ui import WebDriverWait
from standin import build_small_unet
from test_data_command import two_squares
from test_reporting import make_run
from test_reporting import squares as pictures
from test_viewing_page import CHROMIUM, DRIVER, browser  # noqa: F401 (a fixture)

import segdrop
from segdrop.cli.main import main
from segdrop.data.augment import describe, load_augmentation, restore
from segdrop.data.opening import open_dataset
from segdrop.errors import InputError
from segdrop.files import write_csv, write_json
from segdrop.folders.run import open_run
from segdrop.inference.engines import function_of_file
from segdrop.inference.onnx import onnx_session, read_metadata
from segdrop.nets.checkpoints import read_checkpoint
from segdrop.nets.hub import hub_file
from segdrop.reporting.runs_page import report_runs
from segdrop.sweeps.answer_page import write_answer_page
from segdrop.sweeps.sweep import sweep_report

PACKAGE = Path(segdrop.__file__).parent
MARKUP = """</script><script>alert(1)</script><img src=x onerror=alert(1)>"onmouseover="alert(1)"""
NAME = """<img src=x onerror=alert(1)>"onmouseover="alert(1)"""  # of a file


# What is loaded


def sources():
    """The package's files with their syntax."""
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(PACKAGE.rglob("*.py"))]


def calls_of(name):
    """Where the package calls something of that name, as files, with the arguments' names."""
    return [
        (path.relative_to(PACKAGE).as_posix(), {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords})
        for path, tree in sources()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(name)
    ]


def test_networks_are_loaded_in_one_place_and_never_out_of_safe_mode():
    assert [path for path, _ in calls_of("saving.load_model")] == ["nets/stored.py"]
    assert not calls_of("enable_unsafe_deserialization")
    assert not [call for call in calls_of("load_model") + calls_of("from_config") if "safe_mode" in call[1]]


@pytest.mark.parametrize("command", ["inspect", "evaluate", "report", "export", "predict"])
def test_code_in_a_network_is_refused_in_one_line_that_names_its_file(command, tmp_path, capsys):
    run = make_run(tmp_path, pictures(["a"]))
    inputs = keras.Input((None, None, 3))
    witness = tmp_path / "witness"
    code = keras.layers.Lambda(lambda x, to=str(witness): (open(to, "w").close(), x[..., :1])[1])
    keras.Model(inputs, code(inputs)).save(run / "model.keras")
    witness.unlink(missing_ok=True)
    more = [str(tmp_path / "data" / "images"), "--out", str(tmp_path / "out")] if command == "predict" else []
    assert main([command, str(run), *more]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "model.keras holds code (a Lambda layer), which is never run" in told
    assert not witness.exists()


def test_torch_is_asked_for_tensors_alone(tmp_path, monkeypatch):
    asked = {}
    fake = SimpleNamespace(load=lambda path, **options: asked.update(options) or {}, Tensor=np.ndarray)
    monkeypatch.setitem(sys.modules, "torch", fake)
    (tmp_path / "weights.pth").write_bytes(b"")
    assert read_checkpoint(tmp_path / "weights.pth") == {} and asked["weights_only"] is True


def test_pickles_are_read_from_the_package_s_own_processes_alone():
    """NumPy's default is to refuse them, too."""
    assert {path for path, _ in [*calls_of("pickle.load"), *calls_of("pickle.loads")]} == {"data/augmenting.py"}
    for path, options in [*calls_of("np.load"), *calls_of("joblib.load"), *calls_of("read_pickle")]:
        assert (
            path in ("data/remembered.py", "folders/state.py", "nets/hdf5.py")
            and options.get("allow_pickle", "False") == "False"
        )


# Pipelines of Albumentations


def pipeline(*names, **arguments):
    leaves = [{"__class_fullname__": name, "p": 0.5, **arguments} for name in names]
    return {"transform": {"__class_fullname__": "Compose", "p": 1.0, "transforms": leaves}}


class Stranger(A.ImageOnlyTransform):
    """A class of somebody's, which Albumentations knows by its name once it is defined."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pipeline(f"{__name__}.Stranger"), "has test_security.Stranger, which is no transform of Albumentations' own"),
        (pipeline("os.system"), "has os.system, which is no transform of Albumentations' own"),
        (pipeline("Lambda", __name__="f"), "has Lambda, which is no transform of Albumentations' own"),
        (pipeline("FDA", reference_images=["/etc/passwd"]), "has FDA, which takes images or fonts from elsewhere"),
        (pipeline("HistogramMatching", reference_images=["x"]), "has HistogramMatching, which takes images"),
        (
            pipeline("PixelDistributionAdaptation", reference_images=["x"]),
            "has PixelDistributionAdaptation, which takes",
        ),
        (pipeline("OverlayElements"), "has OverlayElements, which takes images"),
        (pipeline("Mosaic"), "has Mosaic, which takes images"),
        (pipeline("TextImage", font_path="/etc/passwd"), "has TextImage, which takes images or fonts"),
        (
            {"transform": {"__class_fullname__": "OneOf", "p": 1, "transforms": [pipeline("FDA")["transform"]]}},
            "has FDA",
        ),
    ],
)
@pytest.mark.parametrize("ending", [".json", ".yaml"])
def test_a_pipeline_from_a_file_makes_albumentations_own_transforms_alone(tmp_path, content, message, ending):
    file = tmp_path / f"pipeline{ending}"
    file.write_text(json.dumps(content))  # which is YAML, too
    with pytest.raises(InputError, match=re.escape(f"{file} {message}")) as told:
        load_augmentation(str(file))
    assert "\n" not in str(told.value)


def test_yaml_makes_no_objects(tmp_path):
    witness = tmp_path / "witness"
    (tmp_path / "pipeline.yaml").write_text(f"!!python/object/apply:os.mkdir ['{witness}']")
    with pytest.raises(InputError, match="is not an Albumentations file: could not determine a constructor"):
        load_augmentation(str(tmp_path / "pipeline.yaml"))
    assert not witness.exists()


def test_a_pipeline_nested_too_deeply_is_one_line(tmp_path):
    (tmp_path / "pipeline.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="is not an Albumentations file: maximum recursion depth"):
        load_augmentation(str(tmp_path / "pipeline.json"))


def test_a_run_s_record_takes_no_pixels_from_elsewhere_but_a_transform_that_python_knows():
    with pytest.raises(InputError, match="the run's record has FDA, which takes images"):
        restore(pipeline("FDA", reference_images=["x"]))
    assert isinstance(restore(describe(A.Compose([Stranger(p=1)]))).transforms[0], Stranger)


# Files of the Hub


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A function that puts a file into a cache of the Hub's layout, which `hub_file` then finds."""

    def put(content, name, commit="0" * 40):
        blob, link = tmp_path / "blobs" / name, tmp_path / "snapshots" / commit / "model.safetensors"
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(blob)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names, **options: str(link))
        return link

    return put


def test_a_file_of_the_hub_is_what_its_hash_says(cached):
    content = b"weights"
    link = cached(content, hashlib.sha256(content).hexdigest())
    assert hub_file("timm/resnet18.tv_in1k") == link


def test_a_file_of_the_hub_that_is_not_what_its_hash_says_is_refused(cached):
    cached(b"other weights", hashlib.sha256(b"weights").hexdigest())
    with pytest.raises(InputError, match="is damaged: its SHA-256 is not [0-9a-f]{64}; delete"):
        hub_file("timm/resnet18.tv_in1k")


def test_a_commit_that_is_asked_for_is_the_one_that_is_had(cached):
    content = b"weights"
    link = cached(content, hashlib.sha256(content).hexdigest(), commit="a" * 40)
    assert hub_file(f"timm/resnet18.tv_in1k@{'a' * 40}") == link
    with pytest.raises(InputError, match=f"is of the commit {'a' * 40} and not of {'b' * 40}"):
        hub_file(f"timm/resnet18.tv_in1k@{'b' * 40}")


def test_nothing_but_tensors_is_taken_from_the_hub():
    source = (PACKAGE / "nets" / "hub.py").read_text(encoding="utf-8")
    assert re.findall(r'^_WEIGHTS, _CONFIG = "(.*)", "(.*)"$', source, re.MULTILINE) == [
        ("model.safetensors", "config.json")
    ]
    assert len(calls_of("hf_hub_download")) == 2 and not calls_of("snapshot_download")


# ONNX files whose tensors lie elsewhere


def network(folder, location):
    """A network that adds four numbers, which lie in a file."""
    numbers = helper.make_tensor("numbers", TensorProto.FLOAT, [4], np.zeros(4, np.float32).tobytes(), raw=True)
    numbers.ClearField("raw_data")
    numbers.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "16"}.items():
        entry = numbers.external_data.add()
        entry.key, entry.value = key, value
    image, given = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("image", "probabilities"))
    nodes = [helper.make_node("Add", ["image", "numbers"], ["probabilities"])]
    graph = helper.make_graph(nodes, "g", [image], [given], [numbers])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.mark.parametrize(
    "where", ["../numbers.bin", "inner/../../numbers.bin", "ABSOLUTE", "link.bin", "way/numbers.bin"]
)
@pytest.mark.parametrize(
    "read",
    [
        read_metadata,
        lambda path: onnx_session(path, ["CPUExecutionProvider"]),
        lambda path: function_of_file(path, "openvino"),
    ],
)
def test_tensors_of_an_onnx_file_outside_of_its_folder_are_refused(tmp_path, where, read):
    folder = tmp_path / "export"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "numbers.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "numbers.bin")
    (folder / "way").symlink_to(tmp_path)
    path = network(folder, where.replace("ABSOLUTE", str(tmp_path / "numbers.bin")))
    with pytest.raises(InputError, match=r"model\.onnx keeps tensors in .*, which is outside of its folder or a link"):
        read(path)


def test_tensors_of_an_onnx_file_in_its_folder_are_read(tmp_path):
    (tmp_path / "numbers.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    session = onnx_session(network(tmp_path, "numbers.bin"), ["CPUExecutionProvider"])
    assert session.run(None, {"image": np.ones(4, np.float32)})[0].tolist() == [1, 2, 3, 4]


# Tables and their paths


@pytest.mark.parametrize(
    ("image", "outside"),
    [
        ("set/images/a.png", False),
        ("./set/../set/images/a.png", False),
        ("../set/images/a.png", True),
        ("ABSOLUTE", True),
    ],
)
def test_a_table_that_names_files_outside_of_its_folder_says_so(tmp_path, image, outside, recwarn):
    write_pairs(tmp_path / "set", {"a": two_squares((10, 20))})
    shutil.copytree(tmp_path / "set", tmp_path / "home" / "set")
    image = image.replace("ABSOLUTE", str(tmp_path / "set" / "images" / "a.png"))
    write_csv(tmp_path / "home" / "table.csv", [{"image": image, "mask": "set/masks/a.png"}])
    open_dataset(tmp_path / "home" / "table.csv")
    told = [str(warning.message) for warning in recwarn]
    assert (
        told == [f"{tmp_path / 'home' / 'table.csv'} names 1 file(s) outside of its folder; first: {image}."] * outside
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "maximum recursion depth"),
        ('[{"name": "a", "color": ["x", 0, 0]}, {"name": "b", "color": [1, 2, 3]}]', "is no colour of three whole"),
        ('[{"name": "a", "color": [0, 0, {}]}, {"name": "b", "color": [1, 2, 3]}]', "is no colour of three whole"),
        ('[{"name": "a", "color": [0, 0, 0.5]}, {"name": "b", "color": [1, 2, 3]}]', "is no colour of three whole"),
        ('[{"name": "a", "color": [0, 0, 0]}, {"name": "b", "color": [1, 2, 256]}]', "is no colour of three whole"),
        ('[{"name": "a", "color": "red"}, {"name": "b", "color": [1, 2, 3]}]', "red is no colour of three whole"),
        ('[{"name": "a", "color": 7}, {"name": "b", "color": [1, 2, 3]}]', "has no len"),
    ],
)
def test_classes_that_cannot_be_read_are_one_line(tmp_path, capsys, content, message):
    data = write_pairs(tmp_path / "set", {"a": two_squares((10, 20))})
    (data / "classes.json").write_text(content)
    assert main(["data", str(data)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"{data / 'classes.json'} must look like" in told and message in told


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no users to be")
def test_a_data_folder_that_may_not_be_read_is_one_line(tmp_path, capsys):
    data = write_pairs(tmp_path / "set", {"a": two_squares((10, 20))})
    assert main(["data", str(data)]) == 0  # what is imported late may be what another user cannot read
    capsys.readouterr()
    user = os.geteuid()
    (data / "images").chmod(0)
    try:
        if user == 0:
            os.seteuid(65534)
        code = main(["data", str(data)])
    finally:
        os.seteuid(user)
        (data / "images").chmod(0o700)
    assert code == 2
    assert re.fullmatch(r"segdrop: .*\n", capsys.readouterr().err)


def test_a_rate_for_a_stage_that_is_not_there_names_its_own_option(cells, tmp_path, capsys):
    run = ["--run-dir", str(tmp_path / "run"), "--encoder-weights", "none", "--encoder", "resnet18"]
    assert main(["train", "--data", str(cells), "--encoder-dropout", "stage9=0.1", *run]) == 2
    assert "`encoder_dropout` names no unit of this encoder: 'stage9'" in capsys.readouterr().err


# Pages


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Each kind of page, of data, runs and a sweep whose names are markup; by its name."""
    home = tmp_path_factory.mktemp("pages")
    run = make_run(home, pictures(["a", NAME]), 0.5, MARKUP, encoder_dropout=0.5, dropout_kind="spatial")
    record = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", record | {"warnings": [MARKUP], "device": MARKUP, "versions": {MARKUP: MARKUP}})
    other = shutil.copytree(run, home / f"$\\frac{{${NAME}")
    sweep = shutil.copytree(Path(__file__).parent / "made_by_0_4" / "sweep", home / "sweep")
    found = {"report": segdrop.report(run, mc_samples=2), "runs": report_runs([run, other], home / "runs.html")}
    assert main(["data", str(home / "data"), "--out", str(home / "looks")]) == 0
    found["data"] = home / "looks" / "data.html"
    ranking = write_run(home / MARKUP.replace("/", "|"), randomise(build_small_unet(encoder_dropout=0.3)))
    assert main(["rank", str(ranking), str(home / "data" / "images"), "--out", str(home / "next"), "--count", "2"]) == 0
    found["ranking"] = home / "next" / "ranking.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segdrop.config.arms._what", lambda changes: f"$\\frac{{${MARKUP}")
        write_answer_page(home / "answer.html", sweep_report(sweep))
    return found | {"answer": home / "answer.html"}


in_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium, or no chromedriver, on the path")
PAGES = pytest.mark.parametrize("page", ["report", "runs", "data", "ranking", "answer"])


def opened(browser, path):  # noqa: F811
    """The browser with a page open, and nothing in its log."""
    driver, _ = browser
    driver.get_log("browser")
    driver.get(path.as_uri())
    return driver


@in_chromium
@PAGES
def test_markup_in_names_is_text_and_the_page_works_under_its_policy(browser, pages, page):  # noqa: F811
    driver = opened(browser, pages[page])
    found = driver.execute_script(
        """const has = name => [...document.querySelectorAll("*")].filter(one => one.hasAttribute(name)).length;
        return {scripts: document.scripts.length, handlers: has("onerror") + has("onmouseover"), styles: has("style"),
            images: [...document.images].map(one => one.naturalWidth), text: document.body.innerText,
            width: getComputedStyle(document.body).maxWidth};"""
    )
    assert driver.get_log("browser") == []
    assert found["scripts"] == (page == "report") and found["handlers"] == found["styles"] == 0
    assert found["images"] and all(found["images"]) and found["width"] == "1216px"
    assert "<img src=x onerror=alert(1)>" in found["text"]


@in_chromium
def test_the_table_of_a_report_sorts_under_its_policy(browser, pages):  # noqa: F811
    driver = opened(browser, pages["report"])
    head = driver.find_element("css selector", "table.sortable th[aria-sort]")
    head.find_element("css selector", "button").click()
    assert head.get_attribute("aria-sort") == "descending" and driver.get_log("browser") == []


@in_chromium
@PAGES
def test_what_would_come_through_unescaped_does_not_run_all_the_same(browser, pages, page, tmp_path):  # noqa: F811
    hostile = """<script>document.title = "owned"</script><img src=x onerror="document.title = 'owned'">
        <p id="styled" style="position: fixed"><style>p { position: fixed }</style>
        <form action="https://example.invalid"><button></form><base href="https://example.invalid/">"""
    text = pages[page].read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(text.replace("</h1>", f"</h1>{hostile}", 1), encoding="utf-8")
    driver = opened(browser, tmp_path / "page.html")
    styled = driver.execute_script("return getComputedStyle(document.getElementById('styled')).position")
    driver.find_element("css selector", "form button").click()
    directives, refusals = {"script-src", "style-src", "img-src", "form-action", "base-uri"}, []

    def all_refused(_):
        refusals.extend(entry["message"] for entry in driver.get_log("browser"))
        return all(any(directive in told for told in refusals) for directive in directives)

    WebDriverWait(driver, 10, 0.1).until(all_refused)
    assert driver.title != "owned" and styled == "static"


@PAGES
def test_a_page_lets_in_what_its_hashes_name_and_nothing_inline(pages, page):
    text = pages[page].read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and "unsafe" not in policy
    inline = re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in inline]
    assert re.findall("'sha256-(.*?)'", policy) == hashes


def test_every_template_is_one_of_the_pages_that_are_looked_at():
    templates = {path.stem for path in (PACKAGE / "reporting").glob("*.html")} - {"base", "parts"}
    assert templates == {"report", "runs", "data", "ranking", "answer"}


# Passwords


PASSWORD = "hunter2secret"


@pytest.mark.parametrize(
    "storage",
    [
        f"postgresql://me:{PASSWORD}@127.0.0.1:1/db",
        f"postgresql://me:{PASSWORD}@127.0.0.1:port/db",
        f"postgresql://me:x@{PASSWORD}@127.0.0.1:port/db",
        f"postgresql://me@127.0.0.1:1/db?password={PASSWORD}",
        f"nosuchdatabase://me:{PASSWORD}@127.0.0.1/db",
    ],
)
def test_the_password_of_a_storage_is_in_no_message_and_no_file(cells, tmp_path, capfd, storage):
    words = f"sweep {tmp_path / 'sweep'} --data {cells} --encoder-weights none --storage {storage}".split()
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert "`storage`" in err and err.count("\n") == 1 and PASSWORD not in out + err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]


def test_a_password_behind_a_misspelt_option_is_not_repeated(tmp_path, capsys):
    assert main(["sweep", str(tmp_path), "--storag", f"postgresql://me:{PASSWORD}@host/db"]) == 2
    assert PASSWORD not in capsys.readouterr().err


def test_workers_are_told_the_storage_where_no_list_of_processes_shows_it(tmp_path, monkeypatch):
    from segdrop.sweeps import workers

    started = []

    class Process(SimpleNamespace):
        def __init__(self, words, env, **streams):
            started.append((words, env))
            super().__init__(poll=lambda: 0, wait=lambda: 0, returncode=0, stdin=None)
            self.terminate = self.kill = lambda: None

    address = f"postgresql://me:{PASSWORD}@host/db"
    monkeypatch.setattr(workers.subprocess, "Popen", Process)
    monkeypatch.setattr(workers, "Progress", lambda state: SimpleNamespace(tell=lambda trials: None))
    train = SimpleNamespace(data="data", cache_mb=1)
    trials = SimpleNamespace(all=list)
    workers.run_workers(
        SimpleNamespace(folder=tmp_path, config=SimpleNamespace(train=train), storage=address, trials=trials), 1
    )
    ((words, environment),) = started
    assert PASSWORD not in " ".join(words) and environment[workers._STORAGE] == address
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]


# Licences


@pytest.mark.parametrize(
    ("licence", "permissive"),
    [
        ("MIT", True),
        ("GPL-3.0-only OR MIT", True),
        ("BSD-3-Clause AND Zlib", True),
        ("MIT AND GPL-2.0-only", False),
        ("LGPL-3.0-only", False),
        ("GNU General Public License v3 (GPLv3)", False),
        ("Proprietary", False),
        ("", False),
    ],
)
def test_a_licence_is_permissive_or_refused(licence, permissive):
    assert runpy.run_path(str(PACKAGE.parent / ".ci" / "audit.py"))["is_permissive"](licence) is permissive


# Patients


PATIENT = {"PatientName": "Quincy^Zelda", "PatientID": "ZQ-77123", "PatientBirthDate": "19310417"}
PATIENT |= {"StudyDate": "20190823", "InstitutionName": "Wolfram Clinic", "PatientAddress": "9 Elm Row"}
TOLD = (b"Quincy", b"Zelda", b"ZQ-77123", b"19310417", b"20190823", b"Wolfram", b"Elm Row")


def test_no_command_writes_or_says_what_a_dicom_header_tells_of_a_patient(tmp_path, capfd, small_unet):
    data = tmp_path / "set"
    (data / "images").mkdir(parents=True)
    for i in range(6):
        image, mask = two_squares((10 + i, 20), 64, 64)
        write_pairs(data, {f"p{i}": (None, mask)})
        attributes = {**PATIENT, "PatientID": f"{PATIENT['PatientID']}-{i // 2}"}
        write_dicom(data / "images" / f"p{i}.dcm", image[..., 0].astype(np.uint16) * 8, BitsStored=12, **attributes)
    header = (data / "images" / "p0.dcm").read_bytes()
    assert all(word in header for word in TOLD)
    run, images = tmp_path / "out" / "run", str(data / "images")
    segdrop.train(tiny_training(data, run_dir=str(run), val_fraction=0.3))
    assert open_run(run).config.data == str(data)
    for command in (
        ["data", str(data), "--out", str(tmp_path / "out" / "looks")],
        ["data", str(data), "--json"],
        ["evaluate", str(run), "--split", "all"],
        ["predict", str(run), images, "--out", str(tmp_path / "out" / "masks"), "--overlay"],
        ["report", str(run), "--images", "1"],
        ["rank", str(run), images, "--count", "2"],
        ["export", str(run)],
    ):
        assert main(command) == 0, command
    written = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {path.suffix for path in written} >= {".json", ".csv", ".html", ".png", ".keras", ".onnx"}
    said = "".join(capfd.readouterr()).encode()
    for word in TOLD:
        assert word not in said and not [path for path, content in written.items() if word in content]


def test_pictures_that_are_written_carry_no_header_of_those_that_were_read(tmp_path):
    """A comment in a PNG, or EXIF in a JPEG, may tell who it is of."""
    image, mask = two_squares((10, 20))
    data = write_pairs(tmp_path / "set", {"a": (image, mask)})
    encoded = cv2.imencode(".jpg", image)[1].tobytes()
    comment = b"Quincy^Zelda"
    marked = encoded[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + encoded[2:]
    (data / "images" / "a.png").unlink()
    (data / "images" / "a.jpg").write_bytes(marked)
    assert main(["data", str(data), "--out", str(tmp_path / "looks")]) == 0
    written = [path for path in (tmp_path / "looks").rglob("*") if path.is_file()]
    assert written and not [path for path in written if comment in path.read_bytes()]
