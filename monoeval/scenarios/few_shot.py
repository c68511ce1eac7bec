"""Few training rows a class, or a share of them."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from monoeval.data.images import DataSpec, ImageSet
from monoeval.errors import UsageError
from monoeval.scenarios.trial import Fit, Share, Shots, TestSet, Trial
from monoeval.spec import Spec


class FewShot(Spec):
    """k rows of each class, the L2 tuned on min(k, 4) further rows of each class, over several draws.

    The probe is fitted on the k rows alone. A share of each class (`shares`) is fitted and tuned as all rows
    would be, by cross-validation among them. Adapters and the scale of codes see the unlabelled training rows,
    the same for every arm; the protocol says so.
    """

    name: Literal["few-shot"] = "few-shot"
    shots: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 4, 8, 16)
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    """Of the training rows of each class, at least one row, for example [0.01, 0.05, 0.1, 0.2, 0.5].

    A share of 1 is all rows: nothing is drawn, so it is fitted once whatever the repeats, and the mean over shares
    leaves it out."""
    repeats: Annotated[int, Field(ge=1)] = 10
    """Draws for each seed; averaged within the seed."""

    @model_validator(mode="after")
    def _of_something(self) -> Self:
        if not self.shots and not self.shares:
            raise ValueError("few-shot needs at least 1 number of shots, or shares, for example shots: [1, 2, 4]")
        return self

    def trials(self, data: DataSpec, seed: int) -> Iterator[Trial]:
        self._check_rows(data)
        for repeat in range(self.repeats):
            for k in self.shots:
                rows = Shots(shots=k, validation=_validation(k), draw=seed, repeat=repeat)
                yield self._trial(data, "shots", k, rows)
            for share in self.shares:
                if share < 1:
                    yield self._trial(data, "share", share, Share(share=share, draw=seed, repeat=repeat))
                elif repeat == 0:
                    yield self._trial(data, "share", share, None)

    def _check_rows(self, data: DataSpec) -> None:
        """Raise UsageError, naming a limit or shots that would do, where a class has too few rows."""
        # not above: it finds data sets of other packages, whose modules may import what scenarios are made of
        from monoeval.data.load import loaded

        train = loaded(data).train
        fewest, name = _smallest_class(train)
        need = max((k + _validation(k) for k in self.shots), default=0)
        if fewest >= need:
            return
        fitting = [k for k in self.shots if k + _validation(k) <= fewest] or ([1] if fewest >= 2 else [])
        ways = []
        if data.limit is not None:
            whole = loaded(data.model_copy(update={"limit": None})).train
            if _smallest_class(whole)[0] >= need:
                ways.append(f"--limit {need * len(whole.class_names)}")  # a limit takes rows of each class in turn
        if fitting:
            ways.append(f"in a recipe {{name: few-shot, shots: {fitting}}}")
        raise UsageError(
            f"{max(self.shots)} shots need {need} training rows of each class, validation rows among them, and "
            f"class {name!r} of {data.label} has {fewest}: give {', or '.join(ways or ['it more images'])}."
        )

    def _trial(self, data: DataSpec, series: str, level: float, rows: Shots | Share | None) -> Trial:
        return Trial(
            scenario=self.name,
            protocol=f"few-shot/unlabelled-train{'/share' if series == 'share' else ''}@{level:g}",
            series=series,
            level=level,
            data=data,
            fit=Fit(rows=rows),
            test=TestSet(data=data),
            draw=None if rows is None else rows.draw,
            repeat=0 if rows is None else rows.repeat,
        )


def _validation(shots: int) -> int:
    """Rows of each class that the L2 is tuned on, beside `shots` fitted ones."""
    return min(shots, 4)


def _smallest_class(train: ImageSet) -> tuple[int, str]:
    """How many rows the smallest class has, and which one that is."""
    sizes = np.bincount(train.labels, minlength=len(train.class_names))
    return int(sizes.min()), train.class_names[int(sizes.argmin())]
