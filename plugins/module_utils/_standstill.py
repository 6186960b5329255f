# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Stops what uses a folder while it is worked on, and starts it again, after a crash too."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence

from ansible_collections.nas.assistant.plugins.module_utils import _commands
from ansible_collections.nas.assistant.plugins.module_utils._commands import run
from ansible_collections.nas.assistant.plugins.module_utils._files import replace
from ansible_collections.nas.assistant.plugins.module_utils._lock import held

DOCKER = "docker.service"
FOLDER = "/var/lib/nas-assistant-storage"
LOCK = "/run/nas-assistant/standstill.lock"
PATIENCE = 5.0  # seconds that a run waits for another one
SETTLE = 3.0  # seconds in which a program that cannot work with what it finds has ended


class StandstillError(Exception):
    """A command failed; what it said."""


def demand(argv: Sequence[str]) -> str:
    """Run a command that must succeed; return what it prints."""
    return str(_commands.demand(argv, StandstillError))


@contextlib.contextmanager
def alone(check_mode: bool = False) -> Iterator[None]:
    """Keep others from stopping and starting things meanwhile, whatever kind of work they do.

    :param check_mode: whether nothing is changed, so that others may go on.
    :raises StandstillError: somebody is at it.
    """
    with contextlib.ExitStack() as stack:
        try:
            if not check_mode:
                stack.enter_context(held(LOCK, PATIENCE))
        except TimeoutError:
            raise StandstillError(
                "busy: another run copies a folder or rolls a volume back, and this one would "
                "start what must stand still for it. Run again once it has ended; "
                f"`fuser -v {LOCK}` says what it is"
            ) from None
        yield


class Standstill:
    """What stands still for one kind of work. Its file is there as long as anything does."""

    def __init__(self, name: str) -> None:
        """``name``: of the work, such as ``copy``; also that of the file that remembers."""
        self.path = os.path.join(FOLDER, f"{name}.json")
        self.units: list[str] = []
        self.containers: list[str] = []
        # Whatever else the work must know after a crash.
        self.notes: list[str] = []
        try:
            with open(self.path, encoding="utf-8") as stream:
                found = json.load(stream)
        except FileNotFoundError:
            return
        self.units, self.containers = found["units"], found["containers"]
        self.notes = found["notes"]

    @property
    def stopped(self) -> list[str]:
        """Units and containers that stand still."""
        return [*self.units, *self.containers]

    def begin(self, units: Iterable[str], notes: Iterable[str] = ()) -> None:
        """Stop units, and before Docker its containers, which would outlive it."""
        self.notes = list(dict.fromkeys([*self.notes, *notes]))
        active = running(units)
        containers = []
        if DOCKER in active:
            containers = demand(["docker", "ps", "--quiet", "--no-trunc"]).split()
        self.containers = list(dict.fromkeys([*self.containers, *containers]))
        self.units = list(dict.fromkeys([*self.units, *active]))
        # Before anything is stopped: a run that is cut off must be able to start it again.
        self.save()
        if DOCKER in active:
            if containers:
                demand(["docker", "stop", *containers])
            # It would start the engine again with the next client.
            run(["systemctl", "stop", "docker.socket"])
        if active:
            demand(["systemctl", "stop", *active])

    def save(self) -> None:
        """Remember what stands still, and the notes; forget the file when there is neither."""
        if self.units or self.containers or self.notes:
            found = {"units": self.units, "containers": self.containers, "notes": self.notes}
            replace(self.path, json.dumps(found).encode(), 0, 0, 0o600)
        elif os.path.exists(self.path):
            os.unlink(self.path)

    def end(self, notes: Iterable[str] = (), kept: str = "") -> list[str]:
        """Start what was stopped, and see that it goes on; return what runs again.

        :param notes: what the next run must still know.
        :param kept: snapshot of what was there before, to go back to.
        :raises StandstillError: a unit does not run any more, or a container that is there does
            not start; names it.
        """
        if self.units:
            demand(["systemctl", "start", *self.units])
        done, failed = list(self.units), []
        for container in self.containers:
            # One that was removed meanwhile is no loss of ours.
            if run(["docker", "container", "inspect", container]).returncode != 0:
                continue
            if run(["docker", "start", container]).returncode == 0:
                done.append(container)
            else:
                failed.append(container[:12])
        ended = ended_again(self.units)
        self.units, self.containers, self.notes = [], [], list(notes)
        self.save()
        complaints = []
        if ended:
            complaints.append(f"{', '.join(ended)} ran before and ended again; see journalctl -u")
        if failed:
            complaints.append(
                f"containers {', '.join(failed)} ran before and do not start now; see docker logs"
            )
        if complaints and kept:
            complaints.append(f"What was there before is in {kept}: go back to it to undo this")
        if complaints:
            raise StandstillError(". ".join(complaints))
        return done


def running(units: Iterable[str]) -> list[str]:
    """Those of units that run."""
    return [unit for unit in units if run(["systemctl", "is-active", "-q", unit]).returncode == 0]


def ended_again(units: Sequence[str]) -> list[str]:
    """Those of units just started that do not run any more a little later.

    To start one of Type=simple succeeds as soon as its program is there.
    """
    if not units:
        return []
    time.sleep(SETTLE)
    left = running(units)
    return [unit for unit in units if unit not in left]
