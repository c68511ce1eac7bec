"""Whether rows from elsewhere can be told from those of the data."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from monoeval.data.images import DataSpec, named_data
from monoeval.errors import UsageError
from monoeval.scenarios.ood import DEFAULT_TARGETS
from monoeval.scenarios.trial import Detection, TestSet, Trial
from monoeval.spec import Spec

USUAL_NEIGHBOURS = 50
"""Protocols name another number."""


class OODDetection(Spec):
    """Fit on the data; tell its test rows (level 0) from the target's (level 1) by how sure the probe is.

    In-distribution are all test rows, whatever the probe makes of them; out of it are all rows of the target,
    whatever their class, so name one without the data's classes unless a change of domain is to be detected.
    Scores are the largest probability, the energy, and the cosine distance of centred codes to the k-th nearest
    training row.
    """

    name: Literal["ood-detection"] = "ood-detection"
    target: Annotated[DataSpec | None, BeforeValidator(named_data)] = None
    positive: Literal["id", "ood"] = "id"
    """Which rows FPR95 calls positive: it is the share of the others above what 95 % of these reach."""
    neighbours: Annotated[int, Field(ge=1)] = USUAL_NEIGHBOURS

    def trials(self, data: DataSpec, seed: int) -> Iterator[Trial]:  # noqa: ARG002 (nothing is drawn)
        target = self.target
        if target is None:
            if data.name not in DEFAULT_TARGETS:
                raise UsageError(
                    f"The ood-detection scenario needs a target for {data.name}: name one with --target DATA."
                )
            target = DataSpec(name=DEFAULT_TARGETS[data.name])
        if target.limit is None:
            target = target.model_copy(update={"limit": data.limit})
        neighbours = "" if self.neighbours == USUAL_NEIGHBOURS else f"/{self.neighbours}-neighbours"
        for level, test in enumerate((data, target)):
            yield Trial(
                scenario=self.name,
                protocol=f"ood-detection/{target.label}/{self.positive}-positive{neighbours}",
                series=target.label,
                level=level,
                data=data,
                test=TestSet(data=test, whole=level == 1, outside=level == 1),
                detection=Detection(neighbours=self.neighbours, positive=self.positive),
            )
