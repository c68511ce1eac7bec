"""The contract of the backbone room: how a recipe names a backbone."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from monoeval.backbones.aliases import ALIASES
from monoeval.backbones.tables import timm_names
from monoeval.errors import UsageError, nearest
from monoeval.spec import Spec

Share = Annotated[float, Field(ge=0, le=1)]


class PretrainSpec(Spec):
    """How a backbone is pretrained on the training images; see `monoeval.training`.

    The defaults are those of `tiny`; of any other network `LARGER` replaces some of them.
    """

    objective: Literal["simclr", "ncl", "supcon", "nscl"]
    """SimCLR and supervised contrastive learning, and the non-negative form of either."""
    network: str = "tiny"
    """`tiny`, or an architecture of timm, which starts from random weights."""
    epochs: Annotated[int, Field(ge=0)] = 25
    """0 leaves the network as it was drawn."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Images, of which there are two views each."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2e-3
    """Its peak; it is not scaled by the batch."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.2
    width: Annotated[int, Field(ge=1)] = 128
    """Width of the projector's output, which is what is read as features unless another layer is asked for."""
    image_size: Annotated[int, Field(ge=8)] = 16
    crop: Annotated[float, Field(gt=0, le=1)] = 0.4
    """The smallest share of an image's area that a random view keeps."""
    flip: bool = False
    """Mirror half of the views; wrong for digits and letters."""
    optimiser: Literal["adamw", "lars", "sgd"] = "adamw"
    """LARS has trust 0.02 and is clipped; it and SGD have momentum 0.9 and decay no biases or norms. At the rate
    of `LARGER` it is for networks with batch norm; a transformer wants adamw and a learning_rate of its own."""
    warm_up: Share = 0.2
    """Share of the steps over which the rate rises, before it falls as a cosine; NCL collapses without one."""
    hidden: Annotated[int, Field(ge=1)] = 256
    """Width of the projector's hidden layer."""
    stem: Literal["auto", "cifar", "plain"] = "auto"
    """`cifar` begins a ResNet with a 3×3 convolution of stride 1 and no max-pool: `auto` below 64 pixels."""
    augmentation: Literal["gentle", "simclr"] = "gentle"
    """`gentle` crops, turns and jitters little; `simclr` (Chen et al. 2020) has strong colours, grey and blur."""
    rectifier: Literal["relu", "rep-relu"] = "rep-relu"
    """Of ncl and nscl: ReLU with the gradient of GELU (`rep-relu`) or with its own. Of two trainings of `tiny` on
    digits each, 92 % of the features are alive and 77 and 80 %; a linear probe reads 96 % and 95 to 96 %."""
    normalise_first: bool = False
    """Bring the projector's rows to length one before they are rectified too, where GELU's slope is never flat."""
    density: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of the mean absolute entry of the normalised (and rectified) rows, which is subtracted from the loss:
    it rewards dense features a little."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """bf16 keeps weights and losses in fp32 and multiplies under autocast; `auto`: where the hardware has it."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        network = given.get("network", "tiny")
        if network == "tiny" or not isinstance(network, str):
            return given
        if network not in timm_names():
            if network in ALIASES:
                raise UsageError(
                    f"{network} stands for the pretrained weights {ALIASES[network]}: to train an architecture "
                    "anew, name it as timm does, for example resnet18."
                )
            near = nearest(network, {"tiny", *timm_names()})
            advice = f"did you mean {near!r}?" if near else "give tiny, or a timm name such as resnet18."
            raise UsageError(f"There is no network named {network!r} to pretrain: {advice}")
        return {**LARGER, **given}

    @property
    def supervised(self) -> bool:
        """Whether the loss reads labels."""
        return self.objective in ("supcon", "nscl")

    @property
    def non_negative(self) -> bool:
        """Whether the loss is of rectified rows (Wang et al. 2024, arXiv 2403.12459)."""
        return self.objective in ("ncl", "nscl")

    @model_validator(mode="after")
    def _of_some_effect(self) -> Self:
        """Refuse what would change nothing but the key; the defaults of the network are written in resolved
        recipes, so they stay."""
        if self.network == "tiny" and self.stem != "auto":
            raise ValueError("stem is of the ResNets of timm: leave it out, or choose a network such as resnet18")
        if not self.non_negative and self.rectifier != "rep-relu":
            raise ValueError(
                f"rectifier is of ncl and nscl, and rows of {self.objective} keep their sign: leave it out"
            )
        usual = self.network != "tiny" and LARGER["normalise_first"]
        if not self.non_negative and not self.density and self.normalise_first != usual:
            raise ValueError(
                f"normalise_first changes nothing for {self.objective} without density, as its rows are not "
                "rectified: leave it out"
            )
        return self


LARGER: dict[str, Any] = {
    "learning_rate": 0.4,
    "width": 512,
    "hidden": 2048,
    "image_size": 32,
    "crop": 0.08,
    "flip": True,
    "optimiser": "lars",
    "warm_up": 0.05,
    "augmentation": "simclr",
    "normalise_first": True,
    "precision": "auto",
}
"""Defaults of networks other than `tiny`: the paper's for CIFAR, with a smaller projector."""


def paper(objective: str) -> dict[str, Any]:
    """What the paper (arXiv 2410.21331, and its public code) has beyond `LARGER` on CIFAR.

    The term that rewards density belongs to its non-negative objectives alone.
    """
    wide = {"epochs": 200, "width": 2048, "hidden": 16384}
    return wide | ({"density": 1.0} if objective in {"ncl", "nscl"} else {})


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
