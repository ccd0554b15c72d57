"Networks of libraries: built without a download, filled from a file, described by their config. Skipped without the library."
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from netinv import load_classifier
from netinv.hubs import _as_pair, _size_of, from_timm, from_torchvision, need
from netinv.weights import save_weights

timm_is_there = pytest.mark.skipif("not __import__('importlib').util.find_spec('timm')", reason="timm is not installed")
hf_is_there = pytest.mark.skipif(
    "not __import__('importlib').util.find_spec('transformers')", reason="transformers is not installed")
keras_is_there = pytest.mark.skipif("not __import__('importlib').util.find_spec('keras')", reason="keras is not installed")


def test_a_missing_library_is_one_line_to_install() -> None:
    with pytest.raises(ValueError, match=r"nowhere is needed: pip install 'netinv\[onnx\]'"): need("nowhere", "onnx")
    with pytest.raises(ValueError, match="nowhere.inside is needed: pip install nowhere"): need("nowhere.inside")


def test_a_broken_library_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_there.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"half_there cannot be imported \(operator nms does not exist\)"):
        need("half_there")


@timm_is_there
def test_timm_with_the_classes_of_the_weights(tmp_path: Path) -> None:
    timm = need("timm")
    trained = timm.create_model("test_resnet", num_classes=7, in_chans=1).eval()
    torch.save({"state_dict_ema": {f"module.{name}": t for name, t in trained.state_dict().items()}}, tmp_path / "w.tar")
    classifier = load_classifier("timm:test_resnet", tmp_path / "w.tar", shape=(1, 32, 32), device="cpu")
    images = torch.rand(3, 1, 32, 32)
    assert torch.allclose(classifier(images).logits, trained((images - 0.5) / 0.5), atol=1e-4)
    said = "; ".join(classifier.notes)
    for part in ("the weights have 7 classes", "mean (0.5,), std (0.5,)", "the shape is the one that you gave"):
        assert part in said


@timm_is_there
def test_timm_without_weights_and_with_names() -> None:
    brought = from_timm("test_vit", shape=(3, 64, 64))
    assert brought.model(torch.rand(2, 3, 64, 64)).shape == (2, 1000)  # its positions are those of the wanted shape
    assert len(brought.classes) == 1000 and "tench" in brought.classes[0]
    assert brought.notes[0] == "no weights were given: the network has random ones"
    own = load_classifier("timm:test_resnet", n_classes=3, shape=(3, 32, 32), preprocess=(0.1, 0.2),
                          classes=["a", "b", "c"], device="cpu")
    assert own.classes == ["a", "b", "c"] and "the normalisation is the one that you gave" in own.notes


@timm_is_there
def test_what_timm_has_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="timm has no network resnet_18: did you mean resnet18"): from_timm("resnet_18")
    save_weights(need("timm").create_model("test_vit", img_size=64), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="pos_embed.*or give the shape of the images"):
        from_timm("test_vit", tmp_path / "w.safetensors")


def test_torchvision_takes_what_is_imagenets_for_imagenet_alone(tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    for n in (1000, 4): save_weights(squeezenet1_1(num_classes=n), tmp_path / f"{n}.safetensors")
    published, tuned = (from_torchvision("squeezenet1_1", tmp_path / f"{n}.safetensors") for n in (1000, 4))
    assert published.preprocess == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) and published.classes[1] == "goldfish"
    assert tuned.preprocess is tuned.classes is None and "the weights have 4 classes" in tuned.notes[0]
    assert from_torchvision("squeezenet1_1").preprocess is None  # random weights want nothing
    with pytest.raises(ValueError, match="has no classifier fasterrcnn_resnet50_fpn"):
        from_torchvision("fasterrcnn_resnet50_fpn")


@pytest.mark.parametrize("config", [
    {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]},
    {"image_mean": 0.5, "image_std": 0.25, "rescale_factor": 1 / 127.5},
    {"do_normalize": False, "rescale_factor": 1 / 127.5, "rescale_offset": True},
    {"do_normalize": False, "do_rescale": False},
    {"do_rescale": False, "image_mean": [123.0] * 3, "image_std": [58.0] * 3},
])
def test_a_processor_is_a_mean_and_a_deviation(config: dict) -> None:
    "What its steps do one after the other to pixels of 0 to 255."
    pixels = torch.rand(3, 4, 4)
    expected = 255 * pixels
    if config.get("do_rescale", True): expected = expected * config.get("rescale_factor", 1 / 255)
    if config.get("rescale_offset"): expected = expected - 1
    if config.get("do_normalize", True):
        mean, std = (torch.tensor(config[f"image_{key}"]).view(-1, 1, 1) for key in ("mean", "std"))
        expected = (expected - mean) / std
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in _as_pair(config, 3))
    assert torch.allclose((pixels - mean) / std, expected, atol=1e-3)


