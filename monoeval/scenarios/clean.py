"""Clean data: the reference every other scenario is read against."""

from collections.abc import Iterator
from typing import Literal

from monoeval.data.images import DataSpec
from monoeval.scenarios.trial import TestSet, Trial
from monoeval.spec import Spec


class Clean(Spec):
    """Fit on all clean training rows, score on the clean test rows."""

    name: Literal["clean"] = "clean"

    def trials(self, data: DataSpec, seed: int) -> Iterator[Trial]:  # noqa: ARG002 (nothing is drawn)
        yield Trial(
            scenario=self.name, protocol="clean", series="clean", level=0, data=data, test=TestSet(data=data)
        )
