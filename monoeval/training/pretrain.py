"""Contrastive pretraining of a small network on the training images."""

import logging
import math
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from monoeval import bundles, progress
from monoeval.backbones.preprocess import Preprocess
from monoeval.backbones.spec import PretrainSpec
from monoeval.data.images import ImageSet
from monoeval.errors import MonoevalError, UsageError
from monoeval.files import locked
from monoeval.keys import draw_seed
from monoeval.training import networks
from monoeval.training.augment import Augmentation
from monoeval.training.contrastive import OBJECTIVES
from monoeval.training.keys import FORMAT, STEM, pretrained_folder

CROP_PCT = 1.0  # the whole central square: these images are small already
WARM_UP = 0.2  # share of the steps; NCL collapses without one
FEW_ALIVE = 0.05

log = logging.getLogger("monoeval")


def pretrain(spec: PretrainSpec, images: ImageSet, *, seed: int, device: torch.device) -> Path:
    """Train `spec.network` on `images` without their labels, and return the folder that holds it.

    The folder is in the cache, named by everything that decides the weights; a whole one is returned at once.
    It holds `backbone.safetensors` (the network of `networks.build`) and `backbone.json`: network, width,
    image_size, crop_pct, non_negative, mean and std (of RGB in [0, 1]), and how the training went. The same seed
    on the same machine gives the same bits. AdamW with warm-up and cosine decay; the last, smaller batch of an
    epoch is left out. Raises MonoevalError where the loss is not finite, UsageError where there are fewer than
    two images.

    What the quickstart's six networks gave (seeds 0-2, 1,157 digits, the defaults): the recipe's clean probe
    reaches 97.5-98.1 % (simclr) and 95.6-98.1 % (ncl, with 91-92 % of the features alive).
    """
    if len(images) < 2:
        raise UsageError(f"Pretraining needs at least two images, and {images.name} has {len(images)}.")
    folder = pretrained_folder(spec, images.fingerprint, seed)
    with suppress(bundles.Damaged):  # absent, or to be made again; a read-only cache has no lock to give
        bundles.describe(folder, STEM)
        return folder
    with locked(folder):
        if folder.exists():
            try:
                bundles.describe(folder, STEM)
                return folder
            except bundles.Damaged:
                log.warning("The pretrained network in %s is damaged and is trained again.", folder)
        network, about = _train(spec, images, seed, device)
        bundles.write(
            folder,
            STEM,
            network.state_dict(),
            {
                "format": FORMAT,
                "network": spec.network,
                "width": spec.width,
                "image_size": spec.image_size,
                "crop_pct": CROP_PCT,
                "non_negative": network.non_negative,
                "objective": spec.objective,
                "seed": seed,
                "spec": spec.model_dump(mode="json"),
                "data": {"name": images.name, "fingerprint": images.fingerprint, "rows": len(images)},
                **about,
            },
        )
    return folder


def _train(
    spec: PretrainSpec, images: ImageSet, seed: int, device: torch.device
) -> tuple[networks.Tiny, dict[str, object]]:
    squares = Preprocess(image_size=spec.image_size, crop_pct=CROP_PCT)
    pixels = np.stack([squares.image(images.read(row)) for row in range(len(images))])
    mean, std = _moments(pixels)
    data = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)
    centre = torch.tensor(mean, device=device).view(1, 3, 1, 1)
    spread = torch.tensor(std, device=device).view(1, 3, 1, 1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_seed("pretrain", "weights", seed))
        network = networks.build(spec.network, spec.width, spec.image_size, non_negative=spec.objective == "ncl")
    network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    order = torch.Generator().manual_seed(draw_seed("pretrain", "order", seed))
    views = torch.Generator().manual_seed(draw_seed("pretrain", "views", seed))

    batch = min(spec.batch_size, len(images))
    steps = spec.epochs * (len(images) // batch)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_cosine(step, steps, WARM_UP))
    augment, objective = Augmentation(crop=spec.crop, flip=spec.flip), OBJECTIVES[spec.objective]

    losses: list[float] = []
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        progress.bar(f"pretraining {spec.network} ({spec.objective}, seed {seed})", steps, "steps") as advance,
    ):
        for _ in range(spec.epochs):
            shuffled = torch.randperm(len(data), generator=order).to(device)
            for rows in torch.split(shuffled, batch):
                if len(rows) < batch:
                    continue
                seen = data[rows]
                pair = (torch.cat([augment(seen, views), augment(seen, views)]) - centre) / spread
                projected = network.project(pair.contiguous(memory_format=torch.channels_last))
                first, second = projected.chunk(2)
                loss = objective(first, second, spec.temperature)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise MonoevalError(
                        f"The {spec.objective} loss became {losses[-1]} at step {len(losses)} of {steps}: "
                        f"lower learning_rate (now {spec.learning_rate:g}) or raise temperature."
                    )
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                advance(1)

    network.eval()
    alive = _alive((data, centre, spread), network, batch)
    if alive < FEW_ALIVE:
        log.warning(
            "Only %.0f %% of the pretrained features vary over the training images (%s, seed %d): "
            "the training collapsed, and its scores say little.",
            100 * alive, spec.objective, seed,
        )  # fmt: skip
    last = losses[-(len(images) // batch) :]
    about = {
        "mean": mean,
        "std": std,
        "steps": steps,
        "final_loss": float(np.mean(last)) if last else None,
        "alive": alive,
    }
    return network, about


def warm_cosine(step: int, steps: int, warm_up: float) -> float:
    """The share of the learning rate at `step`: linear over the first `warm_up` of `steps`, then a half cosine."""
    warm = max(1.0, warm_up * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1.0, steps - warm))))


def _moments(pixels: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of uint8 [N, S, S, 3], as floats in [0, 1]; a flat channel has 1."""
    counts = np.stack([np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(3)])
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(axis=1)
    std = np.sqrt(np.maximum(counts @ levels**2 / counts.sum(axis=1) - mean**2, 0))
    return mean.tolist(), np.where(std > 1e-6, std, 1.0).tolist()


@torch.no_grad()
def _alive(images: tuple[Tensor, Tensor, Tensor], network: networks.Tiny, batch: int) -> float:
    """The share of features that vary over the training images."""
    data, centre, spread = images
    low = torch.full((1,), math.inf, device=data.device)
    high = -low
    for rows in torch.split(data, batch):
        features = network((rows.float() / 255 - centre) / spread)
        low, high = torch.minimum(low, features.amin(0)), torch.maximum(high, features.amax(0))
    return float(((high - low) > 1e-5).float().mean())
