"""Train on some domains, test on another."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from monoeval.data.images import DataSpec, named_data
from monoeval.errors import UsageError
from monoeval.scenarios.trial import TestSet, Trial
from monoeval.spec import Spec

DEFAULT_TARGETS = {"digits": "digits-printed", "digits-printed": "digits"}


def _named_targets(value: object) -> object:
    """Read one target, or a list of them, each with its settings or as a bare name."""
    if value is None:
        return None
    return [named_data(one) for one in (value if isinstance(value, list | tuple) else [value])]


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

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.leave_one_out and self.target is not None:
            raise ValueError("give either target or leave_one_out")
        return self

    def trials(self, data: DataSpec, seed: int) -> Iterator[Trial]:  # noqa: ARG002 (nothing is drawn)
        for domain in self._held_out(data):
            source, target = _divided(data, domain)
            protocols = (f"ood/{data.label}/without-{domain}", f"ood/{data.label}/{domain}")
            yield from self._pair(source, target, protocols, series=domain)
        others = [target for target in self.target or () if not _is_domain(target, data)]
        if self.target is None and not self.leave_one_out and data.name in DEFAULT_TARGETS:
            others = [DataSpec(name=DEFAULT_TARGETS[data.name])]
        labels = [target.label for target in others]
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
