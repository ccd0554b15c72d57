"""What can only be found out on a CUDA device, in eight minutes, the most telling first.

Each part runs in a process of its own (of a smoke test all in one), and each result is in benchmarks/results/gpu as
soon as it is there, with the names of the device and of the versions: a run that is cut off leaves what it had. A part
whose packages or files are missing says so and is left out. netinv's smallest set of packages will do (torch, numpy,
pandas, safetensors, tqdm and fastcore), and without data sets, images are made up.

    python benchmarks/gpu.py                          # on a CUDA device: 480 seconds at most
    python benchmarks/gpu.py --only correctness steps
    python benchmarks/gpu.py --device cpu --smoke     # the least that still runs every line
"""
import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MARK = "@result "  # begins a line of JSON on a part's standard output
NOTEBOOKS = ("fig2_inversion", "speed", "ood_table", "fig5_reconstruction", "fig3_interpretability",
             "which_conditioning", "classifiers", "training", "reconstruction_ablation")


class Setting(NamedTuple):
    "What a part is told."
    smoke: bool    # do the least
    folder: Path   # where the trained classifier is
    seconds: float  # that are left


class Skipped(Exception):
    "A part that cannot be measured here, with the reason."


def mnist(size: int, smoke: bool):
    "MNIST where its files are, else images made up; what is read may print, and does so on standard error."
    from checks import generated
    from netinv.data import first_available, load_data

    if smoke: return generated(200)
    with redirect_stdout(sys.stderr):
        try:
            if first_available("mnist", "digits") == "mnist": return load_data("mnist", train_size=size)
        except (ImportError, OSError, ValueError) as e: print(f"MNIST cannot be read: {e}", file=sys.stderr)
    return generated(size)


# The parts: each yields what it has found, as often as there is something new

def correctness(setting: Setting) -> Iterator[dict]:
    "bfloat16, K generators as one network, resuming bit for bit, NaN blamed, want of memory, folding, captured steps."
    import checks
    from netinv.device import pick_device

    found: dict[str, object] = {}
    for name, check in checks.CHECKS.items():
        try: found[name] = check(pick_device())
        except checks.Skipped as e: found[name] = {"skipped": str(e)}
        except Exception as e:
            found[name] = {"failed": f"{type(e).__name__}: {e}", "where": traceback.format_exc()[-1500:]}
        yield found | {"met": all("failed" not in of for of in found.values())}


def classifier(setting: Setting) -> Iterator[dict]:
    "Train the CNN that later parts invert, and keep its weights."
    from netinv import accuracy, save_weights, train_classifier
    from netinv.frozen import FrozenClassifier

    data = mnist(10_000, setting.smoke)
    began = time.perf_counter()
    model = train_classifier(data, epochs=1 if setting.smoke else 4, progress=False)
    taken = time.perf_counter() - began
    save_weights(model, setting.folder / "mnist.safetensors")
    right = accuracy(FrozenClassifier(model, shape=data.shape), data.test)
    yield {"data": data.name, "seconds of training": taken, "test accuracy": right}


def to95(setting: Setting) -> Iterator[dict]:
    "Seconds from a trained classifier to 95 % of fresh samples in every class (wanted on MNIST: 2)."
    import speed

    rows = []
    for seed in range(1 if setting.smoke else 3):
        rows.append(speed.to95("mnist", "netinv", seed, 1 if setting.smoke else 20, str(setting.folder)))
        middle = statistics.median(row["seconds"] for row in rows)
        yield {"seconds": middle, "runs": rows, "bar": 2, "met": middle < 2 and all(row["reached"] for row in rows)}


def milliseconds(setting: Setting, method: str = "netinv", model: str = "mnist", n_generators: int = 1) -> dict:
    "A training step, with the number of operations and the memory."
    import speed

    n, repeats, batch = (1, 1, 16) if setting.smoke else (50, 5, 160)
    row = speed.steps(model, method, batch, n_generators, n, repeats, str(setting.folder))
    return row | {"median": statistics.median(row["milliseconds"])}


