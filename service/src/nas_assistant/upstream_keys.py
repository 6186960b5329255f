# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The keys that upstreams want of this service: ``upstreams.json``, beside the inventory's keys.

``{"upstreams": {"NAME": {"key": "…", "certificates": "PEM"}}}``; certificates, which are trusted
beside the usual ones, may be missing.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas_assistant.keys import KeysError, read_json

FILE = "upstreams.json"
_KEY = re.compile(r"[!-~]{1,4096}")


@dataclass(frozen=True)
class UpstreamKey:
    """What is needed to be let in."""

    key: str = field(repr=False)
    certificates: str = ""


def load(path: Path, names: Iterable[str]) -> dict[str, UpstreamKey]:
    """The key of each of ``names``. Raises KeysError; no key is in its text."""
    wanted = list(names)
    if not wanted:
        return {}
    document = read_json(path)
    entries = document.get("upstreams") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise KeysError(f'{path} must be an object with an object "upstreams", with a key for each')
    return {name: _parse(entries.get(name), f"{path}: {name}") for name in wanted}


def _parse(entry: Any, where: str) -> UpstreamKey:
    if not isinstance(entry, dict) or entry.keys() - {"key", "certificates"}:
        raise KeysError(f"{where}: an object with key is wanted, and certificates if need be")
    key, certificates = entry.get("key"), entry.get("certificates", "")
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise KeysError(
            f"{where}: key must be one word; where the upstream asks for none, any word will do"
        )
    if not isinstance(certificates, str):
        raise KeysError(f"{where}: certificates must be text (PEM)")
    if certificates:
        try:
            ssl.create_default_context(cadata=certificates)
        # A TypeError where they are not ASCII.
        except (ssl.SSLError, TypeError, ValueError) as error:
            why = getattr(error, "reason", error)
            raise KeysError(f"{where}: certificates are not PEM ({why})") from error
    return UpstreamKey(key, certificates)
