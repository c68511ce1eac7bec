"""Fitted adapters on disk, found again by everything that decides them."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from monoeval import bundles
from monoeval.adapters.base import Adapter, Origin
from monoeval.adapters.registry import METHODS, adapter_identity, build
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.spec import AdapterSpec
from monoeval.backbones.features import FeatureSet
from monoeval.data.images import Ints
from monoeval.errors import MonoevalError
from monoeval.files import cache_dir, locked
from monoeval.keys import key

FORMAT = 1
"""Raised whenever the same spec, rows and seed would give another adapter."""

STEM = "adapter"
UNFITTED = {"identity", "relu", "l2norm"}  # quicker to make than to read

log = logging.getLogger("monoeval")


def fit_cached(
    spec: AdapterSpec,
    features: FeatureSet,
    rows: Ints | None,
    *,
    seed: int | None,
    device: torch.device,
    views: Sequence[FeatureSet] = (),
    also: Sequence[tuple[AdapterSpec, int | None]] = (),
) -> Adapter:
    """The adapter that `spec` gives on `rows` of `features` (all where None), fitted unless the cache holds it.

    `seed` is None exactly where the method draws nothing; `views` are the first of those that `data.transforms`
    makes, as many as `registry.n_views` says. It lies under `adapters/<key>/` in the cache; a damaged
    folder is warned about and fitted again. `also` are others of the method, with their seeds, that will be asked
    for: where it is a method whose adapters train side by side, those that the cache lacks are fitted too. Raises
    UsageError for a wrong spec, MonoevalError for unusable features.
    """
    adapter = build(spec)
    seed = seed if METHODS[spec.method].seeded else None
    if seed is None and METHODS[spec.method].seeded:
        raise ValueError(f"{spec.method} needs a seed")
    if spec.method in UNFITTED:
        return adapter.fit(TrainingRows(features, rows, device), seed=0)
    used = _rows_key(np.arange(features.n) if rows is None else rows)
    origin = Origin(features.key, features.backbone, features.fingerprint)
    made_of = [features.key, *(view.key for view in views)] if views else features.key

    def folder_of(spec: AdapterSpec, seed: int | None) -> Path:
        return cache_dir() / "adapters" / key(["adapter", FORMAT, made_of, used, adapter_identity(spec), seed])

    folder = folder_of(spec, seed)
    found = _held(folder, device, origin)  # before the lock, which a read-only cache does not give
    if found is not None:
        return found
    others = {folder_of(*other): other for other in also} if adapter.stacked else {}
    others = {p: other for p, other in others.items() if p != folder and _held(p, device, origin) is None}
    with locked(folder):
        found = _held(folder, device, origin)  # another process may have made it meanwhile
        if found is not None:
            return found
        if folder.exists():
            log.warning("The adapter in %s is damaged and is fitted again.", folder)
        members = [adapter, *(build(other) for other, _ in others.values())]
        seeds = [s or 0 for s in (seed, *(other for _, other in others.values()))]
        seen = TrainingRows(features, rows, device, views)
        try:
            adapter.fit_together(members, seen, seeds)
        except MonoevalError:
            if len(members) == 1:
                raise
            # what cannot be fitted may be another one, which is told when that is asked for
            others, members = {}, [build(spec).fit(seen, seed=seeds[0])]
            adapter = members[0]
        for member in members:
            member.origin = origin
        save(adapter, spec, folder, **vars(origin), rows=used, seed=seed)
    # one lock at a time: two processes that fit each other's would else wait for ever
    for member, (path, (other, its_seed)) in zip(members[1:], others.items(), strict=True):
        with locked(path):
            if _held(path, device, origin) is None:
                save(member, other, path, **vars(origin), rows=used, seed=its_seed)
    return adapter


def _held(folder: Path, device: torch.device, origin: Origin) -> Adapter | None:
    try:
        found = load(folder, device)
    except bundles.Damaged:
        return None
    found.origin = origin  # earlier versions wrote less of it
    return found


def save(adapter: Adapter, spec: AdapterSpec, folder: Path, **origin: str | int | None) -> None:
    """Write `adapter.safetensors` and `adapter.json`: the spec, where it came from, and the adapter's measures.

    What `load` knows of its origin are the fields of `Origin`.
    """
    about = {"format": FORMAT, "spec": spec.model_dump(mode="json"), **origin, "report": adapter.report()}
    bundles.write(folder, STEM, adapter.state(), about)


def load(folder: Path, device: torch.device | None = None) -> Adapter:
    """The adapter that `save` wrote, on `device` (the CPU where None).

    Raises MonoevalError where the folder is damaged or another version wrote it.
    """
    tensors, about = bundles.read(folder, STEM)
    if about.get("format") != FORMAT:
        raise MonoevalError(f"{folder} was written by another version of monoeval: fit the adapter again.")
    place = device or torch.device("cpu")
    try:
        spec = AdapterSpec.model_validate(about["spec"])
        adapter = build(spec).restore({name: tensor.to(place) for name, tensor in tensors.items()})
        if not isinstance(about["report"], dict):
            raise TypeError("measures by name")
        adapter.measures = about["report"]
    except (KeyError, TypeError, ValueError) as error:
        raise bundles.Damaged(
            f"{folder} does not say which adapter it holds, or holds another one than it says: fit it again."
        ) from error
    adapter.origin = origin_of(about)
    return adapter


def origin_of(about: Mapping[str, object]) -> Origin | None:
    """What the description of a saved adapter says of the features that it was fitted on."""
    fields = [about.get(name) for name in Origin.__dataclass_fields__]
    return Origin(*(value if isinstance(value, str) else "" for value in fields)) if fields[0] else None


def _rows_key(rows: Ints) -> str:
    data = np.ascontiguousarray(rows, dtype="<i8").tobytes()
    return hashlib.blake2b(data, digest_size=10).hexdigest()
