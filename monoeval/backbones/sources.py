"""Building a network from each kind of source: timm, open_clip, a local factory, a pretrained folder."""

import importlib.util
import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monoeval import bundles
from monoeval.backbones.checkpoint import load_strictly
from monoeval.backbones.preprocess import Preprocess, from_timm
from monoeval.backbones.resolve import Resolved, no_weights
from monoeval.backbones.spec import BackboneSpec
from monoeval.backbones.taps import check_pool, pooled, tap
from monoeval.errors import MonoevalError, UsageError, nearest, unknown
from monoeval.keys import file_key

PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
OFFLINE_ERRORS = (
    "LocalEntryNotFoundError",
    "ConnectionError",
    "ConnectError",
    "OfflineModeIsEnabled",
    "URLError",
)


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode, and how features come out of it: [B, 3, S, S] → [B, D]."""

    module: nn.Module
    features: Callable[[Tensor], Tensor]
    preprocess: Preprocess
    info: dict[str, object] = field(default_factory=dict)


def build(resolved: Resolved, spec: BackboneSpec, seed: int) -> Network:
    """Build the network that `resolved` names, on the CPU in fp32; random weights are drawn from `seed`.

    Raises UsageError for a layer, pooling, image size or checkpoint that does not fit the model, MonoevalError
    where weights cannot be got or a factory fails.
    """
    make = {"timm": _timm, "open_clip": _open_clip, "factory": _factory, "folder": _folder}[resolved.kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(resolved, spec)


def _timm(resolved: Resolved, spec: BackboneSpec) -> Network:
    import timm
    from timm.data.config import resolve_model_data_config

    def create(**more: int) -> nn.Module:
        options: dict[str, Any] = {"num_classes": 0, **more}
        return timm.create_model(resolved.name, pretrained=spec.weights == "pretrained", **options)

    sized = {} if spec.image_size is None else {"img_size": spec.image_size}
    try:
        try:
            module = create(**sized)
        except TypeError:  # convolutional networks take any size and have no such argument
            module = create()
    except Exception as error:
        raise _timm_error(error, resolved, spec, timm.list_models(), timm.list_models(pretrained=True)) from error
    if spec.weights not in {"pretrained", "random"}:
        head = getattr(module, "pretrained_cfg", {}).get("classifier") or ()
        load_strictly(module, Path(spec.weights), resolved.name, (head,) if isinstance(head, str) else tuple(head))
    module.eval()
    config = resolve_model_data_config(module, args=sized)  # type: ignore[no-untyped-call]
    if spec.layer is not None:
        check_pool(spec.pool, has_token=getattr(module, "num_prefix_tokens", 0) > 0)
        features = tap(module, spec.layer, spec.pool)
    else:
        if spec.pool is not None:
            check_pool(spec.pool, has_token=getattr(module, "num_prefix_tokens", 0) > 0)
            try:
                module.reset_classifier(0, global_pool=spec.pool)  # type: ignore[operator]
            except (AssertionError, TypeError, ValueError) as error:
                raise UsageError(f"{resolved.name} cannot pool by {spec.pool!r}: leave out --pool.") from error
        features = module
    return Network(module, features, from_timm(config))


def _timm_error(
    error: Exception, resolved: Resolved, spec: BackboneSpec, names: list[str], tagged: list[str]
) -> MonoevalError:
    """The sentence for what timm could not make."""
    if is_download(error):
        return no_weights(resolved)
    architecture = resolved.architecture
    if "hf-hub:" not in resolved.name and architecture not in names:
        return unknown("model", resolved.name, names)
    if resolved.tag and resolved.name not in tagged:
        tags = [name for name in tagged if name.startswith(f"{architecture}.")]
        near = nearest(resolved.name, tags) or architecture
        return UsageError(f"{architecture} has no weights tagged {resolved.tag!r}: did you mean {near!r}?")
    if spec.weights == "pretrained" and "pretrained weights" in str(error).lower():
        return UsageError(f"timm has no weights for {resolved.name}: give --weights FILE or --weights random.")
    if spec.image_size is not None:
        return UsageError(f"{resolved.name} cannot take images of {spec.image_size} pixels ({first_line(error)}).")
    return MonoevalError(f"timm could not make {resolved.name}: {first_line(error)}")


def image_text_model(resolved: Resolved, spec: BackboneSpec) -> nn.Module:
    """The whole open_clip model, with its text tower, as `build` makes it; random weights need the same seed.

    Raises MonoevalError where it cannot be made, UsageError for a checkpoint that does not fit.
    """
    import open_clip

    pretrained = spec.weights == "pretrained"
    logging.disable(logging.WARNING)  # it warns on the root logger of weights that were not asked for
    try:
        model: nn.Module = open_clip.create_model(
            resolved.architecture,
            pretrained=resolved.tag if pretrained and resolved.tag else None,
            load_weights=pretrained,
            pretrained_text=False,
            require_pretrained=pretrained,
            force_image_size=spec.image_size,
        )
    except Exception as error:
        if is_download(error) or "download" in str(error).lower() or "hub" in str(error).lower():
            raise no_weights(resolved) from error
        raise MonoevalError(f"open_clip could not make {resolved.name}: {first_line(error)}") from error
    finally:
        logging.disable(logging.NOTSET)
    if spec.weights not in {"pretrained", "random"}:
        load_strictly(model, Path(spec.weights), resolved.name, ())
    return model.eval()


def _open_clip(resolved: Resolved, spec: BackboneSpec) -> Network:
    import open_clip

    visual: Any = image_text_model(resolved, spec).visual
    tagged = (
        open_clip.get_pretrained_cfg(resolved.architecture, resolved.tag) or {}
    )  # random weights see images as the tag's do
    config = {**visual.preprocess_cfg, **{k: tagged[k] for k in PREPROCESSING if k in tagged}}
    size = config["size"]
    size = size if isinstance(size, int) else size[0]
    crop_mode = {"shortest": "center", "squash": "squash", "longest": "border"}[config["resize_mode"]]
    preprocess = from_timm({**config, "input_size": (3, size, size), "crop_pct": 1.0, "crop_mode": crop_mode})
    if spec.layer is not None:
        return Network(visual, tap(visual, spec.layer, spec.pool), preprocess, {"projected": False})
    if spec.pool is not None:
        raise UsageError(f"{resolved.name} pools as it was trained to: give --pool together with --layer only.")
    head = getattr(visual, "head", None)  # of a timm tower, where the projection may be absent (SigLIP)
    projected = len(head) > 0 if isinstance(head, nn.Sequential) else getattr(visual, "proj", True) is not None
    return Network(visual, visual, preprocess, {"projected": projected})


def _factory(resolved: Resolved, spec: BackboneSpec) -> Network:
    assert resolved.path is not None
    name = f"monoeval_factory_{file_key(resolved.path)}"
    loaded = importlib.util.spec_from_file_location(name, resolved.path)
    assert loaded is not None
    assert loaded.loader is not None
    code = importlib.util.module_from_spec(loaded)
    sys.modules[name] = code  # dataclasses and pickling look the module up by name
    try:
        loaded.loader.exec_module(code)
        make = getattr(code, resolved.attribute, None)
        module = make() if callable(make) else None
    except (Exception, SystemExit) as error:  # a script that ends itself would end this run in silence
        raise MonoevalError(
            f"{resolved.path}:{resolved.attribute} failed: {type(error).__name__}: {first_line(error)}"
        ) from error
    if make is None:
        public = [n for n, value in vars(code).items() if callable(value) and not n.startswith("_")]
        raise unknown(f"function in {resolved.path.name}", resolved.attribute, public)
    if not isinstance(module, nn.Module):
        raise UsageError(f"{resolved.path}:{resolved.attribute} must return a torch.nn.Module.")
    if spec.weights not in {"pretrained", "random"}:
        load_strictly(module, Path(spec.weights), resolved.name, ())
    module.eval()
    config = getattr(module, "data_config", None) or getattr(module, "pretrained_cfg", None) or {}
    if not isinstance(config, Mapping):
        raise UsageError(
            f"The data_config of {resolved.name} must be a dict such as {{'input_size': (3, 224, 224)}}."
        )
    size = spec.image_size or (config.get("input_size") or (3, 224, 224))[-1]
    preprocess = from_timm({**config, "input_size": (3, size, size)})
    if spec.layer is not None:
        return Network(module, tap(module, spec.layer, spec.pool), preprocess)
    check_pool(spec.pool, has_token=getattr(module, "num_prefix_tokens", 0) > 0)
    prefix = getattr(module, "num_prefix_tokens", 0)
    return Network(module, lambda images: pooled(module(images), spec.pool, prefix), preprocess)


def _folder(resolved: Resolved, spec: BackboneSpec) -> Network:
    from monoeval.training.networks import build as build_network

    assert resolved.path is not None
    tensors, about = bundles.read(resolved.path, "backbone")
    facts = json.loads(json.dumps(about))
    later = {name: facts[name] for name in ("hidden", "stem") if name in facts}
    module = build_network(
        facts["network"], facts["width"], facts["image_size"], facts.get("non_negative", False), **later
    )
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise UsageError(
            f"{resolved.path} was pretrained with timm {facts.get('timm')}, whose {facts['network']} is another "
            "than the installed one's: install that version, or pretrain it again."
        ) from error
    module.eval()
    preprocess = Preprocess(
        image_size=spec.image_size or facts["image_size"],
        mean=facts["mean"],
        std=facts["std"],
        crop_pct=1.0,
    )
    info: dict[str, object] = {"objective": facts.get("objective")}
    if spec.pool not in {None, "avg"}:
        raise UsageError(f"A pretrained {facts['network']} network pools by avg: leave out --pool.")
    if spec.layer in {None, "projector"}:
        return Network(module, module, preprocess, {**info, "projected": True})
    if spec.layer != "backbone":
        raise UsageError(
            f"There is no layer {spec.layer!r} of a pretrained network: choose backbone or projector."
        )
    return Network(module, module.backbone, preprocess, {**info, "projected": False})


def is_download(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, is about a file that could not be fetched."""
    while error is not None:
        if type(error).__name__ in OFFLINE_ERRORS:
            return True
        error = error.__cause__ or error.__context__
    return False


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
