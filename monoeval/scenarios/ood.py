"""Train on one domain, test on another."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator

from monoeval.data.images import DataSpec, named_data
from monoeval.errors import UsageError
from monoeval.scenarios.trial import TestSet, Trial
from monoeval.spec import Spec

DEFAULT_TARGETS = {"digits": "digits-printed", "digits-printed": "digits"}


class OutOfDomain(Spec):
    """Fit on the source's training rows; score on its test rows (level 0) and on the target's (level 1).

    Classes are matched by name; only shared classes are scored, on both sides.
    """

    name: Literal["ood"] = "ood"
    target: Annotated[DataSpec | None, BeforeValidator(named_data)] = None

    def trials(self, data: DataSpec, seed: int) -> Iterator[Trial]:  # noqa: ARG002 (nothing is drawn)
        target = self.target
        if target is None:
            if data.name not in DEFAULT_TARGETS:
                raise UsageError(f"The ood scenario needs a target for {data.name}: name one with --target DATA.")
            target = DataSpec(name=DEFAULT_TARGETS[data.name])
        if target.limit is None:
            target = target.model_copy(update={"limit": data.limit})
        for level, test in enumerate((data, target)):
            yield Trial(
                scenario=self.name,
                protocol=f"ood/{data.label}/{test.label}",
                series=f"{data.label} → {target.label}",
                level=level,
                data=data,
                test=TestSet(data=test, shared_with=(target, data)[level], whole=level == 1),
            )
