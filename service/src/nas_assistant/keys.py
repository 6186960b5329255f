# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""API keys: who may use the service and how much of it. Only digests of their secrets are kept.

They are in two files of one form: ``keys.json`` of the inventory, which the service cannot write,
and ``keys.json`` of this NAS, which the command ``keys`` writes. Of one name, the inventory's
counts.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

# A name, of a model too, ends up in URLs, log lines, metrics and other commands' arguments.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST = 1 << 40


class KeysError(Exception):
    """A file of keys is wrong; the text names the file, the key and what is allowed."""


class Role(StrEnum):
    """What a key is for. An admin may also see metrics and what the admin page shows."""

    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True)
class ApiKey:
    """A client's key. Of limits, 0 is none; no ``models`` are all; ``expires`` is the last day
    (UTC) that it is valid on, empty for ever. ``local_only``: nothing that it asks may leave the
    machine.
    """

    name: str
    sha256: str
    role: Role = Role.USER
    requests_per_minute: int = 0
    tokens_per_day: int = 0
    parallel: int = 0
    models: tuple[str, ...] = ()
    expires: str = ""
    local_only: bool = False

    def may_use(self, model: str) -> bool:
        """Whether the key is good for ``model``, as far as the name goes."""
        return not self.models or model in self.models

    def expired(self, now: datetime) -> bool:
        """Whether its last day is over."""
        if not self.expires:
            return False
        after = date.fromisoformat(self.expires) + timedelta(days=1)
        return now >= datetime(after.year, after.month, after.day, tzinfo=UTC)


FIELDS = tuple(ApiKey.__dataclass_fields__)


class KeyRing:
    """The keys that count now, looked up by secret."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self.keys: Mapping[str, ApiKey] = {}
        self._digests: tuple[tuple[bytes, ApiKey], ...] = ()
        self.replace(keys)

    def replace(self, keys: Iterable[ApiKey]) -> None:
        """Have these from now on, and no others."""
        self.keys = {key.name: key for key in keys}
        self._digests = tuple((bytes.fromhex(key.sha256), key) for key in self.keys.values())

    def find(self, secret: str) -> ApiKey | None:
        """The key with this secret, found in a time that does not depend on the secret or on which
        key it is.
        """
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, key in self._digests:
            if hmac.compare_digest(digest, known):
                found = key
        return found


def parse_key(entry: Any, where: str) -> ApiKey:
    """A key from JSON. Raises KeysError."""
    if not isinstance(entry, dict):
        raise KeysError(f"{where}: a key must be an object")
    unknown = entry.keys() - set(FIELDS)
    if unknown:
        raise KeysError(
            f"{where}: {', '.join(sorted(unknown))}: unknown; allowed: {', '.join(FIELDS)}"
        )
    name = entry.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise KeysError(
            f"{where}: name = {name!r}: allowed are up to 64 letters, digits, dots, dashes and "
            "underscores"
        )
    where = f"{where}: key {name}"
    # The value is not repeated: an owner may have put the secret itself there.
    digest = entry.get("sha256")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise KeysError(f"{where}: sha256 must be 64 hexadecimal digits in lower case")
    models = entry.get("models", [])
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        raise KeysError(f"{where}: models = {models!r}: a list of names is wanted")
    return ApiKey(
        name=name,
        sha256=digest,
        role=_role(entry.get("role", Role.USER), where),
        models=tuple(models),
        expires=_day(entry.get("expires", ""), where),
        local_only=_boolean(entry.get("local_only", False), f"{where}: local_only"),
        **{
            limit: _limit(entry.get(limit, 0), f"{where}: {limit}")
            for limit in ("requests_per_minute", "tokens_per_day", "parallel")
        },
    )


def load(path: Path) -> dict[str, ApiKey]:
    """The keys of a file by name; none where there is no file. Raises KeysError."""
    document = read_json(path)
    if document is None:
        return {}
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise KeysError(f'{path} must be an object with a list "keys"')
    found: dict[str, ApiKey] = {}
    for entry in entries:
        key = parse_key(entry, str(path))
        if key.name in found:
            raise KeysError(f"{path}: key {key.name} is there twice")
        found[key.name] = key
    return found


def changes(before: Mapping[str, ApiKey], after: Mapping[str, ApiKey]) -> Iterator[tuple[str, str]]:
    """What was done to keys, in the words of the command ``keys``, and to which."""
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None:
            yield "create", name
        elif new is None:
            yield "revoke", name
        elif old.sha256 != new.sha256:
            yield "rotate", name
        elif old != new:
            yield "change", name


def read_json(path: Path) -> Any:
    """What a file of JSON holds; None where there is no file. Raises KeysError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeysError(
            f"{path} cannot be read ({error.strerror}): check its owner and mode"
        ) from error
    except UnicodeDecodeError as error:
        raise KeysError(f"{path} is not UTF-8 text (byte {error.start})") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KeysError(f"{path} is not JSON: {error}") from error


def render(keys: Iterable[ApiKey]) -> str:
    """The text of a file of keys."""
    return json.dumps({"keys": [asdict(key) for key in keys]}, indent=2) + "\n"


def _role(value: Any, where: str) -> Role:
    try:
        return Role(value)
    except ValueError as error:
        raise KeysError(f"{where}: role = {value!r}: allowed: {', '.join(Role)}") from error


def _limit(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
        raise KeysError(f"{where} = {value!r}: a whole number is wanted, 0 for no limit")
    return value


def _boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise KeysError(f"{where} = {value!r}: true or false is wanted")
    return value


def _day(value: Any, where: str) -> str:
    try:
        return date.fromisoformat(value).isoformat() if value else ""
    except (TypeError, ValueError) as error:
        raise KeysError(f"{where}: expires = {value!r}: a day is wanted, as 2030-12-31") from error
