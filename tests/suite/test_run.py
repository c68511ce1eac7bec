"""Runs of small recipes: complete, resumable after a kill at any moment, and honest about failures."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import monoeval
from monoeval.backbones.extract import extract
from monoeval.backbones.load import load_backbone
from monoeval.backbones.spec import BackboneSpec
from monoeval.data import load as loading
from monoeval.data.load import load_data
from monoeval.errors import MonoevalError, UsageError
from monoeval.probes.spec import PROBES
from monoeval.suite.forecast import forecast
from monoeval.suite.ledger import Row, read_rows
from monoeval.suite.plan import make_plan
from monoeval.suite.recipe_files import load_recipe
from monoeval.suite.run import run

TINY = {"pretrain": {"objective": "simclr", "epochs": 1, "width": 16, "image_size": 8}}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "digits", "limit": 100},
    "seeds": 2,
    "backbones": {"CL": TINY},
    "arms": [
        {"name": "CL", "backbone": "CL"},
        {
            "name": "CL + sae",
            "backbone": "CL",
            "method": "sae",
            "params": {"width_factor": 2, "k": 4, "steps": 20},
            "baseline": "CL",
            "controls": ["CL + relu"],
        },
        {"name": "CL + relu", "backbone": "CL", "method": "relu", "baseline": "CL"},
    ],
    "probe": {"l2": [1e-3, 1e-1]},
    "scenarios": [
        "clean",
        {"name": "label-noise", "rates": [0, 0.4]},
        {"name": "input-noise", "kinds": ["gaussian"], "levels": [0.4]},
        {"name": "few-shot", "shots": [1, 2], "repeats": 2},
        {"name": "ood", "target": {"name": "digits-printed", "limit": 100}},
    ],
}


def comparable(rows: list[Row]) -> dict[tuple[str, str], dict[str, object]]:
    return {(r.arm, r.key): r.model_dump(exclude={"seconds"}) for r in rows}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONOEVAL_CACHE", str(folder / "cache"))
        rows = monoeval.run(RECIPE, out=folder / "runs")
    return folder, rows


def test_every_planned_score_is_there_with_its_sidecars(undisturbed: tuple[Path, list[Row]]) -> None:
    folder, rows = undisturbed
    run_folder = next((folder / "runs").iterdir())
    # per seed and arm: clean 1, label noise 2, input noise 1, few-shot 2 × 2 repeats, ood 2
    assert len(rows) == 2 * 3 * (1 + 2 + 1 + 4 + 2)
    assert {row.status for row in rows} == {"ok"}
    assert {row.probe_kind for row in rows} == {"logistic"}
    for row in rows:
        assert (run_folder / f"tests/{row.test}.parquet").is_file()
        assert (run_folder / str(row.predictions)).is_file()
    assert {p.name for p in run_folder.iterdir()} >= {"recipe.yaml", "results.jsonl", "report.html", "report.md"}
    assert not list(run_folder.rglob("*.tmp"))


def test_accuracy_is_that_of_the_predictions_kept(undisturbed: tuple[Path, list[Row]]) -> None:
    import pyarrow.parquet as pq

    folder, rows = undisturbed
    run_folder = next((folder / "runs").iterdir())
    for row in rows[::7]:
        labels = pq.read_table(run_folder / f"tests/{row.test}.parquet")["label"].to_numpy()
        kept = pq.read_table(run_folder / str(row.predictions))
        assert row.rows == len(labels)
        assert row.accuracy == pytest.approx(np.mean(kept["prediction"].to_numpy() == labels))
        assert row.log_loss == pytest.approx(np.mean(kept["log_loss"].to_numpy()), rel=1e-5)


def test_realised_noise_is_the_floor_of_the_rate(undisturbed: tuple[Path, list[Row]]) -> None:
    noisy = [row for row in undisturbed[1] if row.protocol == "label-noise/symmetric@0.4"]
    assert {row.realised_rate for row in noisy} == {0.4}
    assert [row.label_signal for row in noisy] == pytest.approx([0.6 - 0.4 / 9] * len(noisy))


def test_running_again_makes_nothing_and_gives_the_same_rows(undisturbed: tuple[Path, list[Row]]) -> None:
    folder, rows = undisturbed
    report = next((folder / "runs").iterdir()) / "report.html"
    written = report.stat().st_mtime_ns
    again = run(RECIPE, out=folder / "runs")
    assert again.made == 0
    assert again.rows == rows
    assert report.stat().st_mtime_ns == written


def test_more_arms_and_seeds_take_over_what_is_there(
    undisturbed: tuple[Path, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows = undisturbed
    monkeypatch.setenv("MONOEVAL_CACHE", str(folder / "cache"))
    pca = {"name": "CL + l2norm", "backbone": "CL", "method": "l2norm", "baseline": "CL"}
    more = run({**RECIPE, "arms": [*RECIPE["arms"], pca]}, out=folder / "runs")
    assert more.made == len(rows) // 3
    old = comparable(rows)
    assert {k: v for k, v in comparable(more.rows).items() if k in old} == old
    seeded = run({**RECIPE, "seeds": 3}, out=folder / "runs")
    assert seeded.made == len(rows) // 2
    assert run({**RECIPE, "seeds": 1}, out=folder / "runs").made == 0


def test_killed_again_and_again_it_finishes_with_the_same_rows(
    undisturbed: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    _, rows = undisturbed
    recipe, runs = tmp_path / "tiny.json", tmp_path / "runs"
    recipe.write_text(json.dumps(RECIPE))
    code = f"import json, monoeval; monoeval.run(json.load(open({str(recipe)!r})), out={str(runs)!r})"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "MONOEVAL_CACHE": str(tmp_path / "cache")}
    survived = 0
    for moment in (0.15, 0.7):
        process, deadline = subprocess.Popen(command, env=environment), time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            written = sum(p.read_bytes().count(b"\n") for p in runs.glob("*/results.jsonl"))
            if written >= moment * len(rows):
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = read_rows(next(runs.glob("*/results.jsonl")).parent)
        assert survived < len(kept) < len(rows), "the kill came too early or too late to test anything"
        survived = len(kept)
    finished = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    assert "Traceback" not in finished.stderr
    assert comparable(read_rows(next(runs.glob("*/results.jsonl")).parent)) == comparable(rows)


def test_too_many_shots_stop_before_anything_starts(tmp_path: Path) -> None:
    greedy = {**RECIPE, "scenarios": [{"name": "few-shot", "shots": [16]}]}
    with pytest.raises(UsageError, match="class '0' of digits has 10"):
        run(greedy, out=tmp_path)
    assert not list(tmp_path.rglob("results.jsonl"))


def test_a_failing_group_is_a_row_and_the_others_go_on(
    undisturbed: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import monoeval.suite.frozen as frozen

    monkeypatch.setenv("MONOEVAL_CACHE", str(undisturbed[0] / "cache"))
    score = frozen.score

    def fails_for_relu(group: Any, device: str) -> Any:
        if group.arm.method == "relu":
            raise MonoevalError("planted")
        return score(group, device)

    monkeypatch.setattr(frozen, "score", fails_for_relu)
    broken = run(RECIPE, out=tmp_path)
    assert {row.arm for row in broken.failed} == {"CL + relu"}
    assert {row.error for row in broken.failed} == {"planted"}
    assert len(broken.rows) == len(undisturbed[1])
    monkeypatch.setattr(frozen, "score", score)
    mended = run(RECIPE, out=tmp_path)
    assert not mended.failed
    assert comparable(mended.rows) == comparable(undisturbed[1])


def test_scores_that_are_not_numbers_are_marked(
    undisturbed: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import monoeval.suite.frozen as frozen

    monkeypatch.setenv("MONOEVAL_CACHE", str(undisturbed[0] / "cache"))
    monkeypatch.setattr(frozen, "fit_probes", _nan_probes)
    broken = run({**RECIPE, "scenarios": ["clean"], "seeds": 1}, out=tmp_path)
    assert {row.status for row in broken.rows} == {"nan"}
    assert len(broken.failed) == len(broken.rows) == 3


def _nan_probes(codes: Any, problems: Any, n_classes: int, *_: Any, **__: Any) -> Any:
    import torch

    from monoeval.probes.problem import Choice, LinearProbes

    weights = torch.full((len(problems), n_classes, codes.width), float("nan"))
    return LinearProbes(weights, torch.zeros(weights.shape[:2]), [Choice(l2=1.0) for _ in problems])


def test_what_changes_the_features_changes_the_key() -> None:
    from monoeval.suite.plan import make_plan
    from monoeval.suite.recipe_files import load_recipe

    def keys(backbone: dict[str, Any], **arm: Any) -> set[str]:
        small = {
            "arms": [{"name": "a", "backbone": "CL", **arm}],
            "backbones": {"CL": backbone},
            "scenarios": ["clean"],
        }
        return {k for g in make_plan(load_recipe({**RECIPE, **small})).groups for k in g.keys}

    same = keys(TINY)
    assert same == keys(TINY)
    for change in ({"image_size": 16}, {"layer": "backbone"}, {"precision": "bf16"}):
        assert not same & keys({**TINY, **change})
    assert not same & keys({"pretrain": {**TINY["pretrain"], "objective": "ncl"}})
    sae = {"method": "sae", "params": {"k": 4}}
    assert keys(TINY, **sae) == keys(TINY, method="sae", params={"k": 4, "width_factor": 8})
    assert not keys(TINY, **sae) & keys(TINY, method="sae", params={"k": 5})


def test_the_probe_decides_the_key_whoever_names_it() -> None:
    def keys(recipe_probe: Any, arm_probe: Any = None) -> set[str]:
        arms = [{"name": "a", "backbone": "CL", "probe": arm_probe}]
        small = {"arms": arms, "probe": recipe_probe, "scenarios": ["clean"], "seeds": 1}
        (group,) = make_plan(load_recipe({**RECIPE, **small})).groups
        return set(group.keys)

    assert keys("gce") == keys("logistic", "gce") == keys("knn", {"kind": "gce", "q": 0.7})
    made = [keys(kind) for kind in PROBES]
    made += [keys({"kind": "gce", "q": 0.5}), keys({"balanced": True})]
    assert len(set.union(*made)) == len(made)


def pictures(folder: Path, names: str, count: int = 6) -> Path:
    from PIL import Image

    rng = np.random.default_rng(len(folder.name))
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 90, (12, 12, 3), dtype=np.uint8) + np.uint8(80 * (ord(name) - ord("a")))
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def folder_recipe(source: Path, target: Path) -> dict[str, Any]:
    arm = {"name": "CL", "backbone": "CL"}
    scenarios = ["clean", {"name": "ood", "target": str(target)}]
    return {**RECIPE, "seeds": 1, "data": str(source), "arms": [arm], "scenarios": scenarios}


def test_a_target_with_one_split_is_scored_whole_and_on_shared_classes(tmp_path: Path) -> None:
    source, target = pictures(tmp_path / "source", "abc"), pictures(tmp_path / "target", "bcd")
    rows = run(folder_recipe(source, target), out=tmp_path / "runs").rows
    of = {(row.scenario, row.level): row for row in rows}
    assert of["ood", 1].rows == 12  # b and c, every image
    assert of["ood", 0].rows == 4  # of the held-out two of each, b and c
    assert of["clean", 0].rows == 6


def test_rows_of_data_that_has_changed_are_not_shown(tmp_path: Path) -> None:
    source, target = pictures(tmp_path / "source", "abc"), pictures(tmp_path / "target", "abc")
    changed = source / "a" / "3.png"
    before = changed.read_bytes()
    changed.write_bytes((source / "b" / "3.png").read_bytes())
    first = run(folder_recipe(source, target), out=tmp_path / "runs")
    changed.write_bytes(before)
    loading._loaded.cache_clear()  # as of another process
    second = run(folder_recipe(source, target), out=tmp_path / "runs")
    assert second.folder == first.folder
    assert second.made == len(second.rows) == len(first.rows)
    assert {row.key for row in read_rows(second.folder)} == {row.key for row in second.rows}
    assert not {row.key for row in first.rows} & {row.key for row in second.rows}


def test_a_damaged_image_ends_the_run_with_one_sentence(tmp_path: Path) -> None:
    source, target = pictures(tmp_path / "source", "abc"), pictures(tmp_path / "target", "abc")
    for path in (source / "a").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    several = r"^\d+ of the \d+ images .* are damaged: .*\.png .*, .*\.png .*: delete or"
    with pytest.raises(UsageError, match=several):
        run(folder_recipe(source, target), out=tmp_path / "runs")


def test_scores_do_not_depend_on_where_the_data_lies(tmp_path: Path) -> None:
    import shutil

    recipes = []
    for place in ("here", "there"):
        source, target = tmp_path / place / "source", tmp_path / place / "target"
        if place == "here":
            pictures(source, "abc"), pictures(target, "abc")
        else:
            shutil.copytree(tmp_path / "here", tmp_path / "there")
        recipes.append(folder_recipe(source, target))
    first = run(recipes[0], out=tmp_path / "runs")
    assert run(recipes[1], out=tmp_path / "runs").made == 0
    assert first.made == len(first.rows)


def test_classes_of_one_domain_alone_are_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for domain, classes in (
        ("here", ("cat", "dog", "eel")),
        ("there", ("cat", "dog", "fox")),
        ("far", ("a", "b")),
    ):
        for name in classes:
            (tmp_path / domain / name).mkdir(parents=True)
            for i in range(4):
                (tmp_path / domain / name / f"{i}.png").write_bytes(bytes([i]))  # a plan decodes nothing

    def plan(target: str) -> None:
        ood = {"name": "ood", "target": str(tmp_path / target)}
        make_plan(load_recipe({**RECIPE, "seeds": 1, "data": str(tmp_path / "here"), "scenarios": [ood]}))

    plan("there")
    assert "here alone are not scored under ood, 1 of 3: eel." in caplog.text
    assert "there alone are not scored under ood, 1 of 3: fox." in caplog.text
    with pytest.raises(UsageError, match=r"far share 0 of 3 .*\(source: cat, dog, eel; target: a, b\)"):
        plan("far")
    for odd, there in ((20, "many"), (21, "more")):
        for name in ("cat", "dog", *(f"x{i:02}" for i in range(odd))):
            (tmp_path / there / name).mkdir(parents=True)
            for i in range(4):
                (tmp_path / there / name / f"{i}.png").write_bytes(bytes([i]))
        plan(there)
    twenty = ", ".join(f"x{i:02}" for i in range(20))
    assert f"many alone are not scored under ood, 20 of 22: {twenty}." in caplog.text
    assert f"more alone are not scored under ood, 21 of 23: {twenty}, … (21 in all)." in caplog.text


def test_a_whole_cache_may_be_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "cache"))
    few = {**RECIPE, "seeds": 1, "scenarios": ["clean"]}
    made = monoeval.run(few, out=tmp_path / "one")
    for lock in (tmp_path / "cache").rglob("*.lock"):
        lock.unlink()
        lock.mkdir()  # what cannot be opened; a superuser may write anywhere
    assert comparable(monoeval.run(few, out=tmp_path / "two")) == comparable(made)


def test_a_forecast_counts_what_a_run_makes(
    undisturbed: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows = undisturbed
    before = forecast(load_recipe(RECIPE), tmp_path / "runs")
    assert before["scores to make"] == len(rows)
    assert before["backbones to pretrain"] == 2
    # for each of two seeds 100 training rows, and 100 test rows: clean, with noise, and printed
    assert before["images to extract"] == 2 * (100 + 3 * 100)
    assert not (tmp_path / "runs").exists()
    monkeypatch.setenv("MONOEVAL_CACHE", str(folder / "cache"))
    cached = forecast(load_recipe(RECIPE), tmp_path / "runs")
    assert (cached["images to extract"], cached["images in the cache"]) == (0, 800)
    after = forecast(load_recipe(RECIPE), folder / "runs")
    assert (after["scores to make"], after["scores there already"]) == (0, len(rows))


@pytest.mark.parametrize(("settings", "passes"), [({"epochs": 3}, 3), ({"epochs": 3, "views": 2}, 2)])
def test_a_forecast_counts_the_views_of_the_paper_probe(
    tmp_path: Path, settings: dict[str, int], passes: int
) -> None:
    few = {**RECIPE, "seeds": 1, "arms": RECIPE["arms"][:1], "scenarios": ["clean"]}
    cached = forecast(load_recipe({**few, "probe": "paper-cached"}), tmp_path)
    assert cached["images to extract"] == 100 + 100  # training and test rows
    paper = forecast(load_recipe({**few, "probe": {"kind": "paper", **settings}}), tmp_path)
    assert paper["images to extract"] == 100 + 100 + passes * 100
    head = {"name": "head", "backbone": "CL", "method": "ncl-head", "params": {"n_views": passes}}
    assert forecast(load_recipe({**few, "arms": [head]}), tmp_path)["images to extract"] == 200 + passes * 100


def test_a_forecast_passes_over_runs_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "results.jsonl").write_text('{"schema_version": 1}\n')
    few = load_recipe({**RECIPE, "seeds": 1, "scenarios": ["clean"]})
    assert forecast(few, tmp_path)["scores to make"] == 3


def test_measures_are_of_held_out_images_and_chosen_latents_differ_in_them(tmp_path: Path) -> None:
    arm = {**RECIPE["arms"][1], "params": {"width": 64, "k": 8, "steps": 50}, "baseline": None, "controls": []}
    recipe = {**RECIPE, "data": {"name": "digits", "limit": 300}, "seeds": 1, "arms": [arm], "latents": True}
    noise = {"name": "input-noise", "kinds": ["gaussian"], "levels": [0.1, 1.0]}
    rows = monoeval.run({**recipe, "scenarios": ["clean", noise]}, out=tmp_path)
    little, much = (row.drift for row in rows if row.arm == "CL + sae" and row.drift)
    assert 1 > little["cosine"] > much["cosine"]
    assert 1 > little["jaccard"] > much["jaccard"]
    measured = {row.arm.removeprefix("CL + sae").removeprefix(", "): row.adapter for row in rows}
    assert measured.keys() == {"", "random latents", "most monosemantic", "least monosemantic"}
    assert measured["most monosemantic"]["top_consistency"] > measured["least monosemantic"]["top_consistency"]
    assert 0 < measured[""]["top_consistency_chance"] < measured[""]["top_consistency"] < 1
    assert measured["random latents"]["l0"] < measured[""]["l0"] <= 8


def test_a_reference_model_judges_how_alike_images_of_a_latent_are(tmp_path: Path) -> None:
    few = {**RECIPE, "seeds": 1, "scenarios": ["clean"]}
    judge = {"model": "test_resnet", "weights": "random", "image_size": 32}
    study = load_recipe({**few, "reference": judge})
    assert forecast(study, tmp_path)["images to extract"] == 100 + 100 + 100  # the test images twice
    rows = run(study, out=tmp_path).rows
    backbone = load_backbone(BackboneSpec.model_validate(judge), device="cpu")
    images = load_data(study.data).test
    e = torch.nn.functional.normalize(extract(backbone, "judge", images, [None])[0].load().double())
    any_two = float((e @ e.T).triu(1).sum() / (100 * 99 / 2))
    for row in rows:
        assert row.adapter["monosemanticity_chance"] == pytest.approx(any_two, abs=1e-4)
        assert any_two != row.adapter["monosemanticity"] < 1
    assert len({row.adapter["monosemanticity"] for row in rows}) == len(rows)
    assert not any("monosemanticity" in row.adapter for row in run(load_recipe(few), out=tmp_path).rows)
    with pytest.raises(UsageError, match="reference names CL, which is evaluated"):
        load_recipe({**few, "backbones": {"CL": judge}, "reference": {**judge, "layer": "layer1"}}).resolved()


BAD_JUDGES = """
from torch import nn

