# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Other servers of the same model, each started with as many threads and slots as ours."""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from serving import Target, descendants

from nas_assistant.child import child_command

CONTEXT = 2048  # tokens a request, as ours has here
_START_SECONDS = 120


def free_port() -> int:
    """A port of this machine that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def llama_server(options: argparse.Namespace, folder: Path, port: int) -> list[str]:
    """llama.cpp's own server, with its defaults."""
    return [
        *(options.llama_server, "--model", str(options.model), "--port", str(port)),
        *("--threads", str(options.threads), "--parallel", str(options.slots)),
        *("--ctx-size", str(CONTEXT * options.slots)),
    ]


def llama_cpp_server(options: argparse.Namespace, folder: Path, port: int) -> list[str]:
    """llama-cpp-python's server, with its defaults; it has one slot."""
    return [
        *(options.llama_cpp_python, "-m", "llama_cpp.server", "--model", str(options.model)),
        *("--port", str(port), "--n_threads", str(options.threads), "--n_ctx", str(CONTEXT)),
    ]


def dasllama(options: argparse.Namespace, folder: Path, port: int) -> list[str]:
    """Of a copy of the model, since it writes a prepared one beside it."""
    copy = folder / options.model.name
    shutil.copyfile(options.model, copy)
    return [
        *(options.dasllama, "--model", str(copy), "--port", str(port), "--gpu", "off"),
        *("--threads", str(options.threads), "--streams", str(options.slots)),
        *("--ctx", str(CONTEXT)),
    ]


RIVALS: dict[str, Callable[[argparse.Namespace, Path, int], list[str]]] = {
    "llama_server": llama_server,
    "llama_cpp_python": llama_cpp_server,
    "dasllama": dasllama,
}
# Who takes no name for a model but its file's.
_BY_FILE = {"dasllama"}


@contextmanager
def running_rival(name: str, options: argparse.Namespace, folder: Path) -> Iterator[Target]:
    """Start it, wait until it answers, and end it."""
    port = free_port()
    command = child_command(signal.SIGKILL, RIVALS[name](options, folder, port))
    environment = {**os.environ, "HOME": str(folder)}
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)
    target = Target(name, port, "none", lambda: descendants(process.pid))
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(target):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(
                    (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
                )
            time.sleep(0.2)
        yield replace(target, model=options.model.name) if name in _BY_FILE else target
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(target: Target) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", int(target.at), timeout=5)
    try:
        connection.request("GET", "/v1/models")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
