"""How fast inversion is, against the machine's limit and against what people would use instead.

Every figure comes from a process of its own, so that peak memory is its own too. In the same run, on the same
classifiers: netinv's defaults; the paper word for word (float32, eager); descent on pixels and DeepInversion, as they
are usually written (float32, the classifier as it came), and the pixels once more with what makes netinv fast
(bfloat16, the classifier folded). All are told what `netinv run` tells its kernels, with `process_settings`. Seconds to
95 % are counted from a trained classifier to the step at which every class is at 95 % of fresh samples, the look at
these samples included.

    python benchmarks/speed.py                       # the profile cpu: forty minutes on two cores, ten for the paper
    python benchmarks/speed.py --profile gpu         # all batch sizes, resnet18 at 224 pixels, 16 generators
    python benchmarks/speed.py --only steps          # or to95, generators, batches: one part
"""
import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from netinv import FrozenClassifier, Inverter, accuracy, load_data, load_weights, save_weights, train_classifier
from netinv.baselines import DeepInverter, PixelInverter
from netinv.classifier import CNN
from netinv.data import first_available
from netinv.device import pick_amp, pick_device
from netinv.files import write_atomic
from netinv.runner import process_settings

MODELS = {  # data set, side in pixels, training images
    "mnist": ("mnist", 28, 10_000), "cifar10": ("cifar10", 32, 5_000),
    "resnet18-64": ("cifar10", 64, 5_000), "resnet18-224": ("cifar10", 224, 5_000),
}
PATIENCE = 5  # seconds that a repeat of some steps takes at most, unless one step does
METHODS = ("netinv", "literal", "pixels", "fast pixels", "deepinversion")
PROFILES = {
    "smoke": dict(models=["mnist"], large=[], methods=["netinv", "pixels"], seeds=1, limit=2, batches=[64],
                  generators=[2], steps=2, repeats=1, epochs=1),
    "cpu": dict(models=["mnist", "cifar10", "resnet18-64"], large=["resnet18-224"], methods=METHODS, seeds=3, limit=150,
                batches=[64, 256, 1024, 2048], generators=[2, 4, 8, 16], steps=10, repeats=3, epochs=4),
    "gpu": dict(models=list(MODELS), large=[], methods=METHODS, seeds=3, limit=300,
                batches=[64, 128, 256, 512, 1024, 2048], generators=[2, 4, 8, 16], steps=50, repeats=5, epochs=4),
}


def fresh(model: str) -> torch.nn.Module:
    "An untrained classifier for ten classes."
    if model.startswith("resnet18"):
        from torchvision.models import resnet18

        return resnet18(num_classes=10)
    return CNN((1, 28, 28) if model == "mnist" else (3, 32, 32), 10)


def shape_of(model: str) -> tuple[int, int, int]:
    "C, H, W of its images."
    side = MODELS[model][1]
    return (1 if model == "mnist" else 3, side, side)


def trained(model: str, folder: Path, epochs: int) -> dict:
    "Train a classifier and keep its weights; resnet18 learns at 64 pixels, and is asked at 64 and at 224."
    source, side, size = MODELS["resnet18-64" if model == "resnet18-224" else model]
    name = first_available(source, "digits")
    data = load_data(name, train_size=None if name == "digits" else size)
    if name == "digits" and model != "mnist":
        raise SystemExit(f"{model} needs the files of {source}: leave it out with --models mnist")
    module = fresh(model)
    if side != data.shape[1]: module = torch.nn.Sequential(torch.nn.Upsample((side, side), mode="bilinear"), module)
    train_classifier(data, model=module, epochs=epochs, progress=False)
    save_weights(module[1] if isinstance(module, torch.nn.Sequential) else module, folder / f"{model}.safetensors")
    right = accuracy(FrozenClassifier(module, shape=data.shape), data.test)
    return {"data": f"{name}, {len(data.train):,} training images", "test accuracy": right}


