"""Train on some domains, test on another."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from monoeval.data.images import DataSpec, named_data
from monoeval.errors import UsageError, unknown
from monoeval.scenarios.trial import TestSet, Trial
from monoeval.spec import Spec

DEFAULT_TARGETS = {"digits": "digits-printed", "digits-printed": "digits"}


def _named_targets(value: object) -> object:
    """Read one target, or a list of them, each with its settings or as a bare name."""
    if value is None:
        return None
    return [named_data(one) for one in (value if isinstance(value, list | tuple) else [value])]


def _read_accuracies(value: object) -> object:
    """Pairs as they are, or the columns `clean` and `shifted` of a CSV file."""
    if not isinstance(value, str):
        return value
    try:
        with Path(value).expanduser().open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is not a table"
        raise ValueError(f"the accuracies in {value} cannot be read ({reason}): check the path") from error
    if not rows or not {"clean", "shifted"} <= rows[0].keys():
        raise ValueError(f"{value} has no columns clean and shifted: give it a heading such as name,clean,shifted")
    return [(row["clean"], row["shifted"]) for row in rows]


def _of_a_line(pairs: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    odd = next((share for pair in pairs for share in pair if not 0 < share < 1), None)
    if odd is not None:
        raise ValueError(
            f"accuracies of standard models are shares, such as 0.761, and {odd:g} does not lie between 0 and 1"
        )
    if len({clean for clean, _ in pairs}) < 3:
        raise ValueError("a line takes at least 3 standard models of unlike clean accuracies: add some")
    return pairs


Accuracies = Annotated[
    tuple[tuple[float, float], ...], BeforeValidator(_read_accuracies), AfterValidator(_of_a_line)
]
"""Of standard models on two test sets: pairs (clean, shifted) of shares, or a CSV file with these columns."""


class OutOfDomain(Spec):
    """Fit on the source's training rows; score on its test rows (level 0) and on the target's (level 1).

    Targets are other data sets, each a series of its own, or domains of the data: a target with the name of one
    holds it out, and the other domains are the source. Without a target every domain is held out in turn; then all
    that is fitted or chosen (backbone, adapter, probe, L2) sees training rows of the other domains only.
    Classes are matched by name (of ImageNet also by WordNet id); only shared classes are scored, on both sides.
    """

    name: Literal["ood"] = "ood"
    target: Annotated[
        Annotated[tuple[DataSpec, ...], Field(min_length=1)] | None, BeforeValidator(_named_targets)
    ] = None
    leave_one_out: bool = False
    """Hold out each domain of the data in turn: what happens without a target, but then data must have domains."""
    standard: dict[str, Accuracies] = {}  # noqa: RUF012 (pydantic copies defaults)
    """Target → accuracies of standard models, scored on the same two test sets and the same classes: the line that
    effective robustness is measured from. Reports alone read it."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.leave_one_out and self.target is not None:
            raise ValueError("give either target or leave_one_out")
        return self

    def trials(self, data: DataSpec, seed: int) -> Iterator[Trial]:  # noqa: ARG002 (nothing is drawn)
        held_out = self._held_out(data)
        for domain in held_out:
            source, target = _divided(data, domain)
            protocols = (f"ood/{data.label}/without-{domain}", f"ood/{data.label}/{domain}")
            yield from self._pair(source, target, protocols, series=domain)
        others = [target for target in self.target or () if not _is_domain(target, data)]
        if self.target is None and not self.leave_one_out and data.name in DEFAULT_TARGETS:
            others = [DataSpec(name=DEFAULT_TARGETS[data.name])]
        labels = [target.label for target in others]
        for name in self.standard:
            if name not in (*held_out, *labels):
                raise unknown("target of ood", name, [*held_out, *labels])
        for target in others:
            if labels.count(target.label) > 1:
                raise UsageError(f"Two targets of ood are called {target.label!r}: rename one of the two folders.")
            if target.limit is None:
                target = target.model_copy(update={"limit": data.limit})
            protocols = (f"ood/{data.label}/{data.label}", f"ood/{data.label}/{target.label}")
            yield from self._pair(data, target, protocols, series=f"{data.label} → {target.label}")

    def _held_out(self, data: DataSpec) -> list[str]:
        """The domains of `data` that are targets."""
        if self.target is not None:
            return [target.name for target in self.target if _is_domain(target, data)]
        if data.name in DEFAULT_TARGETS and not self.leave_one_out:
            return []
        domains = _domains(data)
        if len(domains) < 2:
            has = f"has one domain ({domains[0]})" if domains else "has no domains to leave out"
            raise UsageError(
                f"The ood scenario needs a target for {data.name}, which {has}: name one with --target DATA."
            )
        return list(domains)

    def _pair(
        self, source: DataSpec, target: DataSpec, protocols: tuple[str, str], series: str
    ) -> Iterator[Trial]:
        for level, test in enumerate((source, target)):
            yield Trial(
                scenario=self.name,
                protocol=protocols[level],
                series=series,
                level=level,
                data=source,
                test=TestSet(data=test, shared_with=(target, source)[level], whole=level == 1),
            )


def _domains(data: DataSpec) -> tuple[str, ...]:
    # not above: it finds data sets of other packages, whose modules may import what scenarios are made of
    from monoeval.data.load import loaded

    return loaded(data).domains


def _is_domain(target: DataSpec, data: DataSpec) -> bool:
    """Whether `target` is no more than the name of a domain of `data`."""
    return target == DataSpec(name=target.name) and target.name in _domains(data)


def _divided(data: DataSpec, domain: str) -> tuple[DataSpec, DataSpec]:
    """All other domains of `data`, and `domain` alone."""
    others = tuple(other for other in _domains(data) if other != domain)
    if not others:
        raise UsageError(
            f"{data.name} has one domain ({domain}), and holding it out leaves nothing to train on: name another "
            "data set with --target DATA."
        )
    return data.model_copy(update={"domains": others}), data.model_copy(update={"domains": (domain,)})
