"Files of weights: any name and layout, fitted by the names of tensors; nothing is run, and a failure changes nothing."
import argparse
import os
import pickle
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

import netinv
from netinv import bring, weights
from netinv.weights import file_kind, load_weights, read_weights, save_weights


def network(n_classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, n_classes))


TRAINED = network()
STATE = TRAINED.state_dict()


def prefixed(prefix: str, state: dict = STATE) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


def told(model: nn.Module, path: Path) -> list[str]:
    "The warnings of a loading."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_weights(model, path)
    return [str(each.message) for each in caught if each.category is UserWarning]


def same(model: nn.Module, state: dict = STATE, within: float = 0.0) -> bool:
    mine = model.state_dict()
    return all(torch.allclose(mine[name], tensor, atol=within) for name, tensor in state.items())


@dataclass
class Options:
    "A class of somebody's training script."
    lr: float = 0.1


def optimizer_state() -> dict:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


LAYOUTS = {
    "plain": lambda: STATE,
    "parameters and statistics": lambda: {name: t for name, t in STATE.items() if "num_batches" not in name},
    "averaged": lambda: AveragedModel(TRAINED).state_dict(),
    "compiled and parallel": lambda: prefixed("_orig_mod.module."),
    "lightning": lambda: {"state_dict": prefixed("model."), "epoch": 3, "optimizer_states": [optimizer_state()]},
    "net": lambda: {"net": STATE, "acc": 95.0, "epoch": 200},
    "state_dict_ema": lambda: {"state_dict_ema": STATE},
    "resumable": lambda: {"model": STATE, "optimizer": optimizer_state(), "rng": torch.get_rng_state(),
                          "numpy": np.random.get_state()},
    "deep": lambda: {"a": {"b": {"weights": prefixed("encoder.backbone.")}}},
    "tuple": lambda: (STATE, 3),
    "numpy": lambda: {name: tensor.numpy() for name, tensor in STATE.items()},
    "profiled": lambda: {**STATE, "total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)},
    "parallel in the middle": lambda: {name.replace("0.", "0.module."): tensor for name, tensor in STATE.items()},
    "options": lambda: {"model": STATE, "args": argparse.Namespace(lr=np.float64(0.1), out=Path("runs"), of={1, 2}),
                        "options": Options()},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_checkpoints(tmp_path: Path, layout: str, zipped: bool) -> None:
    torch.save(LAYOUTS[layout](), tmp_path / "w", _use_new_zipfile_serialization=zipped)
    model = network()
    assert told(model, tmp_path / "w") == [] and same(model, {name: t for name, t in STATE.items() if "num_" not in name})


@pytest.mark.parametrize("name", ["w.pth", "model_best.pth.tar", "w.PTH", "w.pkl", "w.model", "checkpoint-100",
                                  "w.safetensors", "w.onnx", "w.pt2"])
@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_name_says_nothing(tmp_path: Path, name: str, save: Callable) -> None:
    save(STATE, tmp_path / name)
    assert same(load_weights(network(), tmp_path / name))


def test_half_precision(tmp_path: Path) -> None:
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in STATE.items()}, tmp_path / "w")
    model = load_weights(network(), tmp_path / "w")
    assert same(model, within=1e-3) and model[0].weight.dtype == torch.float32


class Behind(nn.Module):
    "A network behind a normalisation."
    def __init__(self, net: nn.Module):
        super().__init__()
        self.register_buffer("mean", torch.full((1,), 0.3))
        self.net = net


@pytest.mark.parametrize("wrap", [nn.DataParallel, nn.Sequential, torch.compile, AveragedModel,
                                  lambda net: nn.ModuleDict({"a": net})])
def test_a_wrapped_network_takes_plain_weights(tmp_path: Path, wrap: Callable) -> None:
    model = wrap(network())
    save_weights(TRAINED, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(mine, wanted) for mine, wanted in zip(model.parameters(), TRAINED.parameters(), strict=True))


def test_the_normalisation_in_front_is_kept_and_said(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w")
    model = Behind(network())
    (warning,) = told(model, tmp_path / "w")
    assert "the file has no mean: the network's own are kept" in warning
    assert same(model.net) and model.mean.item() == pytest.approx(0.3)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)
        self.b.weight = self.a.weight


def test_tied_names(tmp_path: Path) -> None:
    one, other = Tied(), Tied()
    save_model(one, str(tmp_path / "w"))
    load_weights(other, tmp_path / "w")
    assert torch.equal(other.b.weight, one.a.weight) and other.a.weight is other.b.weight
    torch.save({**one.state_dict(), "b.weight": torch.zeros(8, 8)}, tmp_path / "w")
    with pytest.raises(ValueError, match="with two values, though the network has one tensor there"):
        load_weights(other, tmp_path / "w")


def test_several_that_fit(tmp_path: Path) -> None:
    other = network()
    torch.save({"model": STATE, "model_ema": prefixed("module.", other.state_dict())}, tmp_path / "w")
    model = network()
    (warning,) = told(model, tmp_path / "w")
    assert same(model, other.state_dict()) and "taken are model_ema; model would fit, too" in warning
    torch.save({**prefixed("online_model."), **prefixed("ema_model.", other.state_dict())}, tmp_path / "w")
    (warning,) = told(model, tmp_path / "w")
    assert same(model, other.state_dict()) and "online_model" in warning


def test_a_larger_network_is_no_smaller_one(tmp_path: Path) -> None:
    "All names of the small one are in the large one, with the same shapes."
    small = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    torch.save(nn.Sequential(*small, nn.Linear(4, 4)).state_dict(), tmp_path / "w")
    with pytest.raises(ValueError, match="not known: 2.bias, 2.weight"): load_weights(small, tmp_path / "w")


