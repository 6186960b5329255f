# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What happens to the state volume and to the clock while the real service answers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas_assistant.keys import Role
from nas_assistant.state import FILE

from .cloud_process import TOKENS, CloudService, ScriptedCloud
from .conftest import api_key
from .service_process import Service

WRITTEN = "nas_assistant_state_written"
PHONE = "sk-phone"
DAY = 86400


@pytest.fixture
def cloud() -> Iterator[ScriptedCloud]:
    cloud = ScriptedCloud()
    yield cloud
    cloud.close()


@pytest.fixture
def service(cloud: ScriptedCloud, tmp_path: Path) -> Iterator[CloudService]:
    """One that writes several times a second, and waits half a second for who else does."""
    service = CloudService(tmp_path, cloud)
    service.patch(supervisor___USAGE_EVERY=0.2, state___PATIENCE=0.5)
    yield service
    end(service)


def end(service: Service) -> None:
    if service.process is not None and service.process.poll() is None:
        service.stop(signal.SIGKILL)
    service.wait(lambda: not service.pids("nas_assistant"), 10)


def noted(folder: Path, key: str = "owner") -> int:
    """Requests of a key that the file has; 0 while it cannot be read. Of a copy: SQLite would look
    for the file of another process where this one has its own.
    """
    with tempfile.TemporaryDirectory() as copy:
        try:
            shutil.copy(folder / FILE, copy)
            with contextlib.closing(sqlite3.connect(Path(copy) / FILE)) as database:
                rows = database.execute("SELECT SUM(requests) FROM usage WHERE key = ?", (key,))
                return int(rows.fetchone()[0] or 0)
        except (OSError, sqlite3.Error):
            return 0


def events(service: Service, name: str) -> list[str]:
    return [line.get("message", "") for line in service.log if line["event"] == name]


def check_it_is_said(service: CloudService, why: str) -> None:
    """That usage is not written: in the log, for the owner, for Prometheus."""
    service.wait(lambda: service.figure(WRITTEN) == 0, 10)
    assert why in service.admin_status()["not_written"]
    assert [why in message for message in events(service, "state_not_written")] == [True]
    # Answers do not depend on it.
    assert service.status("/readyz") == 200


def check_it_is_over(service: CloudService) -> None:
    service.wait(lambda: service.figure(WRITTEN) == 1, 10)
    assert service.admin_status()["not_written"] == ""
    assert len(events(service, "state_written")) == 1


