"""The page of latents: what it picks, what it says, and that nothing it is given can act."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from monoeval.data.images import ImageSet
from monoeval.metrics.latents import Latents
from monoeval.report.gallery import SIDE, Measure, Ranking, gallery, number, rank, spans, thumbnail

NAN = float("nan")


def latents(
    scores: list[float], energy: list[float] | None = None, *, rows: list[list[int]] | None = None
) -> Latents:
    """Latents with the given top consistencies; NaN is a dead one."""
    score = np.array(scores)
    m = len(score)
    living = np.isfinite(score)
    top_rows = np.array(rows) if rows else np.where(living[:, None], np.arange(3), -1)
    undefined = np.full(m, NAN)
    return Latents(
        n_rows=6,
        fired=np.where(living, 0.5, 0.0),
        energy=np.array(energy) if energy else np.where(living, 1.0, 0.0),
        consistency=score,
        consistency_chance=np.where(living, 0.25, NAN),
        top_consistency=score,
        top_consistency_chance=np.where(living, 0.25, NAN),
        entropy=undefined,
        entropy_chance=undefined,
        monosemanticity=undefined,
        monosemanticity_chance=NAN,
        top_class=np.where(living, 0, -1),
        top_rows=top_rows,
        top_values=np.where(top_rows >= 0, 2.5, 0).astype(np.float32),
        l0_mean=1.0,
        l0_std=0.0,
        effective_rank=1.0,
        effective_rank_bound=m,
    )


def pictures(names: tuple[str, ...] = ("cat", "dog"), side: int = 8) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (6, side, side, 3), dtype=np.uint8)
    labels = np.array([0, 1, 0, 1, 0, 1])
    return ImageSet("pets", labels, names, np.array(list("abcdef")), None, "fp", pixels.__getitem__)


class Page(HTMLParser):
    """The elements of a page and the text in them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"), (1.0, "1.00"), (0.6549, "0.655"), (17.83, "17.8"), (338.2, "338"), (-0.25, "−0.250"),
        (12345.6, "12,346"), (-0.00012, "−1.2e−04"), (0.0814, "0.0814"), (NAN, "n/a"), (float("inf"), "n/a"),
        (None, "n/a"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


@given(st.sets(st.integers(0, 300)))
def test_spans_hold_exactly_the_numbers(numbers: set[int]) -> None:
    found = set()
    for part in filter(None, spans(np.array(sorted(numbers), dtype=np.int64)).split(", ")):
        first, _, last = part.partition("–")
        found |= set(range(int(first), int(last or first) + 1))
    assert found == numbers


def test_spans_draw_runs_together() -> None:
    assert spans(np.array([0, 1, 2, 7, 9, 10])) == "0–2, 7, 9–10"


def test_a_tiny_image_keeps_its_pixels_and_a_large_one_its_shape() -> None:
    small = np.random.default_rng(1).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    kind, _, data = thumbnail(small).partition(",")
    assert kind == "data:image/png;base64"
    assert (np.asarray(Pillow.open(io.BytesIO(base64.b64decode(data)))) == small).all()
    large = np.full((400, 200, 3), (200, 40, 90), np.uint8)
    kind, _, data = thumbnail(large).partition(",")
    assert kind == "data:image/jpeg;base64"
    shown = np.asarray(Pillow.open(io.BytesIO(base64.b64decode(data))))
    assert shown.shape == (SIDE, SIDE // 2, 3)
    assert np.abs(shown.astype(int) - (200, 40, 90)).max() < 8


def test_the_most_and_the_least_are_told_apart_by_score_then_by_energy() -> None:
    found = rank(latents([0.5, 0.9, NAN, 0.9, 0.3, 0.7], [1, 1, 0, 2, 1, 1]), 2)
    assert found.by == "top consistency"
    assert found.most.tolist() == [3, 1]
    assert found.least.tolist() == [4, 0]
    assert found.random.tolist() == sorted(found.random.tolist())
    assert set(found.random) <= {0, 1, 3, 4, 5}
    assert len(found.random) == 2
    assert found.shown.tolist() == sorted(set(found.most) | set(found.least) | set(found.random))


def test_with_a_reference_its_score_decides_and_rare_latents_are_left_out() -> None:
    scored = replace(
        latents([0.1, 0.2, 0.3, 0.4, 0.5], rows=[[0, 1, 2]] * 4 + [[0, 1, -1]]),
        monosemanticity=np.array([0.9, 0.8, NAN, 0.1, 1.0]),
    )
    found = rank(scored, 1)
    assert found.by == "monosemanticity score"
    assert (found.most.tolist(), found.least.tolist()) == ([0], [3])
    assert not np.isfinite(found.score[[2, 4]]).any()


@pytest.mark.parametrize(("ranked", "each"), [(0, 0), (1, 0), (5, 2), (9, 3)])
def test_few_latents_are_never_in_both_groups(ranked: int, each: int) -> None:
    found = rank(latents([i / 10 for i in range(ranked)] + [NAN] * 3), 3)
    assert len(found.most) == len(found.least) == each
    assert not set(found.most) & set(found.least)
    assert len(found.random) == min(3, ranked)


def test_another_seed_draws_other_random_latents() -> None:
    many = latents([i / 100 for i in range(100)])
    first, again, other = (rank(many, 10, seed).random.tolist() for seed in (0, 0, 1))
    assert first == again != other


def card_page(**changes: object) -> Page:
    """One shown latent, number 1, active in rows 0, 2 (class 0) and 5 (class 1); latents 0 and 2 are dead."""
    measured = latents([NAN, 0.75, NAN], rows=[[-1] * 3, [5, 0, 2], [-1] * 3])
    measured = replace(measured, top_values=np.array([[0] * 3, [4.0, 1.0, 1.0], [0] * 3], np.float32), n_rows=6)
    ranking = Ranking("top consistency", measured.score, np.array([1]), np.array([], int), np.array([1]))
    activations = np.array([[1], [0], [1], [0], [0], [4]], np.float32)
    given = {"title": "sae on pets", "facts": {"backbone": "b"}, "measures": (), "images": pictures(), **changes}
    images = given.pop("images")
    return Page(
        gallery(latents=measured, ranking=ranking, activations_ns=activations, images=images, **given)  # type: ignore[arg-type]
    )


def test_a_card_shows_what_fires_the_latent() -> None:
    images = pictures()
    page = card_page()
    shown = page.all("img")[:3]
    assert [image["alt"] for image in shown] == ["dog", "cat", "cat"]
    assert [image["src"] for image in shown] == [thumbnail(images.read(row)) for row in (5, 0, 2)]
    assert "67 %" in page.text
    assert "33 %" in page.text
    bars = page.all("rect")
    assert [bar["height"] for bar in bars[:2]] == ["1.000", "0.500"]  # two rows at 1, one at 4, of at most 4
    assert [bar["x"] for bar in bars[:2]] == ["6.06", "23.06"]  # a quarter of the way, and the last of 24 bins
    assert "2 are dead" in page.text
    assert "0, 2" in page.text
    others = [attributes for attributes in page.all("li") if attributes.get("class") == "other"]
    assert len(others) == 2  # the dog, in the groups of the most and of random ones


def test_fewer_images_and_the_network_s_view_of_them() -> None:
    page = card_page(top=1, square=lambda image: np.zeros_like(image))
    black = thumbnail(np.zeros((8, 8, 3), np.uint8))
    assert [image["src"] for image in page.all("img")] == [black, black]


def test_whatever_things_are_called_they_are_text() -> None:
    evil = "<script>alert(1)</script>"
    quote = "\"'><img src=x onerror=alert(1)>"
    page = card_page(
        title=evil,
        facts={quote: evil},
        measures=(Measure(evil, 1.0, None, quote),),
        images=pictures((evil, quote)),
    )
    assert len(page.all("script")) == 1
    assert all(str(image["src"]).startswith("data:image/") for image in page.all("img"))
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count(evil) >= 4
    assert quote in {image["alt"] for image in page.all("img")}


def test_the_page_neither_loads_nor_sends_and_its_ids_are_its_own() -> None:
    page = card_page()
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy)
    links = [str(a[name]) for _, a in page.elements for name in ("href", "src", "action", "data") if name in a]
    assert links
    assert all(link.startswith(("#", "data:image/")) for link in links)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_a_page_without_a_ranked_latent_says_so() -> None:
    nothing = latents([NAN, NAN])
    ranking = rank(nothing, 24)
    html = gallery(
        "t", {}, (Measure("dead share", 1.0),), nothing, ranking, np.zeros((6, 0), np.float32), pictures()
    )
    assert len(re.findall("none is ranked", html)) == 3
    assert "2 are dead" in html
    assert not Page(html).all("img")
