"""Labels that people gave: read by order, by id or from a column, and matched by class name."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from monoeval.data.given_labels import from_column, from_file
from monoeval.data.images import DataSpec, ImageSet
from monoeval.data.load import load_data
from monoeval.errors import UsageError

NAMES = ("bird", "cat", "dog")
CLEAN = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
SAID = ["bird", "cat", "cat", "dog", "cat", "dog", "bird", "dog", "dog", "bird"]
POSITIONS = [NAMES.index(name) for name in SAID]


@pytest.fixture
def table(tmp_path: Path) -> DataSpec:
    """Ten training rows with labels, and what people said, in a column of other numbers and of another order."""
    import io

    def png(shade: int) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", (8, 8), (shade, shade, shade)).save(stream, "PNG")
        return stream.getvalue()

    folder = tmp_path / "pets"
    folder.mkdir()
    for split, n in (("train", 10), ("test", 6)):
        columns = {
            "image": pa.array([{"bytes": png(20 * i), "path": None} for i in range(n)]),
            "label": pa.array([NAMES[i] for i in CLEAN[:n]]),
            "everywhere": pa.array(SAID[:n]),
            "odd": pa.array([f"{name}s" for name in SAID[:n]]),
        }
        if split == "train":  # as of the data sets that people labelled again
            columns["said"] = pa.array(SAID)
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return DataSpec(name=str(folder), label_column="label")


def train_of(spec: DataSpec) -> ImageSet:
    return load_data(spec).train


def test_a_line_a_row_as_names_or_as_numbers(table: DataSpec, tmp_path: Path) -> None:
    path = tmp_path / "said.txt"
    for words in (SAID, [str(i) for i in POSITIONS]):
        path.write_text("\n".join(words) + "\n\n")
        assert from_file(path, table, train_of(table)).tolist() == POSITIONS


def test_lines_of_id_and_label_come_in_any_order_with_a_heading(table: DataSpec, tmp_path: Path) -> None:
    train = train_of(table)
    lines = [f"{name},{said}" for name, said in zip(train.ids, SAID, strict=True)]
    path = tmp_path / "said.csv"
    path.write_text("\n".join(["row,label", *reversed(lines), "test/0000001,wolf"]))
    assert from_file(path, table, train).tolist() == POSITIONS


def test_a_column_is_matched_by_class_name(table: DataSpec) -> None:
    assert from_column("said", table, train_of(table)).tolist() == POSITIONS
    assert from_column("everywhere", table, train_of(table)).tolist() == POSITIONS


def test_a_limit_takes_the_labels_of_its_rows(table: DataSpec, tmp_path: Path) -> None:
    limited = table.model_copy(update={"limit": 5})
    train = train_of(limited)
    wanted = [POSITIONS[int(name.rsplit("/", 1)[1])] for name in train.ids]
    path = tmp_path / "said.txt"
    path.write_text("\n".join(SAID))
    assert from_file(path, limited, train).tolist() == wanted
    assert from_column("said", limited, train).tolist() == wanted


def test_numbers_are_names_where_classes_are_named_so(tmp_path: Path) -> None:
    digits = DataSpec(name="digits")
    train = train_of(digits)
    path = tmp_path / "said.txt"
    path.write_text("\n".join(map(str, np.roll(train.labels, 1))))
    assert from_file(path, digits, train).tolist() == np.roll(train.labels, 1).tolist()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("said.txt", "bird\ncat", r"has 2 labels, and pets has 10 training rows: give one label a row"),
        ("said.txt", "\n".join([*SAID[:-1], "brid"]), r"no classes of the data \('brid'\): did you mean 'bird'\?"),
        (
            "said.txt",
            "\n".join(["3"] * 10),
            r"no classes of the data \('3'\): the classes are 'bird', 'cat', 'dog'",
        ),
        ("said.csv", "train/0000000,cat\n", r"no label for 9 of 10 training rows \('train/0000001', "),
        ("said.csv", "a,cat\nb,cat,dog\n", "without exactly an id and a label"),
        ("said.csv", "a,cat\na,dog\n", "1 ids more than once"),
    ],
)
def test_files_that_do_not_fit_say_what_is_wrong(
    table: DataSpec, tmp_path: Path, name: str, text: str, says: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        from_file(path, table, train_of(table))


def test_what_is_no_text_or_not_there_is_a_sentence(table: DataSpec, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"No such file.*check the path"):
        from_file(tmp_path / "none.txt", table, train_of(table))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x9f")
    with pytest.raises(UsageError, match="it is not text"):
        from_file(tmp_path / "binary.txt", table, train_of(table))


def test_columns_that_cannot_be_labels_are_a_sentence(table: DataSpec, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"from the column 'sad': .* no column 'sad' for label noise: .*'said'"):
        from_column("sad", table, train_of(table))
    with pytest.raises(UsageError, match=r"'odd' has labels that are no classes .*'birds'.*did you mean 'bird'"):
        from_column("odd", table, train_of(table))
    with pytest.raises(UsageError, match="from the column 'said': digits is embedded"):
        from_column("said", DataSpec(name="digits"), train_of(DataSpec(name="digits")))
    for name in NAMES:
        for i in range(4):
            path = tmp_path / "folders" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(path)
    folders = DataSpec(name=str(tmp_path / "folders"))
    with pytest.raises(UsageError, match="folders has no label column beside its own: use file"):
        from_column("said", folders, train_of(folders))
