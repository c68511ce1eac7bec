"""ImageNet-C corruptions of the test images, made on the fly or read from the published files."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from monoeval.data.corruptions import CORRUPTIONS, EXTRAS, SUBSTITUTES
from monoeval.data.images import DataSpec, Transform
from monoeval.data.official import Official, layout
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
    `corruption/imagenet-c.onthefly/contrast@3/224`: scores on the published files are another protocol,
    `corruption/cifar-c.official/contrast@3`. The four extra kinds, which have to be named, count in means and
    verdicts where no other is beside them.
    """

    name: Literal["corruption"] = "corruption"
    kinds: Annotated[tuple[Annotated[str, AfterValidator(_known)], ...], Field(min_length=1)] = tuple(
        c for c in CORRUPTIONS if c not in EXTRAS
    )
    severities: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (1, 2, 3, 4, 5)
    official: str | None = None
    """A folder of ImageNet-C or CIFAR-C, whose images take the place of those made on the fly."""

    def trials(self, data: DataSpec, seed: int) -> Iterator[Trial]:  # noqa: ARG002 (images are drawn once)
        source = "onthefly"
        if self.official is not None:
            source = f"{layout(self.official, self.kinds, self.severities)}.official"
        for kind in self.kinds:
            for severity in (0, *self.severities):
                if self.official is None:
                    called = SUBSTITUTES.get(kind, kind)
                    change = Transform(name=kind, stage="image", severity=severity) if severity else None
                    test = TestSet(data=data, transform=change)
                else:
                    called = kind
                    test = TestSet(
                        data=data, official=Official(folder=self.official, kind=kind, severity=severity)
                    )
                yield Trial(
                    scenario=self.name,
                    protocol=f"corruption/{source}/{called}@{severity}",
                    series=called,
                    level=severity,
                    data=data,
                    test=test,
                )
