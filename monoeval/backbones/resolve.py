"""What a backbone's name means, and whether its weights can be had: answered before torch is imported."""

import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from monoeval import bundles, hub
from monoeval.backbones.aliases import ALIASES
from monoeval.backbones.spec import BackboneSpec
from monoeval.backbones.tables import open_clip_tags, package, quick_gelu, timm_names
from monoeval.errors import MonoevalError, UsageError, unknown
from monoeval.keys import file_key, key

WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".npz"}


@dataclass(frozen=True)
class Resolved:
    """What a name stands for. `name` is what gets recorded; `path` is the local file or folder, if it is one."""

    kind: Literal["timm", "open_clip", "factory", "folder"]
    name: str
    path: Path | None = None
    attribute: str = ""
    """The factory's name inside its file."""

    @property
    def architecture(self) -> str:
        """The name without its tag and without `open_clip:`."""
        if self.kind == "open_clip":
            return self.name.removeprefix("open_clip:").partition("@")[0]
        return self.name if self.name.startswith("hf-hub:") else self.name.partition(".")[0]

    @property
    def tag(self) -> str:
        """The name of the weights, empty where the name has none."""
        if self.name.startswith(("hf-hub:", "open_clip:hf-hub:")):
            return ""
        return self.name.partition("@" if self.kind == "open_clip" else ".")[2]


def _is_pretrained(folder: Path) -> bool:
    return (folder / "backbone.json").is_file()


def resolve(spec: BackboneSpec) -> Resolved:
    """Find what `spec.model` names.

    Raises UsageError for a name that nothing answers to, and for a file or folder that is not there.
    """
    if spec.model is None:
        raise UsageError("This backbone names no model: give --model, for example `--model vit_b16`.")
    model = ALIASES.get(spec.model, spec.model)
    if model != spec.model and _is_pretrained(Path(spec.model)):
        raise UsageError(
            f"{spec.model} is a model's name and a folder that `monoeval pretrain` wrote: write "
            f"./{spec.model} for the folder, or {model} for the model."
        )
    local = Path(model).expanduser()
    file, separator, attribute = model.rpartition(":")
    if separator and file.endswith(".py"):
        return _factory(Path(file).expanduser(), attribute)
    if model.endswith(".py"):
        raise UsageError(f"{model} is a file of models: write {model}:NAME, NAME being a function there.")
    if model.startswith("hf-hub:"):
        return Resolved("timm", model)
    if model.startswith("open_clip:"):
        return _open_clip(model, spec)
    if _is_pretrained(local):
        return Resolved("folder", f"pretrained:{_folder_key(local)}", local)
    if local.is_dir() and local.name != model:
        raise UsageError(f"{model} is a folder without a backbone.json: name one that `monoeval pretrain` wrote.")
    if "/" in model or "\\" in model or model.startswith((".", "~")):
        raise UsageError(
            f"There is no folder {model}: name one that `monoeval pretrain` wrote, or write hf-hub:{model} for a "
            "timm model on the hub."
        )
    if model.partition(".")[0] not in timm_names():
        raise unknown("model", model, ALIASES)
    return Resolved("timm", model)


def identity(spec: BackboneSpec, backbone_seed: int | None = None) -> dict[str, object]:
    """All that decides the features and is known without loading the model; neither folder nor device is in it.

    `backbone_seed` draws random weights (0 where None) and decides nothing else. Raises UsageError as `resolve`
    does, and where a checkpoint is missing.
    """
    resolved = resolve(spec)
    weights: object
    if resolved.kind == "folder":
        weights = ["folder", resolved.name]
    elif spec.weights == "random" or resolved.kind == "factory":
        fixed = spec.weights in {"random", "pretrained"}
        weights = [spec.weights if fixed else _checkpoint(spec), backbone_seed or 0]
    elif spec.weights == "pretrained":
        weights = ["tag", resolved.tag]
    else:
        weights = ["file", _checkpoint(spec)]
    library = {"timm": ["timm"], "open_clip": ["open_clip_torch", "timm"]}.get(resolved.kind, [])
    return {
        "kind": resolved.kind,
        "name": resolved.attribute if resolved.kind == "factory" else resolved.name,
        "source": file_key(resolved.path) if resolved.kind == "factory" and resolved.path else None,
        "library": {name: version(name) for name in library},
        "weights": weights,
        "layer": spec.layer,
        "pool": spec.pool,
        "image_size": spec.image_size,
        "precision": spec.precision,
    }


def same_network(spec: BackboneSpec, other: BackboneSpec) -> bool:
    """Whether both name one model with the same weights, whatever is read of it and at what size."""
    one, two = identity(spec), identity(other)
    return all(one[part] == two[part] for part in ("kind", "name", "source", "weights"))


def check_available(spec: BackboneSpec) -> None:
    """Raise MonoevalError where weights are neither on this machine nor to be had from the hub; takes about 2 s.

    A checkpoint that is missing is a UsageError.
    """
    resolved = resolve(spec)
    if resolved.kind == "folder":
        return
    if spec.weights not in {"pretrained", "random"}:
        _checkpoint(spec)
    if resolved.kind == "factory" or (spec.weights != "pretrained" and "hf-hub:" not in resolved.name):
        return
    if not any(map(_on_disk, _hub_patterns(resolved))) and not _in_torch_hub(resolved) and not hub.reachable():
        if spec.weights != "pretrained":
            raise MonoevalError(
                f"What {resolved.name} looks like is described on the hub, which does not answer: connect once, "
                "or name a timm model, which needs no description."
            )
        raise no_weights(resolved)