def steps(setting: Setting) -> Iterator[dict]:
    "Steps per second against the paper word for word (wanted: 8 times)."
    found = {"netinv": milliseconds(setting)}
    yield found
    found["literal"] = milliseconds(setting, "literal")
    ratio = found["literal"]["median"] / found["netinv"]["median"]
    yield found | {"ratio": ratio, "bar": 8, "met": ratio >= 8}


def generators(setting: Setting) -> Iterator[dict]:
    "Eight generators trained at once against one (wanted: 3 times the time of one, at most)."
    found: dict[str, dict] = {}
    for k in (1, 2, 4, 8)[:: 3 if setting.smoke else 1]:
        found[str(k)] = milliseconds(setting, n_generators=k)
        yield found
    ratio = found["8"]["median"] / found["1"]["median"]
    yield found | {"ratio": ratio, "bar": 3, "met": ratio <= 3}


def compiled(setting: Setting) -> Iterator[dict]:
    "Milliseconds of a step: as it is, captured as a CUDA graph, with networks compiled by torch.compile."
    import torch

    import speed
    from netinv.graphs import captured

    def timed(change: Callable) -> dict:
        batch = 16 if setting.smoke else 160
        inverter = speed.make("netinv", speed.frozen("mnist", str(setting.folder)), batch_size=batch)
        began = time.perf_counter()
        change(inverter)
        inverter.fit(5, progress=False)
        first = time.perf_counter() - began
        n, repeats = (1, 1) if setting.smoke else (50, 5)
        times = [1000 * speed.seconds_of(lambda: inverter.fit(n, progress=False)) / n for _ in range(repeats)]
        return {"median": statistics.median(times), "milliseconds": times, "seconds of the first five steps": first}

    def compile_networks(inverter) -> None:
        for network in (*inverter.generators, inverter.target.model): network.compile()

    ways = {"plain": lambda inverter: None, "captured": captured, "compiled": compile_networks}
    found: dict[str, dict] = {}
    for name, change in ways.items():
        if name == "captured" and not torch.cuda.is_available():
            found[name] = {"skipped": "graphs are for CUDA devices"}
        elif name == "compiled" and setting.smoke:
            found[name] = {"skipped": "compiling takes longer than all the rest"}
        else:
            try: found[name] = timed(change)
            except Exception as e: found[name] = {"failed": f"{type(e).__name__}: {e}"[:500]}
        yield found


def resnet(setting: Setting) -> Iterator[dict]:
    "A step against resnet18 at 224 pixels, which torchvision builds; its weights are random, which costs the same."
    from importlib.util import find_spec

    import speed
    from netinv import save_weights

    if not find_spec("torchvision"): raise Skipped("torchvision, which builds resnet18, is not installed")
    name = "resnet18-64" if setting.smoke else "resnet18-224"
    save_weights(speed.fresh(name), setting.folder / f"{name}.safetensors")
    yield milliseconds(setting, model=name)


def reconstruction(setting: Setting) -> Iterator[dict]:
    "Images from the weights of a classifier that learnt from 1,000: seconds, and how many a judge calls right."
    from netinv import FrozenClassifier, load_weights, look, reconstruct, train_classifier
    from netinv.classifier import CNN

    data = mnist(1_000, setting.smoke)
    model = train_classifier(data, epochs=1 if setting.smoke else None, progress=False)
    few = dict(steps=3, n=20, batch_size=16) if setting.smoke else dict(steps=600, n=500)
    began = time.perf_counter()
    samples = reconstruct(FrozenClassifier(model, shape=data.shape), progress=False, **few)
    taken = time.perf_counter() - began
    judge = load_weights(CNN(data.shape, len(data.classes)), setting.folder / "mnist.safetensors")
    judged = look(FrozenClassifier(judge, shape=data.shape), samples.images, samples.labels)
    share = lambda seen: seen.hits.float().mean().item()
    shares = {"accuracy": share(samples), "accuracy under the judge": share(judged)}
    yield {"data": data.name, "seconds": taken, **shares, **few}


