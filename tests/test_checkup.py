"netinv.checkup: a classifier on one page, and the mistakes that it finds; nothing is found where nothing is wrong."
import json
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from netinv.checkup import Checkup, calibration_error, check_up
from netinv.data import ImageData, Split
from netinv.frozen import FrozenClassifier
from netinv.samples import Samples

pytestmark = pytest.mark.filterwarnings("ignore")  # what freezing warns about is on the page
SHAPE, N = (3, 12, 12), 12


class Templates(nn.Module):
    "Knows twelve coloured patterns: logits are the distances to them."
    def __init__(self):
        super().__init__()
        self.flat, self.head = nn.Flatten(), nn.Linear(432, N)
        with torch.no_grad():
            self.head.weight.copy_(patterns().flatten(1) - 0.5)
            self.head.bias.copy_(-(patterns() - 0.5).square().flatten(1).sum(1) / 2)

    def forward(self, images: Tensor) -> Tensor: return self.head(self.flat(images))


@cache
def patterns() -> Tensor:  # [12, 3, 12, 12]
    "Random images, darker at the top, with nothing in green, so that every change of an image shows."
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(N, *SHAPE, generator=rng) * torch.linspace(0.5, 1, 12).view(1, 1, -1, 1)
    x[:, 1] = 0.5
    return x


@cache
def images(n: int = 240) -> tuple[Tensor, Tensor]:
    "Patterns with noise, and their labels."
    rng = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % N
    return (patterns()[labels] + 0.3 * torch.randn(n, *SHAPE, generator=rng)).clamp(0, 1), labels


class After(nn.Module):
    "A function of what another network answers."
    def __init__(self, change):
        super().__init__()
        self.model, self.change = Templates(), change

    def forward(self, x: Tensor) -> Tensor: return self.change(self.model(x))


def frozen(preprocess=None, model: nn.Module | None = None, **settings) -> FrozenClassifier:
    wanted = lambda x: (x if preprocess is None else preprocess(x)) - 0.5
    return FrozenClassifier(model or Templates(), shape=SHAPE, preprocess=wanted, device="cpu", **settings)


def signs(classifier: FrozenClassifier, data=None, **settings) -> str:
    return " | ".join(check_up(classifier, data or images(), **settings).signs)


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    found = check_up(frozen(), images(), source="templates", trials=True)
    assert found.numbers["data"]["accuracy"] > 0.95
    assert "none raises the accuracy" in found.signs[0] and len(found.signs) <= 2  # it may be unsure of itself
    assert "templates" in repr(found) and "| accuracy | " in found._repr_markdown_()
    json.dumps(found.numbers)


@pytest.mark.parametrize(("wrong", "expected"), [
    (lambda x: x.flip(1), "red and blue swapped"), (lambda x: 1 - x, "dark and bright swapped"),
    (lambda x: x.transpose(2, 3), "rows and columns swapped")])
def test_changed_images_are_found(wrong, expected: str) -> None:
    told = signs(frozen(wrong))
    assert f"with {expected}" in told and "instead of" in told


@pytest.mark.parametrize(("wants", "expected"), [
    (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "ImageNet's"), (((0.0,), (1 / 255,)), "pixels 0..255"),
    (((0.5,), (0.5,)), "pixels -1..1")])
def test_a_missing_normalisation_is_found(wants: tuple, expected: str) -> None:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in wants)
    x_mean, x_std = images()[0].mean(), images()[0].flatten(1).std(1).mean()

    class Wants(nn.Module):
        "Answers rightly to normalised images alone."
        def __init__(self):
            super().__init__()
            self.model = Templates()

        def forward(self, x: Tensor) -> Tensor:
            back = x * std + mean
            means, contrast = back.mean((1, 2, 3)) - x_mean, back.flatten(1).std(1) - x_std
            off = (means.abs() - 0.06).relu() + (contrast.abs() - 0.06).relu()
            return self.model(back - 0.5) + 2_000 * off[:, None] * torch.arange(N)

    told = signs(FrozenClassifier(Wants(), shape=SHAPE, device="cpu"))
    assert expected in told and "instead of" in told, told


def test_images_divided_twice_are_found() -> None:
    told = signs(frozen(lambda x: x / 255))
    assert "pixels seem to be divided by 255 twice" in told and "with pixels 0..1" in told and "instead of" in told
    told = signs(frozen(), (images()[0] / 255, images()[1]))
    assert "no pixel of the data is above 0.0039: it was divided by 255 twice" in told


@pytest.mark.parametrize(("order", "expected"), [
    (list(range(N))[::-1], "label 0 is answered 11"), ([*range(1, N), 0], "another order"),
    (sorted(range(N), key=str), "sorted as text (1, 10, 2)"),
    ([sorted(range(N), key=str).index(k) for k in range(N)], "sorted as text (1, 10, 2)")])
