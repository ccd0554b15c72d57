"""Seconds from a trained MNIST classifier to 95 % inversion accuracy in every class: netinv against the paper taken literally.

The literal version is float32, eager, batch 128, a DCGAN-size generator of width 128 whose transposed convolutions
go from N x N through 20 x 20 to the image, elementwise dropout of one half, P = softmax(v), all four weights at one, Adam at
2e-3. Both run in this process, against the same classifier, in turn, and are judged on the same number of fresh samples.
"""
import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from netinv.classifier import FrozenClassifier, accuracy, train_classifier
from netinv.data import first_available, load_data, pick_amp, pick_device, write_atomic
from netinv.inversion import InversionWeights, Inverter


class LiteralGenerator(nn.Module):
    "A DCGAN-size generator: latent and vector to N x N, the matrix as a channel, 9 x 9 kernels on to 28 x 28."
    def __init__(self, n_classes: int = 10, latent_dim: int = 100, width: int = 128, dropout: float = 0.5):
        super().__init__()
        self.latent_dim = latent_dim

        def block(layer: nn.Module, channels: int) -> nn.Sequential:
            return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.LeakyReLU(0.2), nn.Dropout(dropout))

        self.to_matrix = nn.Sequential(block(nn.ConvTranspose2d(latent_dim + n_classes, 2 * width, 5), 2 * width),
                                       block(nn.ConvTranspose2d(2 * width, width, 4, 2, 1), width))
        self.to_image = nn.Sequential(block(nn.ConvTranspose2d(width + 1, width, 4, 2, 1), width),
                                      nn.ConvTranspose2d(width, 1, 9), nn.Sigmoid())

    def latent(self, n: int, rng: torch.Generator) -> torch.Tensor:
        return torch.randn(n, self.latent_dim, generator=rng, device=rng.device)

    def forward(self, z, condition, rng=None):
        x = self.to_matrix(torch.cat([z, condition.vector], 1)[:, :, None, None])
        return self.to_image(torch.cat([x, condition.matrix], 1))

    def use_dropout(self, on: bool) -> None:
        "Dropout stays on while sampling, in evaluation mode too."
        for module in self.modules():
            if isinstance(module, nn.Dropout): module.train(on)


def literal(classifier: FrozenClassifier, seed: int) -> Inverter:
    "The same loop with everything that makes it fast or sure taken away."
    inverter = Inverter(classifier, weights=InversionWeights.paper(), temperature=1.0, batch_size=128, lr=2e-3,
                        averaging=0.0, seed=seed, amp="off")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inverter.generators = nn.ModuleList([LiteralGenerator()]).to(inverter.device)
    inverter.averaged = AveragedModel(inverter.generators, multi_avg_fn=get_ema_multi_avg_fn(0.0), use_buffers=True).eval()
    inverter.optimizer = torch.optim.Adam(inverter.generators.parameters(), 2e-3, betas=(0.5, 0.999))
    return inverter


def timed(inverter: Inverter, limit: int) -> dict:
    "Train until every class is at 95 %, or for `limit` seconds."
    start = time.perf_counter()
    inverter.fit(1_000_000, until=0.95, progress=False, on_step=lambda i: time.perf_counter() - start > limit)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "steps": inverter.step, "milliseconds a step": 1000 * seconds / inverter.step,
            "reached": seconds <= limit, "worst class": inverter.measure().min().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each version (default 3)")
    parser.add_argument("--train-size", type=int, default=10_000, help="MNIST training images (default 10,000, a subset)")
    parser.add_argument("--limit", type=int, default=600, help="seconds after which a run is given up (default 600)")
    parser.add_argument("--out", default="benchmarks/results/time_to_95.json", help="where the JSON goes")
    args = parser.parse_args()

    source = first_available("mnist", "digits")
    data = load_data(source, train_size=args.train_size if source == "mnist" else None)
    model = train_classifier(data, epochs=4, progress=False)
    classifier = FrozenClassifier(model, shape=data.shape)
    print(f"{data}\ntest accuracy {accuracy(model, data.test):.2%}; {platform.machine()}, {pick_device()}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}, netinv computes in {pick_amp() or torch.float32}")

    Inverter(classifier).fit(5, progress=False)  # warm-up
    runs = {"netinv": [], "literal": []}
    for seed in range(args.seeds):
        for name, make in (("netinv", lambda: Inverter(classifier, seed=seed)), ("literal", lambda: literal(classifier, seed))):
            runs[name].append(timed(make(), args.limit))
            print(f"{name:8} seed {seed}: " + ", ".join(f"{k} {v:.3g}" for k, v in runs[name][-1].items()), flush=True)
    median = {name: statistics.median(run["seconds"] for run in rows) for name, rows in runs.items()}
    ratio = median["literal"] / median["netinv"]
    print(f"median seconds: netinv {median['netinv']:.1f}, literal {median['literal']:.1f}; the literal version takes {ratio:.1f} times as long"
          + ("" if all(run["reached"] for run in runs["literal"]) else " or more: it was given up"))
    write_atomic(args.out, json.dumps({"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__,
                                       "data": data.name, "runs": runs, "median_seconds": median, "ratio": ratio}, indent=2))


if __name__ == "__main__":
    main()
