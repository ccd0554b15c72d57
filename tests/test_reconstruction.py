"Reconstruction: what the attacker may see, each term against a computation of its own, and whether a planted leak is found."
import inspect
import math
import threading
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from networks import worn_cnn

from netinv.baselines import reconstruct_from_stationarity, stationarity_loss
from netinv.classifier import CNN, ClassifierOutput, FrozenClassifier, train_classifier
from netinv.conditioning import Condition
from netinv.data import ImageData, Split, load_data, to_float
from netinv.inversion import Samples
from netinv.losses import ce_loss
from netinv.reconstruction import (ChannelDrop, InputTap, Perturbation, ReconstructionObjective, ReconstructionWeights, best_of, bn_loss, class_cosine_loss,
                                   frechet_distance, leading_directions, leak_test, n_clean, nearest, reconstruct, reconstruction_inverter, reconstruction_report,
                                   remembering_layers, span_share, split_off, triplets)

QUIET = {"progress": False, "amp": "off"}
SMALL = {"width": 16, "latent_dim": 8, "batch_size": 24}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    data = load_data("digits", device="cpu")
    known, _ = split_off(data.train, 300)
    return replace(data, train=known)


@pytest.fixture(scope="module")
def unseen() -> Split:
    return split_off(load_data("digits", device="cpu").train, 300)[1]


@pytest.fixture(scope="module")
def frozen(digits: ImageData) -> FrozenClassifier:
    return FrozenClassifier(train_classifier(digits, epochs=30, device="cpu", progress=False), shape=digits.shape, device="cpu")


def perceptron(n_in: int = 784, n_classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(n_in, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, n_classes))


def test_no_training_image_can_reach_the_attacker() -> None:
    for function in (reconstruct, reconstruction_inverter):
        kinds = [str(p.annotation) for p in inspect.signature(function).parameters.values()]
        assert not any(kind in text for text in kinds for kind in ("ImageData", "Split", "Tensor"))
    for f in fields(ReconstructionWeights) + fields(Perturbation): assert f.type in (float, "float")


def test_the_same_weights_give_the_same_images_whatever_data_is_around(frozen: FrozenClassifier, digits: ImageData) -> None:
    model = CNN(digits.shape, 10).eval()
    model.load_state_dict(frozen.model.state_dict())
    one, other = (reconstruct(c, shape=digits.shape, device="cpu", steps=3, n=20, **QUIET, **SMALL) for c in (frozen, model))
    assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("recipe", ["prior", "paper"])
def test_reconstruct_gives_all_classes_and_lets_the_classifier_alone(frozen: FrozenClassifier, recipe: str) -> None:
    hooks = lambda: [len(m._forward_pre_hooks) for m in frozen.model.modules()]
    before, weights = hooks(), {name: t.clone() for name, t in frozen.model.state_dict().items()}
    found = reconstruct(frozen, recipe=recipe, steps=4, n=40, **QUIET, **SMALL)
    assert torch.bincount(found.labels).tolist() == [4] * 10 and 0 <= found.images.min() and found.images.max() <= 1
    assert hooks() == before and all(torch.equal(t, weights[name]) for name, t in frozen.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in frozen.model.parameters())


def test_unknown_recipe(frozen: FrozenClassifier) -> None:
    with pytest.raises(ValueError, match="'papper' is unknown: expected one of prior, paper"): reconstruct(frozen, recipe="papper")


