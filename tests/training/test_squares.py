"""Images that do not fit into memory: the same squares, the same weights, and what is kept of them."""

import json
import logging
import shutil
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from monoeval import cache
from monoeval.backbones.preprocess import Preprocess
from monoeval.backbones.spec import PretrainSpec
from monoeval.cli.main import app
from monoeval.data.images import ImageSet
from monoeval.errors import MonoevalError
from monoeval.files import CannotWriteError, cache_dir
from monoeval.training import squares as module
from monoeval.training.pretrain import pretrain
from monoeval.training.squares import fit_into_memory, squares_of

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "cache"))


def photos(count: int = 75, size: tuple[int, int] = (20, 14)) -> ImageSet:
    """Noise that is not square, more of it than threads decode at a time."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % 3
    return ImageSet(
        "photos", labels, tuple("abc"), np.arange(count).astype(str), None, f"photos {count}", pixels.__getitem__
    )


@pytest.mark.parametrize("on_disk", [False, True])
def test_squares_and_moments_are_those_of_the_images_one_by_one(on_disk):
    images, preprocess = photos(), Preprocess(image_size=12, crop_pct=1.0)
    expected = np.stack([preprocess.image(images.read(row)) for row in range(75)])
    squares = squares_of(images, 12, CPU, on_disk=on_disk)
    assert len(squares) == 75
    np.testing.assert_array_equal(squares.take(torch.arange(75)).permute(0, 2, 3, 1).numpy(), expected)
    assert squares.mean == pytest.approx((expected / 255).mean((0, 1, 2)), rel=1e-12)
    assert squares.std == pytest.approx((expected / 255).std((0, 1, 2)), rel=1e-12)
    order = torch.randperm(75, generator=torch.manual_seed(0))
    batches = list(squares.batches(order, 10))
    assert torch.equal(torch.cat([rows for rows, _ in batches]), order)
    assert [len(rows) for rows, _ in batches] == [10] * 7 + [5]
    for rows, seen in batches:
        np.testing.assert_array_equal(seen.permute(0, 2, 3, 1).numpy(), expected[rows.numpy()])


@pytest.mark.parametrize("objective", ["simclr", "nscl"])
def test_a_network_is_the_same_to_the_bit_wherever_its_images_are(objective):
    spec = PretrainSpec(objective=objective, batch_size=16, epochs=2, image_size=8)
    weights = {}
    for on_disk in (False, True):
        folder = pretrain(spec, photos(), seed=1, device=CPU, on_disk=on_disk)
        weights[on_disk] = (folder / "backbone.safetensors").read_bytes()
        shutil.rmtree(folder)
        assert (cache_dir() / "squares").exists() == on_disk
    assert weights[True] == weights[False]


def test_the_free_memory_decides_where_images_are(monkeypatch):
    images = photos()
    needed = 75 * 3 * 8 * 8
    for copies, free, fits in ((1, 2 * needed, True), (2, 2 * needed, False), (1, 2 * needed - 1, False)):
        monkeypatch.setattr(module, "free_bytes", lambda _, free=free: free)
        assert fit_into_memory(images, 8, copies) == fits
    pretrain(PretrainSpec(objective="ncl", epochs=1, image_size=8), images, seed=0, device=CPU)
    assert [entry.kind for entry in cache.entries() if entry.kind == "squares"] == ["squares"]


def test_the_file_is_decoded_once_listed_checked_and_cleared(caplog):
    read = []
    images = photos()
    counted = ImageSet(**{**vars(images), "read": lambda row: (read.append(row), images.read(row))[1]})
    first = squares_of(counted, 12, CPU, on_disk=True)
    whole = first.take(torch.arange(75))
    again = squares_of(counted, 12, CPU, on_disk=True)
    assert sorted(read) == list(range(75))
    assert (again.mean, again.std) == (first.mean, first.std)
    squares_of(counted, 10, CPU, on_disk=True)
    assert len(read) == 150

    listed = json.loads(CliRunner().invoke(app, ["cache", "ls", "--json"]).stdout)
    assert {(entry["kind"], entry["what"]) for entry in listed} == {
        ("squares", f"75 images of photos as squares of {size} pixels") for size in (10, 12)
    }
    assert cache.verify() == []
    path = next(p for p in (cache_dir() / "squares").glob("*.npy") if p.stat().st_size > 75 * 3 * 144)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert len(cache.verify()) == 1
    assert not path.exists()

    squares_of(counted, 12, CPU, on_disk=True)
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, "monoeval"):
        mended = squares_of(counted, 12, CPU, on_disk=True)
    assert "is damaged, and its images are decoded again" in caplog.text
    assert torch.equal(mended.take(torch.arange(75)), whole)
    assert cache.clear("squares") > 75 * 3 * 144
    assert [entry for entry in cache.entries() if entry.kind == "squares"] == []


def test_memory_stays_bounded_while_a_file_is_written_and_read():
    one = np.zeros((96, 96, 3), np.uint8)
    images = ImageSet(
        "many", np.zeros(4000, np.int64), ("a",), np.arange(4000).astype(str), None, "many", lambda _: one
    )
    whole = 4000 * one.nbytes
    tracemalloc.start()
    squares = squares_of(images, 96, CPU, on_disk=True)
    for _ in squares.batches(torch.arange(4000), 64):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * whole


def test_a_disk_without_room_is_one_sentence(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(MonoevalError, match=r"do not fit into memory, and .* free some room .*--image-size"):
            squares_of(photos(), 12, CPU, on_disk=True)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_counted", full)  # where a part has been written
    with pytest.raises(CannotWriteError, match=r"No space left on device.*monoeval cache clear"):
        squares_of(photos(), 12, CPU, on_disk=True)
    assert not list((cache_dir() / "squares").glob("*.npy"))
    assert not list((cache_dir() / "squares").glob(".*.tmp"))


def test_what_a_killed_process_left_is_taken_away_before_room_is_counted(monkeypatch):
    whole = squares_of(photos(), 12, CPU, on_disk=True).take(torch.arange(75))
    folder = cache_dir() / "squares"
    path = next(folder.glob("*.npy"))
    path.with_suffix(".json").unlink()  # it is written last
    (folder / f".{path.name}.ab12.tmp").write_bytes(b"half")
    others = folder / ".other.npy.ab12.tmp"
    others.write_bytes(b"of a process that may be at work")

    def free(_):
        assert [p.name for p in folder.iterdir() if p.suffix != ".lock"] == [others.name]
        return SimpleNamespace(free=10**9)

    monkeypatch.setattr(module.shutil, "disk_usage", free)
    assert torch.equal(squares_of(photos(), 12, CPU, on_disk=True).take(torch.arange(75)), whole)


def test_an_image_that_cannot_be_read_stops_the_decoding_with_its_own_sentence():
    images = photos()

    def read(row):
        if row == 40:
            raise MonoevalError("40.jpg is damaged.")
        return images.read(row)

    for on_disk in (False, True):
        with pytest.raises(MonoevalError, match=r"^40\.jpg is damaged\.$"):
            squares_of(ImageSet(**{**vars(images), "read": read}), 12, CPU, on_disk=on_disk)
