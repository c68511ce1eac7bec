"""Where a pretrained network lies, known without torch so that a plan can name it."""

from importlib.metadata import version
from pathlib import Path

from monoeval.backbones.spec import PretrainSpec
from monoeval.files import cache_dir
from monoeval.keys import key

FORMAT = 1
"""Raised whenever the same spec, images and seed would give other weights or another description."""

STEM = "backbone"
"""The two files of the folder are `backbone.json` and `backbone.safetensors`."""

LATER = (
    "optimiser",
    "warm_up",
    "hidden",
    "stem",
    "augmentation",
    "rectifier",
    "normalise_first",
    "density",
    "precision",
)
"""Settings that were fixed in the first networks of format 1: at their defaults they are not in the key."""


SETTLED_AFTER = 100
"""Steps after which the running statistics of batch norm are those of the weights: each has a tenth of the last
batch's, so that of what they were at the start 0.9¹⁰⁰ is left. After fewer they are taken anew."""


def steps(spec: PretrainSpec, n: int) -> int:
    """How many steps a pretraining on `n` images takes; the last, smaller batch of an epoch is left out."""
    return spec.epochs * (n // min(spec.batch_size, n)) if n else 0


def is_short(spec: PretrainSpec, n: int) -> bool:
    """Whether a pretraining on `n` images ends before the statistics of batch norm have settled."""
    return 0 < steps(spec, n) < SETTLED_AFTER


def pretrained_key(spec: PretrainSpec, data_fingerprint: str, n: int, seed: int) -> str:
    """The content key of the network that `spec` gives on the `n` images of `data_fingerprint`."""
    fields = PretrainSpec.model_fields
    settings = spec.model_dump(mode="json")
    decisive = {k: value for k, value in settings.items() if k not in LATER or value != fields[k].default}
    library = [] if spec.network == "tiny" else [version("timm")]
    settled = ["settled"] if is_short(spec, n) else []  # in format 1 it was not at first
    once = ["rectified once"] if spec.non_negative and spec.density else []  # for loss and density: at first twice
    return key(["pretrained", FORMAT, decisive, data_fingerprint, seed, *library, *settled, *once])


def pretrained_folder(spec: PretrainSpec, data_fingerprint: str, n: int, seed: int) -> Path:
    """The folder in the cache that `pretrain` writes, whether or not it exists yet."""
    return cache_dir() / "pretrained" / pretrained_key(spec, data_fingerprint, n, seed)
