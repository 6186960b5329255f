# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The supervisor with real files of keys, and a real line to it, in front of models that are all in
the cloud; its gateway is a stand-in.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nas_assistant import supervisor as module
from nas_assistant.checks import Checked
from nas_assistant.control import ControlClient
from nas_assistant.key_files import KeyFiles
from nas_assistant.keys import KeyRing, render
from nas_assistant.settings import Settings
from nas_assistant.state import FILE, Ledger, audit
from nas_assistant.supervisor import Supervisor

from .conftest import HYBRID, api_key, call_of, minimal_config, settled

OWNER, PHONE = api_key(), api_key("phone", "sk-phone")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyFiles:
    files = KeyFiles(tmp_path / "inventory", tmp_path / "state")
    for folder in (files.inventory, files.state):
        folder.mkdir()
    files.fixed.write_text(render([OWNER, PHONE]), encoding="utf-8")
    write_upstream(files, "one")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "_KEYS_EVERY", 0.02)
    return files


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    """Has the log go on as before: a supervisor listens to it."""
    logger = logging.getLogger("nas_assistant")
    before = list(logger.handlers)
    yield
    logger.handlers = before


def write_upstream(files: KeyFiles, key: str) -> None:
    """None where the key is empty, so that the file does not fit."""
    entries = {"example": {"key": key}} if key else {}
    files.upstreams.write_text(json.dumps({"upstreams": entries}), encoding="utf-8")


async def sleeper(_: Supervisor) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec("sleep", "60")


def control_socket(folder: Path) -> Path:
    (private,) = folder.glob("nas-assistant-*")
    return private / "control.sock"


@asynccontextmanager
async def running(
    supervisor: Supervisor, folder: Path
) -> AsyncIterator[tuple[ControlClient, KeyRing]]:
    """A line to it, and the keys that come on that."""
    task = asyncio.create_task(supervisor.run())
    socket, ring = control_socket(folder), KeyRing()
    await until(socket.exists)
    client = ControlClient(socket, ring, lambda: None)
    await client.connect()
    await until(lambda: "smart" in client.state.models)
    try:
        yield client, ring
    finally:
        await client.close()
        signal.raise_signal(signal.SIGTERM)
        assert await task == 0


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


async def key_of_upstream(client: ControlClient) -> str:
    async with client.slot(call_of("smart")) as grant:
        return grant.backend.api_key


async def until_upstream_has(client: ControlClient, key: str) -> None:
    while await key_of_upstream(client) != key:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)


async def check_a_revoked_key_goes_whatever_upstreams_have(
    client: ControlClient, ring: KeyRing, files: KeyFiles
) -> None:
    assert sorted(ring.keys) == ["owner", "phone"]
    write_upstream(files, "")
    files.fixed.write_text(render([OWNER]), encoding="utf-8")
    await until(lambda: sorted(ring.keys) == ["owner"])
    # What does not fit changes nothing, and what does is taken.
    assert await key_of_upstream(client) == "one"
    write_upstream(files, "two")
    await until_upstream_has(client, "two")


async def check_another_key_of_an_upstream_counts_whatever_ours_are(
    client: ControlClient, ring: KeyRing, files: KeyFiles
) -> None:
    files.fixed.write_text("{", encoding="utf-8")
    write_upstream(files, "two")
    await until_upstream_has(client, "two")
    assert sorted(ring.keys) == ["owner", "phone"]


async def check_what_the_inventory_does_is_noted(
    _: ControlClient, ring: KeyRing, files: KeyFiles
) -> None:
    files.own.write_text(render([api_key("tablet", "sk-tablet")]), encoding="utf-8")
    files.fixed.write_text(render([api_key(secret="sk-new"), api_key("tv", "x")]), encoding="utf-8")
    await until(lambda: len(audit(files.state)) == 3)
    assert [entry[1:] for entry in audit(files.state)] == [
        ("create", "tv", "by the inventory"),
        ("revoke", "phone", "by the inventory"),
        ("rotate", "owner", "by the inventory"),
    ]
    # What cannot be noted counts all the same.
    for path in files.state.glob(f"{FILE}*"):
        path.unlink()
    (files.state / FILE).write_bytes(b"damaged" * 1000)
    files.fixed.write_text(render([OWNER]), encoding="utf-8")
    await until(lambda: sorted(ring.keys) == ["owner", "tablet"])


Check = Callable[[ControlClient, KeyRing, KeyFiles], Awaitable[None]]


@pytest.fixture
def make(write_config: Callable[[str], Path], files: KeyFiles) -> Callable[[], Supervisor]:
    def make() -> Supervisor:
        config = write_config(minimal_config(mode="cloud", variant="smart") + HYBRID)
        settings = settled(Settings.load(config, {}))
        checked, ledger = Checked(settings, {}, {}, room=0), Ledger(files.state)
        return Supervisor(config, checked, "wheel", [], None, files, ledger)

    return make


@pytest.mark.parametrize(
    "check",
    [
        check_a_revoked_key_goes_whatever_upstreams_have,
        check_another_key_of_an_upstream_counts_whatever_ours_are,
        check_what_the_inventory_does_is_noted,
    ],
)
def test_supervisor(
    tmp_path: Path,
    files: KeyFiles,
    make: Callable[[], Supervisor],
    monkeypatch: pytest.MonkeyPatch,
    check: Check,
) -> None:
    monkeypatch.setattr(Supervisor, "_start_gateway", sleeper)

    async def run() -> None:
        async with asyncio.timeout(20), running(make(), tmp_path) as (client, ring):
            await check(client, ring, files)

    asyncio.run(run())


def test_a_part_that_ends_ends_the_service(
    make: Callable[[], Supervisor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: KeyFiles) -> bool:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(Supervisor, "_start_gateway", sleeper)
    monkeypatch.setattr(KeyFiles, "changed", fail)

    async def run() -> int:
        async with asyncio.timeout(20):
            return await make().run()

    assert asyncio.run(run()) == 1
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "nobody thought of this" in caplog.text
    assert vars(record)["event"] == "keeper_ended"
