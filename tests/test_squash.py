"netinv.squash: the layer that squashes is known by what it computes, also where its outputs are all 0 or 1."
import pytest
import torch
from torch import nn

from networks import OwnSoftmax, Wrapped

from netinv.squash import SQUASHES, take_off_squash

IMAGES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def sure(x):
    "Logits of which sigmoids and every softmax make the same zeros and ones."
    return 500 * (torch.eye(5).repeat(2, 1)[:len(x)] - 0.5) + 0 * x.mean()


@pytest.mark.parametrize("last, kind", [
    (nn.Softmax(1), "softmax"), (OwnSoftmax(), "softmax"), (nn.Sigmoid(), "sigmoid"), (OwnSoftmax(2), None),
])
def test_saturated_outputs_do_not_hide_what_a_layer_computes(last, kind) -> None:
    model = nn.Sequential(Wrapped(sure), last)
    assert model(IMAGES).unique().tolist() == [0, 1]
    assert take_off_squash(model, lambda: model(IMAGES)) == kind
    assert torch.equal(model(IMAGES), sure(IMAGES) if kind else sure(IMAGES).softmax(1))


def test_a_layer_that_hidden_layers_use_stays_though_the_probe_would_not_tell() -> None:
    model = Wrapped(lambda x, last: last(sure(x) + last(x[:, 0, 0, :5])), nn.Sigmoid())
    outputs = model(IMAGES)
    assert take_off_squash(model, lambda: model(IMAGES)) is None and torch.equal(model(IMAGES), outputs)


@pytest.mark.parametrize("kind", SQUASHES)
def test_logits_of_outputs_squash_to_the_same_outputs_and_have_the_right_slope(kind) -> None:
    squash, unsquash = SQUASHES[kind]
    z = (2 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    torch.testing.assert_close(squash(unsquash(squash(z))), squash(z))
    picked = lambda logits: logits[:, 0] - logits[:, 1]
    torch.testing.assert_close(picked(unsquash(squash(z))), picked(z), rtol=1e-3, atol=1e-3)
    slope = torch.autograd.grad(picked(unsquash(squash(z))).sum(), z)[0]
    torch.testing.assert_close(slope, torch.tensor([1.0, -1, 0, 0]).expand(50, 4), rtol=1e-3, atol=1e-3)
    assert unsquash(torch.eye(3)).isfinite().all()
