"""Several runs side by side: hand-worked pairs, and one sentence for what cannot be compared."""

from pathlib import Path

import numpy as np
import pytest
from report_study import ARMS, RunFolder, study

from monoeval.errors import MonoevalError, UsageError
from monoeval.metrics.paired import paired_difference
from monoeval.report import to_json
from monoeval.report.across import summarise_together

PAIR = [ARMS[0], {**ARMS[2], "controls": []}]
IDS = ["a", "b", "c", "d"]
LABELS = np.array([0, 1, 2, 3])


def bits(text: str) -> np.ndarray:
    return np.array([c == "1" for c in text])


def made(folder: Path, correct: dict[str, str], ids: list[str] = IDS, seeds: int = 1, **fields) -> Path:
    """A run of the arms of `correct`, the same rows right in every seed but for a seed's own row."""
    arms = [{"name": n, "backbone": "net", "method": "identity" if n == "raw" else "sae"} for n in correct]
    for arm in arms[1:]:
        arm["baseline"] = arms[0]["name"]
    run = RunFolder(folder, arms, ["clean"], seeds)
    run.test("t", ids, np.array([LABELS[IDS.index(i)] if i in IDS else 0 for i in ids]))
    for arm, text in correct.items():
        for seed in range(seeds):
            right = bits(text)
            right[seed % len(right)] ^= seeds > 1
            run.score(arm, right, adapter_seed=seed, **{"key": f"{folder.name}-{arm}-{seed}", **fields})
    return folder


def test_arms_of_one_name_are_paired_by_row_and_seed_and_told_apart(tmp_path: Path) -> None:
    a = made(tmp_path / "a", {"raw": "1100", "sae": "1110"}, seeds=2)
    b = made(tmp_path / "b", {"raw": "0100", "sae": "1111"}, seeds=3)
    summary = summarise_together([a, b])
    (table,) = summary.tables
    assert list(table.cells) == ["raw [a]", "sae [a]", "raw [b]", "sae [b]"]
    assert [(c.arm, c.baseline.against) for c in table.comparisons] == [
        ("raw [b]", "raw [a]"),
        ("sae [b]", "sae [a]"),
    ]
    sae = table.comparisons[1].baseline.primary
    assert sae.interval == paired_difference([[0, 0], [0, 0], [0, 0], [1, 1]])  # both runs flip row `seed` of seed
    assert any("on 2 of 3 seeds" in remark for remark in sae.remarks)
    assert to_json(summary)["tables"][0]["comparisons"][0]["baseline"]["against"] == "raw [a]"


def test_rows_are_paired_by_id_across_runs(tmp_path: Path) -> None:
    a = made(tmp_path / "a", {"raw": "1100"})
    b = made(tmp_path / "b", {"raw": "00111"}, ids=["d", "x", "b", "a", "c"])
    (comparison,) = summarise_together([a, b]).tables[0].comparisons
    assert comparison.baseline.primary.interval == paired_difference([[0], [0], [1], [0]])
    assert any("4 of 5 test rows" in remark for remark in comparison.baseline.primary.remarks)
    assert "one seed: test rows only" in comparison.notes


def test_the_family_is_of_all_comparisons_whatever_the_first_recipe_names(tmp_path: Path) -> None:
    a = made(tmp_path / "a", {"raw": "1100", "sae": "1110"})
    b = made(tmp_path / "b", {"raw": "0100", "sae": "1111"})
    with (a / "recipe.yaml").open("a") as recipe:
        recipe.write("family: [{scenario: clean, arm: sae, against: null}]\n")
    summary = summarise_together([a, b])
    assert all(c.baseline.adjusted_p is not None for c in summary.tables[0].comparisons)
    assert not any("exploratory" in note for c in summary.tables[0].comparisons for note in c.notes)