@pytest.mark.parametrize("model", [perceptron(), nn.Sequential(nn.Conv2d(1, 6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(384, 10)),
                                   nn.Sequential(nn.Conv2d(1, 10, 5, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())])
def test_any_architecture(model: nn.Module) -> None:
    found = reconstruct(model.eval(), shape=(1, 28, 28), device="cpu", steps=3, n=10, weights=ReconstructionWeights(eta_grad=0.1), **QUIET, **SMALL)
    assert found.images.isfinite().all()


def test_a_killed_run_goes_on_to_the_same_end(frozen: FrozenClassifier, tmp_path) -> None:
    wanted = {"n": 20, **QUIET, **SMALL}
    whole = reconstruct(frozen, steps=30, **wanted)
    reconstruct(frozen, steps=20, checkpoint_dir=tmp_path, **wanted)
    resumed = reconstruct(frozen, steps=30, checkpoint_dir=tmp_path, resume=True, **wanted)
    assert torch.equal(whole.images, resumed.images)


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
    generator = torch.Generator().manual_seed(0)
    x = (3 + torch.randn(2, 50, 4, 6, 6, generator=generator)).bfloat16().requires_grad_()
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
    tap = InputTap(linear)
    def share(images: Tensor) -> float:
        frozen(images)
        return span_share(tap.take()[0], leading_directions(linear[0].weight, 10)).mean().item()
    real, noise = to_float(digits.train.images), torch.rand(300, *digits.shape, generator=torch.Generator().manual_seed(0))
    shuffled = real.flatten(2)[:, :, torch.randperm(784, generator=torch.Generator().manual_seed(0))].view_as(real)
    assert share(real) > 1.2 * max(share(noise), share(shuffled))
    tap.close()
    frozen(noise)
    assert tap.take() == [None]


def layers_of(model: nn.Module, shape: tuple[int, int, int]) -> tuple[list[nn.Module], list[nn.Linear], list[nn.Module]]:
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
    assert [layer.out_features for layer in layers_of(nn.Sequential(nn.Flatten(), nn.Linear(81, 2)), (1, 9, 9))[1]] == [2]
    assert layers_of(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(243, 2)), (3, 9, 9))[0] == []


def test_channels_are_left_out_behind_hidden_layers_and_before_no_batch_norm() -> None:
    kinds = lambda model, shape: [type(layer).__name__ for layer in layers_of(model, shape)[2]]
    assert kinds(CNN((1, 28, 28), 10), (1, 28, 28)) == ["BatchNorm2d"] * 3 + ["Linear"]  # and not the convolutions, whose maps batch norm measures
    assert kinds(nn.Sequential(nn.Flatten(), nn.Linear(81, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)), (1, 9, 9)) == ["BatchNorm1d"]
    assert kinds(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(196, 5), nn.ReLU(), nn.Linear(5, 3)), (1, 9, 9)) == ["Conv2d", "Linear"]


