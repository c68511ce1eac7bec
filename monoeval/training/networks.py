"""The networks that `monoeval` pretrains itself: `tiny`, and any architecture of timm, each with a projector."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from monoeval.errors import UsageError, unknown

NETWORKS = {"tiny": "six 3×3 convolutions of 32 to 128 channels with batch norm, and a two-layer projector"}
SMALL = 64
"""Pixels below which a ResNet begins as those for CIFAR do."""


class Projected(nn.Module):
    """A backbone and a projector; images are normalised float32 [B, 3, S, S].

    Subclasses give `backbone` and set `projector`.
    """

    projector: nn.Sequential

    def __init__(self, non_negative: bool) -> None:
        super().__init__()
        self.non_negative = non_negative

    def backbone(self, images: Tensor) -> Tensor:
        """The pooled features [B, D], before the projector."""
        raise NotImplementedError

    def project(self, images: Tensor) -> Tensor:
        """The projector's output [B, width] with its sign, which the losses take."""
        projected: Tensor = self.projector(self.backbone(images))
        return projected

    def forward(self, images: Tensor) -> Tensor:
        """The features [B, width] that are evaluated: the projector's output, after a ReLU where it was
        trained with one (as the paper reads NCL's features)."""
        projected = self.project(images)
        return projected.relu() if self.non_negative else projected


class Tiny(Projected):
    """Convolutions, global average pool and a projector: small enough for a CPU and for images of a few pixels.

    The projector's hidden layer has batch norm: without it non-negative contrastive learning collapses to
    features that are all zero at this size of data.
    """

    pooled_width = 128

    def __init__(self, width: int, non_negative: bool, hidden: int = 2 * pooled_width) -> None:
        super().__init__(non_negative)
        channels, strides = (3, 32, 32, 64, 64, 128, 128), (1, 2, 1, 2, 1, 1)
        self.convolutions = nn.Sequential()
        for (before, after), stride in zip(pairwise(channels), strides, strict=True):
            self.convolutions.append(nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False))
            self.convolutions.append(nn.BatchNorm2d(after))
            self.convolutions.append(nn.ReLU(inplace=True))
        self.projector = nn.Sequential(
            nn.Linear(self.pooled_width, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, width),
        )

    def backbone(self, images: Tensor) -> Tensor:
        """The pooled features [B, 128], before the projector."""
        maps: Tensor = self.convolutions(images)
        return maps.mean(dim=(2, 3))


class Larger(Projected):
    """An architecture of timm without its classifier, and the paper's projector: linear, ReLU, linear."""

    def __init__(
        self, network: str, width: int, image_size: int, non_negative: bool, hidden: int, stem: str
    ) -> None:
        super().__init__(non_negative)
        self.trunk = _timm(network, image_size)
        if stem == "cifar" or (stem == "auto" and image_size < SMALL and _is_resnet(self.trunk)):
            _cifar_stem(self.trunk, network)
        self.projector = nn.Sequential(
            nn.Linear(_pooled_width(self.trunk, network, image_size), hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, width),
        )

    def backbone(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.trunk(images)
        return pooled


def build(
    network: str,
    width: int,
    image_size: int,
    non_negative: bool = False,
    hidden: int = 2 * Tiny.pooled_width,
    stem: str = "auto",
) -> Projected:
    """A new network by name for square images of `image_size` pixels, initialised from torch's global generator.

    Raises UsageError for a name that is neither in `NETWORKS` nor timm's, and for a stem or images that the
    network cannot have.
    """
    if network == "tiny":
        return Tiny(width, non_negative, hidden)
    return Larger(network, width, image_size, non_negative, hidden, stem)


def _timm(network: str, image_size: int) -> nn.Module:
    import timm

    def create(**more: int) -> nn.Module:
        options: dict[str, Any] = {"num_classes": 0, **more}
        return timm.create_model(network, pretrained=False, **options)

    if not timm.is_model(network):
        raise unknown("network", network, {*NETWORKS, *timm.list_models()})
    try:
        try:
            return create(img_size=image_size)
        except TypeError:  # convolutional networks take any size and have no such argument
            return create()
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"{network} cannot be made for images of {image_size} pixels: {reason}") from error


def _is_resnet(trunk: nn.Module) -> bool:
    return isinstance(getattr(trunk, "conv1", None), nn.Conv2d) and hasattr(trunk, "maxpool")


def _cifar_stem(trunk: Any, network: str) -> None:
    """Begin with a 3×3 convolution of stride 1, initialised as timm does, and no max-pool."""
    if not _is_resnet(trunk):
        raise UsageError(
            f"{network} does not begin with one convolution and a max-pool, so it has no CIFAR stem: "
            "choose stem=plain, or a network such as resnet18."
        )
    trunk.conv1 = nn.Conv2d(trunk.conv1.in_channels, trunk.conv1.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
    trunk.maxpool = nn.Identity()


@torch.no_grad()
def _pooled_width(trunk: nn.Module, network: str, image_size: int) -> int:
    try:
        pooled = trunk.eval()(torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"{network} cannot take images of {image_size} pixels: {reason}") from error
    if not isinstance(pooled, Tensor) or pooled.ndim != 2:
        raise UsageError(f"{network} gives no vector for an image: choose a network for classification.")
    return int(pooled.shape[1])
