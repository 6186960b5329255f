# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Addresses: those that the service listens on, and those of APIs that it may ask."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

# Names that only a home's own resolver knows (RFC 6762, RFC 8375, ICANN's "internal").
_HOME = (".local", ".home.arpa", ".internal", ".lan")


@dataclass(frozen=True)
class TcpAddress:
    """An address to listen on. ``host`` has no brackets, also for IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class UnixAddress:
    """A Unix socket to listen on."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_addresses(text: str) -> tuple[Address, ...]:
    """``HOST:PORT``, ``[IPV6]:PORT`` and ``unix:/PATH``, with commas between. Raises ValueError."""
    addresses = tuple(_address(part.strip()) for part in text.split(","))
    if len(set(addresses)) != len(addresses):
        raise ValueError("an address appears twice")
    return addresses


def parse_unix(text: str) -> UnixAddress:
    """``unix:/PATH``. Raises ValueError."""
    address = _address(text)
    if not isinstance(address, UnixAddress):
        raise ValueError(text)
    return address


def _address(text: str) -> Address:
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        # The kernel's sun_path holds 108 bytes with the terminating zero.
        if not path.startswith("/") or len(path.encode()) > 107:
            raise ValueError(text)
        return UnixAddress(path)
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address needs brackets")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(text)
    return TcpAddress(host, int(port))


def parse_api_url(text: str) -> str:
    """The base address of an API, without a slash at its end. Raises ValueError.

    Without TLS only at home: what is asked, and the key, would be readable on the way.
    """
    url = urlsplit(text)
    host = url.hostname or ""
    whole = re.fullmatch(r"[!-~]+", text) and host and url.port != 0
    if not whole or url.username or url.query or url.fragment:
        raise ValueError(f"no address of an API: {text}")
    if url.scheme != "https" and not (url.scheme == "http" and _at_home(host)):
        raise ValueError(f"no address to send a key to: {text}")
    return text.rstrip("/")


def _at_home(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost" or host.endswith(_HOME)
