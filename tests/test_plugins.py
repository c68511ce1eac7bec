"""Scenarios and data sets of other packages: found, used, and never at the cost of what comes along."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from monoeval.data import loaders
from monoeval.data.images import Data, DataSpec
from monoeval.errors import MonoevalError, UsageError
from monoeval.scenarios import registry
from monoeval.scenarios.clean import Clean
from monoeval.suite import recipe, recipe_files

EXAMPLE = '''
"""Read by every command, so nothing heavy is imported here."""

from typing import Literal

from monoeval.data.embedded import digits
from monoeval.data.images import Data
from monoeval.scenarios.trial import TestSet, Trial
from monoeval.spec import Spec


class Twice(Spec):
    """Clean data, scored twice."""

    name: Literal["twice"] = "twice"
    times: int = 2

    def trials(self, data, seed):
        for level in range(self.times):
            yield Trial(scenario="twice", protocol=f"twice@{level}", series="twice", level=level, data=data,
                        test=TestSet(data=data))


def few_digits(spec):
    """Handwritten digits, the first 200 and 100 of them."""
    return Data(train=digits().train.take(range(200)), test=digits().test.take(range(100)))
'''
ENTRIES = """[monoeval.scenarios]
twice = my_study:Twice

[monoeval.data]
few-digits = my_study:few_digits
digits = my_study:few_digits
"""
RECIPE = """
data: few-digits
seeds: 1
backbones: {CL: {pretrain: {objective: simclr, epochs: 0, width: 16, image_size: 8}}}
arms: [{name: CL, backbone: CL}]
probe: {kind: ncm}
scenarios: [{name: twice, times: 3}]
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An installed distribution `my-study` under `tmp_path`."""
    (tmp_path / "my_study.py").write_text(EXAMPLE)
    about = tmp_path / "my_study-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-study\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRIES)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path


def python(code: str, *arguments: str, package: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` where the package is installed and, as by its author, imported first."""
    path = os.pathsep.join([str(package), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", f"import my_study\n{code}", *arguments],
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "NO_COLOR": "1"},
        cwd=package,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_scenario_and_a_data_set_of_another_package_are_planned_from_a_recipe(package: Path) -> None:
    command = "from monoeval.__main__ import main; main()"
    done = python(command, "suite", "--recipe", "mine.yaml", "--dry-run", "--json", package=package)
    assert done.returncode == 0, done.stderr
    expected = json.loads(done.stdout)
    assert expected["scores in all"] == 3
    assert expected["images to extract"] == 300
    claimed = python(command, "suite", "--recipe", "mine.yaml", "--data", "digits", package=package)
    assert claimed.returncode == 2
    assert "my-study offers a data set named 'digits', which exists already: uninstall one" in claimed.stderr


def test_they_are_listed(package: Path) -> None:
    listed = python(
        "from monoeval.cli.listing import _entries as e; print(e('scenarios'), e('data'))", package=package
    )
    assert "'twice': 'Clean data, scored twice.'" in listed.stdout, listed.stderr
    assert "'few-digits': 'Handwritten digits, the first 200 and 100 of them.'" in listed.stdout


def test_what_is_no_scenario_is_left_out_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    entries = [
        EntryPoint("clean", "monoeval.scenarios.clean:Clean", registry.GROUP),
        EntryPoint("tidy", "monoeval.scenarios.clean:Clean", registry.GROUP),
        EntryPoint("trial", "monoeval.scenarios.trial:Trial", registry.GROUP),
        EntryPoint("gone", "no_such_module_here:Gone", registry.GROUP),
    ]
    found, refused = registry.plugins.collect("scenario", entries, {"clean": Clean}, registry._scenario)
    assert found == {"clean": Clean}
    assert list(refused) == ["clean"]
    for words in ("scenario 'tidy'", 'is not a Spec with `name: Literal["tidy"]', "'trial'", "'gone'"):
        assert words in caplog.text


def test_a_scenario_that_two_packages_claim_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipe.REFUSED, "clean", "other offers a scenario named 'clean', which exists already")
    with pytest.raises(UsageError, match=r"other offers .* already: uninstall one of the two packages"):
        recipe_files.load_recipe({"models": ["resnet18"], "scenarios": ["clean"]})


def test_a_loader_that_fails_is_one_sentence() -> None:
    def breaks(_: DataSpec) -> Data:
        raise KeyError("no such file")

    with pytest.raises(MonoevalError, match="data set mine could not be loaded: KeyError: 'no such file'"):
        loaders.load(breaks, DataSpec(name="mine"))
    with pytest.raises(MonoevalError, match="is a list, where Data was expected"):
        loaders.load(lambda _: [], DataSpec(name="mine"))  # type: ignore[arg-type,return-value]