def has_text_tower(spec: BackboneSpec) -> bool:
    """Whether features of `spec` share a space with text: those that an image-text model gives at its end."""
    return spec.pretrain is None and spec.layer is None and resolve(spec).kind == "open_clip"


def check_text_tower(spec: BackboneSpec) -> None:
    """Raise UsageError where class names cannot be compared with the features of `spec`."""
    if has_text_tower(spec):
        return
    if spec.pretrain is None and resolve(spec).kind == "open_clip":
        raise UsageError(
            f"Features of the layer {spec.layer} are not in the space of the text of {spec.model}: leave out "
            "--layer for zero-shot."
        )
    name = spec.model or "A backbone that the recipe pretrains"
    raise UsageError(
        f"{name} has no text tower, so it cannot classify zero-shot: name a CLIP-like model such as clip_vit_b32."
    )


def no_weights(resolved: Resolved) -> MonoevalError:
    """The sentence for pretrained weights that could not be got."""
    if hub.offline():
        why = "are not on this machine and HF_HUB_OFFLINE is set"
    else:
        why = f"are not on this machine and {hub.endpoint()} does not answer"
    return MonoevalError(
        f"The pretrained weights of {resolved.name} {why}: connect once to download them, or give "
        "`--weights FILE`, or `--weights random`."
    )


def _factory(path: Path, attribute: str) -> Resolved:
    if not path.is_file():
        raise UsageError(f"There is no file {path}: a local model is written file.py:factory.")
    if not attribute.isidentifier():
        raise UsageError(f"{attribute!r} is no name of a function: a local model is written file.py:factory.")
    return Resolved("factory", f"{path.name}:{attribute}", path, attribute)


def _open_clip(model: str, spec: BackboneSpec) -> Resolved:
    resolved = Resolved("open_clip", model)
    if resolved.architecture.startswith("hf-hub:"):
        return resolved
    known = open_clip_tags()
    architectures = {p.stem for p in (package("open_clip") / "model_configs").glob("*.json")} | set(known)
    if resolved.architecture not in architectures:
        raise unknown("open_clip architecture", resolved.architecture, architectures)
    tags = known.get(resolved.architecture, {})
    if tags and resolved.tag and resolved.tag not in tags:
        raise unknown(f"{resolved.architecture} weight tag", resolved.tag, tags)
    if spec.weights != "pretrained":
        return resolved
    if not resolved.tag:
        example = f", for example {model}@{next(iter(tags))}" if tags else ""
        raise UsageError(f"{model} names no weights: write open_clip:ARCH@TAG{example}, or give --weights.")
    wanted = resolved.tag in tags and tags[resolved.tag].quick_gelu
    if wanted != quick_gelu(resolved.architecture):
        plain = resolved.architecture.removesuffix("-quickgelu")
        raise UsageError(
            f"The weights {resolved.tag} were trained {'with' if wanted else 'without'} QuickGELU, unlike "
            f"{resolved.architecture}: write open_clip:{plain}{'-quickgelu' if wanted else ''}@{resolved.tag}."
        )
    return resolved


def _checkpoint(spec: BackboneSpec) -> str:
    path = Path(spec.weights).expanduser()
    if not path.is_file():
        raise UsageError(f"There is no checkpoint {spec.weights}: --weights is pretrained, random, or a file.")
    return file_key(path)


def _folder_key(folder: Path) -> str:
    """The key of a pretrained folder: its weights, and what of its description decides features."""
    try:
        about = bundles.describe(folder, "backbone")
    except bundles.Damaged as error:
        raise UsageError(f"{folder} is not a whole pretrained backbone: pretrain it again.") from error
    fields = ("network", "width", "image_size", "non_negative", "mean", "std")
    later = {name: about[name] for name in ("hidden", "stem") if name in about and about["network"] != "tiny"}
    return key([about["tensors"], {name: about.get(name) for name in fields} | later])


def _hub_patterns(resolved: Resolved) -> list[str]:
    """Names of the hub cache's folders that would hold the weights, as glob patterns."""
    name = resolved.name.removeprefix("open_clip:")
    if name.startswith("hf-hub:"):
        ids = [name.removeprefix("hf-hub:").partition("@")[0]]
    elif resolved.kind == "open_clip":
        weights = open_clip_tags().get(resolved.architecture, {}).get(resolved.tag)
        ids = [weights.hub_id] if weights and weights.hub_id else []
    else:
        ids = [f"timm/{name}" if resolved.tag else f"timm/{name}.*"]
    return [f"models--{hub_id.replace('/', '--')}" for hub_id in ids]


def _on_disk(pattern: str) -> bool:
    from huggingface_hub import constants

    # a link that a crash left without its blob does not exist
    files = Path(constants.HF_HUB_CACHE).glob(f"{pattern}/snapshots/*/*")
    return any(path.suffix in WEIGHT_SUFFIXES and path.exists() for path in files)


def _in_torch_hub(resolved: Resolved) -> bool:
    """Whether torch's own cache has a file named after the architecture (for weights that are a plain URL)."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    checkpoints = Path(home).expanduser() / "hub" / "checkpoints"
    return any(checkpoints.glob(f"{resolved.architecture.replace('-', '?')}*"))
