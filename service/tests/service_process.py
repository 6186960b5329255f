# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The real service as a process of its own, for the tests that ask it over a socket."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nas_assistant.keys import render

from .conftest import BASE_MODEL, CHAT_MODEL, api_key

SOURCE = Path(__file__).parents[1] / "src"


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Service:
    """``serve`` on a configuration in ``folder``; its log is the list of its JSON lines so far."""

    def __init__(self, folder: Path, models: Path, engine: str = "wheel", **server: object) -> None:
        self.folder = folder
        self.models = models
        self.engine = engine
        self.port = free_port()
        self.socket = folder / "gateway.sock"
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = folder / "config.ini"
        self.keys_dir = folder / "keys"
        self.state_dir = folder / "state"
        for each in (self.keys_dir, self.state_dir):
            each.mkdir(exist_ok=True)
        (self.keys_dir / "keys.json").write_text(render([api_key()]), encoding="utf-8")
        self.log_path = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        # What it is started by: words before its own command.
        self.prefix: list[str] = []
        # What the configuration has at its end, in the section of the model "large" or in others.
        self.more_config = ""
        self.write_config(**server)

    def write_config(self, **server: object) -> None:
        options = {"bind": f"127.0.0.1:{self.port}, unix:{self.socket}", "workers": 2} | server
        lines = ["[server]", *(f"{key} = {value}" for key, value in options.items())]
        lines += ["[engine]", "slots = 2", "cache_mib = 16"]
        for name, file in {"default": CHAT_MODEL, "large": BASE_MODEL}.items():
            lines += [f"[model:{name}]", f"file = {file}", "context = 1024"]
            lines += [f"sha256 = {digest(self.models / file)}"]
        self.config.write_text("\n".join([*lines, self.more_config]), encoding="utf-8")

    def command(self, name: str, *words: str) -> list[str]:
        return [
            *(sys.executable, "-m", "nas_assistant", name),
            *("--config", str(self.config), "--models-dir", str(self.models)),
            *("--keys-dir", str(self.keys_dir), "--state-dir", str(self.state_dir)),
            *("--engine", self.engine),
            *words,
        ]

    def environ(self, **extra: str) -> dict[str, str]:
        path = f"{self.folder / 'patch'}:{SOURCE}"
        return os.environ | {"PYTHONPATH": path, "TMPDIR": str(self.folder)} | extra

    def patch(self, code: str = "", **values: float) -> None:
        """Run ``code`` in each of its processes before anything else. ``values``: others than in
        the source, by module and name with two underscores between, such as ``state__FILE``.
        """
        lines = [code, "import sys", "is_child = 'nas_assistant.child' in sys.orig_argv"]
        for place, value in values.items():
            module, _, name = place.partition("__")
            # Where it is used, and nowhere else: what a module imports takes its time.
            word = "gunicorn" if module in ("connection", "bodies", "cloud") else "serve"
            lines += [f"if {word!r} in sys.orig_argv and not is_child:"]
            lines += [f"    import nas_assistant.{module}"]
            lines += [f"    assert hasattr(nas_assistant.{module}, {name!r})"]
            lines += [f"    nas_assistant.{module}.{name} = {value!r}"]
        folder = self.folder / "patch"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text("\n".join(lines), encoding="utf-8")

    def run(self, name: str, **environ: str) -> tuple[int, list[dict[str, Any]]]:
        """Run a command to its end; return its exit code and its JSON lines."""
        done = subprocess.run(
            self.command(name), env=self.environ(**environ), capture_output=True, timeout=60
        )
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    def start(self, **environ: str) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *self.command("serve")],
                env=self.environ(**environ),
                stdout=log,
                stderr=log,
            )
        self.wait(lambda: self.status("/readyz") == 200)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_path.read_text("utf-8").splitlines()]

    def status(self, path: str) -> int:
        from nas_assistant.addresses import TcpAddress
        from nas_assistant.local_http import LocalHttpError, request

        try:
            return request(TcpAddress("127.0.0.1", self.port), "GET", path)[0]
        except LocalHttpError:
            return 0

    def pids(self, word: str) -> list[int]:
        """The processes of this service whose command holds ``word``."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environ = (folder / "environ").read_bytes().decode("utf-8", "replace")
            except OSError:
                continue
            if word in command and f"TMPDIR={self.folder}\0" in environ:
                found.append(int(folder.name))
        return found

    def wait(self, condition: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log_path.read_text("utf-8")[-3000:]
            time.sleep(0.05)
