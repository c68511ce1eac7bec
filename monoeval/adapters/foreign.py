"""Autoencoders that other libraries trained on features of the same backbone, read from files, never trained."""

import json
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from monoeval import bundles
from monoeval.adapters.base import Adapter, SparseRows
from monoeval.adapters.foreign_autoencoder import Autoencoder
from monoeval.adapters.foreign_files import Files, locate
from monoeval.adapters.foreign_readers import read
from monoeval.adapters.registry import build
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.settings import PretrainedSettings
from monoeval.adapters.spec import AdapterSpec
from monoeval.adapters.store import STEM, load, origin_of
from monoeval.errors import MonoevalError


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
            found = read(files, self.settings.k)
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
        origin, given = origin_of(about), rows.features
        if origin is not None and origin.fingerprint and given.fingerprint:
            origin.check(given, f"The adapter in {folder}")
        elif origin is None or origin.features != given.key:
            recorded = "none" if origin is None else origin.features
            raise MonoevalError(
                f"The adapter in {folder} was fitted on the features {recorded} and these are {given.key}: name "
                "the model, layer and data that it was fitted on."
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
            about: dict[str, object] = {"activation": inner.activation, "k": inner.k, "row_norm": inner.row_norm}
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


def _packed(about: dict[str, object]) -> Tensor:
    return torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
