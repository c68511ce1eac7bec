"""What benchmarks share: processes of their own, peak memory, the machine's rate of products, goals."""

import concurrent.futures
import multiprocessing
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Goal:
    """A measured value beside what was asked; an `answer` counts even where sizes are too small to judge speed."""

    case: str
    what: str
    value: float
    bound: float
    at_least: bool = False
    answer: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def show_goals(console: Console, goals: list[Goal]) -> None:
    table = Table("case", "goal", "measured", "asked", "", title="Goals")
    for goal in goals:
        asked = f"{'at least' if goal.at_least else 'at most'} {goal.bound:.3g}"
        table.add_row(goal.case, goal.what, f"{goal.value:.3g}", asked, "met" if goal.met else "MISSED")
    console.print(table)


def timed(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[float, Any]:
    """Seconds, and the result."""
    started = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - started, result


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a module's function in a process that has run nothing else."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


class Memory:
    """The peak of this process's own memory while the block runs, in GB, sampled: mapped files do not count.

    Pages of a mapped file are the system's, which takes them back when it needs memory.
    """

    own_gb = 0.0

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        process = psutil.Process()
        while True:
            now = process.memory_info()
            self.own_gb = max(self.own_gb, (now.rss - getattr(now, "shared", 0)) / 1e9)
            if self._over.wait(0.002):
                return


def peak_gb() -> float:
    """The most memory this process has held so far, exactly, mapped files and libraries included."""
    if sys.platform == "linux":
        # ru_maxrss is no use here: a spawned process inherits its parent's
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0]) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def product_rates(device: torch.device | None = None) -> dict[str, float]:
    """Operations a second of a large matrix product in fp32 and bf16, the best of a few; of the CPU where None."""
    on_gpu = device is not None and device.type == "cuda"
    n, d = (8192, 8192) if on_gpu else (4096, 1024)
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.ones(n, d, dtype=dtype, device=device), torch.ones(d, n, dtype=dtype, device=device)

        def product(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            a @ b
            if on_gpu:
                torch.cuda.synchronize(device)

        rates[name] = 2 * n * d * n / min(timed(product)[0] for _ in range(8))
    return rates


def busy() -> float:
    """The load before the start, above which elapsed times are worth little."""
    return os.getloadavg()[0]
