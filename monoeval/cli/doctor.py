"""`monoeval doctor`: versions, device, cache, hub."""

import json
import os
import tempfile

from rich.filesize import decimal

from monoeval.cli import options as o
from monoeval.cli.console import out


def doctor(as_json: o.AsJson = False) -> None:
    """Show versions, the device that would be used, the cache, and whether the hub can be reached."""
    from monoeval.suite.run import environment

    found: dict[str, str] = {**environment(), **_device(), "cache": _cache(), "hub": _hub()}
    if as_json:
        out.print_json(json.dumps(found))
        return
    for name, value in found.items():
        out.print(f"{name:16} {value}", markup=False, soft_wrap=True)


def _device() -> dict[str, str]:
    import torch

    from monoeval.backbones.load import choose_device

    device = choose_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return {"device": f"{device} ({name})"}


def _cache() -> str:
    from monoeval.cache import entries
    from monoeval.files import cache_dir

    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            writable = "writable"
    except OSError as error:
        writable = f"NOT WRITABLE ({error.strerror}): set MONOEVAL_CACHE to a folder you can write"
    held = entries() if folder.is_dir() and os.access(folder, os.R_OK) else []
    return f"{folder} ({writable}, {len(held)} entries, {decimal(sum(e.bytes for e in held))})"


def _hub() -> str:
    from monoeval.hub import endpoint, offline, reachable

    if offline():
        return "off (HF_HUB_OFFLINE is set): only local weights and data"
    return f"{endpoint()} reachable" if reachable() else f"{endpoint()} NOT reachable: only local weights and data"
