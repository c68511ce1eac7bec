"""An adapter is trained where it explains more of held-out rows than its untrained self, and reports tell."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import monoeval
from monoeval.adapters.base import Codes
from monoeval.adapters.learned import not_trained
from monoeval.adapters.registry import METHODS, build
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.settings import ScheduleSettings
from monoeval.adapters.spec import AdapterSpec
from monoeval.adapters.subset import Subset
from monoeval.backbones.features import FeatureSet
from monoeval.metrics.dictionary import explained_variance
from monoeval.report.summary import summarise
from monoeval.report.wording import adapter_table
from monoeval.suite import measures

CPU = torch.device("cpu")
TRAINED = [name for name, method in METHODS.items() if issubclass(method.settings, ScheduleSettings)]


def gaussian(folder: Path, rows: int, width: int, seed: int) -> FeatureSet:
    path = folder / f"{rows}-{width}-{seed}.npy"
    np.save(path, np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32))
    return FeatureSet(path.stem, (path,))


def test_rows_learned_by_heart_are_not_training(tmp_path: Path) -> None:
    """200 rows without structure: an autoencoder knows all of them, and of others less than before."""
    train, test = gaussian(tmp_path, 200, 64, 0), gaussian(tmp_path, 300, 64, 1)
    adapter = build(AdapterSpec(method="sae", params={"width": 256, "k": 8, "steps": 1500}))
    adapter.fit(TrainingRows(train, None, CPU), seed=0)
    assert adapter.measures["explained_variance"] > 0.9
    assert not_trained(adapter.measures) == ""
    found = measures.explained(Codes(test, adapter, CPU), train, 0)
    own, before = (found[f"explained_variance{which}_held_out"] for which in ("", "_untrained"))
    assert own < before < 0.5
    x = test.load().double()
    centred = train.load().double() - train.load().double().mean(0)
    leading = torch.linalg.svd(centred)[2][: round(adapter.measures["l0"])]
    moved = x - train.load().double().mean(0)
    missed = (moved - moved @ leading.T @ leading).square().sum() / (x - x.mean(0)).square().sum()
    assert found["explained_variance_pca"] == pytest.approx(1 - float(missed), abs=1e-4)
    said = not_trained({**adapter.measures, **found})
    assert said.startswith(f"it explains {100 * own:.1f} % of the variance of held-out rows, its untrained self")
    with_rows_alone = measures.explained(Codes(test, adapter, CPU), train, None)
    assert list(with_rows_alone) == ["explained_variance_held_out"]


@pytest.mark.parametrize("method", TRAINED)
def test_the_untrained_self_is_the_start_of_the_same_seed_with_equal_l0(method: str, tmp_path: Path) -> None:
    train = gaussian(tmp_path, 150, 12, 0)
    spec = AdapterSpec(method=method, params={"width": 48, "steps": 30})
    rows = TrainingRows(train, None, CPU, [train] * 4)
    adapter = build(spec).fit(rows, seed=3)
    start = adapter.untrained(rows, seed=3)
    assert start is not None
    codes = Codes(train, start, CPU).dense()
    if method in ("sae-batchtopk", "sae-jumprelu", "sae-l1", "sae-gated"):
        wanted = max(1, round(adapter.measures["l0"]))
        assert ((codes > 0).sum(1) <= wanted).all()
        assert float((codes > 0).float().sum(1).mean()) == pytest.approx(wanted, rel=0.05)
    else:
        untrained = adapter.measures["explained_variance_untrained"]
        assert explained_variance(Codes(train, start, CPU)) == pytest.approx(untrained, abs=1e-6)
    other = adapter.untrained(rows, seed=4)
    assert other is not None
    assert not torch.equal(codes, Codes(train, other, CPU).dense())


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, ""),
        ({"explained_variance": 0.4, "explained_variance_untrained": 0.3}, ""),
        (
            {"explained_variance": 0.3, "explained_variance_untrained": 0.3},
            "30.0 % of the variance of its training",
        ),
        ({"explained_variance": float("nan"), "explained_variance_untrained": 0.3}, "it explains no number of"),
        ({"explained_variance": 0.9}, ""),  # PCA has no untrained self
        ({"l0": 3.0, "steps": 0.0}, "it took no step"),
        ({"l0": 3.0, "steps": 300.0}, ""),
        ({"whole_explained_variance": 0.2, "whole_explained_variance_untrained": 0.3}, "20.0 %"),
        ({"whole_steps": 0, "l0": 1.0}, "it took no step"),
    ],
)
def test_what_measures_tell(found: dict[str, float], said: str) -> None:
    assert said in not_trained(found)
    assert bool(said) == bool(not_trained(found))


def test_held_out_rows_decide_where_both_figures_are_there() -> None:
    training = {"explained_variance": 0.9, "explained_variance_untrained": 0.3, "steps": 9.0}
    held_out = {"explained_variance_held_out": 0.2, "explained_variance_untrained_held_out": 0.4}
    assert "held-out rows" in not_trained({**training, **held_out})
    assert not not_trained({**training, "explained_variance_held_out": 0.2})
    assert not not_trained({**training, **held_out, "explained_variance_held_out": 0.5})
    assert not_trained({**training, **held_out, "explained_variance_held_out": float("nan")})


@pytest.mark.parametrize("head", ["cl-head", "ncl-head"])
def test_a_head_that_took_no_step_is_not_trained(head: str, tmp_path: Path) -> None:
    train = gaussian(tmp_path, 60, 8, 0)
    rows = TrainingRows(train, None, CPU, [train] * 4)
    idle, trained = (
        build(AdapterSpec(method=head, params={"width": 16, "steps": steps})).fit(rows, seed=0) for steps in (0, 2)
    )
    assert not_trained(idle.report()) == not_trained(Subset(idle, np.arange(4)).report()) == "it took no step"
    assert not_trained(trained.report()) == ""


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("runs")
    sae = {"backbone": "net", "method": "sae", "params": {"width": 128, "k": 4, "steps": 800}, "baseline": "raw"}
    recipe = {
        "data": {"name": "digits", "limit": 60},
        "seeds": 2,
        "backbones": {"net": {"model": "test_resnet", "weights": "random", "image_size": 32, "precision": "fp32"}},
        "arms": [
            {"name": "raw", "backbone": "net"},
            {"name": "sae", **sae},
            {"name": "idle", **sae, "params": {"width": 128, "k": 4, "steps": 0}},
            {"name": "pca", "backbone": "net", "method": "pca", "baseline": "raw"},
            {"name": "idle, most", **sae, "params": {"width": 64, "k": 20, "steps": 0}, "latents": "most"},
            {"name": "idle, least", **sae, "params": {"width": 64, "k": 20, "steps": 0}, "latents": "least"},
        ],
        "probe": {"l2": [1e-2]},
        "scenarios": ["clean"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONOEVAL_CACHE", str(out / "cache"))
        patch.setattr("monoeval.metrics.dictionary.WIDEST_EXACT", 100)
        rows = monoeval.run(recipe, out=out)
    assert {row.status for row in rows} == {"ok"}
    return summarise(next(path for path in out.iterdir() if path.name != "cache"))


def test_a_study_measures_both_on_held_out_images(summary: Any) -> None:
    sae, pca = summary.adapters["sae"], summary.adapters["pca"]
    for name in ("held_out", "untrained_held_out", "pca"):
        assert 0 < sae[f"explained_variance_{name}"] < 1
    assert sae["explained_variance_held_out"] != sae["explained_variance"]
    assert 0.5 < pca["explained_variance_held_out"] <= 1
    kinds = {c.arm: c for c in summary.tables[0].comparisons}
    assert kinds["idle"].kind == "no verdict"
    assert "of the variance of held-out rows" in kinds["idle"].sentence


def test_some_latents_show_no_explained_variance_and_are_judged_by_the_whole(summary: Any) -> None:
    most, least = summary.adapters["idle, most"], summary.adapters["idle, least"]
    assert not [name for name in (*most, *least) if name.startswith("explained")]
    assert most["whole_explained_variance_held_out"] == least["whole_explained_variance_held_out"]
    of = {c.arm: c for c in summary.tables[0].comparisons}
    assert "Adapter not trained" in of["idle, most"].sentence
    headings, lines = adapter_table(summary)
    assert not [heading for heading in headings if "whole" in heading]
    by_arm = {line[0]: dict(zip(headings, line, strict=True)) for line in lines}
    marked = {"idle (not trained)", "idle, most (not trained)", "idle, least (not trained)"}
    assert marked <= {*by_arm}
    assert "pca" in by_arm
    assert by_arm["idle, most (not trained)"]["explained variance, held out"] == ""
    own, before = summary.adapters["idle"], summary.adapters["idle"]["explained_variance_untrained_held_out"]
    shown = by_arm["idle (not trained)"]["explained variance, held out"]
    assert shown == f"{own['explained_variance_held_out']:.3f} ({before:.3f})"
    assert by_arm["pca"]["explained variance, held out"] != ""


def test_a_study_tells_of_a_greedy_matching(summary: Any) -> None:
    assert summary.adapters["sae"]["stability_exact"] == 0
    assert any("stability over seeds of sae and idle was matched greedily" in note for note in summary.notes)
