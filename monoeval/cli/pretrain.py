"""`monoeval pretrain`: train a backbone, polysemantic (SimCLR, SupCon) or monosemantic (NCL, NSCL)."""

import json
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monoeval.cli import options as o
from monoeval.cli.console import out as stdout
from monoeval.training import distributed

if TYPE_CHECKING:
    from monoeval.backbones.spec import PretrainSpec
    from monoeval.data.images import DataSpec, ImageSet


def pretrain(
    objective: Annotated[
        str, typer.Option(help="simclr or ncl; with labels supcon or its non-negative form nscl.")
    ] = "simclr",
    model: Annotated[str, typer.Option("--model", "-m", help="tiny, or a timm name such as resnet18.")] = "tiny",
    data: o.DataName = "digits",
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step, of two views each.")] = None,
    image_size: Annotated[int | None, typer.Option(min=8, help="Pixels a side that the network sees.")] = None,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper",
            help="The paper's epochs, projector and loss for CIFAR, on any data, where not given otherwise.",
        ),
    ] = False,
    params: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE of temperature, learning_rate, optimiser (adamw, lars, sgd), weight_decay, warm_up, "
            "width, hidden, stem, augmentation (gentle, simclr), crop, flip, rectifier, normalise_first, density, "
            "precision (auto, fp32, bf16). Repeat it, or use commas."
        ),
    ] = None,
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
    """Train a backbone on the training images alone; the folder it prints is a --model.

    About ten times it says how it goes, as test images tell, which decide nothing of the weights. For simclr and
    ncl a folder may hold images without classes (images/1.jpg, or images/train/1.jpg), of which it says the loss.

    Interrupted, the same command goes on from the last checkpoint: the end of an epoch, written when 30 s have
    passed since the one before. With the folder as --model,
    --layer projector (the default) or backbone says what is read. `torchrun --nproc-per-node N -m monoeval
    pretrain …` trains one network on N GPUs, with the same batches.
    """
    options = {"epochs": epochs, "batch_size": batch_size, "image_size": image_size}
    given = {name: value for name, value in options.items() if value is not None}
    spec = _spec(objective, model, paper, given, o.split_commas(params))
    source = o.data_spec(data, image_column, label_column, split)
    assert source is not None
    source = source.model_copy(update={"limit": limit})
    images, unseen = _images(source, needs_labels=spec.supervised)
    if out is None or not _is_made(out, spec, images, seed):
        if out is not None and distributed.is_first():
            _try(out)
        from monoeval.training.pretrain import pretrain as train

        with distributed.joined(device) as (processes, where):
            folder = train(spec, images, seed=seed, device=where, processes=processes, watched=True, unseen=unseen)
        if out is not None and distributed.is_first():
            _copy(folder, out)
    if not distributed.is_first():
        return
    folder = out or folder
    if as_json:
        stdout.print_json((folder / "backbone.json").read_text())
        return
    facts = json.loads((folder / "backbone.json").read_text())
    said = f" ({len(unseen):,} others tell how it goes)" if unseen else ""
    stdout.print(f"{'images':12} {len(images):,} of {images.name}{said}", markup=False)
    for name in ("objective", "network", "width", "image_size", "final_loss", "alive"):
        if name in facts:
            stdout.print(f"{name.replace('_', ' '):12} {facts[name]}", markup=False)
    labelled = "FOLDER" if unseen is None else shlex.quote(source.name)
    model = f"./{folder}" if folder.parent == Path() else str(folder)  # else it may be read as a model's name
    use = f"monoeval probe --model {shlex.quote(model)} --method sae --data {labelled}"
    stdout.print(f"Backbone: {folder}\nUse it:   {use}", markup=False, soft_wrap=True)


def _images(source: "DataSpec", needs_labels: bool) -> "tuple[ImageSet, ImageSet | None]":
    """What is trained on, and what tells how it goes: nothing where images have no classes."""
    from monoeval.data.load import load_data, unlabelled
    from monoeval.data.source import NoClassesError

    try:
        data = load_data(source)
    except NoClassesError:
        images = None if needs_labels else unlabelled(source)
        if images is None:
            raise
        return images, None
    return data.train, data.test


def _spec(objective: str, model: str, paper: bool, given: dict[str, Any], params: list[str]) -> "PretrainSpec":
    from typing import get_args

    from pydantic import ValidationError

    from monoeval.backbones.spec import PretrainSpec
    from monoeval.backbones.spec import paper as paper_settings
    from monoeval.errors import UsageError, unknown

    objectives = get_args(PretrainSpec.model_fields["objective"].annotation)
    if objective not in objectives:
        raise unknown("objective", objective, objectives)
    if given.get("batch_size", 2) < 2:
        raise UsageError("A batch of less than two images has nothing to tell apart: give --batch-size 2 or more.")
    if paper and model == "tiny":
        raise UsageError("--paper is for the networks of timm: name one, for example --model resnet18.")
    chosen: dict[str, Any] = {"objective": objective, "network": model}
    settings = [name for name in PretrainSpec.model_fields if name not in chosen]
    given |= o.named_settings(params, settings, "learning_rate=0.3", given)
    try:
        return PretrainSpec.model_validate({**chosen, **(paper_settings(objective) if paper else {}), **given})
    except ValidationError as invalid:
        first = invalid.errors(include_url=False)[0]
        if not first["loc"]:  # of settings that do not go together
            raise UsageError(f"{first['msg'].removeprefix('Value error, ')}.") from None
        raise UsageError(f"{first['loc'][0]} cannot be {first['input']!r}: {first['msg'].lower()}.") from None


def _is_made(out: Path, spec: "PretrainSpec", images: "ImageSet", seed: int) -> bool:
    """Whether `out` holds this very backbone; UsageError where it holds anything else."""
    from monoeval import bundles
    from monoeval.errors import UsageError

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    advice = "choose another --out, or delete it first."
    try:
        about = bundles.describe(out, "backbone")
    except bundles.Damaged:
        raise UsageError(f"{out} exists already and is no whole pretrained backbone: {advice}") from None
    before, data = about.get("spec"), about.get("data")
    before, data = (value if isinstance(value, dict) else {} for value in (before, data))
    wanted = {**spec.model_dump(mode="json"), "seed": seed, "images": images.fingerprint}
    usual = {name: field.default for name, field in type(spec).model_fields.items()}  # of settings that came later
    held = {**usual, **before, "seed": about.get("seed"), "images": data.get("fingerprint")}
    unlike = [name for name, value in wanted.items() if held.get(name) != value]
    if unlike:
        first = unlike[0]
        what = "of other images" if first == "images" else f"of {first} {held.get(first)} and not {wanted[first]}"
        more = f" (and {len(unlike) - 1} more settings)" if len(unlike) > 1 else ""
        raise UsageError(f"{out} holds a backbone {what}{more}: {advice}")
    return True


def _try(out: Path) -> None:
    """Raise before a training, and not after it, where no folder can be written at `out`."""
    from monoeval.errors import UsageError
    from monoeval.files import cannot_write

    if out.name in ("", ".."):
        raise UsageError(
            f"--out {out} has no name of its own: give the backbone's folder one, e.g. --out ./backbone."
        )
    if out.is_symlink():
        raise UsageError(f"--out {out} is a link: name the folder itself.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        Path(tempfile.mkdtemp(dir=out.parent)).rmdir()
    except OSError as error:
        raise cannot_write(out, error) from error


def _copy(folder: Path, out: Path) -> None:
    from monoeval.files import cannot_write

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for file in folder.iterdir():
            shutil.copy2(file, partial)
        partial.replace(out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise cannot_write(out, error) from error
