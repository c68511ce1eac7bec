"""ImageNet-C corruptions of the test images, made on the fly."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from monoeval.data.corruptions import CORRUPTIONS, EXTRAS, SUBSTITUTES
from monoeval.data.images import DataSpec, Transform
from monoeval.errors import unknown
from monoeval.scenarios.trial import TestSet, Trial
from monoeval.spec import Spec


def _known(name: str) -> str:
    if name not in CORRUPTIONS:
        raise ValueError(str(unknown("corruption", name, CORRUPTIONS)))
    return name


class Corruption(Spec):
    """Corruptions of the uint8 image after resize and crop; the severity table follows the image size.

    The protocol gains the table and the size when it runs, for example
    `corruption/imagenet-c.onthefly/contrast@3/224`: scores on the official files are another protocol.
    """

    name: Literal["corruption"] = "corruption"
    kinds: Annotated[tuple[Annotated[str, AfterValidator(_known)], ...], Field(min_length=1)] = tuple(
        c for c in CORRUPTIONS if c not in EXTRAS
    )
    severities: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (1, 2, 3, 4, 5)

    def trials(self, data: DataSpec, seed: int) -> Iterator[Trial]:  # noqa: ARG002 (images are drawn once)
        for kind in self.kinds:
            for severity in (0, *self.severities):
                transform = Transform(name=kind, stage="image", severity=severity) if severity else None
                called = SUBSTITUTES.get(kind, kind)
                yield Trial(
                    scenario=self.name,
                    protocol=f"corruption/onthefly/{called}@{severity}",
                    series=called,
                    level=severity,
                    data=data,
                    test=TestSet(data=data, transform=transform),
                )
