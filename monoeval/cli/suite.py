"""`monoeval suite`: run a recipe."""

from typing import Annotated

import typer

from monoeval.cli import options as o
from monoeval.cli.outcome import show_plan, show_run


def suite(
    model: o.Model = None,
    method: o.Method = None,
    k: o.K = None,
    width_factor: o.WidthFactor = None,
    probe: o.Probe = None,
    scenario: o.Scenario = None,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="A file, or a name from `monoeval list recipes`.")
    ] = "quickstart",
    data: o.DataName = None,
    target: o.Target = None,
    latents: Annotated[
        bool, typer.Option("--latents", help="Also probe the most, least and random monosemantic latents alone.")
    ] = False,
    reference: o.Reference = None,
    select_on: o.SelectOn = None,
    zero_shot: o.ZeroShot = False,
    seeds: o.Seeds = None,
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
    """Run the scenarios of a recipe (the quickstart without --recipe) and report them.

    --model, --method, --probe, --data, --scenario and --seeds each replace that part of the recipe. Running the
    same command again resumes, or shows the finished report.
    """
    from monoeval.data.images import DataSpec
    from monoeval.suite.changes import changed
    from monoeval.suite.recipe_files import load_recipe

    models = o.split_commas(model)
    study = changed(
        load_recipe(recipe),
        name="+".join(o.short(m) for m in models) if models else None,
        models=o.backbone_specs(models, weights, layer, pool, image_size, precision),
        methods=o.method_specs(o.split_commas(method), k, width_factor),
        probe=o.probe_spec(probe),
        data=o.data_spec(data, image_column, label_column, split, domain_column, domains, group_column),
        target=[DataSpec(name=name) for name in o.split_commas(target)],
        scenarios=o.split_commas(scenario),
        select_on=select_on,
        seeds=seeds,
        latents=latents,
        reference=reference,
        zero_shot=zero_shot,
        limit=limit,
    )
    if dry_run:
        show_plan(study, out, as_json, fresh)
        return
    show_run(study, out=out, device=device, fresh=fresh, as_json=as_json, debug=debug)
