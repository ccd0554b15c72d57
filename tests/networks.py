"Networks that tests of several modules share."
import math

import torch
from torch import nn

from netinv.classifier import CNN


def worn_cnn(shape: tuple[int, int, int], n_classes: int) -> CNN:
    "A CNN whose batch norms have statistics, scales and shifts as if it had been trained."
    torch.manual_seed(0)
    model = CNN(shape, n_classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for t in (module.weight.data, module.running_var): t.uniform_(0.5, 2)
            for t in (module.bias.data, module.running_mean): t.normal_()
    return model


DERIVED = [
    "pruned", "weight norm", "spectral norm", "weight norm, parametrized", "spectral norm, parametrized"
]


def resnet(n_classes):
    from torchvision.models import resnet18

    return resnet18(num_classes=n_classes)


def squeezenet(n_classes):
    from torchvision.models import squeezenet1_1

    return squeezenet1_1(num_classes=n_classes)


def mlp(shape, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 24), nn.ReLU(), nn.Linear(24, n_classes))


class Wrapped(nn.Module):
    "A module made of a function."

    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x):
        return self.function(x, *self.parts)


class OwnSoftmax(nn.Module):
    "A softmax of one's own, which may be sharpened."
    def __init__(self, sharper=1):
        super().__init__()
        self.sharper = sharper

    def forward(self, x, dim=-1):
        shares = (self.sharper * (x - x.amax(dim, keepdim=True))).exp()
        return shares / shares.sum(dim, keepdim=True)


def derived(kind):
    "A convolution whose weight is computed in every pass, and batch norm."
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 6, 3, padding=1)
    if kind == "pruned": nn.utils.prune.l1_unstructured(conv, "weight", 0.3)
    elif kind == "weight norm, parametrized": nn.utils.parametrizations.weight_norm(conv)
    elif kind == "spectral norm, parametrized": nn.utils.parametrizations.spectral_norm(conv)
    else: {"weight norm": nn.utils.weight_norm, "spectral norm": nn.utils.spectral_norm}[kind](conv)
    return nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(384, 3)).eval()
