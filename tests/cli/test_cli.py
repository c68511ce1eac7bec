"""The commands as a person types them: exit codes, one sentence an error, nothing heavy before it is needed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from monoeval.probes.spec import PROBES

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100", "NO_COLOR": "1"}


def monoeval(
    *arguments: str, cwd: Path | None = None, code: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; `code` runs first."""
    program = f"{code}\nfrom monoeval.__main__ import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**ENVIRONMENT, "MONOEVAL_CACHE": os.environ["MONOEVAL_CACHE"], **variables},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


FORBID_TORCH = """
import builtins
imported = builtins.__import__
def forbid(name, *args, **more):
    if name.partition(".")[0] in {"torch", "timm", "open_clip", "datasets"}:  # to look where they lie is no import
        raise ImportError(f"{name} was imported")
    return imported(name, *args, **more)
builtins.__import__ = forbid
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("suite", "--help"),
        ("--version",),
        ("list", "models"),
        ("list", "methods"),
        ("list", "probes"),
        ("list", "data"),
        ("list", "scenarios"),
        ("list", "recipes"),
        ("compare", "--help"),
        ("cache", "ls"),
        ("suite", "--dry-run"),
        ("suite", "--probe", "gce", "--dry-run"),
    ],
)
def test_looking_never_imports_torch(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = monoeval(*arguments, cwd=tmp_path, code=FORBID_TORCH)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("suite", "--scenario", "label-nose"), 2, "'label-noise'"),
        (("suite", "--recipe", "quikstart"), 2, "'quickstart'"),
        (("suite", "--recipe", "missing.yaml"), 2, "missing.yaml"),
        (("suite", "--data", "digitz"), 2, "'digits'"),
        (("suite", "--data", "./nowhere"), 2, "nowhere"),
        (("suite", "--method", "sea"), 2, "'sae'"),
        (("suite", "--probe", "rigde"), 2, "'ridge'"),
        (("probe", "--model", "test_vit", "--weights", "random", "--probe", "gec"), 2, "'gce'"),
        (("suite", "--weights", "random"), 2, "--model"),
        (("probe",), 2, "--model"),
        (("probe", "--model", "vit_b61", "--weights", "random"), 2, "vit_b16"),
        (("probe", "--model", "test_vit", "--weights", "random", "--device", "cuda:9"), 2, "cuda"),
        (("probe", "--model", "resnet50"), 1, "--weights"),
        (("pretrain", "--objective", "simcrl"), 2, "'simclr'"),
        (("report", "runs/none"), 2, "run folder"),
        (("list", "model"), 2, "'models'"),
        (("suite", "--seeds", "0"), 2, "--seeds"),
        (("probe", "--model", "x", "--precision", "fp8"), 2, "precision"),
    ],
)
def test_wrong_usage_is_one_helpful_sentence(
    arguments: tuple[str, ...], code: int, says: str, tmp_path: Path
) -> None:
    started = time.monotonic()
    done = monoeval(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("results.jsonl"))
    assert time.monotonic() - started < 30


def test_an_unknown_probe_is_told_without_torch_and_the_help_names_them_all(tmp_path: Path) -> None:
    done = monoeval("probe", "--model", "test_vit", "--probe", "papr", cwd=tmp_path, code=FORBID_TORCH)
    assert done.returncode == 2
    assert "'paper'" in done.stderr
    for command in ("probe", "suite"):
        words = monoeval(command, "--help", COLUMNS="300").stdout
        assert all(kind in words for kind in PROBES)


def test_doctor_says_what_it_found(tmp_path: Path) -> None:
    done = monoeval("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "writable" in found["cache"]
    assert found["torch"][0].isdigit()
    assert "HF_HUB_OFFLINE" in found["hub"]


SMALL = """
data: {name: digits, limit: 60}
seeds: 1
backbones: {CL: {pretrain: {objective: simclr, epochs: 1, width: 16, image_size: 8}}}
arms: [{name: CL, backbone: CL}, {name: CL + relu, backbone: CL, method: relu, baseline: CL}]
probe: {l2: [0.001, 0.1]}
scenarios: [clean, {name: label-noise, rates: [0.4]}]
"""


def test_a_small_study_from_the_command_line_to_its_report(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    first = monoeval("suite", "--recipe", "small.yaml", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "CL + relu" in first.stdout
    assert "report.html" in first.stdout
    folder = next((tmp_path / "runs").iterdir())
    again = monoeval("suite", "--recipe", "small.yaml", "--json", cwd=tmp_path, code=FORBID_TORCH)
    assert again.returncode == 0, again.stderr
    for row in json.loads(again.stdout)["rows"]:
        assert 0 <= row["measures"]["ece"] <= 1
        assert 0 <= row["measures"]["ece_t"] <= 1
    shown = monoeval("report", str(folder), cwd=tmp_path, code=FORBID_TORCH)
    assert shown.returncode == 0, shown.stderr
    assert "CL + relu" in shown.stdout
    listed = monoeval("cache", "ls", cwd=tmp_path)
    assert "pretrained" in listed.stdout
    assert monoeval("cache", "verify", cwd=tmp_path).returncode == 0
    assert monoeval("cache", "clear", cwd=tmp_path).returncode == 0


def test_a_second_process_on_the_same_run_says_so_and_stops(tmp_path: Path) -> None:
    from monoeval.suite.ledger import Ledger
    from monoeval.suite.recipe_files import load_recipe
    from monoeval.suite.run import run_folder

    (tmp_path / "small.yaml").write_text(SMALL)
    folder = run_folder(load_recipe(tmp_path / "small.yaml"), tmp_path / "runs")
    with Ledger(folder):
        second = monoeval("suite", "--recipe", "small.yaml", cwd=tmp_path)
    assert second.returncode == 1
    assert "Another monoeval process" in second.stderr


def test_interrupted_it_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    interrupt = "import monoeval.suite.run as r\ndef stop(*a): raise KeyboardInterrupt\nr._make = stop"
    done = monoeval("suite", "--recipe", "small.yaml", cwd=tmp_path, code=interrupt)
    assert done.returncode == 130
    assert "same command" in done.stderr


def test_a_cache_that_cannot_be_written_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache folder should be")
    done = monoeval("suite", "--recipe", "small.yaml", cwd=tmp_path, MONOEVAL_CACHE=str(blocked / "cache"))
    assert done.returncode == 1
    assert "MONOEVAL_CACHE" in done.stderr
    assert "Traceback" not in done.stderr


def test_brackets_in_names_are_not_markup(tmp_path: Path) -> None:
    done = monoeval("suite", "--data", "./photos [bold] [/x]", cwd=tmp_path)
    assert done.returncode == 2
    assert "photos [bold] [/x]" in done.stderr
