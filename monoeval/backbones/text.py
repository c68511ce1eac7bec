"""Class names in the space of an image-text model: the weights of its zero-shot classifier."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from monoeval import bundles
from monoeval.backbones.resolve import Resolved, check_text_tower, identity, resolve
from monoeval.backbones.sources import first_line, image_text_model, is_download
from monoeval.backbones.spec import BackboneSpec
from monoeval.data.imagenet import in_words
from monoeval.data.prompts import prompts
from monoeval.errors import MonoevalError
from monoeval.files import cache_dir, locked
from monoeval.keys import key
from monoeval.progress import bar

FORMAT = 1
"""Raised whenever the same model, names and templates would give other weights."""
AT_ONCE = 64
"""Prompts a pass of the text tower."""


def class_weights(
    spec: BackboneSpec, class_names: tuple[str, ...], templates: tuple[str, ...], device: torch.device
) -> Tensor:
    """Weights [C, D] in float32 on the CPU: scale · the embedding of each class, which has unit length.

    A class is embedded as in CLIP: the mean of its prompts' unit-length embeddings, made unit length again. With
    the unit-length image features x [n, D] that `spec` gives, the zero-shot logits are x · weightsᵀ; the bias of
    SigLIP, equal for all classes, is left out. WordNet ids are read as their words. Computed in fp32 and kept in
    the cache. Raises UsageError where `spec` has no text tower, MonoevalError where weights or tokenizer cannot be
    had.
    """
    check_text_tower(spec)
    class_names = in_words(class_names)
    made_of = ["text", FORMAT, identity(spec), class_names, templates]
    folder = cache_dir() / "texts" / key(made_of)
    try:
        return bundles.read(folder, "text")[0]["weights"]
    except bundles.Damaged:
        pass
    with locked(folder):
        weights = _weights(spec, class_names, templates, device)
        about = f"{len(class_names)} classes × {len(templates)} prompts by {resolve(spec).name}"
        bundles.write(folder, "text", {"weights": weights}, {"what": about})
    return weights


def _weights(
    spec: BackboneSpec, class_names: Sequence[str], templates: tuple[str, ...], device: torch.device
) -> Tensor:
    resolved = resolve(spec)
    tokenize = _tokenizer(resolved)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights are those of the image tower's model
        model: Any = image_text_model(resolved, spec)
    model.requires_grad_(False).to(device)
    texts = [prompt for name in class_names for prompt in prompts(name, templates)]
    parts = []
    with torch.inference_mode(), bar(f"Reading class names by {resolved.name}", len(texts), "prompts") as advance:
        for start in range(0, len(texts), AT_ONCE):
            tokens = tokenize(texts[start : start + AT_ONCE]).to(device)
            parts.append(normalize(model.encode_text(tokens).float(), dim=1).cpu())
            advance(len(tokens))
    mean_cd = torch.cat(parts).view(len(class_names), len(templates), -1).mean(1)
    return normalize(mean_cd, dim=1) * float(model.logit_scale.exp())


def _tokenizer(resolved: Resolved) -> Any:
    import open_clip

    try:
        return open_clip.get_tokenizer(resolved.architecture)
    except Exception as error:
        why = "is not on this machine" if is_download(error) else f"cannot be made ({first_line(error)})"
        raise MonoevalError(
            f"The tokenizer of {resolved.name} {why}: connect once to download it, or leave zero-shot out."
        ) from error
