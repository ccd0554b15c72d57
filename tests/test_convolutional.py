"Convolutional autoencoders: what stays of maps, planted pictures that are found, and the same interface as for features."
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netinv.anomalies import AnomalyDetector, anomaly_table
from netinv.convolutional import ConvolutionalAutoencoder, load_convolutional, strongest, train_convolutional
from netinv.files import save_tensors
from netinv.frozen import FrozenClassifier
from netinv.sae import compare_latents, generator_table, latent_table, sae_report, top_images
from netinv.samples import Samples, look

QUIET = {"progress": False}


def planted(n: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    "Images of 12 x 12 pixels with one of four strokes in each of four fields, and the strokes."
    rng = torch.Generator().manual_seed(seed)
    strokes = torch.stack([torch.eye(3), torch.eye(3).flip(1), torch.eye(3)[[1, 1, 1]], torch.eye(3)[[1, 1, 1]].T])
    chosen, at = torch.randint(4, (n, 4), generator=rng), torch.randint(4, (n, 4, 2), generator=rng)
    images = torch.zeros(n, 1, 12, 12)
    for i in range(n):
        for field, (which, (dy, dx)) in enumerate(zip(chosen[i], at[i])):
            y, x = 6 * (field // 2) + dy, 6 * (field % 2) + dx
            images[i, 0, y : y + 3, x : x + 3] = strokes[which]
    return images, strokes


@pytest.fixture(scope="module")
def auto() -> ConvolutionalAutoencoder:
    return train_convolutional(planted()[0], n_latents=12, k=1, size=5, window=6, steps=500, **QUIET)


@pytest.fixture(scope="module")
def classifier() -> FrozenClassifier:
    torch.manual_seed(0)
    return FrozenClassifier(nn.Sequential(nn.Flatten(), nn.Linear(144, 4)), shape=(1, 12, 12), device="cpu")


@pytest.mark.parametrize("side, window, k", [(6, 2, 1), (7, 3, 2), (5, 5, 3), (4, 1, 1)])
def test_the_strongest_stay_where_they_are(side: int, window: int, k: int):
    maps = torch.rand(3, 4, side, side, generator=torch.Generator().manual_seed(side)) + 0.1
    kept = strongest(maps, window, k)
    assert torch.equal(kept[kept > 0], maps[kept > 0])
    for y in range(0, side, window):
        for x in range(0, side, window):
            field, whole = (m[:, :, y : y + window, x : x + window].flatten(2) for m in (kept, maps))
            assert ((field > 0).sum(2) <= 1).all() and ((field > 0).sum((1, 2)) == k).all()
            assert torch.allclose(field.sum((1, 2)), whole.amax(2).sort(1, descending=True).values[:, :k].sum(1))


def test_planted_pictures_are_found(auto: ConvolutionalAutoencoder):
    images, strokes = planted(seed=1)
    shown = strokes[:, None] / strokes.flatten(1).norm(dim=1)[:, None, None, None]
    answers = nn.functional.conv2d(auto.directions.view(12, 1, 5, 5), shown)  # a filter may hold a stroke off its centre
    assert (answers.amax((0, 2, 3)) > 0.9).all()
    x = images.flatten(1)
    assert (x - auto(x)).square().sum() / (x - x.mean(0)).square().sum() < 0.2


def test_a_moved_image_drives_the_same_latents(auto: ConvolutionalAutoencoder):
    image = torch.zeros(1, 1, 12, 12)
    image[0, 0, 4:7, 4:7] = planted(1)[1][0]  # far enough from the edge, before and after
    a, b = (auto.drive(torch.roll(image, by, (2, 3)).flatten(1)) for by in ((0, 0), (1, 1)))
    assert torch.allclose(a, b, atol=1e-5) and (a > 0).any()


def test_it_has_the_interface_of_the_others(auto: ConvolutionalAutoencoder, classifier: FrozenClassifier):
    images, labels = planted(80)[0], torch.arange(80) % 4
    real = look(classifier, images, labels)
    drawn = look(classifier, planted(80, seed=3)[0], labels)
    drawn = Samples(drawn.images, labels, drawn.probs, drawn.features, torch.arange(80) // 40)
    found = sae_report(auto, classifier, real)
    back = auto(images.flatten(1)).clamp(0, 1).view_as(images)
    assert found["accuracy through it"] == (classifier(back).logits.argmax(1) == labels).double().mean().item()
    assert found["L0"] <= 12 and len(latent_table(auto, real)) == 12
    assert len(compare_latents(auto, real, drawn)) == len(generator_table(auto, drawn, draws=9)) == 4
    assert top_images(auto, [0, 1], [real]).shape == (16, 1, 12, 12)
    noise = look(classifier, torch.rand(80, 1, 12, 12), [0] * 80)
    assert anomaly_table(AnomalyDetector(auto, real), drawn, {"noise": noise}).loc["noise", "error"] > 0.95


def test_bytes_and_numbers_teach_the_same():
    images = planted(50)[0]
    once, again = (train_convolutional(x, n_latents=4, size=3, steps=3, **QUIET) for x in (images, (255 * images).byte()))
    assert torch.allclose(once.decoder, again.decoder, atol=1e-5)


def test_it_comes_back_from_its_file(auto: ConvolutionalAutoencoder, tmp_path: Path):
    x = planted(5)[0].flatten(1)
    auto.names[np.int64(3)] = "a stroke"
    auto.save(tmp_path / "auto.safetensors")
    again = load_convolutional(tmp_path / "auto.safetensors")
    assert torch.equal(again(x), auto(x)) and again.names == {3: "a stroke"} and repr(again) == repr(auto)
    save_tensors(tmp_path / "other.safetensors", {"decoder": torch.zeros(2, 3)}, {"k": 1})
    with pytest.raises(ValueError, match="other.safetensors holds no convolutional autoencoder"):
        load_convolutional(tmp_path / "other.safetensors")


@pytest.mark.parametrize(("call", "says"), [
    (lambda: ConvolutionalAutoencoder((1, 8, 8), size=4), "size is 4: expected an odd number from 1 to the image"),
    (lambda: ConvolutionalAutoencoder((1, 8, 8), window=9), "window is 9: expected at least 1 and at most 8"),
    (lambda: ConvolutionalAutoencoder((1, 8, 8), 4, k=5), "k is 5: expected at least 1 and at most the 4 latents"),
    (lambda: train_convolutional(torch.zeros(9, 1, 8, 8), **QUIET), "all rows of features are the same"),
    (lambda: train_convolutional(torch.rand(9, 1, 8, 8), steps=0, **QUIET), "steps is 0: expected 1 or more"),
    (lambda: ConvolutionalAutoencoder((1, 8, 8)).maps(torch.rand(3, 60)), "this autoencoder takes [n, 64]"),
])  # fmt: skip
def test_bad_input_gets_a_sentence(call, says: str):
    with pytest.raises(ValueError, match=re.escape(says)):
        call()
