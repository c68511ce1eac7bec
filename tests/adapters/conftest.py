from collections.abc import Callable

import numpy as np
import pytest

from monoeval.backbones.features import FeatureSet


@pytest.fixture
def feature_set(tmp_path) -> Callable[..., FeatureSet]:
    """Write an array [N, D] as a feature set of two shards."""

    def write(array: np.ndarray, key: str = "features", dtype: str = "float32") -> FeatureSet:
        half = max(1, len(array) // 2)
        paths = []
        for number, part in enumerate((array[:half], array[half:])):
            path = tmp_path / f"{key}.{number}.npy"
            np.save(path, np.asarray(part, dtype=dtype))
            paths.append(path)
        return FeatureSet(key, tuple(paths))

    return write


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "cache"))
