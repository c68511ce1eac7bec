"""The networks that `monoeval` pretrains itself: small enough for a CPU and for images of a few pixels."""

from itertools import pairwise

from torch import Tensor, nn

from monoeval.errors import unknown

NETWORKS = {"tiny": "six 3×3 convolutions of 32 to 128 channels with batch norm, and a two-layer projector"}


class Tiny(nn.Module):
    """Convolutions, global average pool and a projector; images are normalised float32 [B, 3, S, S].

    The projector's hidden layer has batch norm: without it non-negative contrastive learning collapses to
    features that are all zero at this size of data.
    """

    pooled_width = 128

    def __init__(self, width: int, non_negative: bool) -> None:
        super().__init__()
        channels, strides = (3, 32, 32, 64, 64, 128, 128), (1, 2, 1, 2, 1, 1)
        self.convolutions = nn.Sequential()
        for (before, after), stride in zip(pairwise(channels), strides, strict=True):
            self.convolutions.append(nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False))
            self.convolutions.append(nn.BatchNorm2d(after))
            self.convolutions.append(nn.ReLU(inplace=True))
        hidden = 2 * self.pooled_width
        self.projector = nn.Sequential(
            nn.Linear(self.pooled_width, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, width),
        )
        self.non_negative = non_negative

    def backbone(self, images: Tensor) -> Tensor:
        """The pooled features [B, 128], before the projector."""
        maps: Tensor = self.convolutions(images)
        return maps.mean(dim=(2, 3))

    def project(self, images: Tensor) -> Tensor:
        """The projector's output [B, width] with its sign, which the losses take."""
        projected: Tensor = self.projector(self.backbone(images))
        return projected

    def forward(self, images: Tensor) -> Tensor:
        """The features [B, width] that are evaluated: the projector's output, after a ReLU where it was
        trained with one (as the paper reads NCL's features)."""
        projected = self.project(images)
        return projected.relu() if self.non_negative else projected


def build(network: str, width: int, image_size: int, non_negative: bool = False) -> Tiny:  # noqa: ARG001
    """A new network by name for square images of `image_size` pixels, initialised from torch's global generator.

    Raises UsageError for a name that is not in `NETWORKS`.
    """
    if network not in NETWORKS:
        raise unknown("network", network, NETWORKS)
    return Tiny(width, non_negative)
