"""What has to hold on a CUDA device as it does on a CPU: each check is a function of the device that raises an
`AssertionError`, or returns what it measured. `tests/test_gpu.py` calls them from pytest, `benchmarks/gpu.py` without.

    python benchmarks/checks.py               # all of them, on the best device there is
    python benchmarks/checks.py bf16 --device cpu
"""
import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from netinv.classifier import CNN
from netinv.data import ImageData, Split
from netinv.device import pick_amp, pick_device
from netinv.frozen import FrozenClassifier
from netinv.graphs import captured
from netinv.inversion import Inverter
from netinv.objective import Inversion, Term


class Skipped(Exception):
    "A check that cannot be made here, with the reason."


def generated(
    n: int = 2_000,                              # training images; half as many for testing, a tenth for validation
    shape: tuple[int, int, int] = (1, 28, 28),   # C, H, W
    n_classes: int = 10,
    device: str | torch.device = "auto",
) -> ImageData:
    "Images made up where there are no files: each class is a smooth shape, moved, dimmed and covered with noise."
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(n_classes, shape[0], 5, 5, generator=rng)
    shapes = nn.functional.interpolate(coarse, size=shape[1:], mode="bicubic").sub(0.6).mul(4).clamp(0, 1)
    reach = max(1, shape[1] // 14)

    def split(n: int) -> Split:
        labels = torch.arange(n) % n_classes
        moves = torch.randint(-reach, reach + 1, (n, 2), generator=rng).tolist()
        images = torch.stack([shapes[label].roll(move, (1, 2)) for label, move in zip(labels.tolist(), moves)])
        dimmed = images * (0.6 + 0.4 * torch.rand(n, 1, 1, 1, generator=rng))
        images = dimmed + 0.1 * torch.rand(images.shape, generator=rng)
        return Split((255 * images.clamp(0, 1)).byte().to(pick_device(device)), labels.to(pick_device(device)))

    train, test, classes = split(n), split(n // 2), [f"shape {k}" for k in range(n_classes)]
    return ImageData(train, split(n // 10), test, classes, tuple(shape), f"generated-{n}")


def classifier(device: torch.device, seed: int = 0) -> FrozenClassifier:
    "An untrained CNN, frozen."
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return FrozenClassifier(CNN((1, 28, 28), 10), shape=(1, 28, 28), device=device)


@contextmanager
def exact() -> Iterator[None]:
    "No TF32, and only convolutions that add up in one order, so that numbers may be compared."
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False): yield
    finally: torch.backends.cuda.matmul.allow_tf32 = before


def apart(a: Tensor, b: Tensor) -> float:
    "The largest difference of two tensors, as a share of the largest number."
    return ((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-12)).item()


def same_state(a: Inverter, b: Inverter) -> None:
    "Two inverters are the same, bit for bit."
    ours, theirs = a.state(), b.state()
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name].to(ours[name].device))]
    assert not different, f"{len(different)} of {len(ours)} tensors differ, such as {different[:3]}"


# The checks, the most telling first

def bf16(device: torch.device) -> dict:
    "The first steps in bfloat16 give the losses of float32, to within its precision."
    if device.type == "cuda": assert pick_amp("auto", device) is torch.bfloat16, "amp='auto' did not pick bfloat16"
    first = {}
    for amp in ("bf16", "off"):
        inverter = Inverter(classifier(device), batch_size=64, amp=amp)
        history = inverter.fit(5, progress=False)
        assert history["total"].notna().all() and torch.isfinite(inverter.sample(20, seed=0).probs).all()
        first[amp] = history["total"].iloc[0]
    assert abs(first["bf16"] / first["off"] - 1) < 0.05, first
    return {"total of the first step": first}


def one_network(device: torch.device) -> dict:
    "K generators run as one network draw what each would have drawn alone, and their batch norms learn the same."
    drawn, norms = [], []
    with exact():
        for at_once in (True, False):
            inverter = Inverter(classifier(device), n_generators=3, batch_size=32, amp="off")
            inverter.at_once = at_once
            with torch.no_grad(): drawn.append(inverter.draw()[0])
            norms.append(torch.cat([t.flatten().float() for t in inverter.generators.buffers()]))
    images, buffers = apart(*drawn), apart(*norms)
    assert images < 1e-4 and buffers < 1e-4, (images, buffers)
    return {"images differ by": images, "batch norms differ by": buffers}


def resume(device: torch.device) -> dict:
    "A run that was stopped and gone on with ends as one that was not, bit for bit."
    make = lambda: Inverter(classifier(device), n_generators=2, batch_size=32)
    with exact(), tempfile.TemporaryDirectory() as folder:
        whole = make()
        whole.fit(40, progress=False)
        make().fit(20, checkpoint_dir=folder, progress=False)
        halves = make()
        halves.fit(40, checkpoint_dir=folder, resume=True, progress=False)
    assert whole.step == halves.step == 40
    same_state(whole, halves)
    assert torch.equal(whole.sample(50, seed=3).images, halves.sample(50, seed=3).images)
    return {"tensors compared": len(whole.state())}


