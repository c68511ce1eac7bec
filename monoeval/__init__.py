"""Do monosemantic features make this vision backbone more robust, and is it monosemanticity that does it?"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monoeval.suite.ledger import Row
    from monoeval.suite.recipe import Recipe

__version__ = "0.1.0"


def run(
    recipe: "str | Path | dict[str, Any] | Recipe",
    *,
    out: str | Path = "runs",
    device: str = "auto",
    fresh: bool = False,
) -> "list[Row]":
    """Run `recipe` (a name, a file, its fields, or a `Recipe`) and return its rows, one a score.

    Rows whose `status` is not `ok` failed, were NaN or scored nothing. The ledger and the report lie under `out`.
    Raises `monoeval.errors.MonoevalError` with a sentence that says what was wrong and what to type.
    """
    from monoeval.suite.run import run as run_recipe

    return run_recipe(recipe, out=out, device=device, fresh=fresh).rows
