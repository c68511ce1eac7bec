"""`monoeval list`: what can be named."""

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from monoeval.cli import options as o
from monoeval.cli.console import out

KINDS = ("models", "methods", "probes", "data", "scenarios", "recipes")


def listing(
    kind: Annotated[str, typer.Argument(help="models, methods, probes, data, scenarios or recipes.")],
    as_json: o.AsJson = False,
) -> None:
    """List the models, methods, probes, data sets, scenarios or recipes that can be named."""
    from monoeval.errors import unknown

    if kind not in KINDS:
        raise unknown("list", kind, KINDS)
    entries = _entries(kind)
    if as_json:
        out.print_json(json.dumps(entries))
        return
    table = Table("name", "what it is", box=None, pad_edge=False)
    for name, text in entries.items():
        table.add_row(escape(name), escape(text))
    out.print(table)
    if kind == "models":
        out.print(
            "\nAny timm name works too (resnet18, resnet18.a1_in1k, hf-hub:…), and open_clip:ARCH@TAG, "
            "file.py:factory, and a folder that `monoeval pretrain` wrote.",
            markup=False,
        )


def _entries(kind: str) -> dict[str, str]:
    if kind == "models":
        from monoeval.backbones.aliases import describe

        return describe()
    if kind == "methods":
        from monoeval.adapters.registry import METHODS

        return {name: f"{m.description}{' (control)' if m.is_control else ''}" for name, m in METHODS.items()}
    if kind == "probes":
        from monoeval.probes.spec import PROBES, TEXT_PROBES

        return {name: str(probe.__doc__).splitlines()[0] for name, probe in {**PROBES, **TEXT_PROBES}.items()}
    if kind == "data":
        from monoeval.data.load import DATASETS, LOADERS
        from monoeval.data.loaders import about

        return {**DATASETS, **{name: about(loader) for name, loader in LOADERS.items()}}
    if kind == "scenarios":
        from monoeval.scenarios.registry import SCENARIOS

        return {name: str(scenario.__doc__).splitlines()[0] for name, scenario in SCENARIOS.items()}
    from monoeval.suite.recipe_files import load_recipe, recipes

    return {name: " ".join((load_recipe(path).note or "").split()) for name, path in recipes().items()}
