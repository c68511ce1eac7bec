"""What the machine is good for: threads, products in less precision, and the memory that is free."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

WORTHWHILE = 1.5
"""Reduced products are used from this gain in speed on."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in this thread alone: waking others for a pass of small operations takes longer than the pass."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def reduced(device: torch.device) -> Iterator[None]:
    """Multiply float32 matrices as bfloat16 (CPU) or TensorFloat-32 (CUDA) inside; sums stay float32."""
    backends: Any = torch.backends  # some of its modules are made at run time
    matmul = backends.cuda.matmul if device.type == "cuda" else backends.mkldnn.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32" if device.type == "cuda" else "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def free_bytes(device: torch.device) -> int:
    """Memory that is free where a device computes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


@cache
def has_bfloat16(device_type: str) -> bool:
    """Whether this machine has instructions for bfloat16 products: a stopwatch could change its mind."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return device_type == "cpu" and ("amx_bf16" in flags or "avx512_bf16" in flags)


@cache
def worth_reducing(device_type: str) -> bool:
    """Whether this machine multiplies so much faster in reduced precision; measured once in a process."""
    device = torch.device(device_type)
    a = torch.ones(1024, 1024, device=device)

    def seconds() -> float:
        started = time.perf_counter()
        float((a @ a)[0, 0])
        return time.perf_counter() - started

    exact = min(seconds() for _ in range(4))
    with reduced(device):
        return exact > WORTHWHILE * min(seconds() for _ in range(4))
