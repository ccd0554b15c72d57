"Networks that tests of several modules share."
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
