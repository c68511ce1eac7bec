"""What one adapter's latents stand for: fitted on training rows, measured and shown on held-out ones."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from monoeval import bundles
from monoeval.adapters.base import Adapter, Codes, SparseRows
from monoeval.adapters.learned import not_trained
from monoeval.adapters.registry import METHODS, build, n_views
from monoeval.adapters.spec import AdapterSpec
from monoeval.adapters.store import STEM, fit_cached, load
from monoeval.backbones.extract import extract
from monoeval.backbones.features import FeatureSet
from monoeval.backbones.load import Backbone, load_backbone
from monoeval.backbones.resolve import identity, same_network
from monoeval.backbones.spec import BackboneSpec
from monoeval.data.images import Data, ImageSet, Ints, Transform
from monoeval.data.transforms import views
from monoeval.errors import UsageError
from monoeval.keys import key
from monoeval.metrics.latents import Latents, measure
from monoeval.metrics.streams import Entries, active, chunks
from monoeval.report.gallery import Measure, Ranking, gallery, rank
from monoeval.suite.inspection_measures import TOP_ROWS, drifts, margins, of_latents, stability
from monoeval.suite.measures import explained

log = logging.getLogger("monoeval")


@dataclass(frozen=True)
class Inspection:
    """An adapter's latents on the test images of a data set."""

    title: str
    facts: dict[str, str]
    measures: tuple[Measure, ...]
    latents: Latents
    images: ImageSet
    backbone: Backbone
    codes: Codes

    def ranking(self, count: int, seed: int = 0) -> Ranking:
        """The latents that a gallery of `count` in each group shows."""
        return rank(self.latents, count, seed)

    def page(self, ranking: Ranking, top: int = 9) -> str:
        """The gallery as HTML, with `top` images a latent."""
        return gallery(
            self.title,
            self.facts,
            self.measures,
            self.latents,
            ranking,
            columns(self.codes, ranking.shown),
            self.images,
            top=top,
            square=self.backbone.preprocess.image,
        )


def inspect(
    adapter: AdapterSpec | Path,
    model: BackboneSpec,
    data: Data,
    *,
    reference: BackboneSpec | None = None,
    corruption: Transform | None = None,
    seed: int = 0,
    seeds: int = 1,
    device: str = "auto",
) -> Inspection:
    """Fit `adapter` on the training features of `model` (or load its folder), and measure it on the test images.

    `reference` gives the embeddings that the monosemanticity score compares images by, `corruption` changes the
    test images, whose codes are compared with those of the images as they are, and of more than one of `seeds`,
    from `seed` on, the dictionaries are compared. Raises UsageError where the reference is the model itself, and
    for a folder that holds no adapter for this model's features.
    """
    if reference is not None and same_network(reference, model):
        raise UsageError("--reference names the evaluated model: name another one, for example dinov2_s14.")
    about = _description(adapter) if isinstance(adapter, Path) else {}  # before the work that would be lost
    backbone = load_backbone(model, device=device)
    if isinstance(adapter, AdapterSpec):
        build(adapter).check_width(backbone.width)
    model_key = key(identity(model))
    augmented = [] if isinstance(adapter, Path) else views(n_views(adapter))
    train, *seen = extract(backbone, model_key, data.train, [None, *augmented])
    if isinstance(adapter, Path):
        spec, fitted = _loaded(adapter, about, train, backbone)
        origin = {"saved in": adapter.resolve().name}
        its_seed = about.get("seed")
        its_seed = its_seed if isinstance(its_seed, int) else None
        alike = stability(spec.method, fitted, (), "needs a method and --seeds 2: this is one saved adapter")
    else:
        spec = adapter
        origin = {"fitted on": f"{len(data.train):,} training images"}
        if METHODS[spec.method].seeded:
            its_seed, alone, more = seed, "needs --seeds 2", range(seed + 1, seed + seeds)
            origin["seed"] = str(seed)
        else:
            its_seed, alone, more = None, "the method draws nothing", range(0)
        fit = partial(fit_cached, spec, train, None, device=backbone.device, views=seen)
        fitted = fit(seed=seed, also=[(spec, other) for other in more])
        alike = stability(spec.method, fitted, (fit(seed=other) for other in more), alone)
    plain, *changed = extract(backbone, model_key, data.test, [None, *filter(None, [corruption])])
    codes = Codes(plain, fitted, backbone.device)
    embeddings, compared = None, "needs --reference, another model than the one evaluated"
    if reference is not None:
        other = load_backbone(reference, device=device)
        embeddings = extract(other, key(identity(reference)), data.test, [None])[0]
        compared = f"images compared by {other.name}"
    n_classes = len(data.test.class_names)
    latents = measure(codes, data.test.labels, n_classes, reference=embeddings, top=TOP_ROWS)
    facts = {
        "backbone": backbone.name,
        "method": spec.method,
        **{name: str(value) for name, value in spec.params.items()},
        **origin,
        "held out": f"{len(data.test):,} images of {n_classes} classes of {data.test.name}",
    }
    shares = explained(codes, train, its_seed)
    if why := not_trained({**fitted.report(), **shares}):
        log.warning("The adapter is not trained: %s.", why)
        facts["not trained"] = why
    measures = (
        *of_latents(codes, data.test.labels, n_classes, latents, shares, compared),
        *margins(Codes(train, fitted, backbone.device), codes, data),
        alike,
        *drifts(codes, Codes(changed[0], fitted, backbone.device) if changed else None, corruption),
    )
    return Inspection(f"{spec.method} on {data.test.name}", facts, measures, latents, data.test, backbone, codes)


