"Where classifiers come from: factories, files of weights, normalisation."
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from netinv.bring import build_model, load_factory, load_weights, normaliser, save_weights
from netinv.classifier import CNN


def perceptron(n_classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, n_classes))


class Remembering(nn.Sequential):
    "A module with a state that is no tensor."
    def get_extra_state(self): return {"version": 2}
    def set_extra_state(self, state): pass


def test_a_state_that_is_no_tensor(tmp_path):
    with pytest.raises(ValueError, match="has a state that is no tensor"):
        save_weights(Remembering(nn.Linear(2, 2)), tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


def test_state_dicts_of_other_names(tmp_path):
    model = nn.Linear(2, 2)
    for name in ("w.bin", "w.ckpt"):
        torch.save({"state_dict": model.state_dict()}, tmp_path / name)
        assert torch.equal(load_weights(nn.Linear(2, 2), tmp_path / name).weight, model.weight)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "nested", "wrapped"])
def test_weights_round_trip(tmp_path, kind):
    model, other = CNN((1, 8, 8), 3), CNN((1, 8, 8), 3)
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    state = model.state_dict()
    if kind == "safetensors":
        save_weights(model, path)
    else:
        wrapped = {f"module.{k}": v for k, v in state.items()}
        content = {"pt": state, "nested": {"state_dict": state, "epoch": 3}, "wrapped": wrapped}
        torch.save(content[kind], path)
    assert load_weights(other, path) is other
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in state.items())


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_pickle_bomb_is_refused(tmp_path, suffix, how):
    path, boom = tmp_path / f"bomb{suffix}", tmp_path / "boom"
    if how == "torch":
        torch.save({"head.weight": Bomb(boom)}, path)
    else:
        path.write_bytes(pickle.dumps({"head.weight": Bomb(boom)}))
    model = CNN((1, 8, 8), 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_weights(model, path)
    assert "\n" not in str(error.value) and not boom.exists()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_unfit_weights_change_nothing(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(CNN((1, 8, 8), 5), path)
    model = CNN((1, 8, 8), 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    shapes = r"does not fit CNN \(with another shape or type: head.weight \[5, 128\] instead of \[3, 128\]"
    with pytest.raises(ValueError, match=shapes):
        load_weights(model, path)
    names = "missing: 1.weight, 1.bias, 3.weight and 1 more; not known: body.0.0.weight, "
    with pytest.raises(ValueError, match=names):
        load_weights(perceptron(), path)
    torch.save(model, tmp_path / "whole.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "short.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:1000])
    for name in ("whole.pt", "list.pt", "short.pt"):
        with pytest.raises(ValueError, match="save model.state_dict"):
            load_weights(model, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_weights(model, tmp_path / "none.pt")
    with pytest.raises(ValueError, match="call the file w.safetensors"):
        save_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    "A module of a user's own in the current folder."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "brought", raising=False)
    Path("brought.py").write_text("""from torch import nn

class Net(nn.Linear):
    def __init__(self): super().__init__(4, 2)

made = Net()
number = 3
def broken(): raise RuntimeError("no such file")
""")
    return "brought"


@pytest.mark.parametrize("name", ["Net", "made"])
def test_a_class_and_a_module_are_factories_too(module: str, name: str) -> None:
    torch.save(nn.Linear(4, 2).state_dict(), "w.pt")
    model = build_model(f"{module}:{name}", weights="w.pt")
    assert torch.equal(model.weight, torch.load("w.pt")["weight"])


@pytest.mark.parametrize(("spec", "told"), [
    ("brought", "brought does not name a model: expected package.module:factory"),
    (":Net", "expected package.module:factory"),
    ("nowhere.at.all:Net", "cannot import nowhere.at.all: ModuleNotFoundError"),
    ("brought:Nett", "brought has no function Nett: did you mean Net?"),
    ("brought:number", "brought has no function number"),
    ("brought:broken", "brought:broken could not build a model: RuntimeError: no such file"),
    ("builtins:dict", "builtins:dict returned dict, not a torch.nn.Module"),
])
def test_what_is_no_factory(module: str, spec: str, told: str) -> None:
    with pytest.raises(ValueError) as error: build_model(spec)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_the_current_folder_comes_first(module: str) -> None:
    assert load_factory("brought:Net").__module__ == "brought"


@pytest.mark.parametrize(("mean", "std", "told"), [
    ((0.5, 0.5), None, "mean has 2 numbers for 3 channels"),
    (None, (0.5, 0.5), "std has 2 numbers for 3 channels"),
    (None, (0.5, 0.0, 0.5), "std must be above zero"),
    (None, (-1.0,), "std must be above zero"),
])
def test_numbers_that_normalise_nothing(mean: tuple | None, std: tuple | None, told: str) -> None:
    with pytest.raises(ValueError, match=told): normaliser(mean, std, 3)


def test_normalised_images_have_mean_0_and_deviation_1() -> None:
    images = torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scale = normaliser(tuple(images.mean((0, 2, 3)).tolist()), tuple(images.std((0, 2, 3)).tolist()), 3)
    assert scale(images).mean((0, 2, 3)).abs().max() < 1e-5 and (scale(images).std((0, 2, 3)) - 1).abs().max() < 1e-5
    assert scale(images.half()).dtype == torch.half
