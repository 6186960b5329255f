# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Keys: their files, the ring they are looked up in, and the command that changes them."""

from __future__ import annotations

import argparse
import errno
import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nas_assistant.key_commands import add_parser, run
from nas_assistant.key_files import KeyFiles
from nas_assistant.keys import (
    ApiKey,
    KeyRing,
    KeysError,
    Role,
    changes,
    load,
    parse_key,
    render,
)
from nas_assistant.quota import Usage
from nas_assistant.state import Ledger, audit

from .conftest import SECRET, api_key
from .service_process import SOURCE

ENTRY = {"name": "phone", "sha256": "a" * 64}


def test_the_ring_finds_by_secret() -> None:
    ring = KeyRing([api_key(), api_key("child", "other")])
    assert ring.find(SECRET) == api_key()
    assert ring.find("other") == api_key("child", "other")
    assert ring.find("") is None
    assert ring.find("caf\udce9") is None
    ring.replace([api_key("child", "third")])
    assert ring.find(SECRET) is None
    assert ring.find("other") is None


@pytest.mark.parametrize(
    ("expires", "now", "expired"),
    [
        ("", "9999-12-31T23:59", False),
        ("2026-02-28", "2026-02-28T23:59", False),
        ("2026-02-28", "2026-03-01T00:00", True),
        ("2024-12-31", "2025-01-01T00:00", True),
    ],
)
def test_expiry(expires: str, now: str, expired: bool) -> None:
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    assert api_key(expires=expires).expired(moment) is expired


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = [
        api_key(),
        api_key("child", "x", role=Role.USER, parallel=1, models=("large",), expires="2030-01-31"),
    ]
    path.write_text(render(keys), encoding="utf-8")
    assert list(load(path).values()) == keys
    assert load(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("phone", "must be an object"),
        ({**ENTRY, "limit": 1}, "limit: unknown; allowed: name, sha256, role"),
        ({**ENTRY, "name": "a b"}, "name = 'a b'"),
        ({"sha256": "a" * 64}, "name = None"),
        ({"name": "phone", "sha256": "sk-very-secret"}, "key phone: sha256 must be 64"),
        ({**ENTRY, "role": "root"}, "role = 'root': allowed: user, admin"),
        ({**ENTRY, "parallel": -1}, "parallel = -1: a whole number"),
        ({**ENTRY, "parallel": True}, "parallel = True: a whole number"),
        ({**ENTRY, "tokens_per_day": "many"}, "tokens_per_day = 'many'"),
        ({**ENTRY, "models": "large"}, "models = 'large': a list"),
        ({**ENTRY, "expires": "soon"}, "expires = 'soon': a day is wanted, as 2030-12-31"),
        ({**ENTRY, "expires": 2030}, "expires = 2030"),
    ],
)
def test_what_is_no_key(entry: Any, message: str) -> None:
    with pytest.raises(KeysError) as caught:
        parse_key(entry, "keys.json")
    assert message in str(caught.value)
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"{}", 'must be an object with a list "keys"'),
        (b"[]", "must be an object"),
        (b"\xff", "is not UTF-8"),
        (json.dumps({"keys": [ENTRY, ENTRY]}).encode(), "key phone is there twice"),
    ],
)
def test_what_is_no_file_of_keys(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    with pytest.raises(KeysError, match=message):
        load(path)


@pytest.fixture
def files(tmp_path: Path) -> KeyFiles:
    for name in ("inventory", "state"):
        (tmp_path / name).mkdir()
    files = KeyFiles(tmp_path / "inventory", tmp_path / "state")
    files.fixed.write_text(render([api_key()]), encoding="utf-8")
    return files


def run_keys(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nas_assistant", "keys", *words],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
    )


def keys(files: KeyFiles, *words: str) -> str:
    """Run the command as a user does; what it prints, or why it does not."""
    places = ["--keys-dir", str(files.inventory), "--state-dir", str(files.state)]
    done = run_keys(*places, *words)
    assert done.returncode == (1 if done.stderr else 0), done.stderr
    return (done.stdout + done.stderr).strip()


def test_a_key_is_made_rotated_and_revoked(files: KeyFiles) -> None:
    assert sorted(files.load()) == ["owner"]
    assert not files.changed()
    limits = ("--requests-per-minute", "9", "--model", "large", "--expires", "2031-01-31")
    secret = keys(files, "create", "phone", *limits)
    assert files.changed()
    key = KeyRing(files.load().values()).find(secret)
    assert key is not None
    assert (key.name, key.role, key.requests_per_minute) == ("phone", Role.USER, 9)
    assert (key.models, key.expires) == (("large",), "2031-01-31")
    # Only its digest is anywhere.
    assert secret not in "".join(path.read_text("latin-1") for path in files.state.iterdir())
    assert stat.S_IMODE(files.own.stat().st_mode) == 0o600

    renewed = keys(files, "rotate", "phone")
    ring = KeyRing(files.load().values())
    assert ring.find(secret) is None
    found = ring.find(renewed)
    assert found is not None
    assert found.requests_per_minute == 9

    Ledger(files.state).flush()
    ledger = Ledger(files.state)
    ledger.add(datetime.now(UTC).date().isoformat(), "phone", Usage(2, 30, 4))
    ledger.flush()
    lines = keys(files, "list").splitlines()
    assert lines[1] == "owner, admin, from inventory, today 0 requests, 0 tokens"
    assert lines[0] == (
        "phone, user, from this NAS, 9 requests a minute, models large, until 2031-01-31, "
        "today 2 requests, 34 tokens"
    )
    listed = {entry["name"]: entry for entry in json.loads(keys(files, "list", "--json"))}
    assert listed["phone"]["used_today"]["prompt_tokens"] == 30
    assert all("sha256" not in entry for entry in listed.values())

    assert keys(files, "revoke", "phone") == "phone is revoked"
    assert sorted(files.load()) == ["owner"]
    history = keys(files, "history").splitlines()
    assert [line.split()[1:3] for line in history] == [
        ["revoke", "phone"],
        ["rotate", "phone"],
        ["create", "phone"],
    ]


def test_a_key_goes_while_nothing_can_be_noted(files: KeyFiles) -> None:
    keys(files, "create", "phone")
    for path in files.state.glob("assistant.db*"):
        path.unlink()
    (files.state / "assistant.db").write_bytes(b"damaged" * 1000)
    places = ["--keys-dir", str(files.inventory), "--state-dir", str(files.state)]
    done = run_keys(*places, "revoke", "phone")
    assert (done.returncode, done.stdout) == (0, "phone is revoked\n")
    assert "it is done, but not in the history" in done.stderr
    assert sorted(files.load()) == ["owner"]


def test_only_what_was_done_is_noted(files: KeyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
    with pytest.raises(KeysError, match="No space left"):
        run(parser.parse_args(["keys", "create", "phone"]), files)
    assert audit(files.state) == []


def test_what_was_done_to_keys() -> None:
    before = {name: api_key(name) for name in ("a", "b", "c", "d")}
    after = {
        **{name: api_key(name) for name in ("a", "e")},
        "b": api_key("b", "another"),
        "c": api_key("c", parallel=1),
    }
    assert list(changes(before, after)) == [
        ("rotate", "b"),
        ("change", "c"),
        ("revoke", "d"),
        ("create", "e"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("create", "owner"), "owner is a key of the inventory: change it there"),
        (("revoke", "owner"), "owner is a key of the inventory"),
        (("revoke", "nobody"), "there is no key nobody; see `keys list`"),
        (("rotate", "nobody"), "there is no key nobody"),
        (("create", "a b"), "name = 'a b': allowed are"),
        (("create", "a", "--expires", "soon"), "expires = 'soon'"),
        (("create", "a", "--parallel", "-1"), "parallel = -1"),
    ],
)
def test_refused(files: KeyFiles, words: tuple[str, ...], message: str) -> None:
    assert message in keys(files, *words)
    assert sorted(files.load()) == ["owner"]


def test_a_name_is_given_once(files: KeyFiles) -> None:
    keys(files, "create", "phone")
    assert "there is a key phone already" in keys(files, "create", "phone")


def test_without_a_volume_it_says_so(files: KeyFiles) -> None:
    files.state.rmdir()
    assert "cannot be written (No such file or directory): mount a volume" in keys(
        files, "create", "phone"
    )
    assert keys(files, "list").startswith("owner, admin")


def test_the_inventory_counts_and_damage_of_ours_stops_nobody(
    files: KeyFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    own: ApiKey = api_key("phone", "p")
    files.own.write_text(render([own, api_key("owner", "stolen")]), encoding="utf-8")
    ring = KeyRing(files.load().values())
    assert ring.find("stolen") is None
    assert ring.find("p") == own
    files.own.write_text("{", encoding="utf-8")
    assert files.changed()
    assert sorted(files.load()) == ["owner", "phone"]
    assert not files.changed()
    files.fixed.write_text("{", encoding="utf-8")
    with pytest.raises(KeysError, match="is not JSON"):
        files.load()
