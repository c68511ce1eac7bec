"""Options that several commands share, declared once."""

from collections.abc import Collection
from typing import Annotated, Literal

import typer
from pydantic import TypeAdapter

from monoeval.adapters.spec import AdapterSpec, Setting
from monoeval.backbones.spec import BackboneSpec
from monoeval.data.images import DataSpec
from monoeval.errors import UsageError, unknown
from monoeval.probes.spec import PROBES, TEXT_PROBES, ProbeSpec

Model = Annotated[
    list[str] | None,
    typer.Option(
        "--model", "-m", help="Backbone: an alias, timm or open_clip name, file.py:factory or folder. Repeat it."
    ),
]
Method = Annotated[list[str] | None, typer.Option("--method", help="Adapter, e.g. sae. Repeat it, or use commas.")]
K = Annotated[
    str | None,
    typer.Option("--k", help="Active latents a row; of several, e.g. 16,32,64, validation rows choose."),
]
WidthFactor = Annotated[
    str | None,
    typer.Option(help="Latents per feature of the backbone; of several, e.g. 4,8, validation rows choose."),
]
Probe = Annotated[
    str | None,
    typer.Option(help=f"Probe of every arm: {', '.join(PROBES)}. By default the recipe's, or logistic."),
]
Scenario = Annotated[list[str] | None, typer.Option(help="From `monoeval list scenarios`. Repeat it.")]
SelectOn = Annotated[
    Literal["noisy-val", "clean-val"] | None,
    typer.Option(help="Labels of held-out rows to tune on under label noise; clean-val is an oracle."),
]
DataName = Annotated[
    str | None, typer.Option("--data", "-d", help="digits, a hub id, or a folder of images or parquet.")
]
Target = Annotated[
    list[str] | None, typer.Option(help="A shifted data set, or a domain of the data, for ood. Repeat it.")
]
Reference = Annotated[
    str | None, typer.Option(help="Another model, whose embeddings the monosemanticity score compares.")
]
ZeroShot = Annotated[
    bool,
    typer.Option("--zero-shot", help="Also score class names as CLIP-like models read them, and WiSE averages."),
]
ImageColumn = Annotated[str | None, typer.Option(help="Column with the images, where it cannot be guessed.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column with the labels, where it cannot be guessed.")]
DomainColumn = Annotated[str | None, typer.Option(help="Column with the domains, if it is not called domain.")]
GroupColumn = Annotated[
    str | None,
    typer.Option(help="Column with what rows belong to (writer, patient, video): they count as clusters."),
]
Domains = Annotated[
    list[str] | None, typer.Option(help="Only these domains of the data. Repeat it, or use commas.")
]
Split = Annotated[
    list[str] | None,
    typer.Option(help="Name of the training, then of the test split, where they can't be guessed."),
]
Limit = Annotated[int | None, typer.Option(min=2, help="At most this many images a split, stratified by class.")]
Seeds = Annotated[int | None, typer.Option(min=1, help="Seeds 0 … N−1.")]
Weights = Annotated[str, typer.Option(help="pretrained, random, or a checkpoint file.")]
Layer = Annotated[str | None, typer.Option(help="Layer to read, by name or block index.")]
Pool = Annotated[str | None, typer.Option(help="How tokens become one vector: token, avg, max.")]
ImageSize = Annotated[int | None, typer.Option(min=8, help="Pixels a side, instead of the model's own.")]
Precision = Annotated[Literal["auto", "fp32", "bf16"], typer.Option(help="Of the forward pass.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Out = Annotated[str, typer.Option(help="Folder that holds the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Score everything again instead of resuming.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def split_commas(values: list[str] | None) -> list[str]:
    """Repeated options and comma lists are the same."""
    return [part.strip() for value in values or () for part in value.split(",") if part.strip()]


def named_settings(
    params: list[str] | None, settings: list[str], example: str, given_by_option: Collection[str] = ()
) -> dict[str, str]:
    """What `--params NAME=VALUE` says, each name one of `settings`; UsageError for what is written otherwise."""
    given = {}
    for param in split_commas(params):
        name, equals, value = param.partition("=")
        if not equals:
            raise UsageError(f"--params is written as NAME=VALUE, for example {example}, and not {param!r}.")
        if name not in settings:
            raise unknown("setting", name, settings, f"The settings are {', '.join(settings)}.")
        if name in given_by_option or name in given:
            raise UsageError(
                f"{name} is given twice, in --params and as an option or in there again: give it once."
            )
        given[name] = value
    return given


def short(model: str) -> str:
    """A model's name as part of a folder's name."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in model.rstrip("/").split("/")[-1])


def method_specs(methods: list[str], k: str | None, width_factor: str | None) -> list[AdapterSpec]:
    """One specification a method; `k` and `width_factor` are for those that have such a setting."""
    from monoeval.adapters.registry import METHODS  # looks for other packages' methods

    settings = {}
    for method in methods:
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        settings[method] = METHODS[method].settings.model_fields
    params: dict[str, Setting | tuple[Setting, ...]] = {}
    for name, text, kind in (("k", k, int), ("width_factor", width_factor, float)):
        if text is None:
            continue
        option = f"--{name.replace('_', '-')}"
        params[name] = _one_or_several(option, text, kind)
        if not methods:
            raise UsageError(f"{option} speaks of a method: name it with --method.")
        if not any(name in known for known in settings.values()):
            raise UsageError(f"{option} is a setting of dictionaries such as sae, not of {', '.join(methods)}.")
    return [
        AdapterSpec(method=method, params={n: v for n, v in params.items() if n in settings[method]})
        for method in methods
    ]


def _one_or_several(option: str, text: str, kind: type[int] | type[float]) -> Setting | tuple[Setting, ...]:
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {text!r} is not a number, nor several with commas between them: type e.g. {option} 4,8."
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]


def backbone_specs(
    models: list[str], weights: str, layer: str | None, pool: str | None, image_size: int | None, precision: str
) -> list[BackboneSpec]:
    """One specification a model; the other options hold for all of them."""
    shared = {"weights": weights, "layer": layer, "pool": pool, "image_size": image_size, "precision": precision}
    plain = BackboneSpec(model="any").model_dump()
    idle = [name for name, value in shared.items() if value != plain[name]]
    if idle and not models:
        raise UsageError(f"--{idle[0].replace('_', '-')} speaks of a model: name it with --model.")
    return [BackboneSpec.model_validate({"model": model, **shared}) for model in models]


def probe_spec(kind: str | None) -> ProbeSpec | None:
    """The specification of `--probe` with the settings of its kind, or None where it was not given."""
    if kind is None:
        return None
    if kind in TEXT_PROBES:
        raise UsageError(f"{kind} reads class names and is no probe of every arm: give --zero-shot instead.")
    if kind not in PROBES:
        raise unknown("probe", kind, PROBES)
    return TypeAdapter[ProbeSpec](ProbeSpec).validate_python(kind)


def data_spec(
    name: str | None,
    image_column: str | None,
    label_column: str | None,
    splits: list[str] | None,
    domain_column: str | None = None,
    domains: list[str] | None = None,
    group_column: str | None = None,
) -> DataSpec | None:
    """The specification of `--data`, or None where it was not given."""
    if name is None:
        given = {"--image-column": image_column, "--label-column": label_column, "--split": splits,
                 "--domain-column": domain_column, "--domains": domains,
                 "--group-column": group_column}  # fmt: skip
        idle = next((option for option, value in given.items() if value), None)
        if idle:
            raise UsageError(f"{idle} speaks of a data set: name it with --data.")
        return None
    names = split_commas(splits)
    if len(names) > 2:
        raise UsageError(f"--split names a training and a test split, and not {len(names)} ({', '.join(names)}).")
    return DataSpec(
        name=name,
        image_column=image_column,
        label_column=label_column,
        train_split=names[0] if names else None,
        test_split=names[1] if len(names) > 1 else None,
        domain_column=domain_column,
        group_column=group_column,
        domains=tuple(split_commas(domains)) or None,
    )