def test_another_order_of_the_classes_is_found(order: list[int], expected: str) -> None:
    told = signs(frozen(model=After(lambda logits: logits[:, order])))
    assert expected in told and "the classes are in another order" in told and "instead of" in told


def test_labels_from_one_are_found() -> None:
    x, labels = images()
    keep = labels < N - 1
    assert "every label of the data is one more than the answer" in signs(frozen(), (x[keep], labels[keep] + 1))


def test_names_say_which_class_is_which() -> None:
    names = [f"name {'lkjihgfedcba'[k]}" for k in range(N)]
    order = sorted(range(N), key=lambda k: names[k])
    x, labels = images()
    split = Split((x * 255).byte(), torch.tensor([order.index(k) for k in labels.tolist()]))
    data = ImageData(split, split, split, [names[k] for k in order], SHAPE, "named")
    found = check_up(frozen(classes=names), data)
    assert found.numbers["data"]["accuracy"] > 0.95
    assert "they were matched by name" in found.signs[0]


def test_chance_is_told_from_weakness() -> None:
    rng = torch.Generator().manual_seed(2)
    x, labels = images()
    told = signs(frozen(model=After(lambda logits: 9 * logits)), (torch.rand(x.shape, generator=rng), labels))
    assert "accuracy is at chance" in told and "although the answers are sure" in told and "none raises" in told


def test_one_answer_and_classes_never_answered() -> None:
    one = frozen(model=After(lambda logits: logits + 1e3 * torch.eye(N)[3]))
    assert "100 % of all images are answered 3" in signs(one)
    never = frozen(model=After(lambda logits: logits - 1e3 * torch.eye(N)[3]))
    assert "never answered, although it occurs in the data: class 3" in signs(never)
    lost = After(lambda logits: logits.index_fill(1, torch.tensor([3]), -torch.inf))
    assert "class 3 cannot be answered, whatever the image" in signs(frozen(model=lost))


def test_other_numbers_of_classes_and_features() -> None:
    x, labels = images()
    assert "the data has 3 classes and the classifier has 12" in signs(frozen(), (x[labels < 3], labels[labels < 3]))
    more = check_up(frozen(), (x, labels + 20))  # labels that the classifier does not have
    assert more.numbers["data"]["accuracy"] == 0 and "the data has 32 classes" in more.signs[0]
    thin = nn.Sequential(nn.Flatten(), nn.Linear(432, 1), nn.Linear(1, N))
    assert "one number for an image" in signs(FrozenClassifier(thin, shape=SHAPE, device="cpu"))
    bare = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert "perhaps the model has no head" in signs(FrozenClassifier(bare, shape=SHAPE, device="cpu"))


def test_images_of_another_size_are_refused_or_scaled() -> None:
    x, labels = images()
    large = nn.functional.interpolate(x, (20, 16))
    with pytest.raises(ValueError, match="images of 3x20x16 and the classifier takes 3x12x12: resize=True scales"):
        check_up(frozen(), (large, labels))
    assert check_up(frozen(), (large, labels), resize=True).numbers["data"]["accuracy"] > 0.9


@pytest.mark.parametrize("kind", ["bytes", "numpy", "split", "samples", "columns"])
def test_data_of_all_kinds(kind: str) -> None:
    x, labels = images()
    data = {"bytes": ((x * 255).byte(), labels), "numpy": (x.numpy(), labels.numpy()), "columns": (x, labels[:, None]),
            "split": Split((x * 255).byte(), labels), "samples": Samples(x, labels, torch.eye(N)[labels], x.flatten(1))}
    assert check_up(frozen(), data[kind], images=100).numbers["data"]["images"] == 100


@pytest.mark.parametrize(("data", "expected"), [
    (3, "data is a int"), ((torch.rand(2, *SHAPE), torch.arange(3)), "3 labels for 2 images"),
    ((torch.rand(0, *SHAPE), torch.arange(0)), "one at least")])
def test_what_is_no_data_is_one_sentence(data: object, expected: str) -> None:
    with pytest.raises(ValueError, match=expected): check_up(frozen(), data)


def test_the_page_without_data() -> None:
    page = check_up(frozen())
    assert isinstance(page, Checkup) and not page.signs and "no warning signs" in repr(page)
    assert page.numbers["pixels"] == {"black": [-0.5] * 3, "white": [0.5] * 3}
    assert page.numbers["parameters"] == 432 * N + N and page.numbers["operations"] == 2 * 432 * N
    with pytest.raises(ValueError, match="freeze it first"): check_up(Templates())


def test_calibration() -> None:
    labels = torch.tensor([0] * 8 + [1] * 2)
    at = lambda p: Samples(torch.zeros(10, 1, 1, 1), labels, torch.tensor([[p, 1 - p]] * 10), torch.zeros(10, 1))
    assert calibration_error(at(0.8)) == pytest.approx(0, abs=1e-6)
    assert calibration_error(at(1.0)) == pytest.approx(0.2)
