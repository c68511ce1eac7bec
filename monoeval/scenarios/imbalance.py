"""Long-tailed training rows, scored on the test rows as they are."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from monoeval.data.images import DataSpec
from monoeval.scenarios.trial import Fit, LongTail, TestSet, Trial
from monoeval.spec import Spec

Ratio = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class Imbalance(Spec):
    """Class sizes that fall exponentially to 1/ratio of the largest, in an order drawn for each seed.

    Ratio 1 is the balanced reference. Adapters see the unlabelled training rows, the same for every arm. What
    counts is balanced accuracy and the worst class: accuracy alone weighs classes as the test set does.
    """

    name: Literal["imbalance"] = "imbalance"
    ratios: Annotated[tuple[Ratio, ...], Field(min_length=1)] = (1, 10, 50, 100)

    def trials(self, data: DataSpec, seed: int) -> Iterator[Trial]:
        for ratio in self.ratios:
            yield Trial(
                scenario=self.name,
                protocol=f"imbalance/exponential@{ratio:g}",
                series="exponential",
                level=ratio,
                data=data,
                fit=Fit(rows=LongTail(ratio=ratio, draw=seed)),
                test=TestSet(data=data),
                draw=seed,
            )
