"""Fixtures of the report room."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from report_study import ARMS, SCENARIOS, RunFolder, study


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., RunFolder]:
    """A function (arms, scenarios, seeds) → an empty run folder to be filled."""

    def make(arms: Sequence[dict[str, Any]], scenarios: Sequence[str], seeds: int = 3) -> RunFolder:
        return RunFolder(tmp_path / "run", arms, scenarios, seeds)

    return make


@pytest.fixture
def full_study(run_folder: Callable[..., RunFolder]) -> RunFolder:
    return study(run_folder(ARMS, SCENARIOS))
