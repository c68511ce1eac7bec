"""What the nineteen corruptions cost beside the published per-image code, and whether they do the same.

The peer is the package `imagecorruptions`, with what it lacks today put back (`pkg_resources`, `np.float_`, an
option of scikit-image that was renamed). At 32 pixels its functions take the constants of CIFAR-C in place of
those of ImageNet-C. Its elastic_transform has its own constants and no shift of the plane, and its frost reads
photographs, which ours replaces. Ours is given a batch, the peer image after image; both take turns, on one core,
and processor time is compared, the least of all turns, as other work on the machine slows both.

    uv run --with-requirements tests/benchmarks/peers.txt python tests/benchmarks/corruptions.py

With [--quick] [--json FILE]; exits with 1 where a goal is missed.
"""

import argparse
import importlib.util
import inspect
import json
import platform
import re
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measure import Goal, busy, show_goals
from PIL import Image
from rich.console import Console
from rich.table import Table

from monoeval.data.corruptions import _REGISTRY, CORRUPTIONS, corrupt
from monoeval.data.images import Transform

SEVERITY = 3
NO_SLOWER = 0.95
"""Jpeg and pixelate are the same calls of Pillow in both: their ratio is 1 but for noise."""
TIMES = {"glass_blur": 20.0, "zoom_blur": 4.0, "frost": 4.0, "brightness": 4.0}
WHOLE = 10.0
DRAWN = {"fog", "snow", "frost", "spatter", "elastic_transform", "glass_blur", "motion_blur"}
"""And all noises: the two draw from different streams, so that only moments can be compared."""


def published() -> Any:
    """The package, as it would be imported where it still can be."""
    found = importlib.util.find_spec("imagecorruptions")
    if found is None or found.origin is None:
        sys.exit("imagecorruptions is not installed: run with --with-requirements tests/benchmarks/peers.txt.")
    folder = Path(found.origin).parent
    resources = types.ModuleType("pkg_resources")
    resources.resource_filename = lambda _, path: str(folder / path)  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = resources
    vars(np).setdefault("float_", np.float64)
    import skimage.filters

    present = skimage.filters.gaussian

    def gaussian(image: Any, *rest: Any, multichannel: bool = False, **options: Any) -> Any:
        return present(image, *rest, **({"channel_axis": -1} if multichannel else {}), **options)

    skimage.filters.gaussian = gaussian
    from imagecorruptions import corruptions

    return corruptions


def peer(module: Any, name: str, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """The published function for images of `size`, from and to uint8 [H, W, 3]."""
    function = getattr(module, name)
    if size < 64 and name != "elastic_transform":
        level = _REGISTRY[name].cifar[SEVERITY - 1]
        if name == "zoom_blur":
            level = np.arange(1, *level)
        if name == "frost":
            level = level[:2]
        source, n = re.subn(
            r"c = \[.*?\]\[\s*severity - 1\]", "c = LEVEL", inspect.getsource(function), flags=re.S
        )
        assert n == 1, name
        scope = {**vars(module), "LEVEL": level}
        exec(source, scope)
        function = scope[name]
    return lambda image: np.uint8(function(Image.fromarray(image), SEVERITY))


def pictures(n: int, size: int) -> np.ndarray:
    """Smooth structure and some noise, uint8 [n, size, size, 3]."""
    rng = np.random.default_rng(0)
    coarse = (rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(n))
    smooth = np.stack([cv2.resize(image, (size, size)) for image in coarse])
    return (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images and turns")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    console, load = Console(width=110), busy()
    module = published()
    goals: list[Goal] = []
    facts: list[dict[str, object]] = []
    for size, n, few in ((32, 64, 8), (224, 8, 2)):
        table = Table("corruption", "ours, ms", "published, ms", "ratio", "differ by", "mean", "spread")
        table.title = f"{size} pixels, severity {SEVERITY}: an image"
        images, ids = pictures(n, size), np.array([str(row) for row in range(n)])
        ours_sum = peer_sum = 0.0
        for name in CORRUPTIONS:
            transform = Transform(name=name, stage="image", severity=SEVERITY)
            theirs = peer(module, name, size)
            corrupt(images[:1], ids[:1], transform)
            theirs(images[0])
            np.random.seed(0)  # noqa: NPY002 (the peer draws from it)
            count = 1 if name == "glass_blur" else few  # a second an image
            ours_ms, peer_ms, made = [], [], np.empty(0)
            for _ in range(3 if options.quick else 9):
                started = time.process_time()
                made = corrupt(images, ids, transform)
                ours_ms.append(1e3 * (time.process_time() - started) / n)
                started = time.process_time()
                for image in images[:count]:
                    theirs(image)
                peer_ms.append(1e3 * (time.process_time() - started) / count)
            ours, least = min(ours_ms), min(peer_ms)
            ours_sum, peer_sum = ours_sum + ours, peer_sum + least
            compared = images[: 1 if size > 32 and name == "glass_blur" else n]
            reference = np.stack([theirs(image) for image in compared]).astype(float)
            got = made[: len(compared)].astype(float)
            drawn = name in DRAWN or name.endswith("noise")
            gap = float(np.abs(got - reference).max())
            mean, spread = (float(f(got) - f(reference)) for f in (np.mean, np.std))
            table.add_row(
                name,
                f"{ours:.3f}",
                f"{least:.3f}",
                f"{least / ours:.1f}",
                "drawn" if drawn else f"{gap:.0f}",
                f"{mean:+.1f}",
                f"{spread:+.1f}",
            )
            goals.append(Goal(f"{size} px", name, least / ours, TIMES.get(name, NO_SLOWER), at_least=True))
            if not drawn:
                goals.append(Goal(f"{size} px", f"{name}: largest difference", gap, 1, answer=True))
            facts.append(
                {"size": size, "name": name, "ours_ms": ours_ms, "peer_ms": peer_ms, "gap": None if drawn else gap,
                 "mean": mean, "spread": spread}
            )  # fmt: skip
        goals.append(Goal(f"{size} px", "all nineteen", peer_sum / ours_sum, WHOLE, at_least=True))
        table.add_row(
            "all nineteen", f"{ours_sum:.2f}", f"{peer_sum:.2f}", f"{peer_sum / ours_sum:.1f}", "", "", ""
        )
        console.print(table)
    if load > 0.5:
        console.print(f"load {load:.1f} before the start: other work makes the times less reliable")
    show_goals(console, goals)
    if options.json:
        machine = platform.processor() or platform.machine()
        whole = {"benchmark": "corruptions", "severity": SEVERITY, "load_before": load, "machine": machine}
        versions = {"numpy": np.__version__, "opencv": cv2.__version__}
        options.json.write_text(json.dumps({**whole, **versions, "corruptions": facts}, indent=1))
    return int(not all(goal.met for goal in goals))


if __name__ == "__main__":
    sys.exit(main())
