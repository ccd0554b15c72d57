"What weights remember: each trace against a computation of its own, hooks that end with their context, small motions."
import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from netinv.classifier import CNN
from netinv.data import ImageData, to_float
from netinv.frozen import FrozenClassifier
from netinv.traces import (
    ChannelDrop, InputTap, Perturbation, bn_loss, leading_directions, n_clean, remembering_layers, span_share,
)


@given(st.floats(0, 0.3), st.integers(0, 2**20))
@settings(max_examples=20, deadline=None)
def test_noise_stays_within_epsilon(epsilon: float, seed: int) -> None:
    images = torch.full((3, 2, 9, 8), 0.5)
    moved = Perturbation(epsilon, 0, 0, 0)(images, torch.Generator().manual_seed(seed))
    assert (moved - images).abs().max() <= epsilon + 1e-6


def test_perturbations_are_repeatable_and_carry_gradients() -> None:
    images = torch.rand(4, 1, 12, 12, requires_grad=True)
    one, other = (Perturbation()(images, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, other) and not torch.equal(one[0], images[0])
    assert torch.autograd.grad(one.sum(), images)[0].abs().sum() > 0


def test_a_shift_moves_by_no_more_than_asked() -> None:
    dot = torch.zeros(200, 1, 21, 21)
    dot[:, :, 10, 10] = 1
    moved = Perturbation(0, 2 / 21, 0, 0)(dot, torch.Generator().manual_seed(0))
    at = torch.arange(21.0)
    rows, columns = (moved.sum(axis)[:, 0] @ at / moved.sum((1, 2, 3)) for axis in (3, 2))
    assert 1.5 < (rows - 10).abs().max() <= 2.01 and 1.5 < (columns - 10).abs().max() <= 2.01


def test_rotations_keep_distances_in_images_that_are_not_square() -> None:
    wide = torch.zeros(1, 1, 20, 80)
    rng = torch.Generator().manual_seed(1)
    maps = Perturbation(0, 0, 1.0, 0).maps(wide, rng)[0]  # [H, W, 2] in units of half the sides
    at = maps[8:12, 38:42] * torch.tensor([40.0, 10.0])  # in pixels, near the middle
    torch.testing.assert_close((at[:, 1:] - at[:, :-1]).norm(dim=-1), torch.ones(4, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close((at[1:] - at[:-1]).norm(dim=-1), torch.ones(3, 4), atol=1e-4, rtol=0)


def test_motions_are_computed_in_full_precision_under_autocast() -> None:
    move, images = Perturbation(), torch.rand(3, 1, 224, 224)
    grids = []
    for on in (False, True):
        rng = torch.Generator().manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=on): grids.append(move.maps(images, rng))
    torch.testing.assert_close(*grids, rtol=0, atol=0)


def test_bn_loss_against_a_loop() -> None:
    x = torch.randn(2, 6, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, var = torch.tensor([0.1, 0.2, -0.3]).double(), torch.tensor([0.5, 1.0, 2.0]).double()
    total = 0.0
    for k in range(2):
        for c in range(3):
            values = x[k, :, c].flatten().tolist()
            m = sum(values) / len(values)
            sd = math.sqrt(sum((v - m) ** 2 for v in values) / len(values))
            total += ((m - mean[c].item()) ** 2 + (sd - math.sqrt(var[c].item())) ** 2) / (var[c].item() + 1e-5)
    assert bn_loss(x, mean, var).item() == pytest.approx(total / 6, rel=1e-9)
    flat = x[..., 0, 0]
    assert bn_loss(flat[:1], flat[0].mean(0), flat[0].var(0, unbiased=False)).item() == pytest.approx(0, abs=1e-12)


def test_bn_loss_of_bfloat16_maps_is_that_of_the_same_numbers_in_double() -> None:
    rng = torch.Generator().manual_seed(0)
    x = (3 + torch.randn(2, 50, 4, 6, 6, generator=rng)).bfloat16().requires_grad_()
    exact = x.detach().double().requires_grad_()
    mean, var = torch.full((4,), 3.02, dtype=torch.float64), torch.full((4,), 1.1, dtype=torch.float64)
    losses = bn_loss(x, mean.float(), var.float()), bn_loss(exact, mean, var)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-3)
    ours, theirs = (torch.autograd.grad(loss, t)[0].double() for loss, t in zip(losses, (x, exact)))
    assert (ours - theirs).norm() < 0.01 * theirs.norm()
    assert (ours - theirs).sum((1, 3, 4)).norm() < 0.02 * theirs.sum((1, 3, 4)).norm()  # no channel drifts


def test_bn_loss_has_a_finite_gradient_for_constant_channels() -> None:
    x = torch.zeros(1, 4, 2, 3, 3, requires_grad=True)
    bn_loss(x, torch.ones(2), torch.ones(2)).backward()
    assert x.grad.isfinite().all()


def test_span_share_by_projection() -> None:
    weight = torch.randn(8, 30, generator=torch.Generator().manual_seed(0))
    directions = leading_directions(weight, 2)
    assert directions.shape == (6, 30)
    torch.testing.assert_close(directions @ directions.T, torch.eye(6), atol=1e-5, rtol=0)
    x = torch.randn(5, 30)
    projector = directions.T @ directions
    torch.testing.assert_close(span_share(x, directions), (x @ projector).square().sum(1) / x.square().sum(1))
    assert (span_share(torch.zeros(2, 30), directions) == 0).all()


def test_training_images_lie_in_the_span_of_the_updates(frozen: FrozenClassifier, digits: ImageData) -> None:
    _, linear, _ = remembering_layers(frozen)
    def share(images: Tensor) -> float:
        with InputTap(linear) as tap: frozen(images)
        return span_share(tap.take()[0], leading_directions(linear[0].weight, 10)).mean().item()
    rng, real = torch.Generator().manual_seed(0), to_float(digits.train.images)
    noise = torch.rand(300, *digits.shape, generator=rng)
    shuffled = real.flatten(2)[:, :, torch.randperm(784, generator=torch.Generator().manual_seed(0))].view_as(real)
    assert share(real) > 1.2 * max(share(noise), share(shuffled))
    with InputTap(linear) as tap: pass
    frozen(noise)
    assert tap.take() == [None]


def layers_of(model: nn.Module, shape: tuple[int, int, int]) -> tuple[list[nn.Module], ...]:
    return remembering_layers(FrozenClassifier(model.eval(), shape=shape, device="cpu"))


class HeadFirst(nn.Module):
    "Registers its head before its hidden layer, and a layer that it never uses last."
    def __init__(self):
        super().__init__()
        self.head, self.hidden, self.spare = nn.Linear(12, 3), nn.Linear(81, 12), nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor: return self.head(self.hidden(x.flatten(1)).relu())


def test_the_head_is_left_out_where_there_is_another_layer() -> None:
    norms, linear, _ = layers_of(CNN((1, 28, 28), 10), (1, 28, 28))
    assert len(norms) == 3 and [layer.out_features for layer in linear] == [128]
    assert [layer.out_features for layer in layers_of(HeadFirst(), (1, 9, 9))[1]] == [12]
    only_head = nn.Sequential(nn.Flatten(), nn.Linear(81, 2))
    assert [layer.out_features for layer in layers_of(only_head, (1, 9, 9))[1]] == [2]
    forgetful = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(243, 2))
    assert layers_of(forgetful, (3, 9, 9))[0] == []


def test_channels_are_left_out_behind_hidden_layers_and_before_no_batch_norm() -> None:
    kinds = lambda model, shape: [type(layer).__name__ for layer in layers_of(model, shape)[2]]
    # not behind the convolutions, whose maps batch norm measures
    assert kinds(CNN((1, 28, 28), 10), (1, 28, 28)) == ["BatchNorm2d"] * 3 + ["Linear"]
    normed = nn.Sequential(nn.Flatten(), nn.Linear(81, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
    assert kinds(normed, (1, 9, 9)) == ["BatchNorm1d"]
    head = nn.Linear(196, 5), nn.ReLU(), nn.Linear(5, 3)
    assert kinds(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), *head), (1, 9, 9)) == ["Conv2d", "Linear"]


def test_only_a_layer_that_gives_the_logits_is_the_head() -> None:
    class Convolutional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 1)
            self.gate = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.head(x * self.gate(x.mean((2, 3)))[:, :, None, None]).mean((2, 3))

    assert [layer.out_features for layer in layers_of(Convolutional(), (1, 8, 8))[1]] == [6, 4]


