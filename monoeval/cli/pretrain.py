"""`monoeval pretrain`: train a small backbone, polysemantic (SimCLR) or monosemantic (NCL)."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from monoeval.cli import options as o
from monoeval.cli.console import out as stdout


def pretrain(
    objective: Annotated[str, typer.Option(help="simclr or ncl.")] = "simclr",
    model: Annotated[str, typer.Option(help="The network to train: tiny.")] = "tiny",
    data: o.DataName = "digits",
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    limit: o.Limit = None,
    image_column: o.ImageColumn = None,
    label_column: o.LabelColumn = None,
    split: o.Split = None,
    device: o.Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Also copy the backbone's folder here.")] = None,
    as_json: o.AsJson = False,
    debug: o.Debug = False,  # noqa: ARG001 (read by main)
) -> None:
    """Train a backbone on the training images alone; the folder it prints is a --model."""
    from monoeval.backbones.spec import PretrainSpec
    from monoeval.data.load import load_data
    from monoeval.errors import UsageError, unknown
    from monoeval.files import cannot_write

    if objective not in ("simclr", "ncl"):
        raise unknown("objective", objective, ("simclr", "ncl"))
    if out is not None and out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise UsageError(f"{out} exists already: choose another --out, or delete it first.")
    chosen = {} if epochs is None else {"epochs": epochs}
    spec = PretrainSpec.model_validate({"objective": objective, "network": model, **chosen})
    source = o.data_spec(data, image_column, label_column, split)
    assert source is not None
    images = load_data(source.model_copy(update={"limit": limit})).train
    from monoeval.backbones.load import choose_device
    from monoeval.training.pretrain import pretrain as train

    folder = train(spec, images, seed=seed, device=choose_device(device))
    if out is not None:
        partial = out.with_name(f".{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            shutil.copytree(folder, partial)
            partial.replace(out)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise cannot_write(out, error) from error
        folder = out
    if as_json:
        stdout.print_json((folder / "backbone.json").read_text())
        return
    facts = json.loads((folder / "backbone.json").read_text())
    for name in ("objective", "network", "width", "image_size", "final_loss", "alive"):
        if name in facts:
            stdout.print(f"{name.replace('_', ' '):12} {facts[name]}", markup=False)
    stdout.print(f"Backbone: {folder}\nUse it:   monoeval probe --model {folder} --method sae",
                 markup=False, soft_wrap=True)  # fmt: skip
