"""A pretraining that is not finished: what it takes to go on as if it had never stopped."""

import io
import logging
from pathlib import Path
from typing import Any

import torch

from monoeval.files import atomic

log = logging.getLogger("monoeval")


def checkpoint_of(folder: Path) -> Path:
    """The file beside the folder that a pretraining will write."""
    return folder.with_suffix(".checkpoint")


def save(path: Path, state: dict[str, Any], environment: dict[str, str]) -> None:
    """Write tensors, numbers, and lists and mappings of these; the bits depend on `environment` too.

    Raises CannotWriteError where the disk is full or cannot be written.
    """
    written = io.BytesIO()  # to a file torch.save raises its own errors, which do not tell of a full disk
    torch.save({"state": state, "environment": environment}, written)
    with atomic(path) as temporary:
        temporary.write_bytes(written.getbuffer())


def load(path: Path, environment: dict[str, str]) -> dict[str, Any] | None:
    """What `save` wrote, on the CPU; None where there is nothing, or nothing that can be read."""
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        state, before = dict(kept["state"]), kept["environment"]
    except FileNotFoundError:
        return None
    except Exception as error:  # torch raises what its readers do: zip, pickle, keys
        log.warning("%s cannot be read (%s), and the pretraining starts again.", path, type(error).__name__)
        return None
    unlike = [f"{name} {value} and not {before.get(name)}" for name, value in environment.items()
              if before.get(name) != value]  # fmt: skip
    if unlike:
        log.warning(
            "The pretraining goes on with %s, as which it began: its weights are not to the bit those of one that "
            "was never interrupted.",
            ", ".join(unlike),
        )
    return state
