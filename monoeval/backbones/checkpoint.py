"""Local checkpoints: tensors only (safetensors, or torch's weights_only), and every key accounted for."""

import pickle
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from monoeval.errors import UsageError

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


def load_strictly(module: nn.Module, path: Path, model: str, heads: tuple[str, ...]) -> None:
    """Load the checkpoint at `path` into `module`.

    Keys under the names in `heads` (the classifier that `module` is built without) may be present and are left
    out. Raises UsageError, naming up to three keys, for any other that is missing, unexpected or of another
    shape, and for a file that holds more than tensors.
    """
    path = path.expanduser()
    found = {name.removeprefix("module."): value for name, value in _read(path).items()}
    wanted = module.state_dict()
    extra = [n for n in found if n not in wanted and not any(n.startswith(f"{head}.") for head in heads)]
    missing = [n for n in wanted if n not in found]
    unlike = [
        f"{n} is {list(found[n].shape)} and should be {list(wanted[n].shape)}"
        for n in wanted
        if n in found and found[n].shape != wanted[n].shape
    ]
    faults = [
        f"{text} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for text, names in (("missing", missing), ("unexpected", extra), ("mismatched:", unlike))
        if names
    ]
    if faults:
        raise UsageError(f"The checkpoint {path} does not fit {model}: {'; '.join(faults)}.")
    module.load_state_dict({name: found[name] for name in wanted})


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of old or foreign pickles; what matters is raised
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(f"There is no checkpoint {path}: --weights is pretrained, random, or a file.") from error
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"The checkpoint {path} holds more than tensors and is not run: save its state_dict as safetensors."
        ) from error
    except Exception as error:
        raise UsageError(
            f"The checkpoint {path} cannot be read ({type(error).__name__}): give a safetensors or torch file."
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"The checkpoint {path} is no state_dict: save one with torch.save or safetensors.")
    return state
