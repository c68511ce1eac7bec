"""What other packages add by entry points: never at the cost of what comes along, and never silently."""

import logging
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint
from typing import Protocol, TypeVar

log = logging.getLogger("monoeval")

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Accept(Protocol[T_co]):
    """Says what `found` is under the name `name`, or raises TypeError with what it should have been."""

    def __call__(self, found: object, name: str, /) -> T_co: ...


def collect(
    kind: str, entries: Iterable[EntryPoint], known: Mapping[str, T], accept: Accept[T]
) -> tuple[dict[str, T], dict[str, str]]:
    """All things of a kind by name, and for each name that two packages claim the reason why it cannot be used.

    `known` come first. An entry that cannot be imported, or that `accept` raises TypeError for, is left out with a
    warning: it must not take the rest down.
    """
    found, refused = dict(known), {}
    for entry in entries:
        package = entry.dist.name if entry.dist else entry.value
        if entry.name in found:
            refused[entry.name] = f"{package} offers a {kind} named {entry.name!r}, which exists already"
            continue
        try:
            loaded = entry.load()
        except Exception as error:  # another package's code
            log.warning(
                "The %s %r of %s could not be imported (%s) and is left out.", kind, entry.name, package, error
            )
            continue
        try:
            found[entry.name] = accept(loaded, entry.name)
        except TypeError as error:
            log.warning("The %s %r of %s is not %s and is left out.", kind, entry.name, package, error)
    return found, refused
