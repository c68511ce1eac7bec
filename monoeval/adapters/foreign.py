"""Sparse autoencoders of other libraries on features of the same backbone, read from their files and not trained.

Each reader brings a layout to one form (`Autoencoder`) that encodes as the library does when it evaluates. Only
tensors are read: safetensors, or torch files with `weights_only=True`.
"""

import json
import logging
import pickle
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from monoeval import bundles
from monoeval.adapters.base import Adapter, SparseRows
from monoeval.adapters.dictionary import decoded
from monoeval.adapters.foreign_files import Files, locate
from monoeval.adapters.registry import build
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.settings import PretrainedSettings
from monoeval.adapters.spec import AdapterSpec
from monoeval.adapters.store import STEM, load
from monoeval.errors import MonoevalError, UsageError

log = logging.getLogger("monoeval")

Activation = Literal["threshold", "gate", "topk", "groupmax"]
RowNorm = Literal["none", "layer_norm", "constant_norm_rescale"]
Config = dict[str, object]


@dataclass(frozen=True)
class Autoencoder:
    """z = activation((n(x) − c) W_eᵀ + b_e) and x̂ = n⁻¹(z W_d + b_d), with n a normalisation of single rows.

    With a = (n(x) − c) W_eᵀ and h = a + b_e the activations are: "threshold", h where h > θ and else 0 (θ ≥ 0;
    ReLU where it is 0); "gate", ReLU(a · g + m) where h > 0 and else 0; "topk", the k largest h of a row, those
    above 0; "groupmax", the largest h of each of k groups of neighbouring latents, those above 0.
    """

    encoder: Tensor  # [M, D], W_e
    encoder_bias: Tensor  # [M], b_e
    decoder: Tensor  # [M, D], W_d
    decoder_bias: Tensor  # [D], b_d
    centre: Tensor  # [D], c
    activation: Activation = "threshold"
    k: int = 0
    row_norm: RowNorm = "none"
    threshold: Tensor | None = None  # [M], θ
    gain: Tensor | None = None  # [M], g
    gain_bias: Tensor | None = None  # [M], m

    @property
    def width(self) -> int:
        return len(self.encoder)

    @property
    def directions(self) -> Tensor:
        return self.decoder

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def on(self, device: torch.device) -> Self:
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    def _normalised(self, x_nd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """n(x) [n, D], and the shift [n, 1] and scale [n, 1] of each row that undo it."""
        if self.row_norm == "layer_norm":
            shift = x_nd.mean(dim=1, keepdim=True)
            scale = x_nd.std(dim=1, keepdim=True)
            return (x_nd - shift) / (scale + 1e-5), shift, scale
        shift = x_nd.new_zeros(len(x_nd), 1)
        if self.row_norm == "constant_norm_rescale":
            scale = x_nd.norm(dim=1, keepdim=True) / x_nd.shape[1] ** 0.5
            return x_nd / scale.clamp_min(torch.finfo(scale.dtype).tiny), shift, scale
        return x_nd, shift, torch.ones_like(shift)

    def encode(self, x_nd: Tensor) -> Tensor | SparseRows:
        centred = self._normalised(x_nd)[0] - self.centre
        if self.activation == "gate":
            assert self.gain is not None
            assert self.gain_bias is not None
            a_nm = F.linear(centred, self.encoder)
            return torch.where(a_nm + self.encoder_bias > 0, (a_nm * self.gain + self.gain_bias).relu(), 0.0)
        h_nm = F.linear(centred, self.encoder, self.encoder_bias)
        if self.activation == "threshold":
            assert self.threshold is not None
            return torch.where(h_nm > self.threshold, h_nm, 0.0)
        if self.activation == "topk":
            values, indices = h_nm.topk(self.k, dim=1, sorted=False)
        else:
            size = self.width // self.k
            values, places = h_nm.view(len(h_nm), self.k, size).max(dim=2)
            indices = places + torch.arange(0, self.width, size, device=h_nm.device)
        return SparseRows(values.relu(), indices, self.width)

    def decode(self, codes: Tensor | SparseRows) -> Tensor | None:
        """x̂ [n, D]; None where a row's shift and scale are needed too, which its codes do not hold."""
        return decoded(codes, self.decoder) + self.decoder_bias if self.row_norm == "none" else None

    def reconstruct(self, x_nd: Tensor, codes: Tensor | SparseRows) -> Tensor:
        """x̂ [n, D] of rows that are known with their codes."""
        _, shift, scale = self._normalised(x_nd)
        return (decoded(codes, self.decoder) + self.decoder_bias) * scale + shift


class Pretrained(Adapter):
    """An autoencoder from elsewhere, or an adapter that this package saved; `fit` checks and measures it only."""

    method: ClassVar[str] = "pretrained"
    _inner: Autoencoder | Adapter
    _spec: AdapterSpec | None = None  # of an adapter that this package saved

    def __init__(self, settings: PretrainedSettings) -> None:
        self.settings = settings

    def fit(self, rows: TrainingRows, *, seed: int) -> Self:  # noqa: ARG002
        """Read the files and measure the codes of `rows`.

        Raises UsageError where there are no files, and MonoevalError where they are damaged, of an architecture
        that is not known, or made for other features than these.
        """
        files = locate(self.settings)
        if files.library == "monoeval":
            self._own(files, rows)
        else:
            found = _read(files, self.settings.k)
            trained, given = found.encoder.shape[1], rows.width
            if trained != given:
                raise MonoevalError(
                    f"{files.weights} was trained on features of width {trained} and these have {given}: name the "
                    "model and layer that it was trained on."
                )
            self._inner = found.on(rows.device)
        self.width = self._inner.width
        self.measures = self._measure(rows)
        return self

    def _own(self, files: Files, rows: TrainingRows) -> None:
        folder = files.weights.parent
        try:
            about = bundles.describe(folder, STEM)
        except bundles.Damaged as error:
            raise MonoevalError(f"{folder} is cut short or was changed: copy the whole folder again.") from error
        recorded, given = about.get("features", "none"), rows.key
        if recorded != given:
            raise MonoevalError(
                f"The adapter in {folder} was fitted on the features {recorded} and these are {given}: name the "
                "model, layer and data that it was fitted on."
            )
        self._inner = load(folder, rows.device)
        self._spec = AdapterSpec.model_validate(about["spec"])

    def encode(self, features_nd: Tensor) -> Tensor | SparseRows:
        return self._inner.encode(features_nd)

    def decode(self, codes: Tensor | SparseRows) -> Tensor | None:
        return self._inner.decode(codes)

    @property
    def directions(self) -> Tensor | None:
        """Rows of the decoder [M, D]; where rows are normalised first they hold up to the scale of each row."""
        return self._inner.directions

    def state(self) -> dict[str, Tensor]:
        """The tensors, and what is no tensor as the bytes of a JSON text."""
        inner = self._inner
        if isinstance(inner, Autoencoder):
            about: Config = {"activation": inner.activation, "k": inner.k, "row_norm": inner.row_norm}
            return {"about": _packed(about), **inner.tensors()}
        assert self._spec is not None
        held = {f"inner.{name}": tensor for name, tensor in inner.state().items()}
        return {"about": _packed({"spec": self._spec.model_dump(mode="json")}), **held}

    def restore(self, state: dict[str, Tensor]) -> Self:
        about: dict[str, Any] = json.loads(bytes(state["about"].tolist()))
        tensors: dict[str, Any] = {
            name.removeprefix("inner."): tensor for name, tensor in state.items() if name != "about"
        }
        if "spec" in about:
            self._spec = AdapterSpec.model_validate(about["spec"])
            self._inner = build(self._spec).restore(tensors)
        else:
            self._inner = Autoencoder(**tensors, **about)
        self.width = self._inner.width
        return self

    @torch.no_grad()
    def _measure(self, rows: TrainingRows) -> dict[str, float]:
        """Mean L0, the share of dead latents and, with a way back, 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², all on `rows`."""
        variance, missed, active = float(rows.variance.sum()), 0.0, 0
        fired = torch.zeros(self.width, dtype=torch.bool, device=rows.device)
        has_way_back = True
        for x_nd in rows.chunks(max(1, min(4096, (1 << 26) // self.width))):
            codes = self.encode(x_nd)
            if isinstance(self._inner, Autoencoder):
                back_nd: Tensor | None = self._inner.reconstruct(x_nd, codes)
            else:
                back_nd = self._inner.decode(codes)
            if back_nd is None:
                has_way_back = False
            else:
                missed += float((x_nd.double() - back_nd.double()).square().sum())
            values = codes.values if isinstance(codes, SparseRows) else codes
            active += int(values.count_nonzero())
            if isinstance(codes, SparseRows):
                fired[codes.indices[codes.values != 0]] = True
            else:
                fired |= (codes != 0).any(dim=0)
        explained = {"explained_variance": 1 - missed / (variance * len(rows))} if has_way_back else {}
        return {
            **explained,
            "l0": active / len(rows),
            "dead_share": 1 - float(fired.float().mean()),
            "width": self.width,
        }


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


def _read(files: Files, k: int | None) -> Autoencoder:
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


def _packed(about: Config) -> Tensor:
    return torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
