"""Files of PyTorch's: what is understood, and what is refused with the first tensor's name."""

import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest
from attacks.damage import CUTS, FLIPS, MORE
from conftest import tiny_training
from torchvision_files import random_tensors, write_safetensors

from segdrop import InputError, build_unet, train
from segdrop.nets.checkpoints import load_checkpoint, read_checkpoint
from segdrop.nets.torchvision import build_resnet

ENCODER = "torchvision_resnet18"


@pytest.fixture(scope="module")
def tensors():
    return random_tensors(ENCODER)


@pytest.fixture(scope="module")
def resnet():
    return build_resnet(ENCODER)


def kernel(model):
    return model.get_layer("stage3_unit2_conv1").get_weights()[0]


def test_what_was_loaded_is_told(resnet, tensors, tmp_path):
    path = write_safetensors(tmp_path / "resnet.safetensors", tensors)
    loaded = load_checkpoint(resnet, ENCODER, path)
    assert str(loaded) == f"120 of 120 encoder tensors from {path}; left out: fc.bias, fc.weight"
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and loaded.revision is None
    np.testing.assert_array_equal(kernel(resnet), tensors["layer3.1.conv1.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize("prefix", ["module.", "encoder.", "backbone.", "model.", "module.backbone."])
def test_prefixes_are_seen_through(resnet, tensors, tmp_path, prefix):
    path = write_safetensors(tmp_path / "w.safetensors", {prefix + name: value for name, value in tensors.items()})
    assert load_checkpoint(resnet, ENCODER, path).tensors == 120


def test_other_parts_of_a_file_are_left_out(resnet, tensors, tmp_path):
    """As of a network with the encoder in it, or of a teacher's projection head."""
    named = {f"backbone.{name}": value for name, value in tensors.items() if not name.startswith("fc.")}
    path = write_safetensors(tmp_path / "w.safetensors", {**named, "head.mlp.weight": np.ones((2, 2), "f4")})
    assert load_checkpoint(resnet, ENCODER, path).left_out == ("head.mlp.weight",)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_precisions_are_converted(resnet, tensors, tmp_path, dtype):
    path = write_safetensors(tmp_path / "w.safetensors", {k: v.astype(dtype) for k, v in tensors.items()})
    load_checkpoint(resnet, ENCODER, path)
    expected = tensors["layer3.1.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(kernel(resnet), expected, rtol=1e-3, atol=1e-6)


def without(tensors, *names):
    return {name: value for name, value in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: random_tensors("torchvision_resnet34"), "has layer1.2.bn1.bias, which .*18 has not: it is of .*34."),
        (lambda t: random_tensors("torchvision_resnet50"), "has layer1.0.bn3.bias, .*: it is of torchvision_resnet50."),
        (lambda t: without(t, "layer2.0.bn1.bias"), "lacks layer2.0.bn1.bias: it is damaged or of another family."),
        (lambda t: without(t, "conv1.weight"), "is not of a ResNet: it has no conv1.weight and layer1.0.conv1.weight"),
        (lambda t: {"blocks.0.attn.weight": np.ones(3, "f4")}, "but blocks.0.attn.weight, ...; give weights of"),
        (lambda t: t | {"layer2.0.se.weight": np.ones(3, "f4")}, "has layer2.0.se.weight, which .* has not"),
        (lambda t: t | {"conv1.weight": np.ones((64, 3, 3, 3), "f4")}, r"conv1.weight has the shape \(64, 3, 3, 3\)"),
        (lambda t: t | {"bn1.bias": np.full(64, np.nan, "f4")}, "bn1.bias holds values that are not finite"),
        (lambda t: {k: np.zeros_like(v) for k, v in t.items()}, "holds nothing but zeros; it is no trained network."),
    ],
)
def test_a_file_that_does_not_fit_is_refused_whole(resnet, tensors, tmp_path, change, message):
    before = kernel(resnet)
    path = write_safetensors(tmp_path / "w.safetensors", change(tensors))
    with pytest.raises(InputError, match=f"{re.escape(str(path))}.*{message}") as caught:
        load_checkpoint(resnet, ENCODER, path)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(kernel(resnet), before)


@pytest.mark.parametrize(
    "damage", [lambda c: c[:100], lambda c: b"", lambda c: b"\xff" * 64, lambda c: c[:8] + b"{" * 50 + c[58:]]
)
def test_a_damaged_safetensors_file_is_one_line(tensors, tmp_path, damage):
    path = write_safetensors(tmp_path / "w.safetensors", {"conv1.weight": tensors["conv1.weight"]})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="is not a safetensors file that can be read") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_without_torch_its_files_are_told_how_to_convert(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(b"anything")
    with pytest.raises(InputError, match=r"needs torch: `pip install .*; or convert it where torch is: safetensors"):
        build_unet(ENCODER, encoder_weights=tmp_path / "w.pth")


@pytest.mark.parametrize(
    "wrap", [lambda t: t, lambda t: {"state_dict": t, "epoch": 3}, lambda t: {"teacher": {"model": t}}]
)
def test_a_file_of_torch_is_read_whatever_wraps_it(resnet, tensors, tmp_path, wrap):
    torch = pytest.importorskip("torch", reason="torch is an extra")
    path = tmp_path / "w.pth"
    torch.save(wrap({f"module.{name}": torch.tensor(value) for name, value in tensors.items()}), path)
    assert load_checkpoint(resnet, ENCODER, path).tensors == 120


def test_nothing_but_tensors_is_unpickled(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is an extra")

    class Hostile:
        def __reduce__(self):
            return (tmp_path.joinpath("done").write_text, ("ran",))

    torch.save({"conv1.weight": Hostile()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="is not a file of tensors that torch can read safely"):
        read_checkpoint(tmp_path / "w.pth")
    assert not (tmp_path / "done").exists()


def test_a_file_of_torch_s_holds_what_it_likes_beside_plain_tensors(tmp_path):
    """Parameters, half precision, other names than texts, and a dictionary that is wrapped in itself."""
    torch = pytest.importorskip("torch", reason="torch is an extra")
    half = torch.tensor([1.5], dtype=torch.bfloat16)
    torch.save({"a": torch.nn.Parameter(torch.ones(2)), "b": half, 3: torch.ones(1), "epoch": 4}, tmp_path / "w.pth")
    np.testing.assert_equal(read_checkpoint(tmp_path / "w.pth"), {"a": np.ones(2, "f4"), "b": np.array([1.5], "f4")})
    within = {"a": torch.ones(1)}
    within["model"] = within
    torch.save(within, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth") == {}


def test_tensors_that_numpy_does_not_have_are_one_line(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is an extra")
    for tensor in (torch.ones(2, 2).to_sparse(), torch.ones(2, device="meta"), torch.ones(2).to(torch.float8_e5m2)):
        torch.save({"conv1.weight": tensor}, tmp_path / "w.pth")
        with pytest.raises(InputError, match="w.pth is not a file of tensors that torch can read safely: .") as caught:
            read_checkpoint(tmp_path / "w.pth")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_of_torch_s_is_one_line_or_tensors(tmp_path, zipped):
    torch = pytest.importorskip("torch", reason="torch is an extra")
    path, rng, refused = tmp_path / "w.pth", np.random.default_rng(0), 0
    torch.save({f"a{i}": torch.ones(2, 3) for i in range(4)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for damage in [*CUTS.values(), *MORE.values(), *FLIPS.values()] * 20:
        path.write_bytes(whole)
        damage(path, rng)
        try:
            assert all(isinstance(value, np.ndarray) for value in read_checkpoint(path).values())
        except InputError as error:
            assert str(error).startswith(f"{path} is not a file of tensors") and "\n" not in str(error)
            refused += 1
    assert refused > 100


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="names no file: .*nowhere.safetensors"):
        build_unet(ENCODER, encoder_weights=tmp_path / "nowhere.safetensors")


def test_a_training_says_and_records_what_it_began_with(cells, tensors, tmp_path, capsys):
    path = write_safetensors(tmp_path / "w.safetensors", tensors)
    config = tiny_training(cells, encoder=ENCODER, encoder_weights=str(path), run_dir=tmp_path / "run", epochs=1)
    result = train(dataclasses.replace(config, encoder_dropout=0.2, spatial=True))
    told = "".join(capsys.readouterr().out.split())
    assert f"Weights:120of120encodertensorsfrom{path};leftout:fc.bias,fc.weight" in told
    assert "dropoutat3sites" in told
    stored = json.loads((result.run_dir / "config.json").read_text())["weights"]
    assert stored == {
        "file": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "tensors": 120,
        "left_out": ["fc.bias", "fc.weight"],
        "revision": None,
    }
