"""The contract of the backbone room: how a recipe names a backbone."""

from typing import Literal

from monoeval.spec import Spec


class PretrainSpec(Spec):
    """How a small backbone is pretrained on the training images; see `monoeval.training`."""

    objective: Literal["simclr", "ncl"]
    network: str = "tiny"
    epochs: int = 25
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    temperature: float = 0.2
    width: int = 128
    """Width of the features and of the projector's output."""
    image_size: int = 16
    crop: float = 0.4
    """The smallest share of an image's area that a random view keeps."""
    flip: bool = False
    """Mirror half of the views; wrong for digits and letters."""


class BackboneSpec(Spec):
    """A model by name, or one that the recipe pretrains."""

    model: str | None = None
    """An alias, a timm or open_clip name, `file.py:factory`, or a folder that `monoeval pretrain` wrote."""
    weights: str = "pretrained"
    """`pretrained`, `random`, or a checkpoint file."""
    layer: str | None = None
    pool: str | None = None
    image_size: int | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    pretrain: PretrainSpec | None = None
