"""Extraction: features against a plain loop, resuming, damage, and what the cache says of itself."""

import errno
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from monoeval.backbones import extract as extraction
from monoeval.backbones import records
from monoeval.backbones.extract import extract
from monoeval.backbones.load import load_backbone
from monoeval.backbones.spec import BackboneSpec
from monoeval.cache import clear, entries, trim, verify
from monoeval.data.corruptions import corrupt
from monoeval.data.decode import DamagedImageError
from monoeval.data.images import Transform
from monoeval.data.transforms import add_noise, view, views
from monoeval.errors import MonoevalError, UsageError
from monoeval.training.squares import prepared

BLUR = Transform(name="gaussian_noise", stage="image", severity=2)
NOISE = Transform(name="gaussian", stage="tensor", severity=0.3)


@pytest.fixture(scope="module")
def backbone():
    spec = BackboneSpec(model="test_resnet", weights="random", image_size=32, precision="fp32")
    return load_backbone(spec, device="cpu")


def plain(backbone, images, change=None):
    """Features of every image by itself, without pipeline or cache."""
    rows = []
    for row in range(len(images)):
        pixels, ids = backbone.preprocess.image(images.read(row))[None], images.ids[[row]]
        if change == BLUR:
            pixels = corrupt(pixels, ids, BLUR)
        x = backbone.preprocess.tensor(pixels)
        rows.append(backbone(torch.from_numpy(add_noise(x.numpy(), ids, NOISE)) if change == NOISE else x))
    return torch.cat(rows)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(extraction, "SHARD_ROWS", 16)


def folder(cache, features):
    return cache / "features" / features.key


def test_one_pass_serves_all_transforms(backbone, pictures):
    reads = []
    counted = replace(pictures, read=lambda row: (reads.append(row), pictures.read(row))[1])
    sets = extract(backbone, "id", counted, [None, BLUR, NOISE, None])
    assert sorted(reads) == list(range(70))
    assert sets[0].key == sets[3].key
    for features, change in zip(sets, [None, BLUR, NOISE], strict=False):
        torch.testing.assert_close(features.load(), plain(backbone, pictures, change), rtol=2e-3, atol=2e-3)


