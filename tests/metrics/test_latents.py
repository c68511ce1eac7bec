"""Measures of latents against numbers worked by hand, scipy, definitions over pairs, and themselves in chunks."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_codes import codes_of, held, planted
from scipy.stats import entropy

from monoeval.errors import MonoevalError
from monoeval.keys import draw_seed
from monoeval.metrics import streams
from monoeval.metrics.latents import MIN_SUPPORT, Latents, choose_latents, measure

KINDS = ("dense", "sparse", "mixed")


def same(one: Latents, other: Latents, names: set[str] | None = None) -> None:
    for field in fields(Latents):
        if names is None or field.name in names:
            np.testing.assert_allclose(
                getattr(one, field.name), getattr(other, field.name), rtol=1e-9, atol=1e-11, err_msg=field.name
            )


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_worked_by_hand(kind):
    # latent 0 fires on six rows (classes 0 0 0 0 1 2), latent 1 on four, latent 2 never, latent 3 too weakly
    codes = np.zeros((8, 4))
    codes[:6, 0] = [6, 5, 4, 3, 2, 1]
    codes[2:6, 1] = [1, 1, 2, 2]
    codes[5, 3] = 2e-5  # the row is √5 long: 0.9e-5 of it
    found = measure(codes_of(codes, kind), [0, 0, 0, 0, 1, 2, 2, 2], 3, top=4)
    assert found.fired.tolist() == [6 / 8, 4 / 8, 0, 0]
    assert found.living.tolist() == [True, True, False, False]
    assert found.energy == pytest.approx([91 / 8, 10 / 8, 0, 4e-10 / 8])
    assert found.consistency == pytest.approx([4 / 6, np.nan, np.nan, np.nan], nan_ok=True)
    assert found.entropy == pytest.approx([entropy([4, 1, 1]) / np.log(3), np.nan, np.nan, np.nan], nan_ok=True)
    assert found.top_rows.tolist() == [[0, 1, 2, 3], [4, 5, 2, 3], [-1] * 4, [-1] * 4]
    assert found.top_values.tolist() == [[6, 5, 4, 3], [2, 2, 1, 1], [0] * 4, [0] * 4]
    assert found.top_consistency == pytest.approx([1, 0.5, np.nan, np.nan], nan_ok=True)
    assert found.top_class.tolist() == [0, 0, -1, -1]
    assert found.l0_mean == 10 / 8
    assert found.l0_std == pytest.approx(np.std([1, 1, 2, 2, 2, 2, 0, 0]))
    whole = found.summary()
    assert whole["dead_share"] == 0.5
    assert whole["supported_share"] == 0.25
    assert whole["top_supported_share"] == 0.5
    assert whole["top_consistency"] == 0.75
    assert np.isnan(whole["monosemanticity"])


def test_a_list_with_too_few_rows_has_a_class_but_no_consistency():
    codes = np.zeros((6, 1))
    codes[:3, 0] = [1, 3, 2]
    found = measure(codes_of(codes), [1, 0, 1, 0, 0, 0], 2, top=4)
    assert found.top_rows.tolist() == [[1, 2, 0, -1]]
    assert found.top_class.tolist() == [1]
    assert np.isnan(found.top_consistency[0])


def test_strength_is_without_sign_and_values_keep_theirs():
    found = measure(codes_of([[1.0], [-3.0], [2.0], [-0.5]]), [0, 1, 0, 1], 2, top=3)
    assert found.top_rows.tolist() == [[1, 2, 0]]
    assert found.top_values.tolist() == [[-3, 2, 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_against_definitions_row_by_row(kind, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK_ENTRIES", 7 * 30)
    codes, labels = planted()
    embeddings = np.random.default_rng(1).normal(size=(120, 5)) + 0.5
    found = measure(codes_of(codes, kind), labels, 4, reference=held(embeddings), top=6, seed=3)
    permuted = np.random.default_rng(draw_seed("latents", "permuted", 3)).permutation(labels)
    assert not np.array_equal(permuted, labels)
    unit_rows = codes / np.linalg.norm(codes, axis=1, keepdims=True)
    for j, z in enumerate(codes.T.astype(float)):
        rows = np.flatnonzero(np.abs(unit_rows[:, j]) > 1e-5)
        strongest = np.lexsort((np.arange(120), -np.abs(z)))[:6]
        for seen, suffix in ((labels, ""), (permuted, "_chance")):
            counts = np.bincount(seen[rows], minlength=4)
            tops = np.bincount(seen[strongest], minlength=4)
            enough = len(rows) >= MIN_SUPPORT
            expected = {
                "consistency": counts.max() / len(rows) if enough else np.nan,
                "entropy": entropy(counts) / np.log(4) if enough else np.nan,
                "top_consistency": tops.max() / 6 if len(rows) >= 6 else np.nan,
            }
            for name, value in expected.items():
                assert getattr(found, name + suffix)[j] == pytest.approx(value, nan_ok=True), (name, suffix, j)
        if len(rows) >= 6:
            assert found.top_rows[j].tolist() == strongest.tolist()
        assert found.monosemanticity[j] == pytest.approx(monosemanticity(z, embeddings), nan_ok=True), j
    assert np.isfinite(found.monosemanticity).sum() > 20
    assert found.monosemanticity_chance == pytest.approx(monosemanticity(None, embeddings))


def monosemanticity(z: np.ndarray | None, embeddings: np.ndarray) -> float:
    """The sum over all pairs of rows, as it is defined."""
    if z is not None and np.count_nonzero(z) < 2:
        return np.nan
    scaled = np.ones(len(embeddings)) if z is None else (z - z.min()) / (z.max() - z.min())
    unit = embeddings.astype(np.float32).astype(float)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    pairs = np.triu(np.outer(scaled, scaled), 1)
    return (pairs * (unit @ unit.T)).sum() / pairs.sum()


def test_monosemanticity_of_signed_codes_that_lie_far_from_zero():
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(40, 3)) + np.array([0, 1000, -1000])
    embeddings = rng.normal(size=(40, 4))
    found = measure(codes_of(codes), np.zeros(40), 1, reference=held(embeddings))
    expected = [monosemanticity(z, embeddings) for z in codes.astype(np.float32).T.astype(float)]
    assert found.monosemanticity == pytest.approx(expected, rel=1e-6)


def test_monosemanticity_of_latents_of_one_sign():
    rng = np.random.default_rng(0)
    codes = rng.uniform(1, 2, (40, 4)) * [1, -1, 1, -1]
    codes[:, 2:] *= rng.random((40, 2)) < 0.5
    codes = np.column_stack([codes, np.where(np.arange(40) < 15, -3, 0)])  # one value besides zero
    embeddings = rng.normal(size=(40, 4))
    expected = [monosemanticity(z, embeddings) for z in codes.astype(np.float32).T.astype(float)]
    for kind in KINDS:
        found = measure(codes_of(codes, kind), np.zeros(40), 1, reference=held(embeddings))
        assert found.monosemanticity == pytest.approx(expected)


@pytest.mark.parametrize(
    "z",
    [
        [0, 0, 3, 0],  # one active row
        [2, 2, 2, 2],  # the same everywhere: no scale
        [0.1, 8.3, *[0.1] * 48],  # one row off the minimum: no pair, though rounding leaves a little
        [1e-6, 3, 2e-6, 0],  # the others are too weak to be active
    ],
)
def test_no_pair_of_rows_has_no_monosemanticity(z):
    other = np.arange(1.0, len(z) + 1)
    embeddings = np.random.default_rng(0).normal(size=(len(z), 3))
    found = measure(codes_of(np.stack([z, other], 1)), np.zeros(len(z)), 1, reference=held(embeddings))
    assert np.isnan(found.monosemanticity[0])
    assert found.monosemanticity[1] == pytest.approx(monosemanticity(other, embeddings))
    assert (found.score == found.monosemanticity)[1]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.sampled_from(KINDS), st.integers(0, 5), st.integers(1, 9), st.booleans())
def test_chunks_and_layout_change_nothing(rows_a_chunk, kind, seed, top, sampled):
    rng = np.random.default_rng(seed)
    codes = np.round(rng.normal(size=(40, 6)), 1) * (rng.random((40, 6)) < 0.5)  # many equal values
    labels, embeddings = rng.integers(0, 3, 40), held(rng.normal(size=(40, 4)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monoeval.metrics.separation.WIDEST_GRAM", 5 if sampled else 6)
        patch.setattr("monoeval.metrics.separation.SAMPLED_ROWS", 20)
        whole = measure(codes_of(codes), labels, 3, reference=embeddings, top=top)
        patch.setattr(streams, "CHUNK_ENTRIES", 6 * rows_a_chunk)
        same(whole, measure(codes_of(codes, kind), labels, 3, reference=embeddings, top=top))


@pytest.mark.parametrize("kind", KINDS)
def test_some_rows_are_measured_as_if_they_were_all(kind):
    codes, labels = planted()
    embeddings = np.random.default_rng(1).normal(size=(120, 5))
    rows = np.random.default_rng(2).permutation(120)[:70]
    some = measure(codes_of(codes, kind), labels[rows], 4, rows=rows, reference=held(embeddings), top=4)
    alone = measure(codes_of(codes[rows], kind), labels[rows], 4, reference=held(embeddings[rows]), top=4)
    same(some, replace(alone, top_rows=np.where(alone.top_rows < 0, -1, rows[alone.top_rows])))


def test_chance_loses_what_labels_give():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 500)
    codes = np.eye(5)[labels] * rng.uniform(1, 2, (500, 1))
    whole = measure(codes_of(codes, "sparse"), labels, 5).summary()
    assert whole["consistency"] == whole["top_consistency"] == 1
    assert whole["entropy"] == pytest.approx(0, abs=1e-12)
    assert whole["consistency_chance"] < 0.35
    assert whole["entropy_chance"] > 0.95
    again, other = (measure(codes_of(codes), labels, 5, seed=s).consistency_chance for s in (0, 1))
    assert again.mean() == whole["consistency_chance"]
    assert not np.array_equal(again, other)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_that_are_all_zero(kind):
    found = measure(codes_of(np.zeros((9, 3)), kind), np.arange(9) % 3, 3, reference=held(np.ones((9, 2))))
    assert found.fired.tolist() == found.energy.tolist() == [0, 0, 0]
    whole = found.summary()
    assert whole["dead_share"] == 1
    assert whole["l0"] == whole["l0_std"] == 0
    assert all(np.isnan(whole[name]) for name in ("consistency", "entropy", "monosemanticity", "effective_rank"))
    assert (found.top_rows == -1).all()
    assert (found.top_class == -1).all()


def test_one_class_is_always_consistent_and_has_no_entropy():
    found = measure(codes_of(np.ones((8, 2))), np.zeros(8), 1, top=3)
    assert found.consistency.tolist() == found.top_consistency_chance.tolist() == [1, 1]
    assert np.isnan(found.entropy).all()


def test_a_single_row():
    found = measure(codes_of([[1.0, 0.0]]), [0], 2, top=1, reference=held([[1.0, 2.0]]))
    assert found.top_consistency == pytest.approx([1, np.nan], nan_ok=True)
    assert np.isnan(found.monosemanticity_chance)
    assert found.effective_rank == pytest.approx(1)


@pytest.mark.parametrize(
    ("codes", "labels", "reference", "message"),
    [
        (np.zeros((0, 2)), [], None, "at least one row"),
        (np.ones((3, 2)), [0, 1], None, "3 rows of codes have 2 labels"),
        (np.ones((3, 2)), [0, 1, 2], None, "Labels run from 0 to 2 and there are 2 classes"),
        (np.ones((3, 2)), [-1, 1, 1], None, "Labels run from -1"),
        (np.full((3, 2), np.nan), [0, 1, 1], None, "not finite"),
        (np.ones((3, 2)), [0, 1, 1], np.ones((4, 2)), "4 rows and the codes have 3"),
        (np.ones((3, 2)), [0, 1, 1], np.zeros((3, 2)), "as zeros"),
    ],
)
def test_what_does_not_fit_is_one_sentence(codes, labels, reference, message):
    with pytest.raises(MonoevalError, match=message):
        measure(codes_of(codes), labels, 2, reference=None if reference is None else held(reference))


def ranked(rng: np.random.Generator, width: int = 900) -> Latents:
    """Latents whose score rises with their firing rate and energy, which is what matching has to undo."""
    base = measure(codes_of(np.ones((2, 1))), [0, 0], 1)
    fired = 10 ** rng.uniform(-4, -1, width)
    fired[rng.random(width) < 0.1] = 0
    energy = fired * rng.lognormal(size=width)
    score = 0.2 * np.log10(np.maximum(fired, 1e-9)) + rng.normal(0, 0.1, width)
    return replace(base, fired=fired, energy=energy, monosemanticity=np.where(fired > 0, score, np.nan))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 200))
def test_choices_differ_in_score_and_agree_in_rate_and_energy(seed, count):
    latents = ranked(np.random.default_rng(seed))
    most, least, drawn = (choose_latents(latents, which, count, seed=0) for which in ("most", "least", "random"))
    for chosen in (most, least, drawn):
        assert len(np.unique(chosen)) == count
        assert (np.diff(chosen) > 0).all()
        assert latents.living[chosen].all()
    assert not np.intersect1d(most, least).size
    assert latents.score[most].mean() > latents.score[least].mean()
    if count >= 100:
        spread = np.log10(latents.fired[latents.living]).std()
        naive = np.argsort(np.where(latents.living, latents.score, -np.inf))[-count:]
        for name in ("fired", "energy"):
            values = np.log10(np.maximum(getattr(latents, name), 1e-12))
            assert abs(values[most].mean() - values[least].mean()) < 0.15 * spread
            assert abs(values[drawn].mean() - values[least].mean()) < 0.15 * spread
            assert abs(values[naive].mean() - values[least].mean()) > 0.5 * spread


def test_choices_are_repeatable_and_follow_the_seed():
    latents = ranked(np.random.default_rng(0))
    for which in ("most", "least", "random"):
        assert np.array_equal(
            choose_latents(latents, which, 50, seed=1), choose_latents(latents, which, 50, seed=1)
        )
    assert not np.array_equal(
        choose_latents(latents, "random", 50, seed=1), choose_latents(latents, "random", 50, seed=2)
    )
    assert np.array_equal(choose_latents(latents, "most", 50, seed=1), choose_latents(latents, "most", 50, seed=2))


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 200))
def test_a_quarter_of_the_latents_can_always_be_matched(living):
    latents = ranked(np.random.default_rng(0), living)
    latents = replace(latents, fired=np.full(living, 0.5), monosemanticity=np.ones(living))  # all alike
    most, least = (choose_latents(latents, which, living // 4, seed=0) for which in ("most", "least"))
    assert len(most) == len(least) == living // 4
    assert not np.intersect1d(most, least).size


@pytest.mark.parametrize(("fires", "says"), [(19, "None of 3 latents"), (20, "Only one of 3 latents")])
def test_latents_of_which_less_than_two_have_a_score_say_what_it_takes(fires, says):
    codes = np.zeros((30, 3))
    codes[:fires, 0] = 1
    codes[:4, 1] = 2
    latents = measure(codes_of(codes), np.arange(30) % 2, 2)
    with pytest.raises(MonoevalError, match=f"{says} has a score, which takes 20 of the 30 rows") as told:
        choose_latents(latents, "most", seed=0)
    assert "1 to 1" not in str(told.value)
    assert "measure more rows" in str(told.value)


@pytest.mark.parametrize("count", [0, -1, 451])
def test_too_many_latents_cannot_be_matched(count):
    with pytest.raises(MonoevalError, match="cannot be matched"):
        choose_latents(ranked(np.random.default_rng(0)), "most", count, seed=0)