@given(st.floats(0.05, 0.95), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_channel_drop_keeps_the_mean_and_is_each_images_own(share: float, seed: int) -> None:
    layer, rngs = nn.Identity(), lambda: [torch.Generator().manual_seed(seed + k) for k in range(2)]
    drop, maps = ChannelDrop([layer]), torch.ones(200, 64, 3, requires_grad=True)
    with drop.during(share, rngs()): out = layer(maps)
    assert out.detach().unique().tolist() == pytest.approx([0, 1 / (1 - share)], rel=1e-5) and (out[:, :, 0] == out[:, :, 2]).all()
    assert (out > 0).float().mean().item() == pytest.approx(1 - share, abs=0.03) and not torch.equal(out[0], out[1]) and not torch.equal(out[:100], out[100:])
    with drop.during(share, rngs()): assert torch.equal(layer(maps), out)
    assert torch.autograd.grad(out.sum(), maps)[0].equal(out.detach())
    assert layer(maps) is maps


def test_channel_drop_is_for_one_thread_and_ends_with_its_block() -> None:
    layer, maps, seen = nn.Linear(3, 50), torch.rand(4, 3), []
    drop, rngs = ChannelDrop([layer]), [torch.Generator()]
    with pytest.raises(ZeroDivisionError), drop.during(0.5, rngs):
        thread = threading.Thread(target=lambda: seen.append((layer(maps) == 0).any().item()))
        thread.start(), thread.join()
        assert (layer(maps) == 0).any()
        1 / 0
    assert seen == [False] and (layer(maps) != 0).all()
    with pytest.raises(ValueError, match="channels is 1.0: expected a share"), drop.during(1.0, rngs): pass
    drop.close()
    with drop.during(0.5, rngs): assert (layer(maps) != 0).all()


def test_channels_are_left_out_of_the_training_pass_alone() -> None:
    frozen = FrozenClassifier(perceptron().eval(), shape=(1, 28, 28), device="cpu")  # nothing to fold: every pass goes through the layers that are watched
    inverter = reconstruction_inverter(frozen, weights=replace(ReconstructionWeights(), alpha=1.0, eta_grad=0.1), perturb=Perturbation(clean=0.0), **{"amp": "off"} | SMALL)
    zeros = []
    frozen.model[3].register_forward_hook(lambda _, __, out: zeros.append((out == 0).any().item()))
    inverter.fit(1, progress=False)
    assert zeros[0] and not any(zeros[1:]) and len(zeros) > 2
    inverter.objective.close()


def test_a_clean_share_is_seen_as_it_is_and_gives_the_statistics(frozen: FrozenClassifier) -> None:
    weights = ReconstructionWeights(alpha=1, alpha_pert=1, beta=1, beta_pert=1, gamma=1, delta=1, eta_bn=1, eta_span=1)
    objective = ReconstructionObjective(frozen, weights, "off", Perturbation(channels=0.3, clean=0.5))
    images, rngs = torch.rand(2, 12, *frozen.shape), [torch.Generator().manual_seed(k) for k in range(2)]
    condition = Condition(torch.randint(10, (2, 12)), torch.rand(2, 12, 10).softmax(2), None, None)
    seen = torch.stack([objective.disturbed(x, rng) for x, rng in zip(images, rngs)])
    assert torch.equal(seen[:, :6], images[:, :6]) and (seen[:, 6:] != images[:, 6:]).flatten(2).any(2).all()
    with torch.no_grad(), objective.during(rngs): flat = frozen(seen.flatten(0, 1))
    got = objective(images, condition, ClassifierOutput(*(part.unflatten(0, (2, 12)) for part in flat)))
    logits = flat.logits.unflatten(0, (2, 12))
    with torch.no_grad(): plain = frozen(images[:, :6].flatten(0, 1))
    torch.testing.assert_close(logits[:, :6].flatten(0, 1), plain.logits)
    nll = -logits.log_softmax(2).gather(2, condition.labels[..., None])[..., 0]
    torch.testing.assert_close(got["ce"], nll[:, :6].mean())
    torch.testing.assert_close(got["ce_pert"], nll[:, 6:].mean())
    objective.close()
    alone = ReconstructionObjective(frozen, weights, "off")  # nothing is disturbed
    with torch.no_grad(): whole = frozen(images[:, :6].flatten(0, 1))
    few = Condition(condition.labels[:, :6], condition.target_probs[:, :6], None, None)
    wanted = alone(images[:, :6], few, ClassifierOutput(*(part.unflatten(0, (2, 6)) for part in whole)))
    for term in ("kl", "ce", "cosine", "ortho", "bn", "span"): torch.testing.assert_close(got[term], wanted[term], atol=1e-5, rtol=1e-4)
    alone.close()


@given(st.floats(0, 0.999), st.integers(2, 500))
def test_a_clean_part_leaves_some_to_disturb_and_has_statistics(share: float, batch: int) -> None:
    n = n_clean(share, batch)
    assert n < batch and n != 1 and n <= share * batch < n + 2


def test_without_batch_norm_every_image_is_perturbed(frozen: FrozenClassifier) -> None:
    for classifier, clean in ((frozen, 0.5), (FrozenClassifier(perceptron().eval(), shape=(1, 28, 28), device="cpu"), 0.0)):
        inverter = reconstruction_inverter(classifier, amp="off", **SMALL)
        assert (inverter.objective.perturb.clean, inverter.weights.beta + inverter.weights.beta_pert) == (clean, 16.0) and (inverter.weights.beta > 0) == (clean > 0)
        inverter.objective.close()


def test_a_clean_share_saves_the_second_pass(frozen: FrozenClassifier) -> None:
    passes, watched = [], FrozenClassifier(perceptron().eval(), shape=(1, 28, 28), device="cpu")
    for clean, wanted in ((0.5, 1), (0.0, 2)):
        inverter = reconstruction_inverter(watched, weights=ReconstructionWeights(gamma=1.0), perturb=Perturbation(clean=clean), **{"amp": "off"} | SMALL)
        handle = inverter.quick.model.register_forward_hook(lambda *_: passes.append(1))
        inverter.train_step()
        handle.remove(), inverter.objective.close()
        assert len(passes) == wanted
        passes.clear()


def test_generators_trained_at_once_learn_what_each_learns_alone(frozen: FrozenClassifier) -> None:
    first = []
    for k in (1, 3):
        inverter = reconstruction_inverter(frozen, n_generators=k, amp="off", weights=replace(ReconstructionWeights(), eta_grad=0.01, alpha=1.0, gamma=1.0), **SMALL)
        inverter.fit(4, progress=False)
        inverter.objective.close()
        first.append(torch.cat([p.detach().flatten() for p in inverter.generators[0].parameters()]))
    torch.testing.assert_close(*first, atol=1e-3, rtol=0)


def test_a_failed_construction_leaves_no_hook(frozen: FrozenClassifier) -> None:
    hooks = lambda: sum(len(m._forward_pre_hooks) for m in frozen.model.modules())
    before = hooks()
    with pytest.raises(ValueError, match="at least 2 images"): reconstruct(frozen, batch_size=1)
    with pytest.raises(TypeError): reconstruct(frozen, widht=3)
    with pytest.raises(ValueError, match="both must be at least 1"): reconstruct(frozen, n=0)
    assert hooks() == before


def test_a_checkpoint_of_other_weights_is_refused(frozen: FrozenClassifier, tmp_path) -> None:
    reconstruct(frozen, steps=10, n=10, checkpoint_dir=tmp_path, **QUIET, **SMALL)
    with pytest.raises(ValueError, match="was written with"):
        reconstruct(frozen, steps=10, n=10, checkpoint_dir=tmp_path, resume=True, weights=ReconstructionWeights(eta_bn=0.0), **QUIET, **SMALL)


def test_an_input_tap_is_not_confused_by_another_thread() -> None:
    layer = nn.Linear(2, 2)
    tap = InputTap([layer])
    layer(torch.ones(1, 2))
    other = threading.Thread(target=lambda: layer(torch.zeros(5, 2)))
    other.start()
    other.join()
    assert torch.equal(tap.take()[0], torch.ones(1, 2))


def test_class_cosine_against_a_loop() -> None:
    images, labels = torch.rand(2, 5, 1, 3, 3, dtype=torch.float64), torch.tensor([[0, 1, 0, 1, 2], [3, 3, 3, 0, 1]])
    pairs = [torch.cosine_similarity(images[k, i].flatten(), images[k, j].flatten(), dim=0).item()
             for k in range(2) for i in range(5) for j in range(5) if i != j and labels[k, i] == labels[k, j]]
    assert class_cosine_loss(images, labels).item() == pytest.approx((sum(pairs[:4]) / 4 + sum(pairs[4:]) / 6) / 2, rel=1e-9)


def test_terms_without_weight_are_zero_and_the_others_are_what_they_say(frozen: FrozenClassifier) -> None:
    inverter = reconstruction_inverter(frozen, weights=ReconstructionWeights.paper(), perturb=Perturbation(0, 0, 0, 0, 0, 0), **{"amp": "off"} | SMALL)
    inverter.fit(1, progress=False)
    first = inverter.history.iloc[0]
    assert first.kl == pytest.approx(first.kl_pert, rel=1e-4) and first.ce == pytest.approx(first.ce_pert, rel=1e-4)  # nothing was perturbed
    assert first.bn == first.span == first.cosine_class == first.pix == 0 and min(first.grad, first["var"], first.cosine, first.ortho) > 0
    inverter.objective.close()


def test_the_gradient_norm_is_that_of_the_weights(frozen: FrozenClassifier) -> None:
    objective = ReconstructionObjective(frozen, ReconstructionWeights(), "off")
    images, labels = torch.rand(2, 4, *frozen.shape, requires_grad=True), torch.randint(10, (2, 4))
    found = objective.gradient_norm(images, labels)
    model = CNN(frozen.shape, 10).eval()
    model.load_state_dict(frozen.model.state_dict())
    def squared(k: int) -> float:
        model.zero_grad()
        ce_loss(model(images[k].detach()), labels[k]).backward()
        return sum(p.grad.square().sum().item() for p in model.parameters())
    assert found.item() == pytest.approx((squared(0) + squared(1)) / 2, rel=1e-4)
    assert torch.autograd.grad(found, images)[0].abs().sum() > 0 and not any(p.requires_grad for p in frozen.model.parameters())
    objective.close()


def test_the_gradient_norm_in_half_precision_points_the_same_way(frozen: FrozenClassifier) -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(2, 32, *frozen.shape, requires_grad=True), torch.randint(10, (2, 32))
    def found(amp: str) -> tuple[float, Tensor]:
        objective = ReconstructionObjective(frozen, ReconstructionWeights(), amp)
        loss = objective.gradient_norm(images, labels)
        objective.close()
        return loss.item(), torch.autograd.grad(loss, images)[0].flatten()
    (full, along), (half, across) = found("off"), found("bf16")
    assert half != full and half == pytest.approx(full, rel=0.05)
    assert torch.cosine_similarity(along, across, dim=0) > 0.97


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-9, 9)), min_size=4, max_size=40), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_best_of_takes_the_best_of_each_class_in_turn(pairs: list[tuple[int, float]], n: int) -> None:
    labels, scores = torch.tensor([k for k, _ in pairs]), torch.tensor([s for _, s in pairs], dtype=torch.float64)
    rows = torch.arange(len(pairs))
    kept = best_of(Samples(rows[:, None, None, None].float(), labels, rows[:, None], rows[:, None], rows), scores, n)
    assert len(kept) == min(n, len(pairs)) == len(set(kept.generator.tolist()))
    counts, there = torch.bincount(kept.labels, minlength=4), torch.bincount(labels, minlength=4)
    assert all(c == t or c >= counts.max() - 1 for c, t in zip(counts, there))
    for k in range(4):
        chosen, all_of_class = scores[kept.generator[kept.labels == k]], scores[labels == k].sort(descending=True).values
        assert torch.equal(chosen.sort(descending=True).values, all_of_class[: len(chosen)])


