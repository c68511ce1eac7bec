"""Reading features from inside a network: which module, and how its output becomes one vector an image."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from monoeval.errors import UsageError, nearest

POOLS = ("token", "avg", "max")


class _Reached(Exception):
    """The tapped module has run; what comes after it is not needed."""


def tap(module: nn.Module, layer: str, pool: str | None) -> Callable[[Tensor], Tensor]:
    """A function from images [B, 3, S, S] to the pooled output [B, D] of `layer`, run no further than that.

    `layer` is a module's name inside `module`, or the index of a block (timm's `feature_info`, or the blocks of
    an open_clip tower), negative from the end. Maps [B, D, H, W] and tokens [B, T, D] are averaged where `pool`
    is None. Raises UsageError for a layer that is not there.
    """
    target = module.get_submodule(_name(module, layer))
    channels_last = getattr(module, "output_fmt", "NCHW") == "NHWC"
    prefix = int(getattr(module, "num_prefix_tokens", 1 if hasattr(module, "class_embedding") else 0))

    def features(images: Tensor) -> Tensor:
        caught: list[Tensor] = []

        def catch(_module: nn.Module, _inputs: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple | list) else output
            if not isinstance(first, Tensor):
                raise UsageError(f"Layer {layer} gives no tensor: choose another with --layer.")
            caught.append(first)
            raise _Reached

        handle = target.register_forward_hook(catch)
        try:
            module(images)
        except _Reached:
            pass
        finally:
            handle.remove()
        if not caught:
            raise UsageError(f"Layer {layer} takes no part in the features: choose another with --layer.")
        return pooled(caught[0], pool, prefix, channels_last)

    return features


def pooled(x: Tensor, pool: str | None, prefix: int = 0, channels_last: bool = False) -> Tensor:
    """One vector an image from [B, D], tokens [B, T, D] or a map [B, D, H, W] ([B, H, W, D] if channels_last).

    `avg` (the default) and `max` leave out the first `prefix` tokens, `token` takes the first of them. Raises
    UsageError for a pooling that the shape does not allow.
    """
    if x.ndim == 2:
        return x
    if x.ndim == 4:
        tokens, prefix = (x.flatten(1, 2) if channels_last else x.flatten(2).transpose(1, 2)), 0
    elif x.ndim == 3:
        tokens = x
    else:
        raise UsageError(f"A layer of shape {list(x.shape)} cannot be pooled: choose another with --layer.")
    if pool == "token":
        check_pool(pool, has_token=prefix > 0)
        return tokens[:, 0]
    return tokens[:, prefix:].amax(1) if pool == "max" else tokens[:, prefix:].mean(1)


def check_pool(pool: str | None, has_token: bool) -> None:
    """Raise UsageError unless `pool` is None or one that the network can do."""
    choices = POOLS if has_token else POOLS[1:]
    if pool is not None and pool not in choices:
        raise UsageError(f"There is no pooling {pool!r} of this model: choose one of {', '.join(choices)}.")


def _blocks(module: nn.Module) -> list[str]:
    """The names of the blocks that an index counts."""
    info = getattr(module, "feature_info", None)
    if info is not None:
        return [entry["module"] for entry in (info if isinstance(info, list) else info.get_dicts())]
    trunk = getattr(module, "trunk", None)  # of a timm tower inside open_clip
    if isinstance(trunk, nn.Module):
        return [f"trunk.{name}" for name in _blocks(trunk)]
    blocks = getattr(getattr(module, "transformer", None), "resblocks", None)
    return [f"transformer.resblocks.{i}" for i in range(len(blocks))] if blocks is not None else []


def _name(module: nn.Module, layer: str) -> str:
    names = [name for name, _ in module.named_modules() if name]
    if layer in names:
        return layer
    blocks = _blocks(module)
    if layer.lstrip("-").isdecimal():
        if -len(blocks) <= int(layer) < len(blocks):
            return blocks[int(layer)]
        some = f"0 to {len(blocks) - 1}, or a module's name" if blocks else f"a module's name, such as {names[-1]}"
        raise UsageError(f"There is no layer {layer}: --layer is {some}.")
    numbers = f"0 to {len(blocks) - 1} ({', '.join(blocks[:3])}, …), or " if blocks else ""
    raise UsageError(
        f"There is no layer named {layer!r}: --layer is {numbers}a module's name such as "
        f"{nearest(layer, names) or names[-1]!r}."
    )


def first_features(features: Callable[[Tensor], Tensor], images: Tensor, model: str) -> Tensor:
    """Run `features` on a few images; UsageError where the model cannot, or gives no vector for each."""
    try:
        with torch.inference_mode():
            out = features(images)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"{model} cannot take images of {images.shape[-1]} pixels: {reason}") from error
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(images):
        shape = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise UsageError(f"{model} gives {shape} for {len(images)} images, not one vector for each.")
    return out
