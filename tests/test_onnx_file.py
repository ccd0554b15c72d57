"ONNX files: rebuilt in PyTorch so that they answer the same, for any batch, with gradients. Skipped without the libraries."
import copy
import importlib.util
import io
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from netinv import load_classifier, onnx_file
from netinv.onnx_file import OneByOne, _batch_axis, _free_targets, from_onnx

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'netinv[onnx]'")
pytest.importorskip("onnx2torch", reason="onnx2torch is not installed: pip install 'netinv[onnx]'")
exporter = pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="onnxscript is not installed")


class Attention(nn.Module):
    "A class token, positions, and an attention that puts the positions before the batch."
    def __init__(self, first: bool):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=first), nn.Linear(8, 5)
        self.first = first

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        if not self.first: x = x.transpose(0, 1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x[:, 0] if self.first else x[0])


class Shuffled(nn.Module):
    "Channels in groups, shuffled, as ShuffleNet does; the mean by a pooling layer."
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.body(images)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).view(b, -1)).softmax(1)


class ChannelsLast(nn.Module):
    "As TensorFlow has it."
    def __init__(self):
        super().__init__()
        self.inner = Shuffled()

    def forward(self, images: Tensor) -> Tensor: return self.inner(images.permute(0, 3, 1, 2))


class Two(nn.Module):
    "Two heads."
    def __init__(self):
        super().__init__()
        self.body, self.a, self.b = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU()), nn.Linear(8, 5), nn.Linear(8, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(images)
        return self.a(x), self.b(x)


def export(network: nn.Module, path: Path, batch: int = 1, shape: tuple = (3, 16, 16), **options) -> Path:
    "An ONNX file, without the exporter's chatter."
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(network.eval(), (torch.rand(batch, *shape),), path, **options)
    return path


IMAGES = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
FREE = {"dynamo": True, "dynamic_shapes": ({0: "batch"},)}


@exporter
@pytest.mark.parametrize(("kind", "how"), [  # the new exporter takes seconds
    ("attention", "fixed"), ("positions first", "opset 21"), ("shuffled", "free"), ("attention", "older exporter"),
    ("positions first", "older exporter"), ("shuffled", "older exporter"), ("shuffled", "older, batches of two")])
def test_answers_and_gradients_are_the_same(tmp_path: Path, kind: str, how: str) -> None:
    torch.manual_seed(0)
    network = {"attention": lambda: Attention(True), "positions first": lambda: Attention(False), "shuffled": Shuffled}[kind]()
    options = {"fixed": {"dynamo": True}, "older, batches of two": {"dynamo": False, "batch": 2},
               "free": {**FREE, "batch": 2}, "older exporter": {"dynamo": False},
               "opset 21": {"dynamo": True, "opset_version": 21}}[how]
    classifier = load_classifier(str(export(network, tmp_path / "n.onnx", **options)), device="cpu")
    mine, right = IMAGES.clone().requires_grad_(), IMAGES.clone().requires_grad_()
    got, expected = classifier(mine).logits, network(right)
    if isinstance(network, Shuffled): got = got.softmax(1)
    assert torch.allclose(got, expected, atol=1e-4)
    gradients = [torch.autograd.grad(out[:, 1].sum(), x)[0] for out, x in ((got, mine), (expected, right))]
    assert torch.allclose(*gradients, atol=1e-4)
    assert classifier.feature_dim == 8, classifier.feature_layer


@exporter
def test_channels_last_and_several_outputs(tmp_path: Path) -> None:
    last = ChannelsLast()
    brought = from_onnx(export(last, tmp_path / "l.onnx", shape=(16, 16, 3), dynamo=False))
    assert brought.shape == (3, 16, 16) and any("channels last" in note for note in brought.notes)
    assert torch.allclose(brought.model(IMAGES), last(IMAGES.permute(0, 2, 3, 1)), atol=1e-5)
    two = Two()
    path = export(two, tmp_path / "t.onnx", dynamo=False, output_names=["kind", "sex"])
    for name, right in zip(("kind", "sex"), two(IMAGES)):
        classifier = load_classifier(path, output=name, device="cpu")
        assert torch.allclose(classifier(IMAGES).logits, right, atol=1e-5)


@exporter
def test_constants_as_paddle_writes_them_and_names(tmp_path: Path) -> None:
    network = Shuffled()
    model = onnx.load(export(network, tmp_path / "n.onnx", 2, dynamo=False))
    for tensor in model.graph.initializer:
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=copy.deepcopy(tensor)))
    del model.graph.initializer[:]
    onnx.helper.set_model_props(model, {"author": "x", "character": "a\nb\nc\nd\ne"})
    onnx.save(model, tmp_path / "p.onnx")
    classifier = load_classifier(tmp_path / "p.onnx", device="cpu")
    assert torch.allclose(classifier(IMAGES).logits.softmax(1), network(IMAGES), atol=1e-4)
    assert classifier.classes == list("abcde") and classifier.ends_with == "softmax"


