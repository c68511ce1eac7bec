"""Few training rows a class."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from monoeval.data.images import DataSpec
from monoeval.scenarios.trial import Fit, Shots, TestSet, Trial
from monoeval.spec import Spec


class FewShot(Spec):
    """k rows of each class, the L2 tuned on min(k, 4) further rows of each class, over several draws.

    The probe is fitted on the k rows alone. Adapters and the scale of codes see the unlabelled training rows,
    the same for every arm; the protocol says so.
    """

    name: Literal["few-shot"] = "few-shot"
    shots: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 2, 4, 8, 16)
    repeats: Annotated[int, Field(ge=1)] = 5
    """Draws for each seed; averaged within the seed."""

    def trials(self, data: DataSpec, seed: int) -> Iterator[Trial]:
        for repeat in range(self.repeats):
            for k in self.shots:
                rows = Shots(shots=k, validation=min(k, 4), draw=seed, repeat=repeat)
                yield Trial(
                    scenario=self.name,
                    protocol=f"few-shot/unlabelled-train@{k}",
                    series="shots",
                    level=k,
                    data=data,
                    fit=Fit(rows=rows),
                    test=TestSet(data=data),
                    draw=seed,
                    repeat=repeat,
                )
