"""Whether the hub can be asked at all."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies


def can_be_reached() -> bool:
    """Tell at once whether the hub's host has an address: its client would retry for a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    host = urlsplit(constants.ENDPOINT).hostname
    if getproxies() or host is None:
        return True
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True