def test_sizes_of_a_processor() -> None:
    assert _size_of({"size": 32}, None) == (32, 32) and _size_of({}, None) is None
    assert _size_of({"size": {"shortest_edge": 48}, "crop_size": {"height": 40, "width": 40}}, None) == (48, 48)
    assert _size_of({"size": {"shortest_edge": 48}, "crop_size": 40, "do_center_crop": True}, None) == (40, 40)


def tiny_vit(folder: Path, **options) -> nn.Module:
    "A folder as Hugging Face has them."
    transformers = need("transformers")
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, **options)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    steps = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.4] * 3, "image_std": [0.2] * 3,
             "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(steps))
    return model


@hf_is_there
@pytest.mark.parametrize("how", ["safetensors", "bin", "weights", "without a prefix"])
def test_a_folder_of_hugging_face(tmp_path: Path, how: str) -> None:
    model = tiny_vit(tmp_path, id2label={0: "cat", 1: "dog", 2: "owl"})
    weights = None
    if how != "safetensors":
        (tmp_path / "model.safetensors").unlink()
        weights = tmp_path / "w.pth" if how == "weights" else None
        torch.save(model.state_dict(), weights or tmp_path / "pytorch_model.bin")
    source = str(tmp_path) if how == "without a prefix" else f"hf:{tmp_path}"
    classifier = load_classifier(source, weights, device="cpu")
    images = torch.rand(3, 3, 16, 16)
    assert torch.allclose(classifier(images).logits, model((images - 0.4) / 0.2).logits, atol=1e-4)
    assert classifier.classes == ["cat", "dog", "owl"] and classifier.shape == (3, 16, 16)
    assert any("gives mean (0.4, 0.4, 0.4) and std (0.2, 0.2, 0.2)" in note for note in classifier.notes)


@hf_is_there
def test_folders_that_are_no_classifier(tmp_path: Path) -> None:
    model = tiny_vit(tmp_path, num_labels=3)
    model.vit.save_pretrained(tmp_path / "backbone")
    with pytest.raises(ValueError, match="has no weights for classifier.bias, classifier.weight: it is no trained"):
        load_classifier(f"hf:{tmp_path}/backbone")
    with pytest.raises(ValueError, match="there is no such folder, and nothing of that name in the local cache"):
        load_classifier("hf:nobody/nothing")
    config = json.loads((tmp_path / "config.json").read_text())
    own = {**config, "model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForImageClassification": "own.M"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'boom')!r}, 'w')")
    with pytest.raises(ValueError, match="it wants code of its own, which is not run"): load_classifier(f"hf:{tmp_path}")
    assert not (tmp_path / "boom").exists()


@keras_is_there
@pytest.mark.parametrize("kind", [".keras", ".h5", "object"])
def test_keras_on_torch(tmp_path: Path, kind: str) -> None:
    from netinv.hubs import keras_on_torch

    keras = keras_on_torch()
    layers = keras.layers
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, activation="relu"),
                              layers.Flatten(), layers.Dense(5, activation="softmax")])
    if kind != "object": model.save(tmp_path / f"k{kind}")
    classifier = load_classifier(model if kind == "object" else str(tmp_path / f"k{kind}"), device="cpu")
    images = torch.rand(3, 3, 8, 8)
    expected = model(255 * images.permute(0, 2, 3, 1))
    assert torch.allclose(classifier(images).logits.softmax(1), expected, atol=1e-4)
    assert classifier.shape == (3, 8, 8) and classifier.feature_dim == 144 and classifier.ends_with == "softmax"


@keras_is_there
@pytest.mark.parametrize("kind", [".keras", ".h5"])
def test_keras_runs_no_lambda(tmp_path: Path, kind: str) -> None:
    from netinv.hubs import keras_on_torch

    keras = keras_on_torch()
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Lambda(lambda x: x / 2), keras.layers.Flatten()])
    model.save(tmp_path / f"k{kind}")
    with pytest.raises(ValueError, match="without running code|which is code: it is not run"):
        load_classifier(str(tmp_path / f"k{kind}"))
