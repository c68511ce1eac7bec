"""Tensors and what they mean, as two files of one folder: `<stem>.safetensors` and `<stem>.json`.

The description is written last and holds a checksum of the tensors, so a folder that a crash cut short, or that
was damaged later, is recognised instead of being read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from monoeval.errors import MonoevalError
from monoeval.files import atomic
from monoeval.keys import file_key

if TYPE_CHECKING:
    from torch import Tensor


class Damaged(MonoevalError):
    """A folder whose files are missing, cut short or do not belong together."""


def write(folder: Path, stem: str, tensors: Mapping[str, "Tensor"], about: Mapping[str, object]) -> None:
    """Write both files; raises MonoevalError where the disk refuses."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic(folder / f"{stem}.safetensors") as path:
        try:
            save_file(whole, path)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(str(error)) from error
        checksum = file_key(path)
    with atomic(folder / f"{stem}.json") as path:
        path.write_text(json.dumps({**about, "tensors": checksum}, indent=1) + "\n", encoding="utf-8")


def describe(folder: Path, stem: str) -> dict[str, object]:
    """What the folder says of itself, once its tensors are known to be whole; raises `Damaged` otherwise."""
    try:
        about = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
        whole = isinstance(about, dict) and about.get("tensors") == file_key(folder / f"{stem}.safetensors")
    except (OSError, ValueError):
        whole = False
    if not whole:
        raise Damaged(f"{folder} is not a whole {stem} folder: delete it and let it be made again.")
    return dict(about)


def read(folder: Path, stem: str) -> tuple[dict[str, "Tensor"], dict[str, object]]:
    """The tensors (on the CPU) and the description; raises `Damaged` where `describe` does."""
    from safetensors.torch import load_file

    about = describe(folder, stem)
    mapped = load_file(folder / f"{stem}.safetensors")
    # Copies are aligned as tensors made in memory are; products of unaligned ones differ in the last bits.
    return {name: tensor.clone() for name, tensor in mapped.items()}, about
