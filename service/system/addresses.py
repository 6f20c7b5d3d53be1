"""Addresses of this machine, as programs on it reach them."""

import ipaddress


def local_url(host: str, port: int) -> str:
    """Return the URL by which a program on this machine reaches a listening address."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # not bound here
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


def is_loopback(host: str) -> bool:
    """True if only programs on this machine can connect to ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
