"""What a training step costs on a quiet machine, and beside other programs that want the same cores.

Other programs are processes that compute without end. Each measurement is a process of its own, which trains an
inverter of a classifier of digits or MNIST. The ways to go about it are measured in turn, and again in every round, so
that all of them meet the same machine:

    as usual      PyTorch's own number of threads and its own way of waiting
    one thread    nobody waits for anybody
    settings      all threads, with the settings that netinv hands to processes
    choice        netinv decides between all threads and one, as in a notebook that you started yourself
    netinv        both, as in `netinv run` and `netinv invert`

    python benchmarks/busy.py                            # beside two processes, three rounds
    python benchmarks/busy.py --spins 0 1000 30000       # other settings of GOMP_SPINCOUNT as well

The last line says how many cores other programs took, as far as Linux tells: the machine is quiet if that is next to
nothing."""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import torch

from netinv import CNN, FrozenClassifier, Inverter, load_data, load_weights, save_weights, train_classifier
from netinv.data import first_available
from netinv.files import write_atomic
from netinv.runner import PROCESS_SETTINGS

ALL = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # a number that somebody has set is not changed
WAITING = {name: value for name, value in PROCESS_SETTINGS.items() if name.startswith("GOMP_")}
WAYS = {"as usual": ALL, "one thread": {"OMP_NUM_THREADS": "1"}, "settings": ALL | WAITING, "choice": {},
        "netinv": WAITING}
CROWD = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with us, however we end
PATIENCE = 30  # seconds after which a measurement ends, however few its steps are
OWN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def train(folder: str) -> None:
    "Leave a classifier in `folder`."
    data = load_data(first_available("mnist", "digits"), train_size=1000)
    save_weights(train_classifier(data, epochs=1, progress=False), Path(folder) / "classifier.safetensors")


def seconds_of_all() -> float | None:
    "Seconds that all programs of the machine have computed; None where Linux does not say."
    path = Path("/proc/stat")
    if not path.exists(): return None
    user, nice, system = map(int, path.read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def seconds_of(process: subprocess.Popen) -> float:
    "Seconds that a process has computed."
    user, system = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def by_others(crowd: list[subprocess.Popen]) -> float | None:
    "Seconds that neither this process nor its crowd has computed; None where Linux does not say."
    whole = seconds_of_all()
    return None if whole is None else whole - time.process_time() - sum(map(seconds_of, crowd))


def measure(folder: str, busy: int, steps: int) -> dict:
    "Milliseconds of a step, on the whole and in the median, beside `busy` processes; and how many cores others took."
    classifier = FrozenClassifier(load_weights(CNN((1, 28, 28), 10), Path(folder) / "classifier.safetensors"),
                                  shape=(1, 28, 28))
    Inverter(classifier).fit(3, progress=False)  # the first steps of a process are slow
    inverter, ends, used = Inverter(classifier), [], []
    crowd = [subprocess.Popen([sys.executable, "-c", CROWD]) for _ in range(busy)]

    def late(_: Inverter) -> bool:
        ends.append(time.perf_counter())
        used.append(torch.get_num_threads())
        return ends[-1] - began > PATIENCE

    try:
        time.sleep(0.5)
        began, before = time.perf_counter(), by_others(crowd)
        inverter.fit(steps, on_step=late, progress=False)
        taken = ends[-1] - began
        others = None if before is None else max(0.0, (by_others(crowd) - before) / taken)
    finally:
        for process in crowd:
            process.kill()
            process.wait()
    each = [1000 * (b - a) for a, b in zip([began, *ends], ends)]
    return {"milliseconds": 1000 * taken / len(ends), "median": statistics.median(each), "slowest": max(each),
            "one thread": used.count(1) / len(ends), "steps": len(ends), "cores of others": others}


def apart(env: dict[str, str], **given) -> dict:
    "One measurement in a process of its own, with `env` added to the environment."
    plain = {name: value for name, value in os.environ.items() if name not in OWN}
    command = [sys.executable, __file__, "--one", json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, env=plain | env)
    if done.returncode: raise SystemExit(f"{given} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(rows: list[dict]) -> list[dict]:
    "Medians over the rounds, a row for each way."
    found = []
    for way in dict.fromkeys(row["way"] for row in rows):
        quiet, busy = ([r for r in rows if r["way"] == way and bool(r["busy"]) == crowded] for crowded in (False, True))
        alone, beside = (statistics.median(row["milliseconds"] for row in of) for of in (quiet, busy))
        found.append({"way": way, "quiet": alone, "busy": beside, "ratio": beside / alone,
                      "one thread, quiet": max(row["one thread"] for row in quiet),
                      "one thread, busy": max(row["one thread"] for row in busy),
                      "cores of others": max(row["cores of others"] or 0 for row in quiet + busy)})
    return found


def show(table: list[dict], busy: int) -> None:
    "The summary, a line for each way."
    print(f"\nmilliseconds of a step, quiet and beside {busy} processes; share of the steps with one thread")
    print(f"{'':12}{'quiet':>8}{'busy':>8}{'ratio':>7}{'quiet':>8}{'busy':>6}")
    for row in table:
        shares = f"{row['one thread, quiet']:8.0%}{row['one thread, busy']:6.0%}"
        print(f"{row['way']:12}{row['quiet']:8.0f}{row['busy']:8.0f}{row['ratio']:7.1f}{shares}")
    print(f"other programs took up to {max(row['cores of others'] for row in table):.2f} cores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=2, help="processes beside which to train (default 2)")
    parser.add_argument("--steps", type=int, default=40, help="of a measurement (default 40)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind (default 3)")
    parser.add_argument("--spins", nargs="+", default=[], metavar="N", help="settings of GOMP_SPINCOUNT to try as well")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/busy.json"), help="where the JSON goes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: return print(json.dumps(measure(**json.loads(args.one))))

    ways = WAYS | {f"spin {count}": ALL | {"GOMP_SPINCOUNT": count} for count in args.spins}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        train(folder)
        for k, (way, env), busy in product(range(args.rounds), ways.items(), (0, args.busy)):
            rows.append({"way": way, "busy": busy, "round": k} | apart(env, folder=folder, busy=busy, steps=args.steps))
            told = [f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()]
            print("  ".join(told), flush=True)
    machine = {"device": f"{torch.get_num_threads()} threads of {platform.machine()}", "torch": torch.__version__,
               "python": platform.python_version(), "settings": PROCESS_SETTINGS}
    table = summary(rows)
    write_atomic(args.out, json.dumps({"machine": machine, "summary": table, "rows": rows}, indent=1))
    show(table, args.busy)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