def columns(codes: Codes, latents_s: Ints) -> NDArray[np.float32]:
    """Activations [N, S] of a few latents on all rows, 0 where they are not active; 4 · N · S bytes of memory."""
    kept_ns = np.zeros((len(codes), len(latents_s)), dtype=np.float32)
    place_m = torch.full((codes.width,), -1, dtype=torch.int64, device=codes.device)
    wanted = torch.from_numpy(np.asarray(latents_s, dtype=np.int64)).to(codes.device)
    place_m[wanted] = torch.arange(len(wanted), device=codes.device)
    for places, chunk in chunks(codes, None):
        out_ns = kept_ns[places]
        if isinstance(chunk, SparseRows):
            entries = Entries.of(chunk)
            slots = place_m[entries.latents]
            used = entries.active & (slots >= 0)
            at = entries.rows[used].cpu().numpy(), slots[used].cpu().numpy()
            out_ns[at] = entries.values[used].float().cpu().numpy()
        else:
            shown = chunk[:, wanted].masked_fill(~active(chunk.double())[:, wanted], 0.0)
            out_ns[:] = shown.cpu().numpy()
    return kept_ns


def _description(folder: Path) -> dict[str, object]:
    """What the folder of a saved adapter says of itself."""
    try:
        return bundles.describe(folder, STEM)
    except bundles.Damaged:
        raise UsageError(
            f"{folder} is not a whole adapter folder ({STEM}.json and {STEM}.safetensors): name a method, "
            "or a folder that monoeval wrote."
        ) from None


def _loaded(
    folder: Path, about: Mapping[str, object], features: FeatureSet, backbone: Backbone
) -> tuple[AdapterSpec, Adapter]:
    """The adapter in `folder` and its settings, once it is known to take these features."""
    adapter = load(folder, backbone.device)
    try:
        codes = adapter.encode(features.load(np.arange(1)).to(backbone.device))
        width = codes.width if isinstance(codes, SparseRows) else codes.shape[1]
    except RuntimeError:
        width = -1
    if width != adapter.width:
        raise UsageError(
            f"The adapter in {folder} does not take the {features.width} features of {backbone.name}: name the "
            "--model, --layer and --pool that it was fitted on."
        )
    origin = adapter.origin
    if origin is not None:
        origin.check(features, f"The adapter in {folder}")
    if origin is None or origin.features != features.key:
        known = origin is not None and origin.fingerprint
        what = "other images of this backbone" if known else "other features, of a backbone that it does not name"
        log.warning("The adapter in %s was not fitted on the training images here but on %s.", folder, what)
    return AdapterSpec.model_validate(about["spec"]), adapter