@pytest.fixture
def small_volume(service: CloudService) -> Path:
    """The state volume as the service sees it: one of 256 KiB, which nobody else sees."""
    mount = f"mount -t tmpfs -o size=256k tmpfs '{service.state_dir}' && exec \"$@\""
    service.prefix = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    tried = subprocess.run([*service.prefix, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    service.start()
    assert service.process is not None
    return Path(f"/proc/{service.process.pid}/root{service.state_dir}")


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 4096)
    with pytest.raises(OSError, match="No space left"):
        (folder / "more").write_bytes(b"x")
    (folder / "more").unlink()


def test_a_disk_that_is_full(service: CloudService, small_volume: Path) -> None:
    """Answers go on, limits hold, and what was used is written once there is room."""
    service.allow(api_key("phone", PHONE, role=Role.USER, tokens_per_day=3 * TOKENS))
    service.wait(lambda: service.ask(PHONE).status_code == 200)
    service.wait(lambda: noted(small_volume, "phone") == 1, 10)
    fill(small_volume)
    assert service.ask(PHONE).status_code == 200
    # "disk I/O error", or that it is full: which file finds no room first is SQLite's affair.
    check_it_is_said(service, "disk")
    assert service.ask(PHONE).status_code == 200
    refused = service.ask(PHONE)
    assert refused.status_code == 429
    assert "30 tokens a day, and has used 30" in refused.json()["error"]["message"]
    (small_volume / "filler").unlink()
    check_it_is_over(service)
    service.wait(lambda: noted(small_volume, "phone") == 3, 10)
    assert not events(service, "state_damaged")


def test_a_start_on_a_full_disk(service: CloudService, small_volume: Path) -> None:
    """Its log has no room, and what was used today is read nevertheless."""
    service.allow(api_key("phone", PHONE, role=Role.USER, tokens_per_day=TOKENS))
    service.wait(lambda: service.ask(PHONE).status_code == 200)
    service.wait(lambda: noted(small_volume, "phone") == 1, 10)
    fill(small_volume)
    # In the same file system, as a container that starts again has it.
    assert service.process is not None
    with os.fdopen(os.open(f"/proc/{service.process.pid}/ns/mnt", os.O_RDONLY)) as namespace:
        assert service.stop() == 0
        os.set_inheritable(namespace.fileno(), True)
        service.prefix = ["nsenter", f"--mount=/proc/{os.getpid()}/fd/{namespace.fileno()}"]
        service.start()
    assert service.ask(PHONE).status_code == 429
    assert service.ask().status_code == 200


def test_a_database_that_another_process_keeps(service: CloudService) -> None:
    service.start()
    assert service.ask().status_code == 200
    service.wait(lambda: noted(service.state_dir) == 1, 10)
    other = sqlite3.connect(service.state_dir / FILE)
    other.execute("BEGIN IMMEDIATE")
    assert service.ask().status_code == 200
    check_it_is_said(service, "database is locked")
    assert service.ask().status_code == 200
    other.close()
    check_it_is_over(service)
    service.wait(lambda: noted(service.state_dir) == 3, 10)
    assert not events(service, "state_damaged")


@pytest.mark.parametrize("when", ["before the start", "while it serves"])
def test_a_database_that_is_damaged(service: CloudService, when: str) -> None:
    """It is put aside whole, a new one is made, and no key forgets what it used today."""
    service.allow(api_key("phone", PHONE, role=Role.USER, tokens_per_day=2 * TOKENS))
    service.start()
    assert service.ask(PHONE).status_code == 200
    service.wait(lambda: noted(service.state_dir, "phone") == 1, 10)
    if when == "before the start":
        service.stop()
    damaged = damage(service.state_dir / FILE)
    if when == "before the start":
        service.start()
    assert service.ask(PHONE).status_code == 200
    service.wait(lambda: noted(service.state_dir, "phone") == 1, 10)
    (kept,) = service.state_dir.glob(f"{FILE}.damaged-*")
    assert kept.read_bytes() == damaged
    (said,) = events(service, "state_damaged")
    assert kept.name in said
    assert service.figure(WRITTEN) == 1
    # The memory of a service that goes on still has what the file had.
    assert service.ask(PHONE).status_code == (200 if when == "before the start" else 429)


def damage(path: Path) -> bytes:
    """Overwrite all of it but its first page; return what it is then."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))
    return path.read_bytes()


CLOCK = """
import datetime, pathlib, time
real, base, shift = time.time, datetime.datetime, pathlib.Path({shift!r})

def shifted():
    return real() + float(shift.read_text())

class Shifted(base):
    @classmethod
    def now(cls, tz=None):
        return base.fromtimestamp(shifted(), tz)

time.time, datetime.datetime = shifted, Shifted
"""


def test_a_clock_that_is_set_back(service: CloudService, tmp_path: Path) -> None:
    """Each day keeps what was used on it, a key ends by the day that it is, and a minute is one."""
    shift = tmp_path / "shift"

    def set_clock(seconds: int) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(str(seconds), encoding="ascii")
        fresh.replace(shift)

    set_clock(0)
    service.patch(CLOCK.format(shift=str(shift)), supervisor___USAGE_EVERY=0.2)
    service.allow(
        api_key("phone", PHONE, role=Role.USER, tokens_per_day=TOKENS),
        api_key("guest", "sk-guest", role=Role.USER, requests_per_minute=1),
        api_key("old", "sk-old", role=Role.USER, expires="2000-12-31"),
    )
    service.start()
    assert service.ask(PHONE).status_code == 200
    assert service.ask(PHONE).status_code == 429
    assert service.ask("sk-guest").status_code == 200
    assert service.ask("sk-old").status_code == 401
    set_clock(-DAY)
    assert service.ask("sk-guest").status_code == 429
    # The day before has its own figures.
    assert service.ask(PHONE).status_code == 200
    assert service.ask(PHONE).status_code == 429
    set_clock(-40 * 365 * DAY)
    assert service.ask("sk-old").status_code == 200
    assert service.status("/readyz") == 200
    set_clock(0)
    assert service.ask(PHONE).status_code == 429
    assert service.ask("sk-old").status_code == 401
    assert service.ask("sk-guest").status_code == 429
    assert service.stop() == 0
    assert not [line for line in service.log if line["level"] == "error"]
