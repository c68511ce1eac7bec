"""How a recipe names an adapter, or several of one method to choose from."""

from itertools import product

from monoeval.errors import UsageError
from monoeval.spec import Spec

Setting = int | float | str | bool
Params = dict[str, Setting | tuple[Setting, ...]]
"""Setting → its value, or a list of numbers of which one is chosen on validation rows."""


class AdapterSpec(Spec):
    """A method and its settings; each method documents and checks its own `params`."""

    method: str = "identity"
    params: Params = {}  # noqa: RUF012 (pydantic copies defaults)

    @property
    def candidates(self) -> "tuple[AdapterSpec, ...]":
        """One specification for each combination of listed values, in their order; itself where nothing is listed.

        The last list varies fastest. Raises UsageError for an empty list, a value listed twice, or one that is no
        number.
        """
        listed = {name: values for name, values in self.params.items() if isinstance(values, tuple)}
        for name, values in listed.items():
            wrong = [value for value in values if isinstance(value, bool | str)]
            if not values:
                raise UsageError(
                    f"{self.method}: {name} is an empty list: give one value, or several to choose from."
                )
            if wrong:
                raise UsageError(
                    f"{self.method}: {name} lists {wrong[0]!r}, and only numbers can be chosen from: give it one "
                    "value."
                )
            if twice := [value for i, value in enumerate(values) if value in values[:i]]:
                raise UsageError(f"{self.method}: {name} lists {twice[0]:g} twice: name each value once.")
        if not listed:
            return (self,)
        chosen = (dict(zip(listed, values, strict=True)) for values in product(*listed.values()))
        return tuple(self.model_copy(update={"params": {**self.params, **values}}) for values in chosen)
