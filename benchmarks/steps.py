"""Whether a change made training or sampling slower: two checkouts of netinv, in turn, on the same classifiers.

Each measurement is a whole process in one checkout, first the one, then the other, and so on, so that both meet the
same machine. Medians over rounds are compared; a ratio above 1 says that the second checkout takes longer.

    git worktree add --detach ../before COMMIT
    python benchmarks/steps.py ../before .               # MNIST and a subset of CIFAR-10, five rounds
    python benchmarks/steps.py ../before . --rounds 9 --limit 1.05   # exit code 1 if a ratio is above the limit
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SETS = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}

DOORS = """
import json, sys, time, statistics, torch
from pathlib import Path
import netinv
if (Path(netinv.__file__).parent / "frozen.py").exists():  # not by trying: another checkout may be installed
    from netinv.bring import load_weights, save_weights
    from netinv.frozen import FrozenClassifier
else:
    from netinv.classifier import FrozenClassifier, load_weights, save_weights
"""  # understood by checkouts before and after the rooms were divided

TRAIN = DOORS + """
from netinv.data import first_available, load_data
from netinv.classifier import train_classifier
name, path, size, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
found = first_available(name, "digits") if name == "mnist" else name
data = load_data(found, train_size=None if found == "digits" else size)
save_weights(train_classifier(data, epochs=epochs, progress=False), path)
"""

MEASURE = DOORS + """
from netinv.classifier import CNN
from netinv.inversion import Inverter
path, shape, steps, images = sys.argv[1], tuple(json.loads(sys.argv[2])), int(sys.argv[3]), int(sys.argv[4])

def seconds(work):
    if torch.cuda.is_available(): torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return time.perf_counter() - start

classifier = FrozenClassifier(load_weights(CNN(shape, 10), path), shape=shape)
inverter = Inverter(classifier)
inverter.fit(5, progress=False)
inverter.sample(min(images, 200), seed=0)
taken = [seconds(lambda: inverter.fit(steps, progress=False)) / steps for _ in range(3)]
drawn = [seconds(lambda: inverter.sample(images, seed=k)) / images for k in range(3)]
print(json.dumps({"step": 1000 * statistics.median(taken), "sample": 1e6 * statistics.median(drawn),
                  "total": inverter.history["total"].iloc[-1]}))
"""
UNITS = {"step": "ms a training step", "sample": "us a sampled image"}


def run(checkout: Path, script: str, *arguments: object) -> str:
    "What a script prints in a process of its own that imports netinv from `checkout`."
    env = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, env=env)
    if done.returncode: raise SystemExit(f"{checkout} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def compare(before: Path, after: Path, name: str, args: argparse.Namespace) -> dict[str, dict]:
    "Medians of both checkouts and their ratio, for training steps and for sampling."
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "classifier.safetensors"
        run(after, TRAIN, name, weights, args.train_size, args.epochs)
        rounds = [], []
        for k in range(args.rounds):
            for i in (0, 1) if k % 2 == 0 else (1, 0):  # neither is always the second
                given = weights, json.dumps(SETS[name]), args.steps, args.images
                rounds[i].append(json.loads(run((before, after)[i], MEASURE, *given).splitlines()[-1]))
    found = {}
    for what, unit in UNITS.items():
        old, new = ([row[what] for row in of] for of in rounds)
        ratios = [b / a for a, b in zip(old, new)]
        found[what] = {"unit": unit, "before": statistics.median(old), "after": statistics.median(new),
                       "ratio": statistics.median(new) / statistics.median(old), "rounds": ratios}
    found["total"] = dict(zip(("before", "after"), (of[0]["total"] for of in rounds)))  # of the last step
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout of netinv")
    parser.add_argument("after", type=Path, help="another one")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="data sets (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each checkout (default 5)")
    parser.add_argument("--steps", type=int, default=30, help="steps timed at once, three times a process (default 30)")
    parser.add_argument("--images", type=int, default=2000, help="images sampled at once, likewise (default 2000)")
    parser.add_argument("--train-size", type=int, default=5000, help="images the classifier learns from (default 5000)")
    parser.add_argument("--epochs", type=int, default=3, help="passes over these (default 3)")
    parser.add_argument("--limit", type=float, help="exit with 1 where a ratio is above this")
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    args = parser.parse_args()
    results = {}
    for name in args.sets:
        results[name] = compare(args.before, args.after, name, args)
        for what in UNITS:
            row = results[name][what]
            print(f"{name:8} {row['unit']:20} before {row['before']:8.2f}  after {row['after']:8.2f}  ratio "
                  f"{row['ratio']:.3f}  (rounds {min(row['rounds']):.2f} to {max(row['rounds']):.2f})", flush=True)
    if args.out: args.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    limit = args.limit or float("inf")
    slow = [f"{name} {what}" for name in results for what in UNITS if results[name][what]["ratio"] > limit]
    if slow: print(f"slower than {args.limit:g} times: {', '.join(slow)}", file=sys.stderr)
    return bool(slow)


if __name__ == "__main__":
    sys.exit(main())
