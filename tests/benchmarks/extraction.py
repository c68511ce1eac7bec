"""What the extraction pipeline costs beside the network's bare forward pass.

resnet18 with random weights in fp32 at 224 pixels, from JPEGs of 256 pixels made on the spot. The bare pass has
its tensors ready; the pipeline decodes, resizes, normalises, runs the network and writes shards. The two take
turns, so that a machine that slows down slows both. Other work on the machine makes the elapsed times useless
(more threads then get a larger share of it), so processor time stands beside them and a busy machine is named.
Exits with 1 where the overhead is above the goal.

    python tests/benchmarks/extraction.py [--quick] [--json FILE]
"""

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from monoeval.backbones.extract import BATCH, extract
from monoeval.backbones.load import load_backbone
from monoeval.backbones.spec import BackboneSpec
from monoeval.data.decode import to_rgb
from monoeval.data.images import ImageSet

GOAL_PERCENT = 15.0
SIDE = 256


class Files:
    """Reads JPEGs from a folder, as an image folder's rows are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, row: int) -> np.ndarray:
        return to_rgb(self.folder / f"{row}.jpg")


def photographs(folder: Path, n: int) -> ImageSet:
    """Write `n` JPEGs with smooth structure and some noise, about as large as photographs of this size."""
    rng = np.random.default_rng(0)
    for row in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        pixels = np.asarray(coarse, np.float32) + rng.normal(0, 6, (SIDE, SIDE, 3))
        stream = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        (folder / f"{row}.jpg").write_bytes(stream.getvalue())
    ids = np.array([str(row) for row in range(n)])
    return ImageSet("photographs", np.zeros(n, np.int64), ("any",), ids, None, "photographs", Files(folder))


def percent(bare: list[float], whole: list[float]) -> float:
    """The median, over turns, of how much more the whole takes, in percent."""
    return statistics.median(100 * (w / b - 1) for w, b in zip(whole, bare, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images and turns")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    options = parser.parse_args()
    turns, batches = (3, 4) if options.quick else (5, 12)

    with tempfile.TemporaryDirectory() as place:
        os.environ["MONOEVAL_CACHE"] = f"{place}/cache"
        spec = BackboneSpec(model="resnet18", weights="random", precision="fp32")
        backbone = load_backbone(spec, device="auto")
        size = BATCH[backbone.device.type]
        n = size * batches
        (Path(place) / "images").mkdir()
        images = photographs(Path(place) / "images", n)
        pixels = np.stack([backbone.preprocess.image(images.read(row)) for row in range(size)])
        ready = backbone.preprocess.tensor(pixels)
        for _ in range(2):
            backbone(ready).cpu()
        bare, whole, bare_cpu, whole_cpu = [], [], [], []
        load = os.getloadavg()[0]
        for turn in range(turns):
            started, started_cpu = time.perf_counter(), time.process_time()
            for _ in range(batches):
                backbone(ready).cpu()
            bare.append(time.perf_counter() - started)
            bare_cpu.append(time.process_time() - started_cpu)
            started, started_cpu = time.perf_counter(), time.process_time()
            extract(backbone, f"turn{turn}", images, [None])
            whole.append(time.perf_counter() - started)
            whole_cpu.append(time.process_time() - started_cpu)

    overhead, overhead_cpu = percent(bare, whole), percent(bare_cpu, whole_cpu)
    print(f"{'':24}{'images/s':>10}{'spread of turns':>26}")
    for name, seconds in (("bare forward pass", bare), ("whole extraction", whole)):
        rates = sorted(n / s for s in seconds)
        print(f"{name:24}{statistics.median(rates):>10.1f}{f'{rates[0]:.1f} to {rates[-1]:.1f}':>26}")
    print(f"processor time: {overhead_cpu:.1f} % more")
    if load > 0.5:
        print(f"load {load:.1f} before the start: other work makes the elapsed times unreliable")
    print(f"overhead {overhead:.1f} % (goal: at most {GOAL_PERCENT:g} %)")
    if options.json:
        facts = {
            "benchmark": "extraction",
            "images": n,
            "turns": turns,
            "bare_seconds": bare,
            "whole_seconds": whole,
            "overhead_percent": overhead,
            "processor_time_percent": overhead_cpu,
            "load_before": load,
            "goal_percent": GOAL_PERCENT,
            "device": str(backbone.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
        }
        options.json.write_text(json.dumps(facts, indent=1))
    return int(overhead > GOAL_PERCENT)


if __name__ == "__main__":
    sys.exit(main())
