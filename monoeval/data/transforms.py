"""Noise on test tensors and random views of training images; corruptions of images have a file of their own.

Every draw is a function of (image id, name, severity, seed) alone: not of the batch, the order, or how many
workers there are.
"""

import math

import numpy as np
from numpy.typing import NDArray

from monoeval.data.images import Image, Transform
from monoeval.errors import UsageError, unknown
from monoeval.keys import draw_seed

NOISES = ("gaussian", "uniform", "uniform-centred")

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10


def generator(row_id: str, transform: Transform) -> np.random.Generator:
    """The random numbers of one image under `transform`."""
    # PCG64 is numpy's default; naming it keeps the draws if that default ever changes.
    seed = draw_seed("transform", row_id, transform.name, float(transform.severity), transform.seed)
    return np.random.Generator(np.random.PCG64(seed))


def add_noise(x: NDArray[np.float32], ids: NDArray[np.str_], transform: Transform) -> NDArray[np.float32]:
    """Normalised tensors `x` float32 [B, 3, H, W] plus noise; severity is σ or ε, in normalised units.

    `gaussian` adds σ·N(0, 1). `uniform` adds ε·U[0, 1): one-sided, as in the paper, so it also brightens.
    `uniform-centred` adds ε·(U[0, 1) − ½): the same noise without that shift.
    Raises UsageError for an unknown noise or a negative severity.
    """
    if transform.name not in NOISES:
        raise unknown("input noise", transform.name, NOISES)
    if transform.severity < 0:
        raise UsageError(f"The strength of input noise cannot be {transform.severity:g}: choose 0 or more.")
    scale = np.float32(transform.severity)
    shift = np.float32(0.5 if transform.name == "uniform-centred" else 0)
    out = np.empty_like(x, dtype=np.float32)
    for row, name in enumerate(ids):
        rng = generator(str(name), transform)
        if transform.name == "gaussian":
            noise = rng.standard_normal(x.shape[1:], dtype=np.float32)
        else:
            noise = rng.random(x.shape[1:], dtype=np.float32) - shift
        out[row] = x[row] + scale * noise
    return out


def views(count: int) -> list[Transform]:
    """The first `count` random views, for `extract`; a smaller count is a part of a larger one."""
    return [Transform(name="view", stage="original", severity=0, seed=seed) for seed in range(count)]


def view(image: Image, row_id: str, transform: Transform) -> Image:
    """A random part [h, w, 3] of uint8 [H, W, 3], mirrored in half of the draws; resizing it is the caller's.

    The crop of Szegedy et al. 2015 (arXiv 1409.4842), which contrastive learning and its linear probes train on:
    uniform in its share of the area (8 to 100 %), log-uniform in its aspect ratio (3:4 to 4:3), anywhere in the
    image. Draws that do not fit are drawn again; after ten, it is the largest central crop of such a ratio.
    """
    rng = generator(row_id, transform)
    height, width = image.shape[:2]
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
            break
    else:
        wide, high = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
        top, left = (height - high) // 2, (width - wide) // 2
    part = image[top : top + high, left : left + wide]
    return part[:, ::-1] if rng.random() < 0.5 else part
