"""Squares that are decoded once: which they are, how long they stay, and what is never held."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from monoeval.backbones.preprocess import Preprocess
from monoeval.data.images import ImageSet
from monoeval.errors import MonoevalError
from monoeval.training import pictures as module
from monoeval.training.pictures import Pictures

SMALL = Preprocess(image_size=8)


def photos(name: str = "photos", count: int = 70) -> tuple[ImageSet, list[int]]:
    """Images that are not square, more than a thread decodes at a time, and the rows that are read."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 20, 14, 3), dtype=np.uint8)
    read: list[int] = []
    ids = np.arange(count).astype(str)
    images = ImageSet(
        name, np.zeros(count, np.int64), ("a",), ids, None, name, lambda row: (read.append(row), pixels[row])[1]
    )
    return images, read


def free(monkeypatch, available: int) -> None:
    memory = SimpleNamespace(available=available)
    monkeypatch.setattr(module, "psutil", SimpleNamespace(virtual_memory=lambda: memory))


@pytest.mark.parametrize("available", [10**9, 0], ids=["held", "no room"])
@pytest.mark.parametrize("cropped", [False, True])
def test_squares_are_those_of_the_images_one_by_one(available, cropped, monkeypatch):
    free(monkeypatch, available)
    (images, _), pictures = photos(), Pictures()
    images = replace(images, cropped=cropped)
    for rows in (np.array([3, 69, 3, 0]), np.arange(70), np.arange(69, -1, -1), np.empty(0, np.int64)):
        expected = [SMALL.image(images.read(int(row)), cropped=cropped) for row in rows]
        found = pictures.of(images, rows, SMALL)
        assert found.shape == (len(rows), 8, 8, 3)
        np.testing.assert_array_equal(found, np.array(expected, np.uint8).reshape(found.shape))


def test_each_row_is_read_when_it_is_first_asked_for(monkeypatch):
    free(monkeypatch, 10**9)
    (images, read), pictures = photos(), Pictures()
    for rows in (np.arange(5), np.arange(10), np.arange(10)):
        pictures.of(images, rows, SMALL)
    assert sorted(read) == list(range(10))
    pictures.of(images, np.arange(2), SMALL.model_copy(update={"image_size": 9}))
    pictures.of(replace(images, fingerprint="others"), np.arange(2), SMALL)
    assert len(read) == 14


def test_what_was_asked_for_last_stays_and_a_set_that_never_fits_takes_no_others_place(monkeypatch):
    one = 70 * 8 * 8 * 3
    held: list[Pictures] = []

    def memory() -> SimpleNamespace:  # of 4 sets and a half in all
        filled = sum(one.filled_bytes for pictures in held for one in pictures._held.values())
        return SimpleNamespace(available=4 * one + one // 2 - filled)

    monkeypatch.setattr(module, "psutil", SimpleNamespace(virtual_memory=memory))
    pictures = Pictures()
    held.append(pictures)
    sets = [photos(name) for name in "abcd"]
    everything = np.arange(70)
    for images, _ in sets[:3]:  # each may take half of what is free: the third is the last for which that is so
        pictures.of(images, everything, SMALL)
    pictures.of(sets[0][0], everything, SMALL)
    larger, _ = photos("larger", 70 * 3)
    pictures.of(larger, np.arange(4), SMALL)
    assert [name for name, *_ in pictures._held] == ["b", "c", "a"]
    pictures.of(sets[3][0], everything, SMALL)
    assert [name for name, *_ in pictures._held] == ["c", "a", "d"]


def test_an_image_that_cannot_be_read_is_tried_again(monkeypatch):
    free(monkeypatch, 10**9)
    (images, _), pictures = photos(), Pictures()

    def broken(_):
        raise MonoevalError("40.jpg is damaged.")

    with pytest.raises(MonoevalError, match=r"^40\.jpg is damaged\.$"):
        pictures.of(replace(images, read=broken), np.arange(3), SMALL)
    np.testing.assert_array_equal(pictures.of(images, np.arange(1), SMALL)[0], SMALL.image(images.read(0)))