def test_a_part_that_fits_by_chance(tmp_path: Path) -> None:
    torch.save({f"{k}.{name}": t for k in range(9) for name, t in nn.Linear(4, 4).state_dict().items()}, tmp_path / "w")
    with pytest.raises(ValueError, match="not known"): load_weights(nn.Linear(4, 4), tmp_path / "w")


def test_folders_and_parts(tmp_path: Path) -> None:
    parts = [dict(list(STATE.items())[:4]), dict(list(STATE.items())[4:])]
    for k, part in enumerate(parts): save_file(part, tmp_path / f"{k}.safetensors")
    with pytest.raises(ValueError, match=r"has several files \(0.safetensors, 1.safetensors\)"):
        load_weights(network(), tmp_path)
    index = '{"weight_map": {%s}}' % ", ".join(f'"{name}": "{k}.safetensors"' for k in (0, 1) for name in parts[k])
    (tmp_path / "model.safetensors.index.json").write_text(index)
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"): assert same(load_weights(network(), path))
    (tmp_path / "1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="there is no file"): load_weights(network(), tmp_path)


class Call:
    "What calls a function when it is unpickled."
    def __init__(self, *call): self.call = call
    def __reduce__(self): return self.call[0], self.call[1:]


@pytest.mark.parametrize("call", [(os.system, "touch boom"), (eval, "open('boom', 'w')"), (open, "boom", "w"),
                                  (subprocess.Popen, ["touch", "boom"]), (Path.touch, Path("boom"))])
@pytest.mark.parametrize("place", ["a weight", "beside good weights"])
def test_no_pickle_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"0.weight": Call(*call)} if place == "a weight" else {"model": STATE, "x": Call(*call)}, "w")
    model, before = network(), network()
    before.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="was not run") as error: load_weights(model, "w")
    assert "\n" not in str(error.value) and not Path("boom").exists() and same(model, before.state_dict())


def test_classes_in_a_checkpoint_are_shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Their own code is not even imported."
    torch.save({"model": STATE, "options": Options()}, tmp_path / "w")
    monkeypatch.setattr(Options, "__setattr__", lambda *_: pytest.fail("it was made"))
    assert same(load_weights(network(), tmp_path / "w"))


BAD = {
    "a whole model": (lambda: TRAINED, r"holds a whole model \(torch.nn.modules.*save model.state_dict"),
    "a whole model in a dict": (lambda: {"model": TRAINED, "epoch": 3}, "holds a whole model"),
    "an optimizer": (optimizer_state, r"does not hold a state dict of tensors \(found: state, param_groups\)"),
    "numbers": (lambda: {"epoch": 3, "acc": 0.5}, r"\(found: epoch, acc\): save model.state_dict"),
    "a list": (lambda: [1, 2], r"\(found: list\)"),
    "other names": (lambda: {name.replace("3.", "head."): t for name, t in STATE.items()},
                    "missing: 3.weight, 3.bias; not known: head.bias, head.weight; 3.weight is most like head.weight"),
    "other sizes": (lambda: network(5).state_dict(), r"3.weight \[5, 144\] instead of \[3, 144\]"),
    "whole numbers": (lambda: {name: t.to(torch.int8) for name, t in STATE.items()}, "torch.int8 instead of torch.float32"),
    "a part": (lambda: {"3.weight": STATE["3.weight"]}, "missing: 0.weight, 0.bias, 1.weight and 4 more"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_changes_nothing(tmp_path: Path, kind: str) -> None:
    make, sentence = BAD[kind]
    torch.save(make(), tmp_path / "w")
    model, before = network(), network()
    before.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match=sentence) as error: load_weights(model, tmp_path / "w")
    assert "\n" not in str(error.value) and same(model, before.state_dict())


def test_a_loading_that_fails_halfway_is_taken_back(tmp_path: Path) -> None:
    class Picky(nn.Sequential):
        "Refuses after it has taken some."
        def load_state_dict(self, state, **options):
            super().load_state_dict(state, **options)
            if torch.equal(state["0.weight"], STATE["0.weight"]): raise RuntimeError("not these")

    torch.save(STATE, tmp_path / "w")
    model, before = Picky(*network()), network()
    before.load_state_dict(dict(model.state_dict()))
    with pytest.raises(ValueError, match="cannot be loaded into Picky"): load_weights(model, tmp_path / "w")
    assert same(model, before.state_dict())


@pytest.mark.parametrize(("content", "sentence"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "is a pointer of Git LFS"),
    (b"\n<!DOCTYPE html><html>", "is a web page"), (b"Not found\n", "is a text"), (b"", "is empty"),
    (b"\x89HDF\r\n", "is HDF5"), (b"\x1f\x8b\x08", "is compressed"), (bytes(range(200, 255)), "is neither safetensors"),
    (pickle.dumps({"a": [1.0]}), "save model.state_dict"), (pickle.dumps(STATE), "save model.state_dict"),
])
def test_what_is_no_file_of_weights(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as error: load_weights(network(), tmp_path / "w.pth")
    assert "\n" not in str(error.value)


def test_archives_of_other_kinds(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    with pytest.warns(DeprecationWarning): torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "s.pt")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "e.pt2")
    kinds = {path.name: file_kind(path) for path in tmp_path.iterdir()}
    assert kinds == {"a.npz": "npz", "s.pt": "torchscript", "e.pt2": "exported"}
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match="as the classifier, not as its weights|arrays of NumPy"): read_weights(path)


def test_lazy_layers_take_their_size_from_the_file(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w")
    lazy = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(3))
    assert same(load_weights(lazy, tmp_path / "w"))


def test_where_the_names_are() -> None:
    assert netinv.load_weights is bring.load_weights is weights.load_weights
    assert netinv.save_weights is bring.save_weights is weights.save_weights