class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x.mean((2, 3))

def zeros():
    return Times(0.0)

def nans():
    return Times(float("nan"))
"""


def test_a_reference_that_cannot_judge_takes_no_other_measure_with_it(tmp_path: Path, caplog: Any) -> None:
    few = {**RECIPE, "seeds": 1, "scenarios": ["clean"]}
    (tmp_path / "bad.py").write_text(BAD_JUDGES)
    zeros, nans = ({"model": f"{tmp_path}/bad.py:{name}", "image_size": 32} for name in ("zeros", "nans"))
    plain = run(load_recipe(few), out=tmp_path)
    (pretrained,) = (tmp_path / "cache" / "pretrained").glob("*/backbone.json")
    itself = {"model": str(pretrained.parent)}
    said = ("as zeros", "not finite", "is CL itself, as it was pretrained")
    for judge, why in zip((zeros, nans, itself), said, strict=True):
        with caplog.at_level(logging.WARNING, "monoeval"):
            rows = run(load_recipe({**few, "reference": judge}), out=tmp_path).rows
        assert why in caplog.text
        assert [row.adapter for row in rows] == [row.adapter for row in plain.rows]


def test_a_control_matches_the_width_and_the_measured_sparsity(tmp_path: Path) -> None:
    sae = {**RECIPE["arms"][1], "method": "sae-l1", "params": {"width": 48, "steps": 20}, "controls": []}
    twin = {"name": "twin", "backbone": "CL", "method": "random-topk", "match": sae["name"]}
    recipe = {**RECIPE, "seeds": 1, "arms": [{"name": "CL", "backbone": "CL"}, sae, twin], "scenarios": ["clean"]}
    arms = {row.arm: row for row in monoeval.run(recipe, out=tmp_path)}
    assert arms["twin"].adapter["width"] == 48
    assert abs(arms["twin"].adapter["l0"] - arms["CL + sae"].adapter["l0"]) < 1.5  # another's rows, and rounded
    other = {**sae, "params": {"width": 48, "steps": 21}}
    again = {r.arm: r for r in monoeval.run({**recipe, "arms": [recipe["arms"][0], other, twin]}, out=tmp_path)}
    assert again["twin"].key != arms["twin"].key


def test_a_measure_that_cannot_be_made_takes_no_score_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise TypeError("this device has no float64")

    monkeypatch.setattr("monoeval.suite.measures._found", {})
    monkeypatch.setattr("monoeval.suite.measures.measure", broken)
    monkeypatch.setattr("monoeval.suite.measures.drift", broken)
    noise = {"name": "input-noise", "kinds": ["gaussian"], "levels": [0, 0.4]}
    few = {**RECIPE, "seeds": 1, "arms": RECIPE["arms"][:1], "scenarios": [noise]}
    rows = monoeval.run(few, out=tmp_path)
    assert [row.status for row in rows] == ["ok", "ok"]
    assert not any(row.drift for row in rows)
    assert "CL is not measured: this device has no float64" in caplog.text


def test_fresh_takes_the_place_of_old_scores_only_once_there_are_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monoeval.report.write", lambda _: None)
    few = {**RECIPE, "scenarios": ["clean"]}
    first = run(few, out=tmp_path)
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="gpu"):
        run(few, out=tmp_path, fresh=True, device="gpu")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("monoeval.suite.frozen.score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(few, out=tmp_path, fresh=True)
    assert {path: path.read_bytes() for path in before} == before
    assert forecast(load_recipe(few), tmp_path)["scores to make"] == 0
    assert forecast(load_recipe(few), tmp_path, fresh=True)["scores to make"] == len(first.rows)
    again = run(few, out=tmp_path, fresh=True)
    assert again.made == len(first.rows)
    assert [row.accuracy for row in again.rows] == [row.accuracy for row in first.rows]


def test_a_study_that_cannot_start_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gpu"):
        run({**RECIPE, "scenarios": ["clean"]}, out=tmp_path / "runs", device="gpu")
    assert list((tmp_path / "runs").iterdir()) == []
