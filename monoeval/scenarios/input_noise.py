"""Noise on the normalised test tensor, as in the paper."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from monoeval.data.images import DataSpec, Transform
from monoeval.scenarios.trial import TestSet, Trial
from monoeval.spec import Spec

Kind = Literal["gaussian", "uniform", "uniform-centred"]


class InputNoise(Spec):
    """Gaussian noise σ·randn, or one-sided uniform noise ε·rand, added after normalisation at test time only."""

    name: Literal["input-noise"] = "input-noise"
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("gaussian", "uniform")
    levels: Annotated[tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...], Field(min_length=1)] = (
        0,
        0.2,
        0.4,
        0.6,
    )

    def trials(self, data: DataSpec, seed: int) -> Iterator[Trial]:  # noqa: ARG002 (images are drawn once)
        for kind in self.kinds:
            for level in self.levels:
                transform = Transform(name=kind, stage="tensor", severity=level) if level else None
                yield Trial(
                    scenario=self.name,
                    protocol=f"input-noise/{kind}@{level:g}",
                    series=kind,
                    level=level,
                    data=data,
                    test=TestSet(data=data, transform=transform),
                )
