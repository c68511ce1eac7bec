"""Data sets of other packages: functions named by entry points."""

from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint
from typing import cast

from monoeval import plugins
from monoeval.data.images import Data, DataSpec
from monoeval.errors import MonoevalError

GROUP = "monoeval.data"
"""The entry-point group; each entry names a `Loader` in a module that imports nothing heavy."""

Loader = Callable[[DataSpec], Data]
"""Gives the data that a `DataSpec` of its name asks for; `limit` is applied to what it gives."""


def collect(entries: Iterable[EntryPoint], known: Iterable[str]) -> tuple[dict[str, Loader], dict[str, str]]:
    """Loaders by name, without the `known` names, and why names that two packages claim cannot be used."""
    taken = dict.fromkeys(known, _known)
    found, refused = plugins.collect("data set", entries, taken, _loader)
    return {name: loader for name, loader in found.items() if name not in taken}, refused


def about(loader: Loader) -> str:
    """One line for `monoeval list data`."""
    text = (loader.__doc__ or "").strip()
    return text.splitlines()[0] if text else "a data set of another package"


def load(loader: Loader, spec: DataSpec) -> Data:
    """What `loader` gives; raises MonoevalError where it fails or gives something else."""
    try:
        data = loader(spec)
    except MonoevalError:
        raise
    except Exception as error:  # another package's code
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise MonoevalError(
            f"The data set {spec.name} could not be loaded: {type(error).__name__}: {reason}."
        ) from error
    if not isinstance(data, Data):
        raise MonoevalError(f"The data set {spec.name} is a {type(data).__name__}, where Data was expected.")
    return data


def _known(spec: DataSpec) -> Data:
    raise AssertionError(spec.name)


def _loader(found: object, name: str) -> Loader:  # noqa: ARG001 (a function need not know its name)
    if not callable(found):
        raise TypeError("a function of a DataSpec")
    return cast("Loader", found)
