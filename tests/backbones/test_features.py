"""Features in shards on disk: the rows asked for, and no file left open."""

from pathlib import Path

import numpy as np
import pytest
import torch

from monoeval.backbones.features import FeatureSet


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_come_from_any_shard_in_the_order_asked_for(tmp_path: Path, dtype: type) -> None:
    whole = np.random.default_rng(0).normal(size=(11, 3)).astype(dtype)
    for i, part in enumerate(np.array_split(whole, 4)):
        np.save(tmp_path / f"{i}.npy", part)
    features = FeatureSet("made", tuple(tmp_path / f"{i}.npy" for i in range(4)))
    assert (features.n, features.width) == (11, 3)
    rows = np.array([10, 0, 7, 7, 3])
    assert torch.equal(features.load(rows), torch.from_numpy(whole[rows].astype(np.float32)))
    assert torch.equal(torch.cat(list(features.chunks(size=4))), features.load())
    with pytest.raises(ValueError, match="read-only"):
        features._arrays[0][0] = 0


def test_shards_written_column_by_column_are_read_as_they_are(tmp_path: Path) -> None:
    whole = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "0.npy", np.asfortranarray(whole))
    assert torch.equal(FeatureSet("made", (tmp_path / "0.npy",)).load(), torch.from_numpy(whole))


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="open files cannot be counted here")
def test_a_set_keeps_no_file_open(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.npy" for i in range(40)]
    for path in paths:
        np.save(path, np.ones((2, 3), np.float16))
    before = len(list(Path("/dev/fd").iterdir()))
    features = FeatureSet("made", tuple(paths))
    assert float(features.load(np.arange(80)).sum()) == 240
    assert len(list(Path("/dev/fd").iterdir())) == before
