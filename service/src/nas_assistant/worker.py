# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What gunicorn loads: the application of one gateway worker, the worker class, and the logger."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from starlette.applications import Starlette
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from nas_assistant.child import die_with_parent
from nas_assistant.connection import PatientProtocol
from nas_assistant.front import FRONT_FD
from nas_assistant.gateway import create_app
from nas_assistant.keys import KeyRing
from nas_assistant.logs import configure, quote_nothing
from nas_assistant.settings import Settings
from nas_assistant.worker_engine import WorkerEngine

# Set by the supervisor: the folder with its control socket and the configuration it was started
# with.
PRIVATE_DIR = "NAS_ASSISTANT_PRIVATE_DIR"
CONTROL_SOCKET = "control.sock"
CONFIG_COPY = "config.ini"
# Seconds in which a request that was sent before the end arrives.
_LAST_WORDS = 0.1


def application() -> Starlette:
    """The application, as the supervisor prepared it."""
    private_dir = Path(os.environ[PRIVATE_DIR])
    ring = KeyRing()
    settings = Settings.load(private_dir / CONFIG_COPY, os.environ)
    if not settings.log_text:
        quote_nothing()
    engine = WorkerEngine(private_dir / CONTROL_SOCKET, ring, _leave, settings.upstreams)
    return create_app(settings, engine, ring)


def _leave() -> None:
    # Requests in flight finish, and gunicorn puts a worker in place that has a supervisor again.
    os.kill(os.getpid(), signal.SIGTERM)


class _Server(Server):
    """Answers also those who came just before it was told to end."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn, which closes connections of which it has not read anything yet."""
        loop = asyncio.get_running_loop()
        for each in sockets or []:
            loop.remove_reader(each.fileno())
        await asyncio.sleep(_LAST_WORDS)
        await super().shutdown(sockets)


class GatewayWorker(UvicornWorker):
    """One gateway process."""

    CONFIG_KWARGS = {  # noqa: RUF012 - the name and type are uvicorn-worker's
        "loop": "auto",
        "http": PatientProtocol,
        "ws": "none",
        "lifespan": "on",
        # The gateway logs requests itself, with the key's name and the request id.
        "access_log": False,
        "server_header": False,
    }

    def init_process(self) -> None:
        """Called by gunicorn in the new process."""
        # Not SIGTERM: until uvicorn runs, the master's handler is in place, which would swallow it.
        die_with_parent(signal.SIGKILL, self.ppid)
        front = os.environ.get(FRONT_FD)
        if front:
            self.sockets: list[Any] = [*self.sockets, socket.socket(fileno=os.dup(int(front)))]
        super().init_process()

    async def _serve(self) -> None:
        """Called by ``run`` of the class above, as whose this is, with another server."""
        self.config.app = self.wsgi
        server = _Server(config=self.config)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)


class JsonLogger(Logger):
    """gunicorn's and uvicorn's own messages as JSON lines."""

    def setup(self, cfg: Any) -> None:
        """Called by gunicorn in the master, before its first message."""
        super().setup(cfg)
        configure(cfg.loglevel)
        # The worker class hands these handlers on to uvicorn's loggers.
        self.error_log.handlers = list(logging.getLogger().handlers)
