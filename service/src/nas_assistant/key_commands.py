# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The command ``keys``: makes, lists, rotates and revokes keys of this NAS, while the service runs.

The service sees a change within seconds. A secret is printed once, and is nowhere afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from nas_assistant import state
from nas_assistant.key_files import KeyFiles
from nas_assistant.keys import ApiKey, KeysError, Role, load, parse_key, render
from nas_assistant.quota import Usage

_SECRET_BYTES = 32


def add_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], places: argparse.ArgumentParser
) -> None:
    """Describe the command's arguments; ``places`` has those that say where things are."""
    parser = commands.add_parser("keys", parents=[places])
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="make a key and print its secret, once")
    create.add_argument("name")
    create.add_argument("--role", choices=[str(role) for role in Role], default=str(Role.USER))
    for limit in ("requests-per-minute", "tokens-per-day", "parallel"):
        create.add_argument(f"--{limit}", type=int, default=0, metavar="NUMBER")
    create.add_argument("--model", action="append", default=[], dest="models", metavar="NAME")
    create.add_argument("--local-only", action="store_true", help="nothing may leave this machine")
    create.add_argument("--expires", default="", metavar="YYYY-MM-DD", help="last day, UTC")
    rotate = actions.add_parser("rotate", help="give a key another secret and print it, once")
    rotate.add_argument("name")
    revoke = actions.add_parser("revoke", help="take a key away")
    revoke.add_argument("name")
    listing = actions.add_parser("list", help="list keys and what they used today")
    listing.add_argument("--json", action="store_true")
    history = actions.add_parser("history", help="list what was done to keys")
    history.add_argument("--json", action="store_true")


def run(options: argparse.Namespace, files: KeyFiles) -> str:
    """Carry out an action; return what is to be printed. Raises KeysError, StateError."""
    if options.action == "list":
        return _list(files, options.json)
    if options.action == "history":
        entries = state.audit(files.state)
        return json.dumps(entries) if options.json else "\n".join(map(" ".join, entries))
    with _changing(files) as own:
        if options.name in load(files.fixed):
            raise KeysError(
                f"{options.name} is a key of the inventory: change it there and run the playbook"
            )
        printed = _change(options, own)
    # Only what was done is noted; and a key must go also while nothing can be noted.
    detail = _limits(own[options.name]) if options.action == "create" else ""
    try:
        state.note(files.state, options.action, options.name, detail)
    except state.StateError as error:
        print(f"it is done, but not in the history: {error}", file=sys.stderr)
    return printed


def _change(options: argparse.Namespace, own: dict[str, ApiKey]) -> str:
    """Change the NAS's own keys; return what is to be printed. Raises KeysError."""
    if options.action == "create":
        return _create(options, own)
    if options.name not in own:
        raise KeysError(f"there is no key {options.name}; see `keys list`")
    if options.action == "revoke":
        del own[options.name]
        return f"{options.name} is revoked"
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    own[options.name] = dataclasses.replace(own[options.name], sha256=_digest(secret))
    return secret


def _create(options: argparse.Namespace, own: dict[str, ApiKey]) -> str:
    if options.name in own:
        raise KeysError(f"there is a key {options.name} already; `keys rotate` renews its secret")
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    wish = {field.name: getattr(options, field.name, "") for field in dataclasses.fields(ApiKey)}
    own[options.name] = parse_key({**wish, "sha256": _digest(secret)}, "keys create")
    return secret


def _list(files: KeyFiles, as_json: bool) -> str:
    fixed, used = load(files.fixed), _used_today(files.state)
    keys = files.load()
    rows = [
        {
            **{name: value for name, value in dataclasses.asdict(key).items() if name != "sha256"},
            "source": "inventory" if key.name in fixed else "this NAS",
            "used_today": dataclasses.asdict(used.get(key.name, Usage())),
        }
        for key in keys.values()
    ]
    if as_json:
        return json.dumps(rows)
    if not keys:
        return "there is no key yet: `keys create NAME` makes one"
    lines = []
    for row in rows:
        key, usage = keys[str(row["name"])], used.get(str(row["name"]), Usage())
        words = [key.name, str(key.role), f"from {row['source']}", _limits(key)]
        words.append(f"today {usage.requests} requests, {usage.tokens} tokens")
        lines.append(", ".join(filter(None, words)))
    return "\n".join(lines)


def _used_today(folder: Path) -> dict[str, Usage]:
    with contextlib.suppress(state.StateError):
        return state.usage_of(folder, datetime.now(UTC).date().isoformat())
    return {}


def _limits(key: ApiKey) -> str:
    """What limits a key, as words."""
    limits = {
        "requests a minute": key.requests_per_minute,
        "tokens a day": key.tokens_per_day,
        "at once": key.parallel,
    }
    words = [f"{number} {what}" for what, number in limits.items() if number]
    words += [f"models {' '.join(key.models)}"] if key.models else []
    words += ["kept on this machine"] if key.local_only else []
    words += [f"until {key.expires}"] if key.expires else []
    return ", ".join(words)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@contextlib.contextmanager
def _changing(files: KeyFiles) -> Iterator[dict[str, ApiKey]]:
    """Give the NAS's own keys, to be changed; written at the end, one process at a time."""
    try:
        with (files.state / ".keys.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            own = load(files.own)
            yield own
            with tempfile.NamedTemporaryFile("w", dir=files.state, delete=False) as draft:
                try:
                    draft.write(render(own.values()))
                    draft.flush()
                    os.fsync(draft.fileno())
                    Path(draft.name).replace(files.own)
                except BaseException:
                    Path(draft.name).unlink(missing_ok=True)
                    raise
    except OSError as error:
        raise KeysError(
            f"{files.state} cannot be written ({error.strerror}): mount a volume there that "
            f"belongs to uid {os.getuid()}"
        ) from error
