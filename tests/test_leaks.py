"The report on reconstructions: is a planted leak found, and none where there is none?"
import math

import numpy as np
import pytest
import torch
import victims

from netinv.data import ImageData, Split, split_off, to_float
from netinv.frozen import FrozenClassifier
from netinv.leaks import frechet_distance, leak_test, nearest, reconstruction_report, triplets
from netinv.samples import Samples


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
    at = torch.arange(9), torch.tensor(0), torch.arange(3, 12), torch.tensor(8)
    digits = torch.zeros(9, 1, 16, 16).index_put_(at, torch.tensor(1.0))
    for level in (0.0, 0.3, 1.0): assert nearest(torch.full((1, 1, 16, 16), level), digits)[1].abs() < 1e-6
    shifted = digits.roll(1, 3)
    assert nearest(0.1 + 0.5 * digits, digits)[1].min() > 0.999 > nearest(shifted, digits)[1].max()


def test_frechet_distance_in_closed_form() -> None:
    a = torch.tensor([[-1.0, 0], [1, 0], [0, -2], [0, 2]]).double()
    assert frechet_distance(a, a + torch.tensor([3.0, 4])) == pytest.approx(25)
    sd = a.var(0).sqrt()
    assert frechet_distance(a, 2 * a) == pytest.approx(sd.square().sum().item())
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_too_few_features_get_a_sentence() -> None:
    for wrong in (torch.rand(1, 3), torch.full((4, 3), math.nan)):
        with pytest.raises(ValueError, match="samples are too few: give at least 2|hold NaN or infinity"): frechet_distance(wrong, torch.rand(5, 3))


def test_a_planted_leak_is_found_and_none_where_there_is_none(
    digits: ImageData, unseen: Split, frozen: FrozenClassifier,
) -> None:
    train, n = digits.train, 120
    noise = 0.05 * torch.randn(n, *digits.shape, generator=torch.Generator().manual_seed(0))
    noisy = (to_float(train.images[:n]) + noise).clamp(0, 1)
    copies = Samples(noisy, train.labels[:n], *[torch.zeros(n, 1)] * 2, torch.zeros(n))
    report = reconstruction_report(copies, train, unseen, judge=frozen)
    share, p = (report.loc[f"closer to training, pixels: {what}"] for what in ("share", "p"))
    assert share.samples > 0.95 and p.samples < 1e-3
    assert 0.3 < share.real < 0.7 and p.real > 1e-3
    assert report.samples["spread within classes / real"] == pytest.approx(1, abs=0.1) and report.notna().all().all()


def test_a_report_needs_enough_images(digits: ImageData, unseen: Split, frozen: FrozenClassifier) -> None:
    few = split_off(digits.train, 10)[0]
    with pytest.raises(ValueError, match="10 training and .* too few for a report: give 20 and 40"):
        reconstruction_report(None, few, unseen, judge=frozen)
    with pytest.raises(ValueError, match="expected 'best' or 'typical'"): triplets(None, few, unseen, which="worst")


def test_a_report_wants_a_frozen_judge(digits: ImageData, unseen: Split) -> None:
    copies = Samples(to_float(digits.train.images[:40]), digits.train.labels[:40], *[torch.zeros(40, 1)] * 2)
    with pytest.raises(ValueError, match="FrozenClassifier"):
        reconstruction_report(copies, digits.train, unseen, judge=victims.perceptron())


def test_the_leak_test_knows_certain_cases() -> None:
    share, p = leak_test(torch.zeros(30, dtype=torch.long), 10)
    assert share == 1 and p > 0.3  # one mode says nothing
    assert leak_test(torch.arange(40), 40) == (1.0, pytest.approx(1 / 10_001))
    assert leak_test(torch.arange(80), 40)[0] == 0.5 and leak_test(torch.arange(40, 80), 40) == (0.0, 1.0)


def test_triplets_show_copies_beside_their_originals(digits: ImageData, unseen: Split) -> None:
    images, labels = to_float(digits.train.images[:40]), digits.train.labels[:40]
    copies = Samples(images, labels, *[torch.zeros(40, 1)] * 2, torch.zeros(40))
    shown, originals, others = triplets(copies, digits.train, unseen, which="typical", columns=8).split(8)
    torch.testing.assert_close(shown, originals)
    assert not torch.equal(shown, others)


@pytest.mark.parametrize("call, says", [
    (lambda s, i: nearest(i[:, :, 1:], i), r"images are \[45, 1, 15, 16\] and others \[45, 1, 16, 16\]"),
    (lambda s, i: nearest(i / 0, i), "45 of 45 images hold NaN or infinity"),
    (lambda s, i: nearest(255 * i, i), "divide them by 255"), (lambda s, i: nearest(i[:0], i), "images are none"),
    (lambda s, i: frechet_distance(i[:, 0, 0] / 0, i[:, 0, 0]), "45 of 45 rows of features hold NaN"),
    (lambda s, i: frechet_distance(i[:, 0, 0, :4], i[:, 0, 0]), "features of 4 and of 16 numbers"),
    (lambda s, i: reconstruction_report(i, s, s, judge=None), "samples is a Tensor: give Samples"),
    (lambda s, i: reconstruction_report(Samples(i, s.labels, i[:, 0, 0], i[:, 0, 0]), i, s, judge=None), "train is a Tensor: give a"),
])  # fmt: skip
def test_what_cannot_be_compared(call, says: str) -> None:
    images = torch.rand(45, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=says): call(Split((255 * images).byte(), torch.arange(45) % 3), images)


def test_bytes_and_arrays_are_compared_as_well() -> None:
    images = torch.randint(0, 256, (9, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = nearest(to_float(images), to_float(images.roll(1, 0)))
    for kind in (images, images.numpy(), to_float(images).double().numpy()):
        for found, value in zip(nearest(kind, images.roll(1, 0)), expected): assert torch.allclose(found, value)