def test_equal_keys_are_one_arm_and_a_new_method_meets_the_old_one(tmp_path: Path) -> None:
    a = made(tmp_path / "a", {"raw": "1100", "sae": "1110"})
    b = made(tmp_path / "b", {"raw": "1100", "jumprelu": "1111"})
    ledger = b / "results.jsonl"
    ledger.write_text(ledger.read_text().replace("b-raw-0", "a-raw-0"))
    summary = summarise_together([a, b])
    assert summary.arms == ("raw", "sae", "jumprelu")
    (comparison,) = summary.tables[0].comparisons
    assert (comparison.arm, comparison.baseline.against) == ("jumprelu", "sae")
    assert any("shown once: raw." in note for note in summary.notes)
    assert "Arms of b alone: jumprelu." in summary.notes
    ledger.write_text("".join(line for line in ledger.read_text().splitlines(True) if "jumprelu" not in line))
    (b / "recipe.yaml").write_text((b / "recipe.yaml").read_text().replace("jumprelu", "raw"))
    with pytest.raises(UsageError, match="nothing differs"):
        summarise_together([a, b])


def test_only_shared_conditions_are_set_side_by_side(tmp_path: Path) -> None:
    a = study(RunFolder(tmp_path / "a", ARMS, ["clean", "corruption"], 2), rows=60, seeds=2)
    b = study(RunFolder(tmp_path / "b", ARMS, ["clean"], 2), rows=60, seeds=2, corruptions=["fog"])
    for run, name in ((a, "a"), (b, "b")):
        ledger = run.folder / "results.jsonl"
        ledger.write_text(ledger.read_text().replace('"key":"k', f'"key":"{name}'))
    summary = summarise_together([a.folder, b.folder])
    (corruption,) = (t for t in summary.tables if t.scenario == "corruption")
    assert not any("snow" in protocol for protocol in corruption.protocols)
    (left,) = (note for note in summary.notes if note.startswith("Only in a"))
    assert "corruption/cifar-c.onthefly/snow@0/32" in left
    assert "3 more" in left


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    a = made(tmp_path / "a", {"raw": "1100"})
    with pytest.raises(UsageError, match="two runs or more"):
        summarise_together([a])
    with pytest.raises(UsageError, match="a was named twice"):
        summarise_together([a, tmp_path / "." / "a"])
    with pytest.raises(UsageError, match="not a run folder"):
        summarise_together([a, tmp_path])
    other = made(tmp_path / "other", {"raw": "1100"}, protocol="clean-2")
    with pytest.raises(UsageError, match="a has clean; other has clean-2"):
        summarise_together([a, other])
    far = made(tmp_path / "far", {"raw": "1111"}, ids=["e", "f", "g", "h"])
    with pytest.raises(UsageError, match="no test row"):
        summarise_together([a, far])
    unlike = RunFolder(tmp_path / "unlike", [ARMS[0]], ["clean"], 1)
    unlike.test("t", IDS, LABELS[::-1].copy())
    unlike.score("raw", bits("1111"))
    with pytest.raises(UsageError, match="unlike labels in a and unlike"):
        summarise_together([a, unlike.folder])
    empty = RunFolder(tmp_path / "empty", [ARMS[0]], ["clean"], 1)
    with pytest.raises(UsageError, match="has no score yet"):
        summarise_together([a, empty.folder])
    old = made(tmp_path / "old", {"raw": "1100"}, schema_version=1)
    with pytest.raises(MonoevalError, match="schema 1"):
        summarise_together([a, old])


def test_runs_of_one_recipe_are_told_apart_by_what_their_names_differ_in(tmp_path: Path) -> None:
    a, b = (made(tmp_path / f"smoke-digits-{name}", {"raw": "1100"}) for name in ("c94f5b", "c343db"))
    summary = summarise_together([a, b])
    assert summary.arms == ("raw [c94f5b]", "raw [c343db]")
    assert summary.name == "smoke-digits-c343db against smoke-digits-c94f5b"


def test_unlike_training_data_are_told(tmp_path: Path) -> None:
    a, b = (made(tmp_path / name, {"raw": "1100"}) for name in "ab")
    for folder, limit in ((a, "null"), (b, "300")):
        with (folder / "recipe.yaml").open("a") as stream:
            stream.write(f"data: {{name: digits, limit: {limit}}}\n")
    notes = summarise_together([a, b]).notes
    assert any("limit None and 300" in note for note in notes)
