"""Draw the figure of the first page: real images, what a classifier takes for the same, what its weights give away.

The classifier is the first of Figure 5 (nbs/experiments/fig5_reconstruction.ipynb): the CNN that has learnt 1,000
images of MNIST by heart, seed 0. Every image is the first of its class, so none was picked. It takes minutes on two
cores; MNIST is read from the folder that NETINV_DATA names, and downloaded where there is none.

    python tools/front.py"""
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from netinv import FrozenClassifier, Inverter, load_data, train_classifier
from netinv.classifier import default_epochs
from netinv.data import image_grid, split_off, to_float
from netinv.reconstruction import reconstruct

TARGET = Path(__file__).resolve().parent.parent / "nbs/images/front.png"
KNOWN, SEED = 1000, 0


def first_of_each(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    "[10, C, H, W]: the first image of each class."
    return torch.stack([images[labels == label][0] for label in range(10)])


def rows() -> dict[str, torch.Tensor]:
    "What is shown, by the words above it."
    whole = load_data("mnist", valid_size=0)
    known, _ = split_off(whole.train, KNOWN, seed=SEED)
    learnt = replace(whole, train=known)
    model = train_classifier(learnt, epochs=2 * default_epochs(KNOWN), augment="none", seed=SEED, progress=False)
    classifier = FrozenClassifier(model, shape=whole.shape)
    inverter = Inverter(classifier, seed=SEED)
    inverter.fit(150, progress=False)
    accepted = inverter.sample(200, seed=SEED)
    accepted = accepted[accepted.hits]
    given_away = reconstruct(classifier, n=500, seed=SEED, progress=False)
    return {"real images, one of each class": first_of_each(to_float(known.images), known.labels),
            "what the classifier takes for the same class": first_of_each(accepted.images, accepted.labels),
            "what its weights give away": first_of_each(given_away.images, given_away.labels)}


def draw(shown: dict[str, torch.Tensor]) -> plt.Figure:
    "A row of ten images below each of the words."
    figure, axes = plt.subplots(len(shown), 1, figsize=(7.6, 3.0), dpi=150)
    for ax, (words, images) in zip(axes, shown.items()):
        ax.imshow(image_grid(images.cpu(), nrow=10, scale=2))
        ax.set_title(words, loc="left", fontsize=12, pad=4)
        ax.axis("off")
    figure.tight_layout(pad=0.3)
    return figure


if __name__ == "__main__":
    draw(rows()).savefig(TARGET)
    print(TARGET)
