"""Where an autoencoder trained elsewhere lies and which library wrote it: found without torch, as keys need it."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from monoeval import hub
from monoeval.adapters.settings import PretrainedSettings
from monoeval.errors import MonoevalError, UsageError
from monoeval.keys import file_key

HUB = "hf-hub:"
LAYOUTS = (
    ("monoeval", "adapter.safetensors", "adapter.json"),
    ("sparsify", "sae.safetensors", "cfg.json"),
    ("SAELens", "sae_weights.safetensors", "cfg.json"),
    ("dictionary_learning", "ae.pt", "config.json"),
)
"""Library, weights and description of each layout that is a folder; overcomplete writes one file of any name."""

_KNOWN = ", ".join(f"{weights} with {config} ({library})" for library, weights, config in LAYOUTS)


@dataclass(frozen=True)
class Files:
    """The weights, the file that describes them (None for overcomplete), and the library they belong to."""

    library: str
    weights: Path
    config: Path | None


def locate(settings: PretrainedSettings) -> Files:
    """The files that `settings` names, fetched where they are on the hub.

    Raises UsageError where there are none, or several to choose from, and MonoevalError for a hub id that is
    neither on this machine nor to be had.
    """
    if not settings.path.startswith(HUB):
        return _local(Path(settings.path).expanduser(), settings.path)
    owner, _, rest = settings.path.removeprefix(HUB).partition("/")
    name, _, inner = rest.partition("/")
    if not owner or not name:
        raise UsageError(f"{settings.path} is no hub id: write {HUB}owner/name, or {HUB}owner/name/folder.")
    return _local(_snapshot(f"{owner}/{name}", inner.rstrip("/"), settings.revision) / inner, settings.path)


def content(settings: PretrainedSettings) -> dict[str, object]:
    """What stands for `settings` in keys: what the files say, wherever they lie; raises as `locate` does."""
    files = locate(settings)
    hashes = {name: path and _hash(path) for name, path in (("weights", files.weights), ("config", files.config))}
    return {"library": files.library, **hashes, "k": settings.k}


def _local(path: Path, said: str) -> Files:
    layouts = {weights: (library, config) for library, weights, config in LAYOUTS}
    if path.is_file():
        if path.name not in layouts:
            return Files("overcomplete", path, None)
        folder, held = path.parent, [path.name]
    elif path.is_dir():
        folder, held = path, [weights for weights in layouts if (path / weights).is_file()]
    else:
        raise UsageError(f"There is no {said}: give a folder or file, or a hub id as {HUB}owner/name.")
    if not held:
        below = sorted({f.parent.relative_to(path).as_posix() for w in layouts for f in path.glob(f"*/**/{w}")})
        if below:
            some = ", ".join(below[:5]) + (f" and {len(below) - 5} more" if len(below) > 5 else "")
            raise UsageError(f"{said} holds autoencoders in folders of its own: add one of {some} to the path.")
        raise UsageError(f"{said} holds no autoencoder: name a folder with {_KNOWN}, or a file of overcomplete.")
    if len(held) > 1:
        raise UsageError(f"{said} holds {' and '.join(held)}: name one of these files.")
    library, config = layouts[held[0]]
    if not (folder / config).is_file():
        raise UsageError(f"{said} has {held[0]} and no {config}, which describes it: copy that file beside it.")
    return Files(library, folder / held[0], folder / config)


def _hash(path: Path) -> str:
    about = path.stat()
    return _hash_of(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=64)  # a plan asks for the same files once a group of trials
def _hash_of(path: Path, size: int, changed: int) -> str:  # noqa: ARG001
    return file_key(path)


@lru_cache(maxsize=64)
def _snapshot(repository: str, inner: str, revision: str | None) -> Path:
    """The folder of `repository` in the hub's cache, with the files of `inner` that belong to an autoencoder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    names = {name for _, *pair in LAYOUTS for name in pair}
    wanted = [f"{inner}/{name}" for name in names] + [inner] if inner else sorted(names)
    said = f"{HUB}{repository}{'/' + inner if inner else ''}"
    local = not hub.reachable()
    try:
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=wanted, local_files_only=local)
        )
    except LocalEntryNotFoundError as error:
        raise _not_here(said) from error
    except Exception as error:  # the library and those below it raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise MonoevalError(
            f"{said} could not be fetched ({reason}): check the id and the revision on the hub, and log in with "
            "`hf auth login` if it is gated."
        ) from error
    base, weights = folder / inner, {name for _, name, _ in LAYOUTS}
    if local and not base.is_file() and not any(file.name in weights for file in base.rglob("*")):
        raise _not_here(said)  # what is cached of this repository is something else
    return folder


def _not_here(said: str) -> MonoevalError:
    why = "HF_HUB_OFFLINE is set" if hub.offline() else f"{hub.endpoint()} does not answer"
    return MonoevalError(
        f"{said} is not on this machine and {why}: connect once to download it, or give a local folder."
    )
