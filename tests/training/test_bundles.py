import pytest
import torch

from monoeval import bundles
from monoeval.files import CannotWriteError


def test_what_is_written_is_read_again(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "n": torch.tensor(4)}
    bundles.write(tmp_path / "x", "thing", tensors, {"b": [1]})
    found, about = bundles.read(tmp_path / "x", "thing")
    assert about["b"] == [1]
    assert all(torch.equal(tensors[name], found[name]) for name in tensors)
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["thing.json", "thing.safetensors"]


@pytest.mark.parametrize("file", ["thing.json", "thing.safetensors"])
@pytest.mark.parametrize("harm", ["gone", "cut", "changed"])
def test_damage_is_noticed(tmp_path, file, harm):
    bundles.write(tmp_path, "thing", {"a": torch.ones(3)}, {})
    path = tmp_path / file
    content = path.read_bytes()
    path.unlink()
    if harm != "gone":
        path.write_bytes(
            content[: len(content) // 2] if harm == "cut" else content.replace(content[-4:], b"\x01\x02\x03\x04")
        )
    with pytest.raises(bundles.Damaged, match="thing folder"):
        bundles.read(tmp_path, "thing")


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CannotWriteError, match="No space left"):
        bundles.write(tmp_path, "thing", {"a": torch.ones(3)}, {})
    assert not list(tmp_path.iterdir())