def rank_auroc(inside, outside) -> float:
    "The chance that an in-distribution image scores above another one; ties count half."
    import torch

    scores = torch.cat([inside, outside])
    _, index, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts.double() - 1) / 2)[index]  # the mean rank of ties
    return ((ranks[: len(inside)].sum() - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside))).item()


def ood(setting: Setting) -> Iterator[dict]:
    "A classifier with a garbage class: seconds of its training, AUROC against shapes it never saw and against noise."
    import torch

    from checks import generated
    from netinv import FrozenClassifier, ood_score, train_with_garbage

    data = mnist(10_000, setting.smoke)
    strange = generated(2_000 if not setting.smoke else 40).test.images
    if data.name.startswith("generated"): strange = strange.flip(-1, -2)
    began = time.perf_counter()
    few = dict(epochs=1, inverted=20) if setting.smoke else dict(epochs=8)
    model = FrozenClassifier(train_with_garbage(data, progress=False, **few), shape=data.shape)
    taken = time.perf_counter() - began
    noise = torch.randint(256, strange.shape, dtype=torch.uint8, device=strange.device)
    n, outside = len(data.classes), {"shapes": strange, "noise": noise}
    inside = ood_score(model, data.test.images[:2_000], n_classes=n)
    areas = {name: rank_auroc(inside, ood_score(model, images, n_classes=n)) for name, images in outside.items()}
    yield {"data": data.name, "seconds": taken, "AUROC": areas} | few


def notebooks(setting: Setting) -> Iterator[dict]:
    "Experiments in the profile `gpu`, one after the other, for as long as there is time; their numbers are kept."
    from importlib.util import find_spec

    wanted = ("papermill", "ipykernel", "matplotlib", "sklearn", "yaml")
    if missing := [name for name in wanted if not find_spec(name)]:
        raise Skipped(f"notebooks need {', '.join(wanted)}, and there is no {' and no '.join(missing)}")
    from netinv.runner import RunFailed, run_notebook

    found: dict[str, dict] = {}
    until, profile = time.monotonic() + setting.seconds, "smoke" if setting.smoke else "gpu"
    for stem in NOTEBOOKS[: 1 if setting.smoke else None]:
        if time.monotonic() > until - 30: break  # it would be cut off
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
            began = time.perf_counter()
            try:
                path = ROOT / f"nbs/experiments/{stem}.ipynb"
                run_notebook(path, profile=profile, out=folder, progress=False)
                found[stem] = {"metrics": json.loads(Path(folder, "metrics.json").read_text(encoding="utf-8"))}
            except RunFailed as e: found[stem] = {"failed": str(e)[-1500:]}
            found[stem]["seconds"] = time.perf_counter() - began
        yield found


class Part(NamedTuple):
    "One process."
    work: Callable[[Setting], Iterator[dict]]
    limit: float  # seconds after which it is cut off


PARTS = {part.work.__name__: part for part in (
    Part(correctness, 120), Part(classifier, 90), Part(to95, 90), Part(steps, 60), Part(generators, 90),
    Part(compiled, 120), Part(resnet, 60), Part(reconstruction, 120), Part(ood, 120), Part(notebooks, 480))}


# The driver

def machine() -> dict:
    "What a result is of."
    import torch

    import netinv

    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads of {platform.machine()}"
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
    return {"device": device, **versions, "netinv": netinv.__version__}


def results_here(name: str, setting: Setting) -> Iterator[dict]:
    "Everything that a part finds, in this process."
    common = machine() | {"smoke": setting.smoke}
    yield common
    try:
        for found in PARTS[name].work(setting): yield common | {"result": found}
    except Skipped as e: yield common | {"skipped": str(e)}


