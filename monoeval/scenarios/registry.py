"""The scenarios by name: those that come along, and those of other packages.

Apart from the package itself, so that a module of another package may import what scenarios are made of
(`monoeval.scenarios.trial`) without being imported by that a second time.
"""

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Union, cast, get_args

from monoeval import plugins
from monoeval.scenarios import SCENARIOS as BUILT_IN
from monoeval.scenarios import AnyScenario
from monoeval.spec import Spec

GROUP = "monoeval.scenarios"
"""The entry-point group; each entry names a `Spec` with a field `name: Literal[...]` and `trials(data, seed)`."""


def _scenario(found: object, name: str) -> type[AnyScenario]:
    if isinstance(found, type) and issubclass(found, Spec) and callable(getattr(found, "trials", None)):
        field = found.model_fields.get("name")
        if field is not None and get_args(field.annotation) == (name,) and field.default == name:
            return cast("type[AnyScenario]", found)
    raise TypeError(f'a Spec with `name: Literal["{name}"] = "{name}"` and `trials(data, seed)`')


SCENARIOS, REFUSED = plugins.collect("scenario", entry_points(group=GROUP), BUILT_IN, _scenario)

if TYPE_CHECKING:
    Listed = AnyScenario
else:
    Listed = Union[tuple(SCENARIOS.values())]  # noqa: UP007 (made at import)
"""Any of them, as a field of a recipe."""
