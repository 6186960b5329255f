# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What outlives the container, in SQLite on the state volume: usage by key and day, and what was
done to keys.

Without a volume, or while the disk is full, usage is counted in memory alone.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from nas_assistant.logs import log
from nas_assistant.quota import Usage

FILE = "assistant.db"
_PATIENCE = 5.0  # seconds, while another process writes
# While the supervisor reads, nobody's request goes on.
_PATIENCE_TO_READ = 0.2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    key TEXT NOT NULL, day TEXT NOT NULL,
    requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (day, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS audit (
    time TEXT NOT NULL, action TEXT NOT NULL, key TEXT NOT NULL, detail TEXT NOT NULL
);
"""


class StateError(Exception):
    """The state cannot be read or written; the text says where and why."""


class Ledger:
    """Usage by day and key: counted in memory, written now and then."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: defaultdict[tuple[str, str], Usage] = defaultdict(Usage)
        # Between who adds, and the thread that writes.
        self._lock = threading.Lock()
        self.complaint = ""

    def add(self, day: str, key: str, usage: Usage) -> None:
        """Note what was used; costs nothing."""
        with self._lock:
            self._pending[day, key] += usage

    def of_day(self, day: str) -> dict[str, Usage]:
        """What was used on a day by key, written or not; where nothing can be read, the latter."""
        used: defaultdict[str, Usage] = defaultdict(Usage)
        try:
            used.update(usage_of(self._folder, day, _PATIENCE_TO_READ))
        except StateError:
            used.update(_as_it_lies(self._folder, day))
        with self._lock:
            pending = list(self._pending.items())
        for (noted, key), usage in pending:
            if noted == day:
                used[key] += usage
        return used

    def flush(self) -> None:
        """Write what is new. What cannot be written is kept for the next time."""
        with self._lock:
            pending, self._pending = self._pending, defaultdict(Usage)
        complaint = ""
        if pending:
            try:
                self._write(pending)
            except StateError as error:
                for (day, key), usage in pending.items():
                    self.add(day, key, usage)
                complaint = str(error)
        if complaint and not self.complaint:
            log(logging.ERROR, "state_not_written", f"{complaint}. Usage is counted in memory")
        elif self.complaint and not complaint:
            log(logging.INFO, "state_written", "usage is written again")
        self.complaint = complaint

    def _write(self, pending: Mapping[tuple[str, str], Usage]) -> None:
        """Write it; into a new database, where the one that is there is damaged. Raises
        StateError.
        """
        try:
            _write_usage(self._folder, pending)
        except StateError as error:
            if not _is_damage(error):
                raise
            mend(self._folder)
            _write_usage(self._folder, pending)


def usage_of(folder: Path, day: str, patience: float | None = None) -> dict[str, Usage]:
    """What was used on a day (UTC, ISO) by key. Raises StateError."""
    with _open(folder, patience) as database:
        return _read_usage(database, day)


def _as_it_lies(folder: Path, day: str) -> dict[str, Usage]:
    """The same, where the database has no room for its log or another process keeps it to itself.

    It lacks what that process has not brought from its log into the file; at worst all.
    """
    try:
        address = f"{(folder / FILE).absolute().as_uri()}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            return _read_usage(database, day)
    except sqlite3.Error:
        return {}


def _read_usage(database: sqlite3.Connection, day: str) -> dict[str, Usage]:
    rows = database.execute(
        "SELECT key, requests, prompt_tokens, completion_tokens FROM usage WHERE day = ?", (day,)
    )
    return {key: Usage(*figures) for key, *figures in rows}


def note(folder: Path, action: str, key: str, detail: str = "") -> None:
    """Write into the audit log what was done to a key. Raises StateError."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    with _open(folder) as database:
        database.execute("INSERT INTO audit VALUES (?, ?, ?, ?)", (when, action, key, detail))


def audit(folder: Path, most: int = 100) -> list[tuple[str, str, str, str]]:
    """The last entries of the audit log: time, action, key, detail; newest first. Raises
    StateError.
    """
    with _open(folder) as database:
        return database.execute(
            "SELECT time, action, key, detail FROM audit ORDER BY rowid DESC LIMIT ?", (most,)
        ).fetchall()


def mend(folder: Path) -> None:
    """Put a database that is damaged aside, so that a new one is made. Its file is kept."""
    path = folder / FILE
    if not path.exists():
        return
    try:
        with _open(folder) as database:
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict == "ok":
            return
    except StateError as error:
        if not _is_damage(error):
            log(logging.ERROR, "state_not_read", str(error))
            return
    aside = f"{FILE}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    with contextlib.suppress(OSError):
        for suffix in ("-wal", "-shm"):
            (folder / f"{FILE}{suffix}").unlink(missing_ok=True)
        path.rename(folder / aside)
        log(
            logging.ERROR,
            "state_damaged",
            f"{path} is damaged: it is kept as {aside}, and usage of before is no longer counted",
        )


def _is_damage(error: StateError) -> bool:
    """Whether the file is not what SQLite wrote. One that is locked, or that cannot be read or
    written now, may be whole.
    """
    cause = error.__cause__
    return isinstance(cause, sqlite3.DatabaseError) and not isinstance(
        cause, sqlite3.OperationalError
    )


def _write_usage(folder: Path, pending: Mapping[tuple[str, str], Usage]) -> None:
    with _open(folder) as database:
        database.executemany(
            "INSERT INTO usage VALUES (?, ?, ?, ?, ?) ON CONFLICT (day, key) DO UPDATE SET"
            " requests = requests + excluded.requests,"
            " prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
            " completion_tokens = completion_tokens + excluded.completion_tokens",
            [
                (key, day, usage.requests, usage.prompt_tokens, usage.completion_tokens)
                for (day, key), usage in pending.items()
            ],
        )


@contextlib.contextmanager
def _open(folder: Path, patience: float | None = None) -> Iterator[sqlite3.Connection]:
    """The database in one transaction. Whatever goes wrong is a StateError."""
    path = folder / FILE
    try:
        database = sqlite3.connect(path, timeout=_PATIENCE if patience is None else patience)
        try:
            # Readers do not wait for a writer, and a power cut costs seconds at most.
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.executescript(_SCHEMA)
            with database:
                yield database
        finally:
            database.close()
    except sqlite3.Error as error:
        raise StateError(f"{path}: {error}: see that the volume is there and has room") from error