def frozen(model: str, folder: str) -> FrozenClassifier:
    "The trained classifier."
    return FrozenClassifier(load_weights(fresh(model), Path(folder) / f"{model}.safetensors"), shape=shape_of(model))


def wait() -> None:
    "Until the device has done all that it was given."
    if torch.cuda.is_available(): torch.cuda.synchronize()


def seconds_of(work) -> float:
    "How long it takes."
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def peak_mib() -> float:
    "Most memory that this process had: of the GPU where there is one, else resident."
    if torch.cuda.is_available(): return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists(): return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10  # without the parent's
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def make(method: str, classifier: FrozenClassifier, seed: int = 0, **settings):
    "What is to be timed, ready to `fit`."
    literal = partial(Inverter, recipe="paper", amp="off", folded=False)
    kinds = {"netinv": Inverter, "literal": literal, "pixels": PixelInverter,
             "fast pixels": partial(PixelInverter, amp="auto"), "deepinversion": DeepInverter}
    inverter = kinds[method](classifier, seed=seed, **settings)
    if method == "pixels": inverter.target = classifier
    return inverter


def to95(model: str, method: str, seed: int, limit: float, folder: str) -> dict:
    "Seconds and steps to 95 % in every class, then images per second at that."
    classifier = frozen(model, folder)
    if method in ("netinv", "literal"):
        make(method, classifier, batch_size=8).fit(2, progress=False)  # warm-up
        inverter, start = make(method, classifier, seed), time.perf_counter()
        late = lambda _: time.perf_counter() - start > limit
        taken = seconds_of(lambda: inverter.fit(1_000_000, until=0.95, progress=False, on_step=late))
        reached = bool((inverter.measure() >= 0.95).all())
    else:
        make(method, classifier).fit(1, per_class=1)
        inverter = make(method, classifier, seed)
        taken = seconds_of(lambda: inverter.fit(200, until=0.95))
        reached = inverter.step < 200
    inverter.sample(100, seed=1)
    found = []
    looked_at = 1000 / seconds_of(lambda: found.append(inverter.sample(1000, seed=2)))
    made = 1000 / seconds_of(lambda: inverter.generate(1000, seed=2))
    return {"seconds": taken, "steps": inverter.step, "reached": reached,
            "inversion accuracy": found[0].hits.float().mean().item(),
            "images per second": made, "images per second, looked at": looked_at, "peak MiB": peak_mib()}


def steps(model: str, method: str, batch_size: int, n_generators: int, n: int, repeats: int, folder: str) -> dict:
    "Milliseconds of a training step, and its floating-point operations, counted."
    from torch.utils.flop_counter import FlopCounterMode

    settings = {"n_generators": n_generators} if n_generators > 1 else {}
    inverter = make(method, frozen(model, folder), batch_size=batch_size, **settings)
    inverter.fit(3, progress=False)
    with FlopCounterMode(display=False) as counter: inverter.train_step()
    inverter.log.read()
    n = max(1, min(n, int(PATIENCE / seconds_of(inverter.train_step))))
    times = [seconds_of(lambda: inverter.fit(n, progress=False)) / n for _ in range(repeats)]
    dtype = str(inverter.amp or torch.float32).removeprefix("torch.")
    return {"milliseconds": [1000 * t for t in times], "GFLOP": counter.get_total_flops() / 1e9, "dtype": dtype,
            "peak MiB": peak_mib()}


def matrix_rate(dtype: str) -> dict:
    "The highest rate of square matrix products, over sizes, each the median of five."
    device, best = pick_device(), 0.0
    for size in (1024, 2048, 4096):
        a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
        a @ b
        best = max(best, 2 * size**3 / statistics.median(seconds_of(lambda: a @ b) for _ in range(5)))
    return {"GFLOP/s": best / 1e9}


def import_time() -> dict:
    "Seconds that `import netinv` and `import netinv.inversion` take in a new process, and how much of that is torch."
    def took(module: str) -> float:
        script = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return float(done.stdout)

    names = {"netinv": "netinv", "netinv.inversion": "netinv.inversion", "torch alone": "torch"}
    return {name: statistics.median(took(module) for _ in range(3)) for name, module in names.items()}


