# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The container's first process: starts engine and gateway, watches them, and ends them in
order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nas_assistant import state
from nas_assistant.admission import Admission
from nas_assistant.checks import Checked, StartRefused
from nas_assistant.child import child_command
from nas_assistant.control import ControlServer
from nas_assistant.desk import Desk
from nas_assistant.engine_process import EngineFailed
from nas_assistant.engines import Engines
from nas_assistant.front import FRONT_FD, Front
from nas_assistant.key_files import KeyFiles
from nas_assistant.keys import ApiKey, KeyRing, KeysError, changes
from nas_assistant.logs import log
from nas_assistant.metrics import Metrics
from nas_assistant.settings import write_worked_out
from nas_assistant.status import Status
from nas_assistant.upstreams import Upstreams

# What gunicorn may take beyond the time that it gives its requests.
_STOP_MARGIN = 10
_KEYS_EVERY = 1.0
_USAGE_EVERY = 10.0
_logger = logging.getLogger("nas_assistant")


class Supervisor:
    """Owns the engines, the books, and the gateway. ``listeners`` are bound sockets, ``front`` is
    one that somebody else keeps; ``ledger`` is where usage is noted.
    """

    def __init__(
        self,
        config: Path,
        checked: Checked,
        build: str,
        listeners: list[socket.socket],
        front: Front | None,
        key_files: KeyFiles,
        ledger: state.Ledger,
    ) -> None:
        self._settings = settings = checked.settings
        self._config = config
        self._listeners = listeners
        self._front = front
        self._key_files = key_files
        self._ring = KeyRing(key_files.load().values())
        upstream_keys = key_files.load_upstreams(settings.upstreams)
        self._ledger = ledger
        admission: Admission[tuple[int, int]] = Admission(settings.slots, settings.queue)
        self._desk = Desk(admission, self._ring, ledger, Metrics())
        self._control = ControlServer(
            self._desk, {"metrics": self._desk.metrics, "status": self._report_status}
        )
        # Under /tmp, of this user alone: sockets and keys that are nobody else's.
        self._private_dir = Path(tempfile.mkdtemp(prefix="nas-assistant-"))
        self._engines = Engines(
            settings, checked, build, self._private_dir, self._desk, self._control
        )
        self._upstreams = Upstreams(settings, upstream_keys, self._desk, self._control)
        self._status = Status(settings, self._desk, self._engines, self._upstreams)

    async def run(self) -> int:
        """Serve until a signal comes; return the exit code. Raises StartRefused when an engine does
        not start.
        """
        if self._settings.log_text:
            log(
                logging.WARNING,
                "text_is_logged",
                "log_text = yes: this log has what is asked and answered, of every key",
            )
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        stopped = asyncio.create_task(stopping.wait())
        keepers: list[asyncio.Task[None]] = []
        try:
            await self._control.start(self._private_dir / "control.sock")
            starting = asyncio.create_task(self._engines.start())
            await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                return 0
            try:
                await starting
            except EngineFailed as error:
                raise StartRefused(
                    f"{error}. The model file is whole; check its format and the memory"
                ) from error
            self._upstreams.start()
            keepers = [
                asyncio.create_task(task)
                for task in (self._engines.run(), self._keep_keys(), self._keep_usage())
            ]
            return await self._serve(stopped, keepers)
        finally:
            for task in (*keepers, stopped):
                task.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            await self._engines.stop()
            await self._control.close()
            await asyncio.to_thread(self._ledger.flush)
            shutil.rmtree(self._private_dir, ignore_errors=True)

    def _report_status(self) -> str:
        return self._status.text(self._control.reason, self._control.degraded)

    async def _serve(
        self, stopped: asyncio.Task[bool], keepers: Iterable[asyncio.Task[None]]
    ) -> int:
        """Run the gateway until it ends or is to end. ``keepers`` end only where something is
        wrong.
        """
        gateway = await self._start_gateway()
        ended = asyncio.create_task(gateway.wait())
        log(logging.INFO, "gateway_started", bind=[str(address) for address in self._settings.bind])
        ends: list[asyncio.Task[Any]] = [*keepers, ended, stopped]
        if self._front is not None:
            self._front.serve()
            ends.append(asyncio.create_task(self._front.lost()))
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        deaf = self._front is not None and ends[-1].done()
        if self._front is not None:
            ends[-1].cancel()
            self._front.leave()
        if ended.done():
            log(
                logging.ERROR,
                "gateway_ended",
                f"gunicorn ended by itself with {ended.result()}; ending too",
            )
            return 1
        broken = [task for task in keepers if task.done()]
        for task in broken:
            _logger.error(
                "a part of the supervisor ended by itself; ending too",
                exc_info=task.exception(),
                extra={"event": "keeper_ended"},
            )
        if deaf:
            log(logging.ERROR, "front_lost", "the proxy's socket is another one now; ending")
        log(
            logging.INFO,
            "stopping",
            "requests in flight may finish",
            seconds=self._settings.timeout,
        )
        gateway.terminate()
        try:
            async with asyncio.timeout(self._settings.timeout + _STOP_MARGIN):
                await asyncio.shield(ended)
        except TimeoutError:
            gateway.kill()
            await ended
        log(logging.INFO, "stopped")
        return 1 if deaf or broken else 0

    async def _keep_keys(self) -> None:
        """Have the keys that the files say; what cannot be read changes nothing."""
        while True:
            await asyncio.sleep(_KEYS_EVERY)
            if self._key_files.changed():
                before = self._key_files.in_inventory
                # Each by itself: what is wrong with upstreams must not keep a revoked key alive.
                with _complaining():
                    self._take_keys()
                with _complaining():
                    upstream_keys = self._key_files.load_upstreams(self._settings.upstreams)
                    self._upstreams.replace_keys(upstream_keys)
                await asyncio.to_thread(self._note_changes, before)

    def _take_keys(self) -> None:
        self._ring.replace(self._key_files.load().values())
        self._control.publish_keys()
        log(logging.INFO, "keys_changed", keys=sorted(self._ring.keys))

    def _note_changes(self, before: Mapping[str, ApiKey]) -> None:
        """Of the inventory's keys: the command notes itself what it does to others."""
        try:
            for action, name in changes(before, self._key_files.in_inventory):
                state.note(self._key_files.state, action, name, "by the inventory")
        except state.StateError as error:
            log(logging.WARNING, "keys_not_noted", f"{error}. The history lacks what changed now")

    async def _keep_usage(self) -> None:
        """Write what keys used, now and then."""
        while True:
            await asyncio.sleep(_USAGE_EVERY)
            await asyncio.to_thread(self._ledger.flush)

    async def _start_gateway(self) -> asyncio.subprocess.Process:
        # A copy, so that a worker that is replaced later has the settings of this start; with what
        # was worked out at it, so that all go by the same figures.
        write_worked_out(self._settings, self._config, self._private_dir / "config.ini")
        environ = {key: value for key, value in os.environ.items() if key != "GUNICORN_CMD_ARGS"}
        environ["NAS_ASSISTANT_PRIVATE_DIR"] = str(self._private_dir)
        descriptors = [listener.fileno() for listener in self._listeners]
        front = [] if self._front is None else [self._front.listener.fileno()]
        # Not gunicorn's: it would remove it at its end.
        environ[FRONT_FD] = "".join(map(str, front))
        command = [
            *(sys.executable, "-m", "gunicorn", "nas_assistant.worker:application()"),
            *("--worker-class", "nas_assistant.worker.GatewayWorker"),
            *("--logger-class", "nas_assistant.worker.JsonLogger"),
            *("--workers", str(self._settings.workers)),
            *("--timeout", str(self._settings.timeout)),
            *("--graceful-timeout", str(self._settings.timeout)),
            *("--log-level", self._settings.log_level),
            # A file that gunicorn touches; the private folder is a tmpfs, so no disk can stall a
            # worker.
            *("--worker-tmp-dir", str(self._private_dir)),
            *("--umask", "007"),
            "--no-control-socket",
            *(word for number in descriptors for word in ("--bind", f"fd://{number}")),
        ]
        process = await asyncio.create_subprocess_exec(
            *child_command(signal.SIGTERM, command),
            stdin=asyncio.subprocess.DEVNULL,
            env=environ,
            # gunicorn reads a configuration file from its working folder; here there is none.
            cwd=self._private_dir,
            pass_fds=descriptors + front,
            start_new_session=True,
        )
        for listener in self._listeners:
            listener.close()
        if self._front is not None:
            self._front.listener.close()
        return process


@contextlib.contextmanager
def _complaining() -> Iterator[None]:
    """Log a file of keys that cannot be read, and go on."""
    try:
        yield
    except KeysError as error:
        log(logging.ERROR, "keys_not_read", f"{error}. The keys of before go on")
