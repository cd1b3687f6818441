"""Weights from the Hugging Face Hub: a real client against a local server that speaks its protocol."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision_files import random_tensors, write_safetensors

from segdrop.nets.hub import input_statistics, is_repository

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = """
import json, sys, time, numpy as np, segdrop
from segdrop import InputError
time.sleep = lambda seconds: None  # the Hub's client waits 23 s between its tries
try:
    model = segdrop.build_unet("torchvision_resnet18", encoder_weights=sys.argv[1])
    norm = model.get_layer("normalization")
    kernel = model.get_layer("stage1_unit1_conv1").get_weights()[0]
    print(json.dumps([float(kernel.sum()), np.ravel(norm.offset).tolist()]))
except InputError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the repositories hold: by path the content."""
    tensors = random_tensors("torchvision_resnet18")
    weights = write_safetensors(tmp_path_factory.mktemp("hub") / "w.safetensors", tensors).read_bytes()
    config = json.dumps(
        {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 1]}}
    )
    return {
        "/timm/resnet18.tv_in1k/resolve/REVISION/model.safetensors": weights,
        "/timm/resnet18.tv_in1k/resolve/REVISION/config.json": config.encode(),
        "/timm/vit/resolve/REVISION/config.json": b"{}",
    }, tensors


@pytest.fixture
def hub(files):
    """The server's address, and the requests that it has answered."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.wfile.write(self.answer())

        def answer(self):
            seen.append((self.command, self.path))
            content = files[0].get(self.path.replace("/main/", "/REVISION/").replace(f"/{COMMIT}/", "/REVISION/"))
            known = any(path.startswith("/".join(self.path.split("/")[:3]) + "/") for path in files[0])
            if content is None:
                content = b"not found"
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            else:
                self.send_response(200)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return content

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def build(name, endpoint, home):
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, name], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_imagenet_weights_are_downloaded_once_and_normalised_as_they_were_trained(hub, files, tmp_path):
    endpoint, seen = hub
    total, offset = json.loads(build("imagenet", endpoint, tmp_path))
    assert total == pytest.approx(files[1]["layer1.0.conv1.weight"].sum(), rel=1e-3)
    np.testing.assert_allclose(offset, [-2, -1, -0.5])
    assert [path for command, path in seen if command == "GET"] == [
        "/timm/resnet18.tv_in1k/resolve/main/model.safetensors",
        f"/timm/resnet18.tv_in1k/resolve/{COMMIT}/config.json",
    ]
    (weights,) = tmp_path.rglob("model.safetensors")
    assert weights.parent.name == COMMIT
    # Without a server what is cached will do.
    assert json.loads(build("imagenet", "http://127.0.0.1:1", tmp_path))[0] == pytest.approx(total)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/nothing", "The weights timm/nothing are not cached and could not be had from the Hugging Face Hub ("),
        ("timm/vit", "The weights timm/vit are not cached and could not be had"),
    ],
)
def test_a_name_that_is_not_there_is_one_line(hub, tmp_path, name, message):
    told = build(name, hub[0], tmp_path)
    assert told.startswith(message) and "\n" not in told and told.endswith("for random initialisation.")


def test_without_a_network_that_is_said_in_one_line(tmp_path):
    told = build("timm/resnet18.a1_in1k@v1", "http://127.0.0.1:1", tmp_path)
    assert told.startswith("The weights timm/resnet18.a1_in1k@v1 are not cached") and "\n" not in told


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm/resnet34.a1_in1k", True),
        ("timm/resnet34.a1_in1k@0123abc", True),
        ("weights.safetensors", False),
        ("folder/weights.pth", False),
        ("a/b/c", False),
        ("imagenet", False),
    ],
)
def test_names_of_repositories_are_told_from_files(name, expected):
    assert is_repository(name) is expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}', ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))),
        ('{"pretrained_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1]}}', ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        ('{"mean": [0.1], "std": [1]}', None),
        ('{"mean": [0, 0, 0], "std": [0, 1, 1]}', None),
        ("[]", None),
        ("no JSON", None),
    ],
)
def test_the_statistics_of_the_images_stand_beside_the_weights(tmp_path, content, expected):
    (tmp_path / "config.json").write_text(content)
    assert input_statistics(tmp_path / "model.safetensors") == expected
    assert input_statistics(Path(tmp_path, "elsewhere", "model.safetensors")) is None
