"""`monoeval compare` and `monoeval report` as a person types them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from report_study import ARMS, RunFolder

from monoeval.__main__ import main

TORCHLESS = "import sys; sys.modules['torch'] = None; from monoeval.__main__ import main; main()"


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs of one seed on the same hundred rows; the second gets ten more of them right."""
    folders = []
    for name, right in (("a", 60), ("b", 70)):
        run = RunFolder(tmp_path / name, ARMS[:2], ["clean"], 1)
        run.test("t", [str(i) for i in range(100)], np.arange(100) % 10)
        for arm in ("raw", "random"):
            run.score(arm, np.arange(100) < right, key=f"{name}-{arm}")
        folders.append(run.folder)
    return folders[0], folders[1]


def typed(*words: object) -> int:
    """The exit code of `monoeval WORDS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["monoeval", *map(str, words)])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def test_two_runs_are_compared_without_torch(runs: tuple[Path, Path]) -> None:
    words = [sys.executable, "-c", TORCHLESS, "compare", *map(str, runs)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "b against a: 4 arms, 1 seed" in said
    assert "one seed: test rows only" in said
    assert "+10.0" in said
    assert "report.md" not in said  # nothing is written
    assert not list(runs[0].glob("report.*"))


def test_as_json(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("compare", *runs, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    (_, comparison) = made["tables"][0]["comparisons"]
    assert comparison["baseline"]["against"] == "random [a]"
    assert comparison["baseline"]["primary"]["interval"]["mean"] == pytest.approx(0.1)


def test_a_report_comes_back_from_the_ledger_alone(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def files() -> dict[Path, bytes]:
        made = [
            p for p in runs[0].glob("**/*") if p.name.startswith(("report.", "summary.")) or p.suffix == ".svg"
        ]
        return {path: path.read_bytes() for path in made}

    assert typed("report", runs[0]) == 0
    before = files()
    assert {path.name for path in before} >= {"report.html", "report.md", "report.csv", "summary.csv", "clean.svg"}
    for path in before:
        path.unlink()
    capsys.readouterr()
    assert typed("report", runs[0]) == 0
    assert "one seed: test rows only" in " ".join(capsys.readouterr().out.split())
    assert files() == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("{a}", "two runs or more"),
        ("{a} {a}", "named twice"),
        ("{a} nowhere", "nowhere is not a run folder"),
        ("", "Missing argument"),
    ],
)
def test_wrong_usage_is_a_sentence(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str], words: str, says: str
) -> None:
    assert typed("compare", *words.format(a=runs[0]).split()) == 2
    assert says in " ".join(capsys.readouterr().err.split())