def test_an_input_tap_is_not_confused_by_another_thread() -> None:
    layer = nn.Linear(2, 2)
    with InputTap([layer]) as tap:
        layer(torch.ones(1, 2))
        other = threading.Thread(target=lambda: layer(torch.zeros(5, 2)))
        other.start()
        other.join()
    assert torch.equal(tap.take()[0], torch.ones(1, 2)) and not layer._forward_pre_hooks


@given(st.floats(0.05, 0.95), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_channel_drop_keeps_the_mean_and_is_each_images_own(share: float, seed: int) -> None:
    layer, rngs = nn.Identity(), lambda: [torch.Generator().manual_seed(seed + k) for k in range(2)]
    maps = torch.ones(200, 64, 3, requires_grad=True)
    with ChannelDrop([layer], share, rngs()): out = layer(maps)
    assert out.detach().unique().tolist() == pytest.approx([0, 1 / (1 - share)], rel=1e-5)
    assert (out[:, :, 0] == out[:, :, 2]).all()
    assert (out > 0).float().mean().item() == pytest.approx(1 - share, abs=0.03)
    assert not torch.equal(out[0], out[1]) and not torch.equal(out[:100], out[100:])
    with ChannelDrop([layer], share, rngs()): assert torch.equal(layer(maps), out)
    assert torch.autograd.grad(out.sum(), maps)[0].equal(out.detach())
    assert layer(maps) is maps


def test_channel_drop_is_for_one_thread_and_ends_with_its_block() -> None:
    layer, maps, seen = nn.Linear(3, 50), torch.rand(4, 3), []
    rngs = [torch.Generator()]
    with pytest.raises(ZeroDivisionError), ChannelDrop([layer], 0.5, rngs):
        thread = threading.Thread(target=lambda: seen.append((layer(maps) == 0).any().item()))
        thread.start(), thread.join()
        assert (layer(maps) == 0).any()
        1 / 0
    assert seen == [False] and (layer(maps) != 0).all()
    with pytest.raises(ValueError, match="channels is 1.0: expected a share"): ChannelDrop([layer], 1.0, rngs)
    with ChannelDrop([layer], 0.0, rngs): assert (layer(maps) != 0).all()
    assert not layer._forward_hooks


@given(st.floats(0, 0.999), st.integers(2, 500))
def test_a_clean_part_leaves_some_to_disturb_and_has_statistics(share: float, batch: int) -> None:
    n = n_clean(share, batch)
    assert n < batch and n != 1 and n <= share * batch < n + 2
