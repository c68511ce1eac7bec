"""Loading a frozen backbone: its network, where it runs, and at what precision."""

import hashlib
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from monoeval.backbones import records
from monoeval.backbones.preprocess import Preprocess
from monoeval.backbones.resolve import check_available, identity, resolve
from monoeval.backbones.sources import Network, build
from monoeval.backbones.spec import BackboneSpec
from monoeval.backbones.taps import first_features
from monoeval.errors import UsageError
from monoeval.keys import key

LEAST_COSINE = 0.999
LEAST_GAIN = 1.3
LEAST_IMAGE_SIZE = 64
"""Below this many pixels the forward pass is not what takes the time, and bf16 gains nothing."""


@dataclass(frozen=True)
class Backbone:
    """A frozen network that turns normalised images into features; `name` is the resolved one."""

    name: str
    width: int
    preprocess: Preprocess
    precision: str
    """`fp32` or `bf16`; features are float32 either way."""
    device: torch.device
    fingerprint: str
    """A hash of the weights and of the features of two fixed images."""
    module: nn.Module
    features: Callable[[Tensor], Tensor]
    info: dict[str, object] = field(default_factory=dict)
    """`projected` (of image-text models and projectors), and `bf16`: cosine to fp32 and gain, as measured."""

    def __call__(self, batch: Tensor) -> Tensor:
        """Features [B, D] in float32 on `device`, of normalised images [B, 3, S, S] in float32."""
        with torch.inference_mode():
            return _forward(self.features, batch, self.device, self.precision).float()


def choose_device(device: str) -> torch.device:
    """`auto` is CUDA, then MPS, then the CPU. Raises UsageError for a device this machine does not have."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"There is no device {device!r}: --device is auto, cpu, cuda, cuda:N or mps.") from error
    have = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if chosen.type not in have or (chosen.index or 0) >= have[chosen.type]:
        raise UsageError(f"This machine has no device {device!r} that torch can use: choose --device auto or cpu.")
    return chosen


def load_backbone(spec: BackboneSpec, *, device: str = "auto", seed: int = 0) -> Backbone:
    """Load the frozen backbone that `spec` names; `seed` draws the weights where they are random.

    Precision `auto` is bf16 where it was measured to gain and to give the same features, and what was decided
    once on this machine is kept in the cache. Raises UsageError for a name, layer, pooling, size, checkpoint or
    device that is not there, MonoevalError for weights that cannot be got.
    """
    where = choose_device(device)
    resolved = resolve(spec)
    check_available(spec)
    network = _frozen(build(resolved, spec, seed))
    pictures = network.preprocess.tensor(_pictures(2, network.preprocess.image_size))
    reference = first_features(network.features, pictures, resolved.name)
    fingerprint = _fingerprint(network.module, reference)
    identity_key = key(identity(spec, seed))
    if spec.precision != "auto":
        precision, measured = str(spec.precision), None
    else:
        measured = _measured(
            identity_key, where, network.preprocess.image_size, lambda: build(resolved, spec, seed)
        )
        good = measured is not None and measured["cosine"] >= LEAST_COSINE
        precision = "bf16" if good and measured and measured["gain"] >= LEAST_GAIN else "fp32"
    _place(network, where, precision)
    return Backbone(
        name=resolved.name,
        width=reference.shape[1],
        preprocess=network.preprocess,
        precision=precision,
        device=where,
        fingerprint=fingerprint,
        module=network.module,
        features=network.features,
        info={**network.info, **({"bf16": measured} if measured else {})},
    )


def _frozen(network: Network) -> Network:
    network.module.requires_grad_(False)
    return network


def _place(network: Network, device: torch.device, precision: str) -> None:
    """Move the network to where it runs: on a CPU bf16 is its weights', elsewhere autocast keeps norms in fp32."""
    if device.type == "cpu" and precision == "bf16":
        network.module.to(dtype=torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.module.to(device)


def _forward(features: Callable[[Tensor], Tensor], batch: Tensor, device: torch.device, precision: str) -> Tensor:
    if device.type == "cpu":
        if precision == "bf16":
            batch = batch.to(torch.bfloat16, memory_format=torch.channels_last)
        return features(batch)
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    with autocast:
        return features(batch.to(device, non_blocking=True))


def _has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bf16 (a CPU: AMX or AVX-512 BF16), rather than emulating it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # torch has no public name for these before 2.12
    checks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(bool(check()) for check in checks if check is not None)


def _measured(
    identity_key: str, device: torch.device, image_size: int, make: Callable[[], Network]
) -> dict[str, float] | None:
    """Cosine and gain of bf16 over fp32 on this kind of device: measured once, then read from the cache.

    None where bf16 is not in question. Deciding once keeps the features of repeated runs the same.
    """
    if image_size < LEAST_IMAGE_SIZE or not _has_bf16(device):
        return None
    decided = records.read(identity_key).get("bf16")
    decided = decided if isinstance(decided, dict) else {}
    if device.type not in decided:
        decided = {**decided, device.type: _measure(device, make(), make())}
        records.update(identity_key, {"bf16": decided})
    found: dict[str, float] = decided[device.type]
    return found


def _measure(device: torch.device, single: Network, half: Network) -> dict[str, float]:
    """Compare two copies of a network on the same eight pictures, in turns; times are medians of three."""
    _place(_frozen(single), device, "fp32")
    _place(_frozen(half), device, "bf16")
    batch = single.preprocess.tensor(_pictures(8, single.preprocess.image_size))
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    outputs = {}
    with torch.inference_mode():
        for turn in range(4):
            for precision, network in (("fp32", single), ("bf16", half)):
                started = time.perf_counter()
                outputs[precision] = _forward(network.features, batch, device, precision).float().cpu()
                if turn:  # the first warms up
                    seconds[precision].append(time.perf_counter() - started)
    cosines = torch.nn.functional.cosine_similarity(outputs["fp32"], outputs["bf16"], dim=1)
    gain = statistics.median(seconds["fp32"]) / statistics.median(seconds["bf16"])
    return {"cosine": round(float(cosines.min()), 6), "gain": round(gain, 2)}


def _pictures(n: int, size: int) -> NDArray[np.uint8]:
    """Fixed pictures uint8 [n, size, size, 3] with structure at every scale, as photographs have."""
    rng = np.random.default_rng(20240717)
    out = np.empty((n, size, size, 3), np.uint8)
    for picture in out:
        total = np.full((size, size, 3), 127.5)
        for cells in (2, 4, 8, 16, 32, 64):
            grid = rng.normal(0, 60 / np.sqrt(cells), (cells, cells, 3))
            place = np.arange(size) * cells // size
            total += grid[place][:, place]
        picture[:] = total.clip(0, 255)
    return out


def _fingerprint(module: nn.Module, reference: Tensor) -> str:
    """Hash the weights exactly, and a few sums of the reference features [2, D] coarsely.

    The sums stand for everything else that decides features (code, libraries); rounded to a hundredth of the
    features' scale they do not see the last bits, which depend on the number of threads.
    """
    weights = hashlib.blake2b(digest_size=10)
    for name, tensor in module.state_dict().items():
        weights.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        weights.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    features = reference.double()
    waves = torch.cos(torch.outer(torch.arange(8.0).double(), torch.arange(features.shape[1])))
    sums = features @ waves.T / features.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return key([weights.hexdigest(), [[round(value, 2) + 0.0 for value in row] for row in sums.tolist()]])