def nan_blamed(device: torch.device) -> dict:
    "A term that turns into NaN is named, and the generators go back to the last good step."
    spoilt_by = [torch.ones((), device=device)]
    loss = lambda view: view.images.mean() * spoilt_by[0]
    spoilt = Term("spoilt", "s", 1.0, "A term that breaks after some steps.", loss)
    inverter = Inverter(classifier(device), objective=Inversion(spoilt), batch_size=16)
    inverter.fit(20, progress=False)
    kept = {name: t.clone() for name, t in inverter.state().items()}
    spoilt_by[0] = torch.full((), torch.nan, device=device)
    try: inverter.fit(20, progress=False)
    except FloatingPointError as e: sentence = str(e)
    else: raise AssertionError("NaN went unnoticed")
    assert "'spoilt'" in sentence and inverter.step == 20, sentence
    assert all(torch.equal(t, kept[name].to(t.device)) for name, t in inverter.state().items())
    return {"says": sentence}


class Greedy(nn.Module):
    "A classifier that wants more memory than there is, once it is told to."
    def __init__(self):
        super().__init__()
        self.layer, self.wants = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10)), 0

    def forward(self, images: Tensor) -> Tensor:
        if self.wants and images.device.type == "cuda": torch.empty(self.wants, device=images.device)
        elif self.wants: raise torch.OutOfMemoryError("out of memory: this device stands in for one that is full")
        return self.layer(images)


def out_of_memory(device: torch.device) -> dict:
    "Want of memory is called that, not blamed on the shape or the preprocess; afterwards the run goes on."
    model = Greedy()
    frozen = FrozenClassifier(model, shape=(1, 28, 28), device=device)
    inverter = Inverter(frozen, batch_size=16, folded=False)
    inverter.fit(10, progress=False)
    greedy = next(module for module in inverter.target.model.modules() if isinstance(module, Greedy))
    greedy.wants = 2**46
    try: inverter.fit(10, progress=False)
    except torch.OutOfMemoryError as e: sentence = str(e)
    else: raise AssertionError("64 TiB were to be had")
    assert "out of memory" in sentence.lower() and "preprocess" not in sentence, sentence
    greedy.wants = 0
    inverter.fit(10, progress=False)
    model.wants = 2**46
    try: FrozenClassifier(model, shape=(1, 28, 28), device=device)
    except torch.OutOfMemoryError: pass
    return {"says": sentence.splitlines()[0][:200]}


def folded(device: torch.device) -> dict:
    "The classifier with fewer layers answers as the plain one does, and so do its gradients."
    plain = classifier(device)
    images = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    with exact():
        outs = [c(images) for c in (plain, plain.folded())]
        slopes = [torch.autograd.grad(out.logits.logsumexp(1).sum(), images)[0] for out in outs]
    found = {"logits": apart(outs[1].logits, outs[0].logits), "features": apart(outs[1].features, outs[0].features),
             "gradients": ((slopes[1] - slopes[0]).norm() / slopes[0].norm()).item()}  # a maximum may be another's by a hair
    assert found["logits"] < 1e-3 and found["features"] < 1e-3 and found["gradients"] < 0.02, found
    return found


def captured_steps(device: torch.device) -> dict:
    "Steps replayed from a CUDA graph are those of the plain loop, also after a change of weight and a step back."
    if device.type != "cuda": raise Skipped("graphs are for CUDA devices")
    runs = []
    with exact():
        for capture in (False, True):
            inverter = Inverter(classifier(device), n_generators=2, batch_size=32)
            if capture: captured(inverter)
            inverter.fit(10, progress=False)
            good = inverter.snapshot()
            inverter.fit(10, progress=False)
            inverter.rewind(*good)
            inverter.objective["gamma"] = 4.0
            inverter.fit(10, progress=False)
            runs.append(inverter)
    plain, replayed = runs
    assert replayed.step == plain.step == 20
    for ours, theirs in zip(plain.rngs, replayed.rngs): assert torch.equal(ours.get_state(), theirs.get_state())
    differ = {name: apart(t, replayed.state()[name]) for name, t in plain.state().items() if t.is_floating_point()}
    worst = max(differ, key=differ.get)
    totals = [run.history["total"].tolist() for run in runs]
    assert differ[worst] < 1e-3, (worst, differ[worst], totals)
    return {"largest difference": differ[worst], "bit for bit": not any(differ.values())}


CHECKS: dict[str, Callable[[torch.device], dict]] = {
    check.__name__: check for check in (bf16, one_network, resume, nan_blamed, out_of_memory, folded, captured_steps)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(CHECKS)} (default: all)")
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    args = parser.parse_args()
    if unknown := set(args.names) - set(CHECKS):
        parser.error(f"there is no check {min(unknown)}: expected some of {', '.join(CHECKS)}")
    device = pick_device(args.device)
    for name in args.names or CHECKS:
        try: print(f"{name}: {json.dumps(CHECKS[name](device))}", flush=True)
        except Skipped as e: print(f"{name}: skipped, {e}", flush=True)


if __name__ == "__main__":
    main()
