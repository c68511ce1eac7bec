"""The contract of the backbone room: how a recipe names a backbone."""

from typing import Annotated, Literal

from pydantic import Field

from monoeval.spec import Spec


class PretrainSpec(Spec):
    """How a small backbone is pretrained on the training images; see `monoeval.training`."""

    objective: Literal["simclr", "ncl"]
    network: str = "tiny"
    epochs: Annotated[int, Field(ge=0)] = 25
    """0 leaves the network as it was drawn."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    temperature: Annotated[float, Field(gt=0)] = 0.2
    width: Annotated[int, Field(ge=1)] = 128
    """Width of the features and of the projector's output."""
    image_size: Annotated[int, Field(ge=8)] = 16
    crop: Annotated[float, Field(gt=0, le=1)] = 0.4
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