def test_views_are_cut_from_the_images_as_they_were_read(backbone, pictures):
    reads = []
    counted = replace(pictures, read=lambda row: (reads.append(row), pictures.read(row))[1])
    sets = extract(backbone, "id", counted, [*views(2), BLUR])
    assert sorted(reads) == list(range(70))
    for features, change in zip(sets, views(2), strict=False):
        parts = [view(pictures.read(row), str(pictures.ids[row]), change) for row in range(70)]
        tensor = backbone.preprocess.tensor(np.stack([backbone.preprocess.squeezed(part) for part in parts]))
        torch.testing.assert_close(features.load(), backbone(tensor), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(sets[2].load(), plain(backbone, pictures, BLUR), rtol=2e-3, atol=2e-3)
    assert (sets[0].load() != sets[1].load()).any()
    assert extract(backbone, "id", pictures, views(3))[0].key == sets[0].key
    told = [
        entry.what.partition("pictures")[2].partition(" by")[0] for entry in entries() if entry.kind == "features"
    ]
    assert sorted(told) == [" under gaussian_noise 2", " under view 0", " under view 1", " under view 2"]


def test_images_that_were_cropped_before_are_taken_whole(backbone, pictures):
    cropped = replace(pictures, cropped=True, fingerprint="fp-cropped")
    squares = np.stack([backbone.preprocess.squeezed(pictures.read(row)) for row in range(70)])
    found = extract(backbone, "id", cropped, [None])[0].load()
    torch.testing.assert_close(found, backbone(backbone.preprocess.tensor(squares)), rtol=2e-3, atol=2e-3)
    assert not torch.allclose(found, plain(backbone, pictures), rtol=2e-3, atol=2e-3)


def test_features_of_corrupted_images_are_of_a_version_of_the_corruptions(backbone, pictures, monkeypatch):
    def keys():
        return [features.key for features in extract(backbone, "id", pictures, [None, BLUR, NOISE])]

    before = keys()
    monkeypatch.setattr(records, "CORRUPTIONS_VERSION", records.CORRUPTIONS_VERSION + 1)
    assert [a == b for a, b in zip(before, keys(), strict=True)] == [True, BLUR.stage != "image", True]


@pytest.mark.parametrize("size", [1, 7, 64])
def test_batch_size_hardly_matters(backbone, pictures, monkeypatch, size):
    monkeypatch.setitem(extraction.BATCH, "cpu", size)
    features = extract(backbone, "id", pictures, [None])[0].load()
    torch.testing.assert_close(features, plain(backbone, pictures), rtol=2e-3, atol=2e-3)


@pytest.mark.usefixtures("small_shards")
def test_resumes_after_a_lost_or_damaged_shard(backbone, pictures, cache, caplog):
    made = extract(backbone, "id", pictures, [None])[0]
    before = made.load()
    assert len(made.shards) == 5
    assert records.cached("id", "fp-pictures")
    made.shards[3].unlink()
    assert not records.cached("id", "fp-pictures")
    spoiled = bytearray(made.shards[1].read_bytes())
    spoiled[-1] ^= 1
    made.shards[1].write_bytes(spoiled)
    kept = made.shards[0].stat().st_mtime_ns
    reads = []
    counted = replace(pictures, read=lambda row: (reads.append(row), pictures.read(row))[1])
    with caplog.at_level(logging.WARNING, "monoeval"):
        again = extract(backbone, "id", counted, [None])[0]
    assert "damaged" in caplog.text
    assert sorted(reads) == [*range(16, 32), *range(48, 64)]
    assert torch.equal(again.load(), before)
    assert again.shards[0].stat().st_mtime_ns == kept
    assert {p.name for p in folder(cache, again).iterdir()} == {p.name for p in again.shards} | {"entry.json"}


@pytest.mark.usefixtures("small_shards")
def test_an_interrupted_extraction_keeps_its_whole_shards(backbone, pictures):
    def stops(row):
        if row == 40:
            raise KeyboardInterrupt
        return pictures.read(row)

    with pytest.raises(KeyboardInterrupt):
        extract(backbone, "id", replace(pictures, read=stops), [None])
    reads = []
    counted = replace(pictures, read=lambda row: (reads.append(row), pictures.read(row))[1])
    extract(backbone, "id", counted, [None])
    assert min(reads) == 32


def test_keys_tell_apart_what_differs(backbone, pictures):
    base = extract(backbone, "id", pictures, [None])[0].key
    half = replace(backbone, precision="bf16", features=lambda x: backbone.features(x.float()))
    others = [
        extract(backbone, "other", pictures, [None])[0].key,
        extract(backbone, "id", replace(pictures, fingerprint="x"), [None])[0].key,
        extract(backbone, "id", pictures, [NOISE])[0].key,
        extract(replace(backbone, fingerprint="x"), "id", pictures, [None])[0].key,
        extract(half, "id", pictures, [None])[0].key,
    ]
    assert len({base, *others}) == 6


def test_large_values_are_kept_in_fp32(backbone, pictures):
    large = replace(backbone, features=lambda x: backbone.features(x) * 1e6)
    features = extract(large, "large", pictures, [None])[0]
    assert np.load(features.shards[0]).dtype == np.float32
    torch.testing.assert_close(features.load(), plain(large, pictures), rtol=1e-4, atol=10)


def test_values_that_are_not_finite_are_refused(backbone, pictures):
    def broken(x):
        out = backbone.features(x).clone()
        out[0] = float("nan")
        return out

    with pytest.raises(MonoevalError, match="test_resnet gives features that are not finite for 3 of 70 images"):
        extract(replace(backbone, features=broken), "broken", pictures, [None])


def test_a_full_disk_is_one_sentence(backbone, pictures, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(MonoevalError, match=r"No space left.*monoeval cache clear"):
        extract(backbone, "id", pictures, [None])


def test_an_empty_set(backbone, pictures):
    features = extract(backbone, "id", pictures.take(np.array([], np.int64)), [None])[0]
    assert (features.n, features.width) == (0, backbone.width)


def test_cache_is_listed_verified_trimmed_and_cleared(backbone, pictures, cache):
    first, second = extract(backbone, "id", pictures, [None, NOISE])
    listed = {entry.key: entry for entry in entries()}
    assert listed[first.key].what == "70 × 96 features of pictures by test_resnet"
    on_disk = sum(p.stat().st_size for p in folder(cache, first).iterdir())
    assert listed[first.key].bytes == on_disk
    assert verify() == []
    second.shards[0].write_bytes(second.shards[0].read_bytes()[:-3])
    assert len(verify()) == 1
    assert verify() == []
    torch.testing.assert_close(
        extract(backbone, "id", pictures, [NOISE])[0].load(),
        plain(backbone, pictures, NOISE),
        rtol=2e-3,
        atol=2e-3,
    )
    freed = trim(on_disk)
    assert freed > 0
    assert sum(entry.bytes for entry in entries()) <= on_disk
    extract(backbone, "id", pictures, [None])
    with pytest.raises(UsageError, match="did you mean 'features'"):
        clear("feature")
    assert clear("features") == on_disk
    assert clear() > 0
    assert entries() == []


def test_all_damaged_images_are_named_at_once(backbone, pictures):
    def read(row):
        if row in (3, 50, 69):
            raise DamagedImageError(f"{row}.jpg", "not an image")
        return pictures.read(row)

    every = (
        r"^3 of the 70 images of .* are damaged: 3\.jpg \(not an image\), 50\.jpg \(.*\), 69\.jpg \(.*\): delete"
    )
    with pytest.raises(UsageError, match=every):
        extract(backbone, "id", replace(pictures, read=read), [None])
    with pytest.raises(UsageError, match=every):
        list(prepared(replace(pictures, read=read), np.arange(60), backbone.preprocess))
    with pytest.raises(UsageError, match=r"^3\.jpg is damaged \(not an image\): delete it or replace it"):
        extract(backbone, "id", replace(pictures.take(range(40)), read=read), [None])