PARTS = {f.__name__: f for f in (to95, steps, matrix_rate, import_time)}


def alone(part: str, **given) -> dict:
    "One measurement in a process of its own."
    command = [sys.executable, __file__, "--one", json.dumps({"part": part, "given": given})]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | process_settings())
    if run.returncode: raise SystemExit(f"{part} {given} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def plan(profile: dict, only: list[str], folder: str) -> list[tuple[str, dict]]:
    "All measurements, by name of the part."
    todo, first = [], profile["models"][0]
    n, repeats = profile["steps"], profile["repeats"]
    small = lambda model: shape_of(model)[1] <= 32  # the paper's version of larger images takes too long

    def step(model: str, method: str, batch: int, k: int) -> tuple[str, dict]:
        given = dict(model=model, method=method, batch_size=batch, n_generators=k, n=n, repeats=repeats, folder=folder)
        return "steps", given

    if "to95" in only:
        for seed in range(profile["seeds"]):
            for model in profile["models"]:
                literal = model == first or (seed == 0 and small(model))
                given = dict(model=model, seed=seed, limit=profile["limit"], folder=folder)
                todo += [("to95", given | {"method": m}) for m in profile["methods"] if m != "literal" or literal]
    if "steps" in only:
        todo += [step(m, method, 160, 1) for m in profile["models"] for method in profile["methods"]
                 if method == "netinv" or method == "literal" and small(m)]
        todo += [step(m, "netinv", min(profile["batches"]), 1) for m in profile["large"]]  # in small batches alone
    for model in profile["models"]:
        if "batches" in only: todo += [step(model, "netinv", batch, 1) for batch in profile["batches"]]
        if "generators" in only: todo += [step(model, "netinv", 160, k) for k in profile["generators"]]
    return todo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("to95", "steps", "batches", "generators")
    parser.add_argument("--profile", choices=PROFILES, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--models", nargs="+", choices=MODELS, help="instead of those of the profile")
    parser.add_argument("--out", help="where the JSON goes (default benchmarks/results/speed-DEVICE.json)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one = json.loads(args.one)
        return print(json.dumps(PARTS[one["part"]](**one["given"])))

    profile, device = dict(PROFILES[args.profile]), pick_device()
    if args.models: profile.update(models=args.models, large=[])
    amp = str(pick_amp() or torch.float32).removeprefix("torch.")
    cpu = f"{torch.get_num_threads()} threads of {platform.machine()}"
    machine = {"device": torch.cuda.get_device_name() if device.type == "cuda" else cpu,
               "torch": torch.__version__, "python": platform.python_version(), "profile": args.profile,
               "matrix rate": {dtype: alone("matrix_rate", dtype=dtype) for dtype in dict.fromkeys([amp, "float32"])},
               "import": alone("import_time")}
    print(json.dumps(machine, indent=2), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        models = [*profile["models"], *profile["large"]]
        machine["classifiers"] = {model: trained(model, Path(folder), profile["epochs"]) for model in models}
        for part, given in plan(profile, args.only, folder):
            row = {"part": part, **{k: v for k, v in given.items() if k != "folder"}, **alone(part, **given)}
            if part == "steps":
                rate = row["GFLOP"] / (statistics.median(row["milliseconds"]) / 1000)
                row["share of matrix rate"] = rate / machine["matrix rate"][row["dtype"]]["GFLOP/s"]
            rows.append(row)
            told = {k: v for k, v in row.items() if k not in ("part", "limit", "n", "repeats")}
            numbers = [f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in told.items()]
            print("  ".join(numbers), flush=True)
    out = Path(args.out or f"benchmarks/results/speed-{device.type}.json")
    write_atomic(out, json.dumps({"machine": machine, "rows": rows}, indent=1))
    print(f"written to {out}")


if __name__ == "__main__":
    main()
