"""Label noise: exact counts, stated probabilities, and draws that depend on nothing else."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import confusion_matrix

from monoeval.data.hierarchies import CIFAR10_CLASSES, CIFAR100_SUPERCLASS
from monoeval.data.images import Image, ImageSet
from monoeval.data.instance_noise import flip_rates, instance, second_labels, small
from monoeval.data.label_noise import Drawn, Transitions, asymmetric, confused, label_signal, symmetric
from monoeval.errors import UsageError
from monoeval.keys import draw_seed


def dense(clean: np.ndarray, noisy: np.ndarray, n_classes: int) -> np.ndarray:
    return np.histogram2d(clean, noisy, bins=[np.arange(n_classes + 1)] * 2)[0].astype(int)


@given(
    n=st.integers(1, 400),
    n_classes=st.integers(2, 12),
    hundredths=st.integers(0, 100),
    draw=st.integers(0, 10**6),
)
def test_symmetric_noise_flips_exactly_as_many_as_asked(
    n: int, n_classes: int, hundredths: int, draw: int
) -> None:
    clean = np.random.default_rng(n).integers(0, n_classes, n)
    before = clean.copy()
    noisy = symmetric(clean, n_classes, hundredths / 100, draw)
    np.testing.assert_array_equal(clean, before)
    assert (noisy != clean).sum() == hundredths * n // 100  # whole numbers: no rounding to get wrong
    assert noisy.min() >= 0
    assert noisy.max() < n_classes
    np.testing.assert_array_equal(noisy, symmetric(clean, n_classes, hundredths / 100, draw))


def test_the_count_is_of_the_decimal_that_was_typed() -> None:
    clean = np.zeros(100, dtype=np.int64)
    assert (symmetric(clean, 3, 0.29, draw=0) != 0).sum() == 29  # 0.29 · 100 is 28.999… in floating point


def test_noise_falls_evenly_on_the_other_classes() -> None:
    clean = np.repeat(np.arange(5), 8000)
    noisy = symmetric(clean, 5, 0.4, draw=3)
    counts = dense(clean, noisy, 5)
    assert counts.sum() == 40000
    assert np.trace(counts) == 24000
    off = counts[~np.eye(5, dtype=bool)]  # 20 cells of about 800
    assert ((off - 800) ** 2 / 800).sum() < 50  # chi-squared, about 19 degrees of freedom: p ≈ 1e-4


def test_transition_counts_by_hand() -> None:
    made = Transitions.of(np.array([0, 0, 1, 2, 2, 2, 2]), np.array([0, 1, 1, 0, 1, 1, 2]))
    found = sorted(zip(made.true.tolist(), made.given.tolist(), made.count.tolist(), strict=True))
    assert found == [(0, 0, 1), (0, 1, 1), (1, 1, 1), (2, 0, 1), (2, 1, 2), (2, 2, 1)]
    assert made.rate == pytest.approx(4 / 7)
    assert made.signal == pytest.approx(((1 - 1) + (1 - 0) + (1 - 2)) / 7)


@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 300))
def test_transitions_are_the_confusion_matrix(seed: int, n_classes: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    clean, noisy = rng.integers(0, n_classes, (2, n))
    made = Transitions.of(clean, noisy)
    counts = confusion_matrix(clean, noisy, labels=range(n_classes))
    assert made.count.sum() == n
    assert made.rate == pytest.approx((clean != noisy).mean())
    np.testing.assert_array_equal(counts[made.true, made.given], made.count)
    off = np.where(np.eye(n_classes, dtype=bool), -1, counts)
    assert made.signal == pytest.approx((np.trace(counts) - off.max(axis=1).sum()) / n)


def test_label_signal() -> None:
    assert label_signal(0, 10) == 1
    assert label_signal(0.9, 10) == pytest.approx(0)
    assert label_signal(0.9, 7) == pytest.approx(-0.05)
    assert label_signal(0.9, 100) == pytest.approx(0.1 - 0.9 / 99)
    assert label_signal(0.9, 10, "symmetric-inclusive") == pytest.approx(0.1)
    assert label_signal(0.5, 10, "asymmetric") == 0
    assert label_signal(0.6, 10, "asymmetric") == pytest.approx(-0.2)


@pytest.mark.parametrize("kind", ["symmetric", "symmetric-inclusive", "asymmetric"])
def test_signals_of_the_formulas_are_those_of_the_labels(kind: Drawn) -> None:
    clean = np.repeat(np.arange(4), 20_000)
    if kind == "asymmetric":
        noisy = asymmetric(clean, np.array([1, 2, 3, 0]), 0.3, draw=0)
    else:
        noisy = symmetric(clean, 4, 0.3, draw=0, inclusive=kind == "symmetric-inclusive")
    # the largest of three counts of about 2,000 lies a little above their mean
    assert Transitions.of(clean, noisy).signal == pytest.approx(label_signal(0.3, 4, kind), abs=0.01)


def test_impossible_noise_is_refused() -> None:
    with pytest.raises(UsageError, match=r"1\.2"):
        symmetric(np.array([0, 1]), 2, 1.2, 0)
    with pytest.raises(UsageError, match="two classes"):
        symmetric(np.array([0, 0]), 1, 0.5, 0)


@given(
    n=st.integers(1, 300),
    n_classes=st.integers(2, 9),
    hundredths=st.integers(0, 100),
    draw=st.integers(0, 10**6),
)
def test_inclusive_noise_redraws_exactly_as_many_and_some_stay(
    n: int, n_classes: int, hundredths: int, draw: int
) -> None:
    clean = np.random.default_rng(n).integers(0, n_classes, n)
    noisy = symmetric(clean, n_classes, hundredths / 100, draw, inclusive=True)
    assert (noisy != clean).sum() <= hundredths * n // 100
    assert noisy.min() >= 0
    assert noisy.max() < n_classes


def test_inclusive_noise_gives_every_class_alike() -> None:
    clean = np.repeat(np.arange(5), 8000)
    counts = dense(clean, symmetric(clean, 5, 0.5, draw=1, inclusive=True), 5)
    # a row keeps its class with 1/2 + 1/10 and gets each other one with 1/10
    expected = 8000 * (0.1 + 0.5 * np.eye(5))
    assert stats.chisquare(counts.ravel(), expected.ravel(), ddof=4).pvalue > 1e-3
    assert (counts.sum() - np.trace(counts)) / counts.sum() == pytest.approx(0.5 * (1 - 1 / 5), abs=0.01)


@given(st.lists(st.integers(0, 40), min_size=3, max_size=3), st.integers(0, 99), st.integers(0, 10**6))
@settings(max_examples=50)
def test_asymmetric_noise_moves_the_floor_of_each_affected_class(
    sizes: list[int], hundredths: int, draw: int
) -> None:
    clean = np.repeat(np.arange(3), sizes)
    noisy = asymmetric(clean, np.array([1, 0, -1]), hundredths / 100, draw)
    moved = [hundredths * n // 100 for n in sizes]
    assert dense(clean, noisy, 3).tolist() == [
        [sizes[0] - moved[0], moved[0], 0],
        [moved[1], sizes[1] - moved[1], 0],  # swapped classes are drawn from the clean labels: none moves twice
        [0, 0, sizes[2]],
    ]


def test_asymmetric_rows_of_a_class_are_equally_likely() -> None:
    clean = np.zeros(10, dtype=np.int64)
    moved = sum(asymmetric(clean, np.array([1, -1]), 0.3, draw) for draw in range(4000))
    assert stats.chisquare(moved).pvalue > 1e-3  # 1,200 each, drawn without replacement: less spread than chi²


def test_published_maps_are_followed() -> None:
    names = tuple(sorted(CIFAR10_CLASSES))
    taken = confused(names, None, "cifar10")
    assert {names[i]: names[j] for i, j in enumerate(taken) if j >= 0} == {
        "truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat",
    }  # fmt: skip
    names = tuple(sorted(CIFAR100_SUPERCLASS))
    taken = confused(names, None, "cifar100")
    clean = np.repeat(np.arange(100), 10)
    noisy = asymmetric(clean, taken, 0.4, draw=0)
    assert Transitions.of(clean, noisy).rate == 0.4
    assert all(
        CIFAR100_SUPERCLASS[names[i]] == CIFAR100_SUPERCLASS[names[j]] for i, j in zip(clean, noisy, strict=True)
    )


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"cat": "dgo"}, r"names 'dgo', which pets has not: did you mean 'dog'\?"),
        ({"cat": "dog", "x": "y"}, r"names 'x', 'y', which pets has not: its classes are 'cat', 'dog', 'fish'\."),
        ({"cat": "cat"}, "takes 'cat' for itself"),
        (None, r"no map for the classes of pets: .* map: \{cat: dog\}"),
    ],
)
def test_impossible_maps_are_refused(mapping: dict[str, str] | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        confused(("cat", "dog", "fish"), mapping, "pets")


def images(n: int = 60, n_classes: int = 3, side: int = 8, read: Callable[[int], Image] | None = None) -> ImageSet:
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    return ImageSet(
        name="made",
        labels=rng.integers(0, n_classes, n),
        class_names=tuple("abcdefgh"[:n_classes]),
        ids=np.array([f"row{i}" for i in range(n)]),
        groups=None,
        fingerprint=f"made {n} {n_classes} {side}",
        read=read or (lambda row: pixels[row]),
    )


def test_second_labels_have_the_stated_probabilities() -> None:
    """Equal grey images: the scores of all rows of a class are one vector, worked out here from its own stream."""
    n, grey = 4000, 3
    flat = np.full((32, 32, 3), grey, dtype=np.uint8)  # dark, so that softmax is not nearly one-hot
    some = replace(images(n, 4, read=lambda _: flat), labels=np.zeros(n, dtype=np.int64))
    second = second_labels(some, draw=2)
    weights = np.random.default_rng(draw_seed("label-noise", "instance", 2, "a")).standard_normal((3072, 4))
    scores = (np.full(3072, grey / 255) @ weights)[1:]
    expected = n * np.exp(scores) / np.exp(scores).sum()
    counts = np.bincount(second, minlength=4)
    assert counts[0] == 0  # never its own class
    assert stats.chisquare(counts[1:], expected).pvalue > 1e-3


@pytest.mark.parametrize("rate", [0.05, 0.4, 0.95])
def test_flip_rates_are_a_normal_cut_to_0_and_1(rate: float) -> None:
    cut = stats.truncnorm(-rate / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1)
    quantiles = np.linspace(0, 1, 101)
    np.testing.assert_allclose(flip_rates(quantiles, rate), cut.ppf(quantiles).clip(0, 1), atol=1e-9)
    n = 4000
    some = images(n, 3, read=lambda _: np.zeros((32, 32, 3), dtype=np.uint8))
    flipped = (instance(some, rate, draw=0) != some.labels).sum()
    assert stats.binomtest(int(flipped), n, cut.mean()).pvalue > 1e-3


def test_instance_noise_depends_on_ids_and_not_on_order_or_number() -> None:
    some = images()
    noisy = dict(zip(some.ids, instance(some, 0.5, draw=0), strict=True))
    order = np.random.default_rng(1).permutation(60)[:40]
    part = some.take(order)
    assert instance(part, 0.5, draw=0).tolist() == [noisy[name] for name in part.ids]
    assert instance(some, 0.5, draw=1).tolist() != list(noisy.values())
    # flipped or not is drawn for each rate, but what a row is given is not
    other = instance(some, 0.6, draw=0)
    both = (other != some.labels) & (np.array(list(noisy.values())) != some.labels)
    assert both.any()
    assert (other[both] == np.array(list(noisy.values()))[both]).all()


def test_images_are_read_once_for_a_draw_and_never_again() -> None:
    seen: list[int] = []
    blank = np.zeros((8, 8, 3), dtype=np.uint8)

    def read(row: int) -> Image:
        seen.append(row)
        return blank

    some = images(read=read)
    for rate in (0.2, 0.4, 0.4):
        instance(some, rate, draw=3)
    assert sorted(seen) == list(range(60))
    instance(replace(some, fingerprint="other pixels"), 0.2, draw=3)
    assert len(seen) == 120


def test_a_damaged_cache_entry_is_made_again(cache: Path) -> None:
    some = images()
    wanted = second_labels(some, draw=0)
    (entry,) = (cache / "labels").iterdir()
    entry.write_bytes(b"not an array")
    np.testing.assert_array_equal(second_labels(some, draw=0), wanted)
    assert entry.stat().st_size > 60


def test_images_of_any_shape_are_read_at_one_size() -> None:
    rng = np.random.default_rng(0)
    same = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(small(same), same)
    blocks = np.kron(same, np.ones((2, 3, 1), dtype=np.uint8))
    assert small(blocks).shape == (32, 32, 3)
    assert small(np.full((70, 33, 3), 9, dtype=np.uint8)).tolist() == np.full((32, 32, 3), 9).tolist()
