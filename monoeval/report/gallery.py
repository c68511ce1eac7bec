"""A page of latents as one HTML file that needs no network: what fires each of them most, and on which classes."""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from monoeval import progress
from monoeval.data.images import Image, ImageSet, Ints
from monoeval.keys import draw_seed
from monoeval.report.wording import MINUS, NOT_AVAILABLE

if TYPE_CHECKING:
    from monoeval.metrics.latents import Latents

SIDE = 96
"""Longest side of a thumbnail in pixels, enough for twice the 48 CSS pixels that a narrow screen gives it."""

LOSSLESS_SIDE = 32
BINS = 24
CLASSES_SHOWN = 5
BEST_OF_CLASS = 8


@dataclass(frozen=True)
class Measure:
    """A number about all latents, beside what chance gives; None where it is not defined, and `note` says why."""

    name: str
    value: float | None
    chance: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Ranking:
    """Latents in three groups, by `score` [M] (NaN: not ranked), which `by` names."""

    by: str
    score: NDArray[np.float64]
    most: Ints
    least: Ints
    random: Ints

    @property
    def shown(self) -> Ints:
        """All latents of the three groups, each once, sorted."""
        return np.unique(np.concatenate([self.most, self.least, self.random]))


def rank(latents: "Latents", count: int, seed: int = 0) -> Ranking:
    """The `count` most and least monosemantic latents, best or worst first, and as many drawn at random.

    They are ranked by `Latents.score`; of equal scores the latent with more energy comes first. Only those that
    are active in as many rows as `Latents.top_rows` holds are ranked: two rows that happen to be alike make no
    latent monosemantic. A latent's own chance is not subtracted, since one permutation's would only add noise.
    The most and the least share no latent: where fewer than 2 · `count` are ranked, each has half of them.
    """
    by_reference = np.isfinite(latents.monosemanticity).any()
    by = "monosemanticity score" if by_reference else "top consistency"
    score = np.where(latents.top_rows[:, -1] >= 0, latents.score, np.nan)
    ranked = np.flatnonzero(np.isfinite(score))
    half = min(count, len(ranked) // 2)
    energy = np.nan_to_num(latents.energy[ranked])
    best = ranked[np.lexsort((ranked, -energy, -score[ranked]))]
    worst = ranked[np.lexsort((ranked, -energy, score[ranked]))]
    drawn = np.random.default_rng(draw_seed("gallery", seed)).permutation(ranked)[:count]
    return Ranking(by, score, best[:half], worst[:half], np.sort(drawn))


@dataclass(frozen=True)
class Example:
    """An image that fires a latent strongly, as a data URI."""

    uri: str
    name: str
    value: str
    is_top_class: bool


@dataclass(frozen=True)
class Card:
    """All that the page shows of one latent."""

    latent: int
    facts: tuple[tuple[str, str], ...]
    examples: tuple[Example, ...]
    bars: tuple[float, ...]
    """Heights of the histogram's bars, the highest 1."""
    low: str
    high: str
    active: int
    classes: tuple[tuple[str, float], ...]
    """The most frequent classes of the rows it fires on, with their shares."""
    more: int
    """Further classes, not listed."""


def gallery(
    title: str,
    facts: Mapping[str, str],
    measures: Sequence[Measure],
    latents: "Latents",
    ranking: Ranking,
    activations_ns: NDArray[np.float32],
    images: ImageSet,
    *,
    top: int = 9,
    square: Callable[[Image], Image] = lambda image: image,
) -> str:
    """The whole page.

    `activations_ns` [N, S] are the activations of `ranking.shown` [S] on every image, 0 where a latent is not
    active; `square` is what the backbone's preprocessing makes of an image. Names of classes and data may hold
    anything: all text is escaped, and the page's own policy forbids it to load or send anything.
    """
    from jinja2 import Environment, StrictUndefined

    column = {int(latent): s for s, latent in enumerate(ranking.shown)}
    strongest = {latent: _strongest(latents, latent, top) for latent in column}
    uris = _thumbnails(images, square, {row for rows in strongest.values() for row in rows})
    cards = {
        latent: _card(
            latent, latents, activations_ns[:, s], images, [(row, uris[row]) for row in strongest[latent]]
        )
        for latent, s in column.items()
    }
    groups = [
        (name, [cards[int(latent)] for latent in members])
        for name, members in (("Most", ranking.most), ("Least", ranking.least), ("Random", ranking.random))
    ]
    dead = np.flatnonzero(~(latents.fired > 0))
    unranked = np.setdiff1d(np.flatnonzero(~np.isfinite(ranking.score)), dead)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = files("monoeval.report").joinpath("gallery.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=title,
        facts=facts,
        measures=[(m.name, number(m.value), number(m.chance, ""), m.note) for m in measures],
        by=ranking.by,
        groups=groups,
        by_class=_by_class(latents, ranking, images.class_names),
        width=len(latents.fired),
        support=latents.top_rows.shape[1],
        dead=(len(dead), spans(dead)),
        unranked=(len(unranked), spans(unranked)),
        class_names=images.class_names,
        bins=BINS,
    )


def number(value: float | None, missing: str = NOT_AVAILABLE) -> str:
    """Three significant digits, with a power of ten only below a thousandth."""
    if value is None or not math.isfinite(value):
        return missing
    size = abs(value)
    if 0 < size < 1e-3:
        return f"{value:.1e}".replace("-", MINUS)
    text = f"{size:,.0f}" if size >= 1000 else f"{size:#.3g}".rstrip(".")
    return (MINUS if value < 0 else "") + text


def spans(numbers: Ints) -> str:
    """Sorted integers with runs drawn together: 0–3, 7, 9–10."""
    if not len(numbers):
        return ""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def thumbnail(image: Image) -> str:
    """uint8 RGB [H, W, 3] as a data URI, no side longer than `SIDE`: PNG where the image is tiny, else JPEG."""
    picture = Pillow.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((SIDE, SIDE), Pillow.Resampling.LANCZOS)
    stream = io.BytesIO()
    if max(picture.size) <= LOSSLESS_SIDE:
        picture.save(stream, "PNG", optimize=True)
        kind = "png"
    else:
        picture.save(stream, "JPEG", quality=82, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _strongest(latents: "Latents", latent: int, top: int) -> list[int]:
    rows = latents.top_rows[latent]
    return [int(row) for row in rows[rows >= 0][:top]]


def _thumbnails(images: ImageSet, square: Callable[[Image], Image], rows: set[int]) -> dict[int, str]:
    made = {}
    with progress.bar("Drawing the gallery", len(rows), "images") as advance:
        for row in sorted(rows):
            made[row] = thumbnail(square(images.read(row)))
            advance(1)
    return made


def _card(
    latent: int,
    latents: "Latents",
    activation_n: NDArray[np.float32],
    images: ImageSet,
    examples: Sequence[tuple[int, str]],
) -> Card:
    names, labels = images.class_names, images.labels
    top_class = int(latents.top_class[latent])
    active = activation_n != 0
    values = activation_n[active]
    low, high = min(0.0, float(values.min(initial=0))), max(0.0, float(values.max(initial=0)))
    heights, _ = np.histogram(values, bins=BINS, range=(low, high) if high > low else (0, 1))
    shares = np.bincount(labels[active], minlength=len(names)) / max(1, len(values))
    order = np.argsort(-shares, kind="stable")
    listed = [int(c) for c in order[:CLASSES_SHOWN] if shares[c] > 0]
    return Card(
        latent=latent,
        facts=_facts(latents, latent),
        examples=tuple(
            Example(uri, names[labels[row]], number(float(value)), int(labels[row]) == top_class)
            for (row, uri), value in zip(examples, latents.top_values[latent], strict=False)
        ),
        bars=tuple(float(h) for h in heights / max(1, heights.max())),
        low=number(low),
        high=number(high),
        active=len(values),
        classes=tuple((names[c], float(shares[c])) for c in listed),
        more=int((shares > 0).sum()) - len(listed),
    )


def _facts(latents: "Latents", latent: int) -> tuple[tuple[str, str], ...]:
    """The scores of one latent, with chance where it has one."""
    said = []
    if np.isfinite(latents.monosemanticity[latent]):
        beside = f" (chance {number(latents.monosemanticity_chance)})"
        said.append(("monosemanticity", number(float(latents.monosemanticity[latent])) + beside))
    for name, value, chance in (
        ("top consistency", latents.top_consistency, latents.top_consistency_chance),
        ("consistency", latents.consistency, latents.consistency_chance),
        ("class entropy", latents.entropy, latents.entropy_chance),
    ):
        beside = f" (chance {number(float(chance[latent]))})" if np.isfinite(chance[latent]) else ""
        said.append((name, number(float(value[latent])) + beside))
    said.append(("fires on", f"{100 * latents.fired[latent]:.3g} % of rows"))
    return tuple(said)


def _by_class(latents: "Latents", ranking: Ranking, names: Sequence[str]) -> list[tuple[str, int, str]]:
    """For each class that leads some latent: its name, how many latents, and the best of them."""
    said = []
    for c, name in enumerate(names):
        members = np.flatnonzero((latents.top_class == c) & np.isfinite(ranking.score))
        if len(members):
            best = members[np.argsort(-ranking.score[members], kind="stable")][:BEST_OF_CLASS]
            said.append((name, len(members), ", ".join(str(latent) for latent in best)))
    return said
