"""`monoeval inspect`: what an adapter's latents stand for, as numbers and as a page of images."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from monoeval.cli import options as o
from monoeval.cli.console import out as stdout
from monoeval.keys import key

if TYPE_CHECKING:
    from monoeval.adapters.spec import AdapterSpec
    from monoeval.data.images import Transform
    from monoeval.suite.inspection import Inspection

SEEDS = 2
"""Adapters that are compared where nothing is said: enough for one figure of stability."""


def inspect(
    adapter: Annotated[
        str, typer.Argument(metavar="METHOD|FOLDER", help="From `monoeval list methods`, or a saved adapter.")
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Backbone: an alias, a timm name, file.py:factory, a folder."),
    ] = None,
    data: o.DataName = "digits",
    params: Annotated[
        list[str] | None, typer.Option(help="Settings of the method, e.g. k=16. Repeat it, or use commas.")
    ] = None,
    reference: o.Reference = None,
    corruption: Annotated[
        str, typer.Option(metavar="NAME[:SEVERITY]", help="Of test images, for the drift of codes; or none.")
    ] = "gaussian_noise:3",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the adapter.")] = 0,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Adapters that are compared, with seeds from --seed on; 2 by default."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=20, help="Images a latent.")] = 9,
    count: Annotated[int, typer.Option(min=1, help="Latents a group: most, least, random.")] = 24,
    limit: o.Limit = None,
    image_column: o.ImageColumn = None,
    label_column: o.LabelColumn = None,
    split: o.Split = None,
    weights: o.Weights = "pretrained",
    layer: o.Layer = None,
    pool: o.Pool = None,
    image_size: o.ImageSize = None,
    precision: o.Precision = "auto",
    device: o.Device = "auto",
    out: Annotated[Path | None, typer.Option(help="The page, FILE.html; by default under runs/.")] = None,
    as_json: o.AsJson = False,
    debug: o.Debug = False,  # noqa: ARG001 (read by main)
) -> None:
    """Measure the latents of an adapter on held-out images, and draw what fires them.

    The adapter is fitted on the training images (or found in the cache); the page shows the most, the least and
    random monosemantic latents.
    """
    from monoeval.backbones.resolve import check_available
    from monoeval.backbones.spec import BackboneSpec
    from monoeval.data.load import load_data
    from monoeval.errors import UsageError

    subject = _subject(adapter, o.split_commas(params))
    if isinstance(subject, Path) and seeds is not None:
        raise UsageError("--seeds speaks of a method, and a saved adapter has its own seed: leave it out.")
    change = _corruption(corruption)
    if model is None:
        raise UsageError(
            "Which backbone? Name one with --model, for example `monoeval inspect sae --model vit_b16`."
        )
    backbone = o.backbone_specs([model], weights, layer, pool, image_size, precision)[0]
    other = None if reference is None else BackboneSpec(model=reference)
    for spec in filter(None, (backbone, other)):
        check_available(spec)  # before torch is imported, and before work that would be lost
    source = o.data_spec(data, image_column, label_column, split)
    assert source is not None
    images = load_data(source.model_copy(update={"limit": limit}))
    name = adapter if isinstance(subject, Path) else subject.method
    asked = [adapter if isinstance(subject, Path) else subject, backbone, source, limit, seed, other, change]
    default = f"inspect-{'-'.join(map(o.short, (name, model, source.label)))}-{key(asked)[:6]}.html"
    page = out or Path("runs") / default
    _check_writable(page)

    from monoeval.files import atomic
    from monoeval.suite.inspection import inspect as look

    found = look(
        subject,
        backbone,
        images,
        reference=other,
        corruption=change,
        seed=seed,
        seeds=seeds or SEEDS,
        device=device,
    )
    ranking = found.ranking(count, seed)
    text = found.page(ranking, top)
    with atomic(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if as_json:
        groups = {group: getattr(ranking, group).tolist() for group in ("most", "least", "random")}
        said = {m.name: {"value": _json(m.value), "chance": _json(m.chance)} for m in found.measures}
        stdout.print_json(
            json.dumps({**found.facts, "measures": said, "ranked by": ranking.by, **groups, "page": str(page)})
        )
        return
    _show(found)
    stdout.print(f"\nGallery: {page}", markup=False, soft_wrap=True)


def _subject(text: str, params: list[str]) -> "AdapterSpec | Path":
    """A method with its settings, known to be valid, or a folder."""
    from monoeval.adapters.registry import METHODS, spec_of
    from monoeval.adapters.spec import AdapterSpec
    from monoeval.errors import UsageError, unknown

    folder = Path(text).expanduser()
    if text in METHODS:
        given = dict(_parameter(param) for param in params)
        spec = AdapterSpec(method=text, params=given)
        spec_of(spec)
        return spec
    if not folder.is_dir():
        if "/" in text or text.startswith((".", "~")):
            raise UsageError(f"There is no folder {text}: name a method, or a folder that holds a saved adapter.")
        raise unknown("method", text, METHODS)
    if params:
        raise UsageError("--params speaks of a method, and a saved adapter has its own: leave it out.")
    return folder


def _parameter(text: str) -> tuple[str, int | float | str | bool]:
    """`k=16` as a name and a number, a truth value or else a text."""
    from monoeval.errors import UsageError

    name, separator, value = text.partition("=")
    if not separator or not name:
        raise UsageError(f"--params is written as NAME=VALUE, for example --params k=16, and not {text!r}.")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, {"true": True, "false": False}.get(value.lower(), value)


def _corruption(text: str) -> "Transform | None":
    """`fog:3` as a change to images, `fog` at the middle severity, or None for `none`."""
    from monoeval.data.corruptions import CORRUPTIONS
    from monoeval.data.images import Transform
    from monoeval.errors import UsageError, unknown

    if text == "none":
        return None
    name, _, severity = text.partition(":")
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if (severity := severity or "3") not in {"1", "2", "3", "4", "5"}:
        raise UsageError(f"--corruption ends in a severity of 1 to 5, for example {name}:3, and not {severity!r}.")
    return Transform(name=name, stage="image", severity=int(severity))


def _check_writable(page: Path) -> None:
    """Raise, before long work begins, where the page could not be written."""
    from monoeval.errors import UsageError
    from monoeval.files import cannot_write

    if page.is_dir():
        raise UsageError(f"{page} is a folder: name a file with --out, for example --out {page / 'inspect.html'}.")
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"The page is HTML, and {page} is not called so: give --out a name such as inspect.html.")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=page.parent):
            pass
    except OSError as error:
        raise cannot_write(page, error) from error


def _show(found: "Inspection") -> None:
    from monoeval.report.gallery import number

    stdout.print(Text(found.title, style="bold"))
    for name, value in found.facts.items():
        stdout.print(f"{name:10} {value}", markup=False, soft_wrap=True)
    table = Table("measure", box=None, pad_edge=False)
    table.add_column("value", justify="right")
    table.add_column("chance", justify="right")
    table.add_column("", overflow="fold", style="dim")
    for m in found.measures:
        table.add_row(Text(m.name), number(m.value), number(m.chance, ""), Text(m.note))
    stdout.print()
    stdout.print(table)


def _json(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    from math import isfinite

    return value if value is not None and isfinite(value) else None
