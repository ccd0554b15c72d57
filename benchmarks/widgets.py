"""What the studio costs: training speed with it against without it, and the time from a slider's move to its picture.

The studio runs on an event loop as in a notebook, with scikit-learn's digits, and sends its pictures nowhere; a browser
comes on top."""
import argparse
import asyncio
import json
import platform
import statistics
import time

import torch

from netinv.classifier import train_classifier
from netinv.frozen import FrozenClassifier
from netinv.data import load_data
from netinv.device import pick_amp, pick_device
from netinv.files import write_atomic
from netinv.inversion import Inverter
from netinv.studio import InversionStudio


async def steps_per_second(classifier: FrozenClassifier, seconds: float) -> tuple[float, list[float]]:
    "Speed of a studio, and the seconds that each of many moves of a slider took to be seen."
    studio, moved, waits = InversionStudio(classifier), [], []
    shown = studio.show

    def show(frame):
        shown(frame)
        while moved: waits.append(time.perf_counter() - moved.pop())

    studio.loop.show = show
    studio.toggle()
    await asyncio.sleep(2)
    start, first = time.perf_counter(), studio.inverter.step
    await asyncio.sleep(seconds)
    speed = (studio.inverter.step - first) / (time.perf_counter() - start)
    slider = studio.controls.controls["gamma"]
    for k in range(20):
        await asyncio.sleep(0.3 + 0.037 * k)
        moved.append(time.perf_counter())
        slider.value = [4.0, 8.0][k % 2]
    await asyncio.sleep(2)
    studio.close()
    await studio.loop.task
    return speed, waits


def headless(classifier: FrozenClassifier, seconds: float) -> float:
    "Steps per second of an inverter alone."
    inverter = Inverter(classifier)
    inverter.fit(10, progress=False)
    start, first = time.perf_counter(), inverter.step
    inverter.fit(10**9, on_step=lambda _: time.perf_counter() - start > seconds, progress=False)
    return (inverter.step - first) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times that both are measured, in turn (default 3)")
    parser.add_argument("--seconds", type=float, default=10, help="seconds of training in each (default 10)")
    parser.add_argument("--out", default="benchmarks/results/widgets.json", help="where the JSON goes")
    args = parser.parse_args()
    data = load_data("digits")
    classifier = FrozenClassifier(train_classifier(data, epochs=3, progress=False), shape=data.shape)
    one = lambda: (headless(classifier, args.seconds), *asyncio.run(steps_per_second(classifier, args.seconds)))
    rounds = [one() for _ in range(args.rounds)]
    alone, watched = (statistics.median(row[k] for row in rounds) for k in (0, 1))
    waits = sorted(wait for row in rounds for wait in row[2])
    result = {"machine": platform.machine(), "device": str(pick_device()), "threads": torch.get_num_threads(),
              "dtype": str(pick_amp()), "steps_per_second_headless": alone, "steps_per_second_studio": watched,
              "ratio": watched / alone, "slider_to_picture_median": statistics.median(waits),
              "slider_to_picture_longest": waits[-1], "moves": len(waits)}
    print(json.dumps(result, indent=2))
    write_atomic(args.out, json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
