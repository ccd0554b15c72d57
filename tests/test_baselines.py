"Baselines: descent on pixels leaves no hook, stationarity by hand."
import pytest
import torch
import victims
from networks import Wrapped, worn_cnn
from torch import nn

from netinv.baselines import DeepInverter, PixelInverter, reconstruct_from_stationarity, stationarity_loss
from netinv.frozen import FrozenClassifier
from netinv.losses import ce_loss
from netinv.samples import look


@pytest.mark.parametrize("kind", [PixelInverter, DeepInverter])
def test_descent_on_pixels_gives_samples_and_leaves_no_hook(kind) -> None:
    frozen = FrozenClassifier(worn_cnn((1, 16, 16), 4), shape=(1, 16, 16), device="cpu")
    before, inverter = victims.count_hooks(frozen), kind(frozen)
    assert inverter.fit(3).columns.tolist() == ["step", "seconds", "total", "beta", "accuracy"] and inverter.step == 3
    drawn = inverter.sample(6, seed=0)
    again = look(frozen, drawn.images, drawn.labels)
    torch.testing.assert_close(drawn.probs, again.probs, atol=1e-4, rtol=1e-3)
    assert drawn.generator.tolist() == [0] * 6 and not drawn.images.requires_grad
    assert victims.count_hooks(frozen) == before
    assert (inverter.target is inverter.classifier) == (kind is DeepInverter)  # which has layers to watch


def test_deep_inversion_has_the_statistics_of_batch_norm_in_its_loss() -> None:
    frozen = FrozenClassifier(worn_cnn((1, 16, 16), 4), shape=(1, 16, 16), device="cpu")
    with_it, without = (DeepInverter(frozen, tv=0, l2=0, bn=bn) for bn in (1.0, 0.0))
    for inverter in (with_it, without): inverter.step = 2
    assert not torch.equal(with_it.sample(4, seed=0).images, without.sample(4, seed=0).images)
    plain = PixelInverter(frozen)
    plain.step, plain.target = 2, frozen
    assert torch.equal(plain.sample(4, seed=0).images, without.sample(4, seed=0).images)


def test_a_plain_module_gets_the_line_to_write() -> None:
    for call in (PixelInverter, DeepInverter, reconstruct_from_stationarity):
        with pytest.raises(ValueError, match="FrozenClassifier"): call(victims.perceptron())


def test_stationarity_is_zero_where_the_images_explain_the_weights() -> None:
    torch.manual_seed(0)
    images, multipliers = torch.rand(4, 1, 3, 3, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0])
    rows = (multipliers * (1 - 2.0 * labels)) @ images.flatten(1)  # margins of two classes: the difference of two rows
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2, bias=False)).double()
    model[1].weight.data = torch.stack([rows, -rows])
    assert stationarity_loss(model, images, labels, multipliers).item() < 1e-20
    assert stationarity_loss(model, images, 1 - labels, multipliers).item() == pytest.approx(4)


def test_stationarity_brings_back_what_a_small_network_was_trained_on() -> None:
    torch.manual_seed(0)
    images, labels = (torch.rand(6, 1, 8, 8) > 0.7).float(), torch.arange(6) % 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 200, bias=False), nn.ReLU(), nn.Linear(200, 3, bias=False))
    for p in model.parameters(): p.data *= 0.1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(1500):
        optimizer.zero_grad()
        ce_loss(model(images), labels).backward()
        optimizer.step()
    frozen = FrozenClassifier(model, shape=(1, 8, 8), device="cpu")
    found = reconstruct_from_stationarity(frozen, n=12, steps=800, progress=False)
    unit = lambda x: nn.functional.normalize(x.flatten(1), dim=1)
    others = (torch.rand(6, 1, 8, 8) > 0.7).float()
    alike = lambda references: (unit(found.images) @ unit(references).T).amax(0).mean()
    assert alike(images) > alike(others) + 0.1


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Sigmoid()])
def test_stationarity_sees_the_logits_before_a_squash(last: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False))
    plain, squashed = (FrozenClassifier(m, shape=(1, 8, 8), device="cpu") for m in (model, nn.Sequential(model, last)))
    found = [reconstruct_from_stationarity(c, n=4, steps=3, progress=False).images for c in (plain, squashed)]
    torch.testing.assert_close(*found)
    with pytest.warns(UserWarning, match="the classifier returns"):
        stuck = FrozenClassifier(Wrapped(lambda x, m: last(m(x)), model), shape=(1, 8, 8), device="cpu")
    with pytest.raises(ValueError, match=f"let the classifier return what its {stuck.ends_with} is given"):
        reconstruct_from_stationarity(stuck, n=4, steps=3, progress=False)


def test_attention_has_a_stationarity() -> None:
    torch.manual_seed(0)
    loss = stationarity_loss(victims.Attention().eval(), torch.rand(4, 1, 28, 28), torch.arange(4), torch.ones(4))
    assert loss.isfinite()
