"""The embedded digits: where forms begin, and that nothing is on both sides."""

import hashlib
import pickle
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from sklearn.datasets import load_digits

from monoeval.data.embedded import FORM_STARTS
from monoeval.data.images import DataSpec
from monoeval.data.load import load_data
from monoeval.data.make_digits_printed import TEST_FACES, TRAIN_FACES, VARIANTS, render
from monoeval.errors import UsageError

TEXT = "0123456789" * 3 + (
    "0955650989841773510022782012633733466649150952820017632174631391768431405369617544728225795488490898"
)


def is_part(short: str, long: str) -> bool:
    rest = iter(long)
    return all(letter in rest for letter in short)


def test_forms_begin_where_the_text_does() -> None:
    labels = "".join(map(str, load_digits().target))
    forms = [labels[a:b] for a, b in zip(FORM_STARTS, [*FORM_STARTS[1:], len(labels)], strict=True)]
    # One row, the last of the third form, breaks the text: a 3 where it has an 8.
    assert forms[2][-1] == "3"
    forms[2] = forms[2][:-1] + "8"
    for form in forms:
        assert is_part(form, TEXT)
        assert 120 <= len(form) <= 130


def test_digits_are_split_by_form() -> None:
    data = load_data(DataSpec(name="digits"))
    assert len(data.train) + len(data.test) == 1797
    assert 0.3 < len(data.test) / 1797 < 0.4
    assert not set(data.train.groups) & set(data.test.groups)
    assert not set(data.train.ids) & set(data.test.ids)
    for part in (data.train, data.test):
        assert set(part.labels) == set(range(10))
        assert len(set(part.ids)) == len(part)
    source = load_digits()
    image = data.test.read(3)
    assert image.shape == (8, 8, 3)
    assert image.dtype == np.uint8
    row = len(data.train) + 3
    np.testing.assert_array_equal(image[:, :, 1], np.round(source.images[row] * 255 / 16))
    assert data.test.labels[3] == source.target[row]


def test_printed_digits_are_what_was_rendered() -> None:
    stored = np.load(str(files("monoeval.data") / "digits_printed.npz"), allow_pickle=False)
    images = stored["images"]
    assert images.shape == (1260, 8, 8)
    assert images.max() == 16
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    assert digest == "c64c86670c9a55ecf2b1f734728dd094d4bcd34fad9fc82bae6cadb201b48923"
    names = [str(name) for name in stored["faces"]]
    assert names == [*TRAIN_FACES, *TEST_FACES]
    assert np.bincount(stored["face"]).tolist() == [60] * 21
    assert all(np.bincount(stored["labels"][stored["face"] == face]).tolist() == [6] * 10 for face in range(21))
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    shipped = np.array([(fonts / f"{name}.ttf").exists() for name in names])  # cmti10 since matplotlib 3.11
    rows = np.arange(0, 1260, 31)
    rows = rows[shipped[stored["face"][rows]]]
    assert len(rows) >= 38
    again = [render(names[stored["face"][row]], int(stored["labels"][row]), row % VARIANTS) for row in rows]
    # Another FreeType or Pillow may move an edge, not draw another digit.
    assert np.abs(np.stack(again).astype(float) - images[rows]).mean() < 1


def test_printed_digits_keep_faces_apart() -> None:
    data = load_data(DataSpec(name="digits-printed"))
    assert len(data.test) > len(data.train)
    assert len(set(data.train.groups)) == len(TRAIN_FACES)
    assert len(set(data.test.groups)) == len(TEST_FACES)
    assert not set(data.train.groups) & set(data.test.groups)
    assert data.test.class_names == load_data(DataSpec(name="digits")).test.class_names


def test_a_reader_is_small_when_sent_to_a_worker() -> None:
    data = load_data(DataSpec(name="digits", limit=100))
    sent = pickle.dumps(data.train.read)
    assert len(sent) < 20_000
    np.testing.assert_array_equal(pickle.loads(sent)(5), data.train.read(5))


def test_limits_are_nested_and_change_the_fingerprint() -> None:
    whole, large, small = (load_data(DataSpec(name="digits", limit=n)).train for n in (None, 200, 50))
    assert set(small.ids) < set(large.ids) < set(whole.ids)
    assert len({whole.fingerprint, large.fingerprint, small.fingerprint}) == 3
    assert np.bincount(small.labels).tolist() == [5] * 10


def test_embedded_sets_take_no_columns() -> None:
    with pytest.raises(UsageError, match="embedded"):
        load_data(DataSpec(name="digits", label_column="label"))


def test_loading_data_does_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from monoeval.data.images import DataSpec\n"
        "from monoeval.data.load import load_data\n"
        "import monoeval.data.tables, monoeval.data.transforms, monoeval.data.label_noise, monoeval.data.hub\n"
        "load_data(DataSpec(name='digits-printed')).test.read(0)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
