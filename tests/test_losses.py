"netinv.losses against closed forms, an independent loop implementation, numerical gradients and properties."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from netinv.losses import ce_loss, cosine_loss, gradient_norm_loss, kl_loss, ortho_loss, pixel_loss, unit_rows, variation_loss

few = settings(max_examples=60, deadline=None)
entry = st.floats(-4, 4, allow_nan=False, width=64)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def logit_pairs(max_rows=4, max_classes=6):
    "Two float64 arrays of one shape [B, N]."
    shapes = st.tuples(st.integers(1, max_rows), st.integers(2, max_classes))
    return shapes.flatmap(lambda s: st.tuples(arrays(np.float64, s, elements=entry), arrays(np.float64, s, elements=entry)))


def feature_rows(min_rows=2, max_rows=7, max_dim=5):
    "Float64 arrays [B, D] whose rows are long enough to have a direction."
    shapes = st.tuples(st.integers(min_rows, max_rows), st.integers(1, max_dim))
    return (shapes.flatmap(lambda s: arrays(np.float64, s, elements=entry))
            .filter(lambda f: bool((np.linalg.norm(f, axis=1) > 1e-3).all())))


# Independent implementations: plain Python loops over the formulas as the paper prints them.

def softmax_by_loop(row):
    exps = [math.exp(v - max(row)) for v in row]
    return [e / sum(exps) for e in exps]


def kl_by_loop(p, logits):
    total = 0.0
    for p_row, row in zip(p, logits):
        q_row = softmax_by_loop(row)
        total += sum(pi * math.log(pi / qi) for pi, qi in zip(p_row, q_row) if pi > 0)
    return total / len(p)


def ce_by_loop(logits, labels):
    return -sum(math.log(softmax_by_loop(row)[k]) for row, k in zip(logits, labels)) / len(labels)


def cosine_of(u, v):
    return sum(a * b for a, b in zip(u, v)) / math.sqrt(sum(a * a for a in u) * sum(b * b for b in v))


def cosine_by_loop(f):
    b = len(f)
    return sum(cosine_of(f[i], f[j]) for i in range(b) for j in range(b) if i != j) / (b * (b - 1))


def ortho_by_loop(f):
    b = len(f)
    return sum((cosine_of(f[i], f[j]) - (i == j)) ** 2 for i in range(b) for j in range(b)) / b ** 2


@pytest.mark.parametrize("seed", range(3))
def test_every_term_equals_its_loop(seed):
    logits, features = draw(9, 6, seed=seed), draw(9, 4, seed=seed + 10)
    p, labels = draw(9, 6, seed=seed + 20).softmax(1), torch.arange(9) % 6
    assert kl_loss(p, logits).item() == pytest.approx(kl_by_loop(p.tolist(), logits.tolist()), abs=1e-12)
    assert ce_loss(logits, labels).item() == pytest.approx(ce_by_loop(logits.tolist(), labels.tolist()), abs=1e-12)
    assert cosine_loss(features).item() == pytest.approx(cosine_by_loop(features.tolist()), abs=1e-12)
    assert ortho_loss(features).item() == pytest.approx(ortho_by_loop(features.tolist()), abs=1e-12)


# Closed forms.

def test_kl_of_two_classes():
    p, q = 0.3, 0.8
    value = kl_loss(torch.tensor([[p, 1 - p]], dtype=torch.float64), torch.tensor([[q, 1 - q]], dtype=torch.float64).log())
    assert value.item() == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)), abs=1e-14)


def test_kl_of_one_hot_is_cross_entropy():
    logits, labels = draw(8, 5), torch.arange(8) % 5
    one_hot = torch.nn.functional.one_hot(labels, 5).double()
    assert kl_loss(one_hot, logits).item() == pytest.approx(ce_loss(logits, labels).item(), abs=1e-14)


def test_ce_of_uniform_logits_is_log_n():
    assert ce_loss(torch.zeros(4, 7, dtype=torch.float64), torch.arange(4)).item() == pytest.approx(math.log(7), abs=1e-14)


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, 2.5, math.pi])
def test_two_vectors_at_an_angle(angle):
    pair = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    assert cosine_loss(pair).item() == pytest.approx(math.cos(angle), abs=1e-14)
    assert ortho_loss(pair).item() == pytest.approx(math.cos(angle) ** 2 / 2, abs=1e-14)


