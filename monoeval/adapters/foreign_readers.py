"""Readers of the files that other libraries write, each to the form of `foreign_autoencoder`.

Only tensors are read: safetensors, or torch files with `weights_only=True`.
"""

import json
import logging
import pickle
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from monoeval.adapters.foreign_autoencoder import Autoencoder, RowNorm
from monoeval.adapters.foreign_files import Files
from monoeval.errors import MonoevalError, UsageError

log = logging.getLogger("monoeval")

Config = dict[str, object]


@dataclass(frozen=True)
class _Source:
    """The tensors of one file and its description, asked for by name."""

    files: Files
    tensors: dict[str, Tensor]
    config: Config

    def take(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise MonoevalError(
                f"{self.files.weights} holds no tensor {name}, which {self.files.library} writes for what is "
                "described: find the files that belong together."
            )
        # a copy, as products of tensors that a file maps unaligned differ in the last bits
        return self.tensors[name].detach().to(torch.float32, copy=True)

    def turned(self, name: str) -> Tensor:
        """The matrix `name` with its sides exchanged."""
        return self.take(name).T.contiguous()

    def number(self, config: Config, name: str) -> int:
        value = config.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MonoevalError(f"{self.files.config} gives {name} as {value!r}, and a count from 1 is needed.")
        return value

    def unknown(self, kind: str, known: tuple[str, ...]) -> MonoevalError:
        return MonoevalError(
            f"{self.files.weights} holds {kind}, which cannot be read: of {self.files.library} the known ones are "
            f"{', '.join(known)}."
        )


def read(files: Files, k: int | None) -> Autoencoder:
    """The autoencoder in `files`; `k` is what the user says, for files that do not."""
    tensors = _tensors(files.weights)
    source = _Source(files, tensors, {} if files.config is None else _config(files.config))
    if k is not None and (files.library != "overcomplete" or "thresholds" in tensors):
        raise UsageError(f"pretrained: {files.weights} says itself how many latents are active: leave out k.")
    if files.library == "overcomplete":
        found = _overcomplete(source, k)
    else:
        found = {"sparsify": _sparsify, "SAELens": _saelens, "dictionary_learning": _dictionary_learning}[
            files.library
        ](source)
    _check(found, files.weights)
    return found


def _sparsify(source: _Source) -> Autoencoder:
    """EleutherAI's sparsify: TopK (Gao et al. 2024, arXiv 2406.04093), or the maximum of each of k groups."""
    config = source.config
    for other in ("transcode", "skip_connection", "signed"):
        if config.get(other):
            raise source.unknown(f"an autoencoder with {other} set", ("topk", "groupmax"))
    activation = config.get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise source.unknown(f"the activation {activation!r}", ("topk", "groupmax"))
    bias = source.take("b_dec")
    return Autoencoder(
        source.take("encoder.weight"),
        source.take("encoder.bias"),
        source.take("W_dec"),
        bias,
        bias,
        "topk" if activation == "topk" else "groupmax",
        source.number(config, "k"),
    )


SAELENS = ("standard", "topk", "jumprelu", "gated")
_AVERAGE = "expected_average_only_in"


def _saelens(source: _Source) -> Autoencoder:
    """SAELens: ReLU, TopK, JumpReLU (what its BatchTopK is saved as) and gated autoencoders.

    Before version 6 the description spoke of TopK as an activation function, and of normalisation as true or
    false; before that, thresholds were logarithms.
    """
    config = source.config
    given = config.get("activation_fn_kwargs")
    options: Config = given if isinstance(given, dict) else {}
    function = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    architecture = config.get("architecture", "standard")
    if function == "topk":
        architecture = "topk"
    elif function != "relu":
        raise source.unknown(f"the activation {function!r}", SAELENS)
    if architecture not in SAELENS:
        raise source.unknown(f"the architecture {architecture!r}", SAELENS)
    scaling = source.tensors.get("scaling_factor")
    if scaling is not None and not torch.allclose(scaling, torch.ones_like(scaling)):
        raise source.unknown("latents rescaled after training (scaling_factor)", SAELENS)
    bias = source.take("b_dec")
    found = Autoencoder(
        source.turned("W_enc"),
        source.take("b_gate" if architecture == "gated" else "b_enc"),
        source.take("W_dec"),
        bias,
        bias if config.get("apply_b_dec_to_input", True) else torch.zeros_like(bias),
        row_norm=_saelens_norm(source),
    )
    if architecture == "gated":
        return _gated(found, source.take("r_mag"), source.take("b_mag"))
    if architecture == "topk":
        if config.get("rescale_acts_by_decoder_norm"):
            found = _with_unit_decoder(found)
        return replace(found, activation="topk", k=source.number(config if "k" in config else options, "k"))
    if architecture == "jumprelu":
        held = "log_threshold" in source.tensors
        threshold = source.take("log_threshold").exp() if held else source.take("threshold")
        return _above(found, threshold)
    return _above(found)


def _saelens_norm(source: _Source) -> RowNorm:
    said = source.config.get("normalize_activations") or "none"
    match _AVERAGE if said is True else said:
        case "none":
            return "none"
        case "layer_norm":
            return "layer_norm"
        case "constant_norm_rescale":
            return "constant_norm_rescale"
        case "expected_average_only_in":
            log.warning(
                "%s was trained on rows scaled to one average length and does not hold the factor; like SAELens, "
                "it is used on rows as they are.",
                source.files.weights,
            )
            return "none"
    raise source.unknown(f"the normalisation {said!r}", ("none", "layer_norm", "constant_norm_rescale", _AVERAGE))


def _dictionary_learning(source: _Source) -> Autoencoder:
    """dictionary_learning: its classes, as its `load_dictionary` gives them back."""
    trainer = source.config.get("trainer")
    config: Config = trainer if isinstance(trainer, dict) else {}
    name = config.get("dict_class")
    if name == "AutoEncoder" and "decoder.bias" in source.tensors:
        name = "AutoEncoderNew"  # which the library's own trainer of it calls by the other name
    if name not in DICTIONARY_LEARNING:
        raise source.unknown(f"the class {name!r}", DICTIONARY_LEARNING)
    if name in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        encoder, decoder = source.turned("W_enc"), source.take("W_dec")
        encoder_bias, bias = source.take("b_enc"), source.take("b_dec")
    else:
        encoder, decoder = source.take("encoder.weight"), source.turned("decoder.weight")
        encoder_bias = source.take("gate_bias" if name == "GatedAutoEncoder" else "encoder.bias")
        bias = source.take(_BIAS.get(str(name), "b_dec"))
    has_centre = name not in ("JumpReluAutoEncoder", "AutoEncoderNew")
    found = Autoencoder(encoder, encoder_bias, decoder, bias, bias if has_centre else torch.zeros_like(bias))
    if name == "GatedAutoEncoder":
        return _gated(found, source.take("r_mag"), source.take("mag_bias"))
    if name == "AutoEncoderTopK":
        k = source.number(config, "k")
        if "k" in source.tensors and int(source.tensors["k"]) != k:
            raise MonoevalError(
                f"{source.files.weights} says k is {int(source.tensors['k'])} and {source.files.config} says {k}: "
                "find the two files that belong together."
            )
        return replace(found, activation="topk", k=k)
    if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        threshold = source.take("threshold")
        if threshold < 0:
            log.warning(
                "%s was saved before training set its threshold; like dictionary_learning, every positive latent "
                "counts.",
                source.files.weights,
            )
        return _above(found, threshold.expand(found.width))
    if name == "JumpReluAutoEncoder":
        return _above(found, source.take("threshold"))
    # only the plain class is brought to unit rows when it is loaded
    return _above(_with_unit_decoder(found) if name == "AutoEncoder" else found)


_BIAS = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
DICTIONARY_LEARNING = (
    "AutoEncoder",
    "AutoEncoderNew",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
    "MatryoshkaBatchTopKSAE",
)
OVERCOMPLETE = ("SAE", "TopKSAE", "JumpSAE (linear encoders, dictionaries with unit rows)")


def _overcomplete(source: _Source, k: int | None) -> Autoencoder:
    """overcomplete: a state dict of SAE, TopKSAE or JumpSAE, in which neither class nor k is recorded.

    The dictionary is divided by its rows' lengths when the library evaluates, by default; which way is not
    recorded either, so rows that are not nearly of unit length are refused.
    """
    raw = source.take("dictionary._weights")
    lengths = raw.norm(dim=1, keepdim=True)
    others = set(source.tensors) - {
        "dictionary._weights",
        "dictionary.multiplier",
        "thresholds",
        "encoder.final_block.0.weight",
        "encoder.final_block.0.bias",
        "encoder.weight",
        "encoder.bias",
        "encoder.tied_to._weights",
        "encoder.tied_to.multiplier",
    }
    if others:
        raise source.unknown(f"the tensor {min(others)}", OVERCOMPLETE)
    if ((lengths - 1).abs() > 0.05).any():
        raise source.unknown("a dictionary whose rows are not of unit length", OVERCOMPLETE)
    decoder = raw / (lengths + 1e-8) * source.take("dictionary.multiplier").exp()
    no_bias = raw.new_zeros(len(raw))
    if "encoder.final_block.0.weight" in source.tensors:
        encoder, bias = source.take("encoder.final_block.0.weight"), source.take("encoder.final_block.0.bias")
    else:
        encoder = decoder if "encoder.tied_to._weights" in source.tensors else source.take("encoder.weight")
        bias = source.take("encoder.bias") if "encoder.bias" in source.tensors else no_bias
    zeros = raw.new_zeros(raw.shape[1])
    found = Autoencoder(encoder, bias, decoder, zeros, zeros)
    if "thresholds" in source.tensors:
        # at the threshold itself a latent is active here, so the next smaller number is what it has to exceed
        reached = source.take("thresholds").exp()
        return _above(found, torch.nextafter(reached, torch.zeros_like(reached)))
    if k is None:
        raise UsageError(
            f"pretrained: {source.files.weights} does not say how many latents are active in a row: give k, the "
            "top_k it was trained with, or k 0 for an autoencoder without top_k."
        )
    return replace(found, activation="topk", k=k) if k else _above(found)


def _above(found: Autoencoder, threshold: Tensor | None = None) -> Autoencoder:
    """`found` with ReLU and a threshold [M]; below 0 ReLU decides alone."""
    level = torch.zeros_like(found.encoder_bias) if threshold is None else threshold.clamp_min(0).contiguous()
    return replace(found, activation="threshold", threshold=level)


def _gated(found: Autoencoder, log_gain: Tensor, bias: Tensor) -> Autoencoder:
    """`found`, whose b_e is that of the gate, with magnitudes (Rajamanoharan et al. 2024, arXiv 2404.16014)."""
    return replace(found, activation="gate", gain=log_gain.exp(), gain_bias=bias)


def _with_unit_decoder(found: Autoencoder) -> Autoencoder:
    """The same reconstruction from decoder rows of unit length: their lengths are moved into the codes."""
    lengths = found.decoder.norm(dim=1)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    return replace(
        found,
        encoder=found.encoder * lengths[:, None],
        encoder_bias=found.encoder_bias * lengths,
        decoder=found.decoder / lengths[:, None],
    )


def _check(found: Autoencoder, path: Path) -> None:
    """Raise MonoevalError where shapes do not belong together, numbers are not finite, or k does not fit."""
    if found.encoder.ndim != 2:
        raise MonoevalError(f"{path} has an encoder of shape {list(found.encoder.shape)}, and a matrix is needed.")
    m, d = found.encoder.shape
    sizes = {"encoder": [m, d], "decoder": [m, d], "decoder_bias": [d], "centre": [d]}
    for name, tensor in found.tensors().items():
        wanted = sizes.get(name, [m])
        if list(tensor.shape) != wanted:
            what = f"{name} of shape {list(tensor.shape)}, and {wanted} is needed beside an encoder of {[m, d]}"
            raise MonoevalError(f"{path} has a {what}.")
        if not tensor.isfinite().all():
            raise MonoevalError(f"{path} has numbers in its {name} that are not finite: its training diverged.")
    if found.k > m or (found.activation == "groupmax" and m % found.k):
        raise MonoevalError(f"{path} has {m} latents, of which k = {found.k} cannot be active: k is wrong.")


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file or a torch state dict; raises MonoevalError where they cannot be read."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):
            raise MonoevalError(
                f"{path} is a pickled module, which could run code and is not opened: load it where it was made "
                "and save its state_dict()."
            ) from error
        raise _unreadable(path, error) from error
    except Exception as error:  # each of the two formats has many ways to be damaged
        raise _unreadable(path, error) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise MonoevalError(f"{path} is not a state dict of tensors: save the module's state_dict().")
    return found


def _unreadable(path: Path, error: Exception) -> MonoevalError:
    return MonoevalError(
        f"{path} cannot be read ({type(error).__name__}): it is cut short or no file of tensors, so copy or "
        "download it again."
    )


def _config(path: Path) -> Config:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MonoevalError(f"{path} is cut short or not JSON: copy or download it again.") from error
    if not isinstance(found, dict):
        raise MonoevalError(f"{path} is no JSON object: copy or download it again.")
    return found
