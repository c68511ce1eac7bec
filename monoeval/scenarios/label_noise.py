"""Noisy training labels, clean test labels."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from monoeval.data.images import DataSpec
from monoeval.scenarios.trial import Fit, LabelNoise, Rate, TestSet, Trial
from monoeval.spec import Spec


class LabelNoiseScenario(Spec):
    """Exclusive symmetric noise: exactly floor(rate · N) rows get another class, each other one equally likely.

    Validation rows are noisy like the rest, as a user's would be. Levels without label signal are kept as
    negative controls and left out of means and verdicts.
    """

    name: Literal["label-noise"] = "label-noise"
    kind: Literal["symmetric"] = "symmetric"
    rates: Annotated[tuple[Rate, ...], Field(min_length=1)] = (0, 0.2, 0.4, 0.6, 0.8)

    def trials(self, data: DataSpec, seed: int) -> Iterator[Trial]:
        for rate in self.rates:
            noise = LabelNoise(kind=self.kind, rate=rate, draw=seed) if rate else None
            yield Trial(
                scenario=self.name,
                protocol=f"label-noise/{self.kind}@{rate:g}",
                series=self.kind,
                level=rate,
                data=data,
                fit=Fit(labels=noise),
                test=TestSet(data=data),
                draw=seed if noise else None,
            )