def results_apart(name: str, setting: Setting, device: str) -> Iterator[dict]:
    "The same in a process of its own; at the end, whether it was cut off or failed."
    limit = min(PARTS[name].limit, setting.seconds)
    told = ["--part", name, "--device", device, "--folder", str(setting.folder), "--budget", str(limit)]
    command = [sys.executable, __file__, *told, *["--smoke"] * setting.smoke]
    with tempfile.TemporaryFile("w+") as errors:
        pipes = dict(stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
        process = subprocess.Popen(command, **pipes)
        clock = Clock(process, limit)
        last: dict = {}
        for line in process.stdout:
            if not line.startswith(MARK): continue
            last = json.loads(line.removeprefix(MARK))
            yield last
        code = process.wait()
        clock.cancel()
        errors.seek(0)
        if clock.rang: yield last | {"cut off": f"after {limit:.0f} seconds"}
        elif code: yield last | {"failed": errors.read()[-2000:]}


class Clock:
    "Ends a process, and those that it started, when its time is over."
    def __init__(self, process: subprocess.Popen, seconds: float):
        from threading import Timer

        self.process, self.rang = process, False
        self.timer = Timer(seconds, self.ring)
        self.timer.start()

    def ring(self) -> None:
        self.rang = True
        os.killpg(self.process.pid, signal.SIGKILL)

    def cancel(self) -> None: self.timer.cancel()


def write(path: Path, content: dict) -> None:
    "The whole file or none of it."
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1), encoding="utf-8")
    new.replace(path)


def summary(name: str, kept: dict) -> str:
    "One line about a part."
    for word in ("skipped", "cut off", "failed"):
        if word in kept: return f"{name}: {word}, {kept[word].strip().splitlines()[-1]}"
    result = kept.get("result", {})
    bar = f", wanted {result['bar']}" if "bar" in result else ""
    verdict = "" if kept.get("smoke") and bar else {True: ", met", False: ", NOT MET"}.get(result.get("met"), "")
    short = {k: v.get("median", v) if isinstance(v, dict) else v for k, v in result.items() if k not in ("bar", "met")}
    show = lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)
    numbers = "  ".join(f"{k} {show(v)}" for k, v in short.items() if not isinstance(v, list))
    return f"{name}: {numbers[:300]}{bar}{verdict}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"some of {', '.join(PARTS)}")
    add("--device", choices=("auto", "cpu"), default="auto", help="cpu hides the CUDA devices")
    add("--smoke", action="store_true", help="the least that still runs every line; the numbers mean nothing")
    add("--budget", type=float, default=480, metavar="SECONDS", help="for everything (default 480)")
    add("--out", type=Path, default=ROOT / "benchmarks/results/gpu", metavar="DIR", help="where the JSON files go")
    add("--part", choices=PARTS, help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))  # for kernels
    if args.device == "cpu": os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if args.part:
        setting = Setting(args.smoke, args.folder, args.budget)
        for result in results_here(args.part, setting): print(MARK + json.dumps(result), flush=True)
        return 0
    if not args.smoke and not has_cuda():
        parser.error("there is no CUDA device here: --device cpu --smoke tries the script itself")
    until, failed = time.monotonic() + args.budget, False
    with tempfile.TemporaryDirectory() as folder:
        for name in dict.fromkeys(["classifier"] * needs_classifier(args.only) + args.only):
            left = until - time.monotonic()
            if left < 5:
                print(f"{name}: no time left", flush=True)
                continue
            began, kept = time.monotonic(), {}
            setting = Setting(args.smoke, Path(folder), left)
            for kept in results_here(name, setting) if args.smoke else results_apart(name, setting, args.device):
                about = {"part": name, "about": PARTS[name].work.__doc__}
                write(args.out / f"{name}.json", about | kept | {"took": time.monotonic() - began})
            failed |= "failed" in kept or kept.get("result", {}).get("met") is False and name == "correctness"
            print(summary(name, kept), flush=True)
    return int(failed)


def has_cuda() -> bool:
    "Asked in another process, so that the driver holds no memory of the device."
    asks = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", asks]).returncode == 0


def needs_classifier(parts: list[str]) -> bool:
    "Whether one of the parts uses the classifier, which then has to be trained first."
    users = {"to95", "steps", "generators", "compiled", "reconstruction"}
    return bool(users & set(parts)) and "classifier" not in parts


if __name__ == "__main__":
    sys.exit(main())