def test_nearest_finds_a_copy_in_noise() -> None:
    others = torch.rand(50, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    index, correlation, ssim, psnr = nearest((others[[7, 31]] + 0.01).clamp(0, 1), others)
    assert index.tolist() == [7, 31] and min(correlation.min(), ssim.min()) > 0.99 and psnr.min() > 39


def test_nearest_is_the_highest_correlation_of_numpy() -> None:
    images, others = (torch.rand(n, 3, 8, 9, generator=torch.Generator().manual_seed(n)) for n in (7, 20))
    index, correlation, _, _ = nearest(images, others, batch_size=3)
    expected = np.corrcoef(images.flatten(1), others.flatten(1))[:7, 7:]
    assert index.tolist() == expected.argmax(1).tolist() and np.allclose(correlation, expected.max(1), atol=1e-6)


def test_an_even_image_is_near_to_nothing() -> None:
    "By SSIM and pixel distance, a black image is nearer to digits than most drawings of them."
    digits = torch.zeros(9, 1, 16, 16).index_put_((torch.arange(9), torch.tensor(0), torch.arange(3, 12), torch.tensor(8)), torch.tensor(1.0))
    for level in (0.0, 0.3, 1.0): assert nearest(torch.full((1, 1, 16, 16), level), digits)[1].abs() < 1e-6
    shifted = digits.roll(1, 3)
    assert nearest(0.1 + 0.5 * digits, digits)[1].min() > 0.999 > nearest(shifted, digits)[1].max()


def test_frechet_distance_in_closed_form() -> None:
    a = torch.tensor([[-1.0, 0], [1, 0], [0, -2], [0, 2]]).double()
    assert frechet_distance(a, a + torch.tensor([3.0, 4])) == pytest.approx(25)
    sd = a.var(0).sqrt()
    assert frechet_distance(a, 2 * a) == pytest.approx(sd.square().sum().item())
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_a_planted_leak_is_found_and_none_where_there_is_none(digits: ImageData, unseen: Split, frozen: FrozenClassifier) -> None:
    train, n = digits.train, 120
    noise = 0.05 * torch.randn(n, *digits.shape, generator=torch.Generator().manual_seed(0))
    copies = Samples((to_float(train.images[:n]) + noise).clamp(0, 1), train.labels[:n], *[torch.zeros(n, 1)] * 2, torch.zeros(n))
    report = reconstruction_report(copies, train, unseen, judge=frozen)
    assert report.samples["closer to training, pixels: share"] > 0.95 and report.samples["closer to training, pixels: p"] < 1e-3
    assert 0.3 < report.real["closer to training, pixels: share"] < 0.7 and report.real["closer to training, pixels: p"] > 1e-3
    assert report.samples["spread within classes / real"] == pytest.approx(1, abs=0.1) and report.notna().all().all()


def test_a_report_needs_enough_images(digits: ImageData, unseen: Split, frozen: FrozenClassifier) -> None:
    few = split_off(digits.train, 10)[0]
    with pytest.raises(ValueError, match="10 training and .* too few for a report: give 20 and 40"): reconstruction_report(None, few, unseen, judge=frozen)
    with pytest.raises(ValueError, match="expected 'best' or 'typical'"): triplets(None, few, unseen, which="worst")


def test_the_leak_test_knows_certain_cases() -> None:
    assert leak_test(torch.zeros(30, dtype=torch.long), 10)[0] == 1 and leak_test(torch.zeros(30, dtype=torch.long), 10)[1] > 0.3  # one mode says nothing
    assert leak_test(torch.arange(40), 40) == (1.0, pytest.approx(1 / 10_001))
    assert leak_test(torch.arange(80), 40)[0] == 0.5 and leak_test(torch.arange(40, 80), 40) == (0.0, 1.0)


def test_rotations_keep_distances_in_images_that_are_not_square() -> None:
    wide = torch.zeros(1, 1, 20, 80)
    maps = Perturbation(0, 0, 1.0, 0).maps(wide, torch.Generator().manual_seed(1))[0]  # [H, W, 2] in units of half the sides
    at = maps[8:12, 38:42] * torch.tensor([40.0, 10.0])  # in pixels, near the middle
    torch.testing.assert_close((at[:, 1:] - at[:, :-1]).norm(dim=-1), torch.ones(4, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close((at[1:] - at[:-1]).norm(dim=-1), torch.ones(3, 4), atol=1e-4, rtol=0)


class Attention(nn.Module):
    "Rows of the image as tokens."
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(28, 4, 32, batch_first=True), nn.Linear(28, 10)

    def forward(self, x: Tensor) -> Tensor: return self.head(self.layer(x[:, 0]).mean(1))


def test_the_gradient_norm_of_a_folded_classifier_is_with_respect_to_the_weights_it_came_with() -> None:
    model = worn_cnn((1, 16, 16), 3)
    frozen = FrozenClassifier(model, shape=(1, 16, 16))
    objective = ReconstructionObjective(frozen, ReconstructionWeights.paper(), amp="off")
    assert objective.quick is not frozen
    images, labels = torch.rand(2, 6, 1, 16, 16, requires_grad=True), torch.randint(3, (2, 6))
    found = objective.gradient_norm(images, labels)
    plain = model.eval().requires_grad_(True)
    norms = []
    for x, y in zip(images, labels):
        gradients = torch.autograd.grad(ce_loss(plain(x), y), list(plain.parameters()), create_graph=True)
        norms.append(sum(g.square().sum() for g in gradients))
    expected = torch.stack(norms).mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    ours, theirs = (torch.autograd.grad(t, images)[0] for t in (found, expected))
    assert (ours - theirs).norm() < 1e-2 * theirs.norm()  # rounding moves a few pixels over the bends of the activations
    objective.close()


def test_attention_has_a_gradient_norm_and_a_stationarity() -> None:
    torch.manual_seed(0)
    model = Attention().eval()
    found = reconstruct(model, shape=(1, 28, 28), device="cpu", recipe="paper", steps=2, n=10, **QUIET, **SMALL)
    assert found.images.isfinite().all()
    assert stationarity_loss(model, torch.rand(4, 1, 28, 28), torch.arange(4), torch.ones(4)).isfinite()


def test_triplets_show_copies_beside_their_originals(digits: ImageData, unseen: Split) -> None:
    copies = Samples(to_float(digits.train.images[:40]), digits.train.labels[:40], *[torch.zeros(40, 1)] * 2, torch.zeros(40))
    shown, originals, others = triplets(copies, digits.train, unseen, which="typical", columns=8).split(8)
    torch.testing.assert_close(shown, originals)
    assert not torch.equal(shown, others)


def test_stationarity_is_zero_where_the_images_explain_the_weights() -> None:
    torch.manual_seed(0)
    images, labels, multipliers = torch.rand(4, 1, 3, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0]), torch.rand(4, dtype=torch.float64)
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
    found = reconstruct_from_stationarity(model, shape=(1, 8, 8), n=12, steps=800, device="cpu", progress=False)
    unit = lambda x: nn.functional.normalize(x.flatten(1), dim=1)
    others = (torch.rand(6, 1, 8, 8) > 0.7).float()
    assert (unit(found.images) @ unit(images).T).amax(0).mean() > (unit(found.images) @ unit(others).T).amax(0).mean() + 0.1


def test_maps_are_smoothed_where_batch_norm_would_be_content_with_stripes():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
    for model, recipe, expected in ((CNN((1, 8, 8), 3), "prior", 4), (plain, "prior", 1), (CNN((1, 8, 8), 3), "paper", 1)):
        inverter = reconstruction_inverter(model.eval(), shape=(1, 8, 8), device="cpu", recipe=recipe, **SMALL)
        inverter.objective.close()
        assert inverter.generators[0].smooth == expected
    given = reconstruction_inverter(plain, shape=(1, 8, 8), device="cpu", smooth=2, **SMALL)
    given.objective.close()
    assert given.generators[0].smooth == 2


def test_motions_are_computed_in_full_precision_under_autocast() -> None:
    move, images = Perturbation(), torch.rand(3, 1, 224, 224)
    grids = []
    for on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on): grids.append(move.maps(images, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(*grids, rtol=0, atol=0)


def test_only_a_layer_that_gives_the_logits_is_the_head() -> None:
    class Convolutional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate, self.head = nn.Conv2d(1, 4, 3), nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.head(x * self.gate(x.mean((2, 3)))[:, :, None, None]).mean((2, 3))

    assert [layer.out_features for layer in layers_of(Convolutional(), (1, 8, 8))[1]] == [6, 4]


def test_a_perturbation_may_be_any_function_and_no_hook_is_left(frozen: FrozenClassifier) -> None:
    hooks = lambda: sum(len(m._forward_pre_hooks) for m in frozen.model.modules())
    before = hooks()
    assert len(reconstruct(frozen, perturb=lambda x, rng: x, steps=1, n=10, progress=False, batch_size=4, width=16)) == 10
    assert hooks() == before


def test_a_saved_reconstruction_says_that_it_cannot_be_loaded(frozen: FrozenClassifier, tmp_path) -> None:
    inverter = reconstruction_inverter(frozen, batch_size=4, width=16)
    inverter.fit(1, progress=False)
    inverter.save(tmp_path)
    inverter.objective.close()
    with pytest.raises(ValueError, match="another objective"): type(inverter).load(tmp_path, frozen)


def test_too_few_features_get_a_sentence() -> None:
    for wrong in (torch.rand(1, 3), torch.full((4, 3), math.nan)):
        with pytest.raises(ValueError, match="two or more"): frechet_distance(wrong, torch.rand(5, 3))


def test_a_layer_without_a_second_derivative_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.Hardsigmoid(), nn.Flatten(), nn.Linear(4 * 169, 3))
    with pytest.raises(ValueError, match="needs second derivatives.*set eta_grad=0"): reconstruction_inverter(model, shape=(1, 28, 28), recipe="paper", device="cpu")
