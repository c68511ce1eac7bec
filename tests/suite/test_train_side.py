"""Studies that change training labels or rows: what is planned, what the ledger says, and what is refused."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from monoeval.data.load import load_data
from monoeval.errors import UsageError
from monoeval.keys import key
from monoeval.scenarios.trial import Fit, LabelNoise, Shots
from monoeval.suite.changes import changed
from monoeval.suite.frozen import problem_of
from monoeval.suite.ledger import Row
from monoeval.suite.plan import make_plan
from monoeval.suite.recipe_files import load_recipe
from monoeval.suite.run import run
from monoeval.suite.trial_rows import training_labels, transitions

TINY = {"pretrain": {"objective": "simclr", "epochs": 1, "width": 16, "image_size": 8}}
MAP = {"1": "7", "3": "8", "8": "3"}

NAMED = {"asymmetric": f"asymmetric/map-{key(MAP)[:6]}", "human": "human/said.txt"}


def recipe(*scenarios: object, **fields: Any) -> dict[str, Any]:
    arms = [
        {"name": "CL", "backbone": "CL"},
        {"name": "CL + relu", "backbone": "CL", "method": "relu", "baseline": "CL"},
    ]
    shared = {"name": "tiny", "data": {"name": "digits", "limit": 200}, "seeds": 1, "backbones": {"CL": TINY}}
    return {**shared, "arms": arms, "probe": {"l2": [1e-3, 1e-1]}, "scenarios": list(scenarios), **fields}


NOISE = {
    "name": "label-noise",
    "kinds": ["symmetric", "symmetric-inclusive", "asymmetric", "instance", "human"],
    "rates": [0, 0.4, 0.6],
    "map": MAP,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Row]]]:
    """Rows of a small run by protocol."""
    folder = tmp_path_factory.mktemp("study")
    labels = load_data(load_recipe(recipe("clean")).data.model_copy(update={"limit": None})).train.labels
    (folder / "said.txt").write_text("\n".join(map(str, np.where(labels == 4, 9, labels))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONOEVAL_CACHE", str(folder / "cache"))
        patch.setattr("monoeval.report.write", lambda _: None)  # of no interest here, and half of the time
        noise = {**NOISE, "file": str(folder / "said.txt")}
        few = {"name": "few-shot", "shots": [], "shares": [0.1, 0.5], "repeats": 1}
        made = run(recipe(noise, few, {"name": "imbalance", "ratios": [1, 5]}), out=folder)
        again = run(recipe(noise, few, {"name": "imbalance", "ratios": [1, 5]}), out=folder)
    assert not made.failed
    assert again.made == 0
    rows: dict[str, list[Row]] = {}
    for row in made.rows:
        rows.setdefault(re.sub(r"said\.txt-[0-9a-f]{6}@", "said.txt@", row.protocol), []).append(row)
    return made.folder, rows


def test_scores_of_another_run_are_taken_over_under_the_ids_of_this_one(
    study: tuple[Path, dict[str, list[Row]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, rows = study
    monkeypatch.setenv("MONOEVAL_CACHE", str(folder / "cache"))
    monkeypatch.setattr("monoeval.report.write", lambda _: None)
    labels = load_data(load_recipe(recipe("clean")).data.model_copy(update={"limit": None})).train.labels
    (tmp_path / "said.txt").write_text("\n".join(map(str, np.where(labels == 4, 8, labels))))
    noise = {**NOISE, "kinds": ["human"], "file": str(tmp_path / "said.txt"), "map": None}
    clean, noisy = run(recipe(noise, arms=[{"name": "CL", "backbone": "CL"}]), out=folder).rows
    before = rows["label-noise/human/said.txt@0"][0]
    assert (clean.key, clean.accuracy) == (before.key, before.accuracy)
    assert clean.protocol != before.protocol
    assert clean.protocol.removesuffix("@0") == noisy.protocol.removesuffix("@1")


def test_every_kind_is_scored_with_what_it_did(study: tuple[Path, dict[str, list[Row]]]) -> None:
    folder, rows = study
    assert all(len(some) == 2 for some in rows.values())  # two arms
    for kind in NOISE["kinds"]:
        (clean,) = {row.label_signal for row in rows[f"label-noise/{NAMED.get(kind, kind)}@0"]}
        assert clean == 1
        assert rows[f"label-noise/{NAMED.get(kind, kind)}@0"][0].transitions is None
    for protocol, some in rows.items():
        if not protocol.startswith("label-noise") or protocol.endswith("@0"):
            continue
        (path,) = {row.transitions for row in some}  # one file for both arms: their labels are the same
        counts = pq.read_table(folder / str(path)).to_pydict()
        changed = sum(n for t, g, n in zip(*counts.values(), strict=True) if t != g)
        assert sum(counts["count"]) == 200
        assert some[0].realised_rate == changed / 200


def test_rates_and_signals_are_those_of_their_kind(study: tuple[Path, dict[str, list[Row]]]) -> None:
    folder, rows = study
    at = {name: some[0] for name, some in rows.items()}
    assert at["label-noise/symmetric@0.4"].realised_rate == 0.4
    assert at["label-noise/symmetric-inclusive@0.4"].realised_rate == pytest.approx(0.4 * 0.9, abs=0.06)
    assert at["label-noise/symmetric-inclusive@0.4"].label_signal == pytest.approx(0.6)
    # 20 rows a class: 8 of each of three classes
    assert at[f"label-noise/{NAMED['asymmetric']}@0.4"].realised_rate == 3 * 8 / 200
    assert at[f"label-noise/{NAMED['asymmetric']}@0.4"].label_signal == pytest.approx(0.2)
    assert at[f"label-noise/{NAMED['asymmetric']}@0.6"].label_signal == pytest.approx(-0.2)  # a negative control
    table = pq.read_table(folder / str(at[f"label-noise/{NAMED['asymmetric']}@0.4"].transitions)).to_pydict()
    found = {(t, g): n for t, g, n in zip(*table.values(), strict=True) if t != g}
    assert found == {("1", "7"): 8, ("3", "8"): 8, ("8", "3"): 8}
    assert at["label-noise/instance@0.4"].realised_rate == pytest.approx(0.4, abs=0.12)
    human = at["label-noise/human/said.txt@1"]
    assert (human.realised_rate, human.draw) == (0.1, None)  # all of class 4 were called 9
    assert human.label_signal == pytest.approx((180 - 20) / 200)
    assert "few-shot/unlabelled-train/share@0.1" in rows
    assert "imbalance/exponential@5" in rows


def test_clean_validation_labels_are_clean_where_validation_rows_are_given_too() -> None:
    trial = make_plan(load_recipe(recipe("clean"))).groups[0].trials[0]
    noise = LabelNoise(kind="symmetric", rate=0.6, draw=0)
    rows = Shots(shots=5, validation=5, draw=0)
    noisy, oracle = (
        problem_of(trial.model_copy(update={"fit": Fit(rows=rows, labels=labels)}))
        for labels in (noise, noise.model_copy(update={"select_on": "clean-val"}))
    )
    clean = load_data(trial.data).train.labels
    assert (noisy.validation_labels != clean[noisy.validation_rows]).any()
    np.testing.assert_array_equal(oracle.validation_labels, clean[oracle.validation_rows])
    np.testing.assert_array_equal(oracle.labels, noisy.labels)


def test_planning_instance_noise_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr("monoeval.data.embedded._Read.__call__", refuse)
    plan = make_plan(load_recipe(recipe({"name": "label-noise", "kinds": ["instance"], "rates": [0.4]})))
    trial = plan.groups[0].trials[0]
    with pytest.raises(AssertionError, match="an image was read"):
        training_labels(trial.model_copy(update={"data": trial.data.model_copy(update={"limit": 37})}))


def test_every_arm_gets_the_same_labels_and_only_the_oracle_other_keys() -> None:
    noise = {"name": "label-noise", "kinds": ["instance"], "rates": [0.4]}
    usual = make_plan(load_recipe(recipe(noise)))
    oracle = make_plan(load_recipe(recipe({**noise, "select_on": "clean-val"})))
    first, second = (training_labels(group.trials[0]) for group in usual.groups)
    assert first is second
    assert training_labels(oracle.groups[0].trials[0]) is first
    assert set(usual.groups[0].keys).isdisjoint(oracle.groups[0].keys)
    assert transitions(make_plan(load_recipe(recipe("clean"))).groups[0].trials[0]) is None


def test_keys_follow_the_labels_in_a_file_and_not_its_name(tmp_path: Path) -> None:
    labels = load_data(load_recipe(recipe("clean")).data.model_copy(update={"limit": None})).train.labels

    def keys(name: str, shift: int) -> tuple[str, ...]:
        (tmp_path / name).write_text("\n".join(map(str, np.roll(labels, shift))))
        noise = {"name": "label-noise", "kinds": ["human"], "file": str(tmp_path / name), "rates": [0.2]}
        return make_plan(load_recipe(recipe(noise))).groups[0].keys

    assert keys("a.txt", 1) == keys("b.txt", 1)
    assert keys("a.txt", 1) != keys("c.txt", 2)


def test_a_map_from_a_file_is_resolved_into_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("1: 7\n3: 8\n")
    noise = {"name": "label-noise", "kinds": ["asymmetric"], "map": str(tmp_path / "map.yaml")}
    assert load_recipe(recipe(noise)).model_dump()["scenarios"][0]["map"] == {"1": "7", "3": "8"}


def test_select_on_replaces_that_of_the_recipe() -> None:
    study = changed(load_recipe(recipe("clean", {"name": "label-noise", "rates": [0.4]})), select_on="clean-val")
    protocols = {t.protocol for group in make_plan(study).groups for t in group.trials}
    assert protocols == {"clean", "label-noise/symmetric/clean-val@0.4"}
    with pytest.raises(UsageError, match="add --scenario label-noise"):
        changed(load_recipe(recipe("clean")), select_on="clean-val")


CLEAN_VAL = {"name": "label-noise", "rates": [0.4], "select_on": "clean-val"}


@pytest.mark.parametrize(
    "probe",
    [
        "paper-cached",
        "paper",
        {"kind": "logistic", "l2": [0.01]},
        {"kind": "gce", "l2": [0.01, 0.01]},
        {"kind": "knn", "neighbours": [5]},
    ],
)
def test_an_oracle_of_a_probe_that_tunes_nothing_is_refused(probe: object) -> None:
    with pytest.raises(UsageError, match=r"tunes nothing: leave out --select-on clean-val, or choose a probe"):
        make_plan(load_recipe(recipe(CLEAN_VAL, probe=probe)))
    made = changed(load_recipe(recipe({**CLEAN_VAL, "select_on": "noisy-val"}, probe=probe)))
    with pytest.raises(UsageError, match="tunes nothing"):
        make_plan(changed(made, select_on="clean-val"))
    tuned = {"name": "tuned", "backbone": "CL", "probe": "logistic"}  # one that does see the oracle is enough
    make_plan(load_recipe(recipe(CLEAN_VAL, probe=probe, arms=[{"name": "CL", "backbone": "CL"}, tuned])))


@pytest.mark.parametrize("rates", [[1e-3], [1e-3, 1e-2]])
def test_an_oracle_of_a_finetuning_has_a_rate_to_choose(rates: list[float]) -> None:
    probe = {"kind": "finetune", "learning_rates": rates}
    asked = recipe(CLEAN_VAL, arms=[{"name": "CL", "backbone": "CL", "probe": probe}])
    if len(rates) > 1:
        make_plan(load_recipe(asked))
        return
    with pytest.raises(UsageError, match="finetune tunes nothing"):
        make_plan(load_recipe(asked))


def test_an_oracle_may_choose_an_adapter_or_what_ridge_and_means_are_scaled_by() -> None:
    swept = {"name": "sae", "backbone": "CL", "method": "sae", "params": {"k": [4, 8]}, "baseline": "CL"}
    arms = [{"name": "CL", "backbone": "CL"}, swept]
    make_plan(load_recipe(recipe(CLEAN_VAL, probe={"kind": "logistic", "l2": [0.01]}, arms=arms)))
    for kind in ("ridge", "ncm"):
        make_plan(load_recipe(recipe(CLEAN_VAL, probe={"kind": kind})))


def test_the_oracle_fits_noisy_labels_and_is_tuned_on_clean_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import monoeval.suite.frozen as frozen

    seen = []
    fit_probes = frozen.fit_probes
    monkeypatch.setattr(
        frozen,
        "fit_probes",
        lambda codes, problems, *a, **k: (seen.extend(problems), fit_probes(codes, problems, *a, **k))[1],
    )
    noise = {"name": "label-noise", "rates": [0, 0.6], "select_on": "clean-val"}
    made = run(recipe(noise, arms=[{"name": "CL", "backbone": "CL"}]), out=tmp_path)
    assert not made.failed
    clean, noisy = sorted(seen, key=lambda p: p.selection_labels is not None)
    assert clean.selection_labels is None
    np.testing.assert_array_equal(noisy.selection_labels, clean.labels)
    assert (noisy.labels != clean.labels).mean() == 0.6


@pytest.mark.parametrize(
    ("scenario", "says"),
    [
        ("{name: label-noise, kinds: [symetric]}", "should be 'symmetric', 'symmetric-inclusive', 'asymmetric'"),
        ("{name: label-noise, rates: [1]}", "less than 1"),
        ("{name: label-noise, kinds: [asymmetric]}", "no map for the classes of digits"),
        ("{name: label-noise, kinds: [asymmetric], map: {1: seven}}", "names 'seven', which digits has not"),
        ("{name: label-noise, kinds: [asymmetric], map: {1: 1}}", "takes '1' for itself"),
        ("{name: label-noise, kinds: [asymmetric], map: none.yaml}", "map of the label noise cannot be read"),
        ("{name: label-noise, map: {1: 7}}", "add kinds: [asymmetric]"),
        ("{name: label-noise, kinds: [human]}", "needs either file or column"),
        ("{name: label-noise, kinds: [human], file: said.txt}", "has 2 labels, and digits has 1157 training rows"),
        ("{name: label-noise, kinds: [human], column: said}", "from the column 'said': digits is embedded"),
        ("{name: label-noise, select_on: clean}", "'noisy-val' or 'clean-val'"),
        ("{name: few-shot, shots: [], shares: []}", "at least 1 number of shots, or shares"),
        ("{name: few-shot, shares: [2]}", "less than or equal to 1"),
        ("{name: imbalance, ratios: [0.1]}", "greater than or equal to 1"),
        ("{name: imbalance, ratios: [5000]}", "imbalance of 5000 leaves class"),
    ],
)
def test_wrong_settings_are_a_sentence_before_anything_runs(scenario: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "said.txt").write_text("1\n2\n")
    (tmp_path / "r.yaml").write_text(f"models: [{{model: test_vit, weights: random}}]\nscenarios: [{scenario}]\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(UsageError) as caught:
            make_plan(load_recipe(tmp_path / "r.yaml"))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--scenario", "clean", "--select-on", "clean-val"), "add --scenario label-noise"),
        (("--select-on", "clean"), "clean-val"),
        (("--select-on", "clean-val", "--probe", "paper-cached"), "paper-cached tunes nothing: leave out"),
        (("--recipe", "r.yaml"), "'seven', which digits has not"),
    ],
)
def test_the_command_line_says_it_in_one_sentence(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    noise = "{name: label-noise, kinds: [asymmetric], map: {1: seven}}"
    (tmp_path / "r.yaml").write_text(f"models: [{{model: test_vit, weights: random}}]\nscenarios: [{noise}]\n")
    done = subprocess.run(
        [sys.executable, "-m", "monoeval", "suite", *arguments],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "300", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
