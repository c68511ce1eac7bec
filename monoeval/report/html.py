"""The report as one HTML file that needs no network: figures inline, light and dark."""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING

from monoeval.report import wording
from monoeval.report.figures import INK, PAPER
from monoeval.report.model import Summary, Table

if TYPE_CHECKING:
    from markupsafe import Markup


def html(summary: Summary, figures: Mapping[str, str]) -> str:
    """The whole report; `figures` are SVG texts by name, as `figures.figures` makes them."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals["wording"] = wording
    template = files("monoeval.report").joinpath("template.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        summary=summary,
        adapters=wording.adapter_table(summary),
        figures={name: _inline(name, svg) for name, svg in figures.items()},
        describe=_describe,
    )


def _inline(name: str, svg: str) -> "Markup":
    """An SVG for use within a page: no prolog, ids of its own, the page's text colour and width."""
    from markupsafe import Markup

    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<title>.*?</title>", "", body, flags=re.DOTALL)
    body = re.sub(r'((?:\bid="|href="#|url\(#))', rf"\g<1>{name}-", body)
    body = body.replace(INK, "currentColor").replace(PAPER, "none")
    body = re.sub(r'(<svg[^>]*?) width="[\d.]+pt"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', r"\1", body, count=1)
    return Markup(body)


def _describe(table: Table) -> str:
    """The figure in words, for who cannot see it."""
    best = [
        f"{arm} {100 * cells[table.primary].interval.mean:.1f} %"  # type: ignore[union-attr]
        for arm, cells in table.cells.items()
        if cells[table.primary].interval is not None
    ]
    return f"{table.title}, {table.primary_label}: {', '.join(best)}. The table below has every number."