@pytest.mark.parametrize("directions", [1, 2, 3, 4, 6, 12])
def test_rows_shared_by_orthogonal_directions(directions):
    rows = torch.eye(directions, dtype=torch.float64).repeat(12 // directions, 1)
    assert ortho_loss(rows).item() == pytest.approx(1 / directions - 1 / 12, abs=1e-14)
    assert cosine_loss(rows).item() == pytest.approx((12 / directions - 1) / 11, abs=1e-14)


@pytest.mark.parametrize("b", [2, 3, 4, 6])
def test_the_simplex_is_the_minimum_of_cosine(b):
    simplex = torch.eye(b, dtype=torch.float64) - 1 / b
    assert cosine_loss(simplex).item() == pytest.approx(-1 / (b - 1), abs=1e-14)


def test_more_rows_than_dimensions_leave_the_welch_bound():
    angles = torch.arange(5, dtype=torch.float64) * math.pi / 5
    frame = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert ortho_loss(frame).item() == pytest.approx(1 / 2 - 1 / 5, abs=1e-14)


# Gradients.

def test_gradients_are_numerically_right():
    logits, p = draw(4, 5).requires_grad_(), draw(4, 5, seed=1).softmax(1).requires_grad_()
    labels = torch.tensor([0, 4, 2, 2])
    assert torch.autograd.gradcheck(kl_loss, (p, logits))
    assert torch.autograd.gradcheck(lambda x: ce_loss(x, labels), logits)
    for features in (draw(6, 4), draw(3, 6, 4)):
        assert torch.autograd.gradcheck(cosine_loss, features.requires_grad_())
        assert torch.autograd.gradcheck(ortho_loss, features.requires_grad_())


@pytest.mark.parametrize("loss", [cosine_loss, ortho_loss])
def test_zero_rows_are_finite_and_count_as_no_direction(loss):
    features = draw(5, 4)
    features[1] = 0
    features.requires_grad_()
    value = loss(features)
    value.backward()
    kept = [row for i, row in enumerate(features.tolist()) if i != 1]
    expected = {cosine_loss: cosine_by_loop(kept) * 4 * 3 / (5 * 4), ortho_loss: (ortho_by_loop(kept) * 4 ** 2 + 1) / 5 ** 2}
    assert value.item() == pytest.approx(expected[loss], abs=1e-12)
    assert torch.isfinite(features.grad).all() and features.grad[1].abs().max() < 1


@pytest.mark.parametrize("loss", [cosine_loss, ortho_loss])
def test_all_rows_zero(loss):
    features = torch.zeros(4, 3, requires_grad=True)
    value = loss(features)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(features.grad).all()


def test_kl_with_zeros_in_p_and_unreachable_classes():
    p = torch.tensor([[0.25, 0.75, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    logits = torch.tensor([[1.0, 2.0, -math.inf], [0.5, -1.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    value = kl_loss(p, logits)
    value.backward()
    assert value.item() == pytest.approx(kl_by_loop(p.tolist(), logits.tolist()), abs=1e-14)
    assert torch.isfinite(logits.grad).all() and torch.isfinite(p.grad).all()
    reachable = (logits.detach().softmax(1) - p.detach()) / 2
    torch.testing.assert_close(logits.grad, reachable)


def test_kl_is_infinite_where_the_target_asks_for_an_unreachable_class():
    p, logits = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.0, -math.inf]])
    assert kl_loss(p, logits) == math.inf
    assert ce_loss(logits, torch.tensor([1])) == math.inf


# Properties.

@few
@given(logit_pairs())
def test_kl_is_never_negative_and_zero_only_for_equal_distributions(pair):
    target, logits = (torch.from_numpy(x) for x in pair)
    p, q = target.softmax(1), logits.softmax(1)
    value = kl_loss(p, logits).item()
    assert kl_loss(p, target).item() == pytest.approx(0, abs=1e-13)
    # Pinsker's inequality: a distance between P and Q forces the divergence up.
    assert value >= (p - q).abs().sum(1).square().mean().item() / 2 - 1e-13


@few
@given(feature_rows())
def test_cosine_range_and_identity(f):
    value, b = cosine_loss(torch.from_numpy(f)).item(), len(f)
    assert -1 / (b - 1) - 1e-12 <= value <= 1 + 1e-12
    assert value == pytest.approx(cosine_by_loop(f.tolist()), abs=1e-11)


@few
@given(feature_rows())
def test_ortho_range(f):
    value, (b, d) = ortho_loss(torch.from_numpy(f)).item(), f.shape
    assert max(0, 1 / d - 1 / b) - 1e-12 <= value <= 1 - 1 / b + 1e-12
    assert value == pytest.approx(ortho_by_loop(f.tolist()), abs=1e-11)


@few
@given(feature_rows(), st.floats(1e-2, 1e3), st.randoms(use_true_random=False))
def test_order_and_length_of_rows_do_not_matter(f, scale, random):
    order = random.sample(range(len(f)), len(f))
    scales = np.array([scale * (1 + random.random()) for _ in f])[:, None]
    for loss in (cosine_loss, ortho_loss):
        assert loss(torch.from_numpy(f[order] * scales)).item() == pytest.approx(loss(torch.from_numpy(f)).item(), abs=1e-11)


@few
@given(logit_pairs(), st.randoms(use_true_random=False))
def test_order_of_the_batch_does_not_matter_for_kl_and_ce(pair, random):
    p, logits = torch.from_numpy(pair[0]).softmax(1), torch.from_numpy(pair[1])
    order = random.sample(range(len(p)), len(p))
    labels = p.argmax(1)
    assert kl_loss(p[order], logits[order]).item() == pytest.approx(kl_loss(p, logits).item(), abs=1e-12)
    assert ce_loss(logits[order], labels[order]).item() == pytest.approx(ce_loss(logits, labels).item(), abs=1e-12)


@few
@given(st.integers(2, 6), st.integers(0, 4), st.integers(0, 10_000))
def test_ortho_is_zero_for_orthonormal_rows(b, extra, seed):
    rows = torch.linalg.qr(draw(b + extra, b, seed=seed)).Q.T
    assert ortho_loss(rows).item() == pytest.approx(0, abs=1e-14)
    assert cosine_loss(rows).item() == pytest.approx(0, abs=1e-14)


# Batches of generators, precision and errors.

@pytest.mark.parametrize("loss", [cosine_loss, ortho_loss])
def test_k_generators_at_once(loss):
    features = draw(3, 8, 5)
    assert loss(features).item() == pytest.approx(sum(loss(f).item() for f in features) / 3, abs=1e-14)


def test_kl_and_ce_take_k_generators_too():
    logits, p, labels = draw(3, 8, 5), draw(3, 8, 5, seed=1).softmax(-1), torch.arange(24).reshape(3, 8) % 5
    assert kl_loss(p, logits).item() == pytest.approx(kl_loss(p.flatten(0, 1), logits.flatten(0, 1)).item(), abs=1e-14)
    assert ce_loss(logits, labels).item() == pytest.approx(ce_loss(logits.flatten(0, 1), labels.flatten()).item(), abs=1e-14)


def test_bf16_and_autocast_give_float32():
    x, labels = draw(16, 8, dtype=torch.float32), torch.arange(16) % 8
    p = x.softmax(1)
    exact = [kl_loss(p.double(), x.double()), ce_loss(x.double(), labels), cosine_loss(x.double()), ortho_loss(x.double())]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [kl_loss(p, x), ce_loss(x, labels), cosine_loss(x), ortho_loss(x)]
        half = x.bfloat16().requires_grad_()
        low = [kl_loss(p, half), ce_loss(half, labels), cosine_loss(half), ortho_loss(half)]
        sum(low).backward()
    torch.testing.assert_close(torch.stack(inside).double(), torch.stack(exact), rtol=1e-5, atol=1e-6)
    assert all(v.dtype == torch.float32 and torch.isfinite(v) for v in low)
    torch.testing.assert_close(torch.stack(low).double(), torch.stack(exact), rtol=0.02, atol=0.02)
    assert torch.isfinite(half.grad).all()


def test_float64_stays_float64():
    assert unit_rows(draw(3, 2)).dtype == cosine_loss(draw(3, 2)).dtype == kl_loss(draw(3, 2).softmax(1), draw(3, 2)).dtype == torch.float64


@pytest.mark.parametrize("loss", [cosine_loss, ortho_loss])
@pytest.mark.parametrize("shape", [(1, 4), (4,), (3, 1, 4), (2, 2, 2, 2)])
def test_diversity_needs_two_rows(loss, shape):
    with pytest.raises(ValueError, match="B >= 2"):
        loss(torch.ones(shape))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\[5\] and \[4, 5\]"):
        kl_loss(torch.ones(5) / 5, torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"one label per row"):
        ce_loss(torch.zeros(4, 5), torch.zeros(3, dtype=torch.long))


@pytest.mark.gpu
def test_on_cuda_under_autocast():
    x, labels = draw(16, 8, dtype=torch.float32), torch.arange(16) % 8
    terms = (lambda x: kl_loss(x.roll(1, 0).softmax(1), x), lambda x: ce_loss(x, labels.to(x.device)), cosine_loss, ortho_loss)
    exact = torch.stack([term(x.double()) for term in terms])
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype=dtype):
            values = torch.stack([term(x.cuda()) for term in terms])
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.cpu().double(), exact, rtol=1e-5, atol=1e-6)


def test_variation_loss_against_a_loop() -> None:
    x = draw(2, 3, 4, 5)
    down = [(x[b, c, h + 1, w] - x[b, c, h, w]) ** 2 for b in range(2) for c in range(3) for h in range(3) for w in range(5)]
    across = [(x[b, c, h, w + 1] - x[b, c, h, w]) ** 2 for b in range(2) for c in range(3) for h in range(4) for w in range(4)]
    assert variation_loss(x).item() == pytest.approx(float(sum(down) / len(down) + sum(across) / len(across)), abs=1e-12)


@few
@given(arrays(np.float64, (2, 1, 3, 3), elements=entry))
def test_pixel_loss_counts_what_is_out_of_range(x) -> None:
    by_loop = sum(max(0.0, -v) + max(0.0, v - 1) for v in x.flat) / x.size
    assert pixel_loss(torch.tensor(x)).item() == pytest.approx(by_loop, abs=1e-12)
    assert pixel_loss(torch.tensor(x).clamp(0, 1)).item() == 0


@pytest.mark.parametrize("at_once", [True, False])
def test_gradient_norm_loss_is_of_one_image_and_has_a_gradient(at_once: bool) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Softplus(), torch.nn.Linear(7, 3)).double()
    x, labels = draw(4, 5, seed=1).requires_grad_(), torch.tensor([0, 1, 2, 0])
    of_one = lambda weights, x, y: ce_loss(torch.func.functional_call(net, weights, (x[None],)), y[None])
    norm = lambda x, weights: gradient_norm_loss(of_one, weights, x, labels, at_once)
    def by_autograd(*names: str) -> float:
        total = 0.0
        for image, label in zip(x, labels):  # one backward pass for each image
            net.zero_grad()
            ce_loss(net(image[None]), label[None]).backward()
            total += sum(p.grad.square().sum().item() for name, p in net.named_parameters() if name in names)
        return total / len(x)
    weights = {name: p.detach() for name, p in net.named_parameters()}
    assert norm(x, weights).item() == pytest.approx(by_autograd(*weights), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: norm(x, weights), x)
    last = {name: p for name, p in weights.items() if name.startswith("2.")}  # the others are as they are
    assert norm(x, last).item() == pytest.approx(by_autograd(*last), rel=1e-12)


def test_gradient_norm_loss_of_a_linear_network_in_closed_form() -> None:
    "(softmax - label) x^T for each image: its squared length is |error|^2 (|x|^2 + 1), bias included."
    W, b, x, labels = draw(3, 5, seed=2), draw(3, seed=3), draw(6, 5, seed=4), torch.tensor([0, 1, 2, 0, 1, 2])
    found = gradient_norm_loss(lambda w, x, y: ce_loss((w["W"] @ x + w["b"])[None], y[None]), {"W": W, "b": b}, x, labels)
    logits = x.numpy() @ W.numpy().T + b.numpy()
    q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = q - np.eye(3)[labels.numpy()]
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(float(((error**2).sum(1) * ((x.numpy() ** 2).sum(1) + 1)).mean()), rel=1e-12)
    of_the_mean = ((error.T @ x.numpy() / 6) ** 2).sum() + (error.mean(0) ** 2).sum()
    assert found.item() > 1.5 * of_the_mean  # what it must not be: images that pull apart would hide each other