"""Data sets of the Hugging Face hub: from the local cache of the `datasets` library, else fetched by it."""

import json
import os
import re
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

from monoeval.data.images import DataSpec
from monoeval.data.source import Splits
from monoeval.data.tables import arrow_splits
from monoeval.errors import MonoevalError, UsageError

CONNECT_SECONDS = 2.0


def hub_splits(name: str, spec: DataSpec) -> Splits:
    """The splits of hub id `name` (`owner/name` or `owner/name:configuration`).

    The cache is looked at first, so a set that was fetched once needs no network. Raises MonoevalError within a
    few seconds where it was not and the hub cannot be reached, before anything heavy is imported.
    """
    repository, _, configuration = name.partition(":")
    files = _cached(repository, configuration)
    if not files:
        host, port = _host()
        if not _reachable(host, port):
            raise MonoevalError(
                f"The data set {name!r} is not in the local cache and {host} cannot be reached: connect and run "
                "again, or use `--data digits`, which is embedded, or a folder such as ./images."
            )
        files = _fetch(repository, configuration)
    root = Path(os.path.commonpath([path.parent for paths in files.values() for path in paths]))
    return arrow_splits(name, root, files, spec)


def _cache_folder() -> Path:
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()


def _cached(repository: str, configuration: str) -> dict[str, list[Path]]:
    """Arrow files by split of the newest whole copy in the cache: owner___name/configuration/version/hash/."""
    wanted = _plain(repository.replace("/", "___"))
    infos = [
        info
        for info in _cache_folder().glob(f"*___*/{configuration or '*'}/*/*/dataset_info.json")
        if _plain(info.parts[-5]) == wanted and not info.parent.name.endswith(".incomplete")
    ]
    configurations = sorted({info.parts[-4] for info in infos})
    if len(configurations) > 1:
        raise UsageError(
            f"The data set {repository!r} has the configurations {', '.join(configurations)} in the local cache: "
            f"name one, for example {repository}:{configurations[0]}."
        )
    for info in sorted(infos, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            splits = json.loads(info.read_text())["splits"]
        except (OSError, ValueError, KeyError):
            continue
        files = {split: _shards(info.parent, split) for split in splits}
        if files and all(files.values()):
            return files
    return {}


def _plain(name: str) -> str:
    """The cache writes some names in snake case."""
    return name.lower().replace("_", "")


def _shards(folder: Path, split: str) -> list[Path]:
    shard = re.compile(rf".*-{re.escape(split)}(-\d+-of-\d+)?\.arrow")
    return sorted(path for path in folder.glob("*.arrow") if shard.fullmatch(path.name))


def _host() -> tuple[str, int]:
    """Where a connection to the hub goes: its host, or the proxy in between."""
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    address = urlsplit(proxy or os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    return address.hostname or "huggingface.co", address.port or (80 if address.scheme == "http" else 443)


def _reachable(host: str, port: int) -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    connected = []

    def connect() -> None:
        try:
            with socket.create_connection((host, port), timeout=CONNECT_SECONDS):
                connected.append(True)
        except OSError:
            pass

    # In a thread, as looking up the name has no time limit of its own.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(CONNECT_SECONDS + 1)
    return bool(connected)


def _fetch(repository: str, configuration: str) -> dict[str, list[Path]]:
    import datasets

    try:
        found = datasets.load_dataset(repository, configuration or None)
    except Exception as error:  # the library and those below it raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise MonoevalError(
            f"The data set {repository!r} could not be fetched ({reason}): check its name on the hub, and log in "
            "with `hf auth login` if it is gated."
        ) from error
    return {str(name): [Path(part["filename"]) for part in split.cache_files] for name, split in found.items()}
