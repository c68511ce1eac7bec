"""`monoeval finetune`: train the backbone itself, or low-rank changes to it, in each trial of some scenarios."""

from typing import Annotated

import typer

from monoeval.cli import options as o
from monoeval.cli.outcome import show_plan, show_run


def finetune(
    model: o.Model = None,
    objective: Annotated[
        str, typer.Option(help="ce, nce (cross-entropy on positive parts of the features), or both.")
    ] = "ce,nce",
    adapt: Annotated[
        str, typer.Option(help="full, lora, monolora (LoRA with a ReLU between its factors), or several.")
    ] = "full",
    scenario: o.Scenario = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training rows of a trial.")] = None,
    learning_rate: Annotated[
        str | None, typer.Option(help="One, or several to choose from on held-out training rows.")
    ] = None,
    params: Annotated[
        list[str] | None,
        typer.Option(help="Other settings, e.g. batch_size=32,crop=1,flip=true,rank=4. Repeat it, or use commas."),
    ] = None,
    data: o.DataName = "digits",
    target: o.Target = None,
    select_on: o.SelectOn = None,
    seeds: o.Seeds = 3,
    limit: o.Limit = None,
    image_column: o.ImageColumn = None,
    label_column: o.LabelColumn = None,
    domain_column: o.DomainColumn = None,
    group_column: o.GroupColumn = None,
    domains: o.Domains = None,
    split: o.Split = None,
    weights: o.Weights = "pretrained",
    layer: o.Layer = None,
    pool: o.Pool = None,
    image_size: o.ImageSize = None,
    precision: o.Precision = "auto",
    device: o.Device = "auto",
    out: o.Out = "runs",
    as_json: o.AsJson = False,
    dry_run: o.DryRun = False,
    fresh: o.Fresh = False,
    debug: o.Debug = False,
) -> None:
    """Finetune under noisy and few labels: every trial trains anew, by the same rule for every arm.

    NCE is held against CE, and MonoLoRA against LoRA.
    """
    from monoeval.data.images import DataSpec
    from monoeval.errors import UsageError
    from monoeval.suite.changes import changed, finetuning
    from monoeval.training.settings import FinetuneSpec

    models = o.split_commas(model)
    if not models:
        raise UsageError("Which backbone? Name one with --model, for example `monoeval finetune --model vit_b16`.")
    own = ("kind", "objective", "adapt", "learning_rates")  # have options that take lists, or none
    passes = {} if epochs is None else {"epochs": epochs}
    others = o.named_settings(
        params, [n for n in FinetuneSpec.model_fields if n not in own], "batch_size=32", passes
    )
    rates = {} if learning_rate is None else {"learning_rates": o.split_commas([learning_rate])}
    study = finetuning(
        o.backbone_specs(models, weights, layer, pool, image_size, precision),
        objectives=o.split_commas([objective]),
        adapts=o.split_commas([adapt]),
        settings={**rates, **passes, **others},
    )
    study = changed(
        study,
        name="finetune-" + "+".join(o.short(m) for m in models),
        data=o.data_spec(data, image_column, label_column, split, domain_column, domains, group_column),
        target=[DataSpec(name=name) for name in o.split_commas(target)],
        scenarios=o.split_commas(scenario),
        select_on=select_on,
        seeds=seeds,
        limit=limit,
    )
    if dry_run:
        show_plan(study, out, as_json, fresh)
        return
    show_run(study, out=out, device=device, fresh=fresh, as_json=as_json, debug=debug)
