"""How a recipe names an adapter."""

from monoeval.spec import Spec


class AdapterSpec(Spec):
    """A method and its settings; each method documents and checks its own `params`."""

    method: str = "identity"
    params: dict[str, int | float | str | bool] = {}  # noqa: RUF012 (pydantic copies defaults)
