"""Whether the model and data hub can be reached, found out in at most two seconds and without its client.

Left alone, the client retries for a minute; looking first lets the caller say in one sentence what is missing.
"""

import os
import socket
from urllib.parse import urlsplit

DEFAULT_ENDPOINT = "https://huggingface.co"


def endpoint() -> str:
    """The hub's address: `HF_ENDPOINT`, or the public one."""
    return os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT


def offline() -> bool:
    """Whether the user switched the hub off with `HF_HUB_OFFLINE`."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}


def reachable(timeout: float = 2.0) -> bool:
    """Whether a connection to the hub (or to the proxy in front of it) opens within `timeout` seconds."""
    if offline():
        return False
    url = urlsplit(endpoint())
    proxy = os.environ.get(f"{url.scheme}_proxy") or os.environ.get(f"{url.scheme.upper()}_PROXY")
    if proxy:
        url = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    try:
        with socket.create_connection(
            (url.hostname or "", url.port or (80 if url.scheme == "http" else 443)), timeout
        ):
            return True
    except OSError:
        return False