@exporter
@pytest.mark.parametrize("missing", ["onnxruntime", "onnx2pytorch", "onnx2torch"])
def test_without_one_of_the_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    "One converter is enough, and ONNX's own reference where ONNX Runtime is not there."
    find, need = importlib.util.find_spec, onnx_file.need
    def lacking(name: str, *rest):
        if name == missing: raise ValueError(f"{missing} is needed: pip install 'netinv[onnx]'")
        return need(name, *rest)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    monkeypatch.setattr(onnx_file, "need", lacking)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5))
    brought = from_onnx(export(network, tmp_path / "n.onnx", dynamo=False, opset_version=11))
    assert torch.allclose(brought.model(IMAGES), network(IMAGES), atol=1e-5) and missing not in brought.notes[0]


@exporter
def test_weights_beside_the_file(tmp_path: Path) -> None:
    path = export(Shuffled(), tmp_path / "n.onnx", dynamo=False)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="n.weights", size_threshold=0)
    assert from_onnx(path).shape == (3, 16, 16)
    (tmp_path / "n.weights").unlink()
    with pytest.raises(ValueError, match="cannot be read as ONNX"): from_onnx(path)


def small_graph(nodes: list, inputs: dict[str, list], path: Path) -> Path:
    "A file with a graph made by hand."
    entry = lambda name, shape: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
    graph = onnx.helper.make_graph(nodes, "g", [entry(*each) for each in inputs.items()], [entry("y", None)])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_graphs_that_are_no_classifier(tmp_path: Path) -> None:
    make, path, image = onnx.helper.make_node, tmp_path / "n.onnx", {"x": ["b", 3, 8, 8]}
    def refused(nodes: list, inputs: dict, match: str) -> None:
        with pytest.raises(ValueError, match=match) as error: load_classifier(small_graph(nodes, inputs, path))
        assert "\n" not in str(error.value)
    refused([make("Add", ["x", "z"], ["y"])], {**image, "z": [1, 3, 8, 8]}, "expected one batch of images")
    refused([make("Relu", ["x"], ["y"])], {"x": ["b", 784]}, r"takes x \[0, 784\]: expected one batch of images")
    refused([make("Relu", ["x"], ["y"])], {"x": ["b", 3, "h", "w"]}, r"takes images of 3x\?x\?: say which with shape=")
    refused([make("DynamicQuantizeLinear", ["x"], ["y", "s", "p"])], image, "is quantised .* take the float model")
    refused([make("Round", ["x"], ["y"])], image, "no converter can turn the graph into PyTorch .*it has no gradient")
    path.write_text("<html>")
    with pytest.raises(ValueError, match="is a web page"): load_classifier(path)
    with pytest.raises(FileNotFoundError, match="there is no file"): load_classifier(tmp_path / "none.onnx")


def test_where_a_batch_may_be() -> None:
    b = onnx_file._PRIME
    assert _batch_axis([3, b, 4]) == 1 and _batch_axis([3, 4]) is None
    assert _free_targets([1, 8], [b, 8, 1, 1], 1)[0] == [-1, 8]
    assert _free_targets([2, -1], [b, 4, 2], 2)[0] == [-1, 8]
    assert _free_targets([3, 4], [3, 4], 1) == [[3, 4]]
    assert [17, -1, 32] in _free_targets([17, 1, 32], [17 * b, 32], 1)


@pytest.mark.parametrize("n", [1, 4, 5])
def test_one_small_batch_after_the_other(n: int) -> None:
    class Fixed(nn.Module):
        "Takes two images, not one more."
        def forward(self, images: Tensor) -> Tensor: return images.view(2, -1)

    assert torch.equal(OneByOne(Fixed(), 2)(IMAGES[:n]), IMAGES[:n].flatten(1))
