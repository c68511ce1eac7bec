"""`monoeval probe`: one model on clean data, the named methods beside raw features and controls."""

from monoeval.cli import options as o
from monoeval.cli.outcome import show_plan, show_run


def probe(
    model: o.Model = None,
    method: o.Method = None,
    k: o.K = None,
    width_factor: o.WidthFactor = None,
    probe: o.Probe = None,
    data: o.DataName = "digits",
    zero_shot: o.ZeroShot = False,
    reference: o.Reference = None,
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
    """Fit linear probes on a backbone's clean features, with and without an adapter."""
    from monoeval.backbones.spec import BackboneSpec
    from monoeval.errors import UsageError
    from monoeval.probes.spec import Logistic
    from monoeval.suite.recipe import Recipe

    models = o.split_commas(model)
    if not models:
        raise UsageError("Which backbone? Name one with --model, for example `monoeval probe --model vit_b16`.")
    spec = o.data_spec(data, image_column, label_column, split, domain_column, domains, group_column)
    assert spec is not None
    study = Recipe(
        name="+".join(o.short(m) for m in models),
        data=spec.model_copy(update={"limit": limit}),
        seeds=seeds or 1,
        models=tuple(o.backbone_specs(models, weights, layer, pool, image_size, precision)),
        methods=tuple(o.method_specs(o.split_commas(method) or ["sae"], k, width_factor)),
        probe=o.probe_spec(probe) or Logistic(),
        zero_shot=zero_shot,
        reference=None if reference is None else BackboneSpec(model=reference),
        scenarios=({"name": "clean"},),
    )
    if dry_run:
        show_plan(study, out, as_json, fresh)
        return
    show_run(study, out=out, device=device, fresh=fresh, as_json=as_json, debug=debug)
