# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Who asks while the service is started again: the real keeper has them wait."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import SECRET
from .service_process import Service

PROGRAM = Path(__file__).parents[2] / "roles/assistant/files/nas-assistant-front"
AUTH = {"Authorization": f"Bearer {SECRET}"}
PATIENCE = 3.0
ASKED = {"model": "default", "prompt": "One, two,", "max_tokens": 4}


class Keeper:
    """The program, with sockets as systemd gives them, which outlive it."""

    def __init__(self, folder: Path, patience: float = PATIENCE) -> None:
        self.patience = patience
        self.path = folder / "front.sock"
        self.fetch = folder / "fetch.sock"
        self.sockets = [self._listen(path) for path in (self.path, self.fetch)]
        self.process: subprocess.Popen[bytes] | None = None

    def _listen(self, path: Path) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(128)
        return listener

    def start(self, user: int = os.getuid()) -> None:
        """In the place of systemd, which may give them in any order."""
        front, fetch = (listener.fileno() for listener in self.sockets)
        move = f"exec {sys.executable} {PROGRAM} {self.patience} {user} 3<&{fetch} 4<&{front}"
        environ = os.environ | {"LISTEN_FDNAMES": "fetch:front"}
        self.process = subprocess.Popen(["bash", "-c", move], pass_fds=(front, fetch), env=environ)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        self.stop()
        for listener in self.sockets:
            listener.close()

    def ask(self, timeout: float = 60, **more: object) -> httpx.Response:
        transport = httpx.HTTPTransport(uds=str(self.path))
        with httpx.Client(transport=transport, headers=AUTH, timeout=timeout) as client:
            return client.post("http://nas/v1/completions", json=ASKED | more)


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    keeper = Keeper(tmp_path)
    keeper.start()
    yield keeper
    keeper.close()


@pytest.fixture
def service(models: Path, tmp_path: Path, keeper: Keeper) -> Iterator[Service]:
    service = Service(tmp_path, models, front=f"unix:{keeper.fetch}")
    yield service
    if service.process is not None and service.process.poll() is None:
        service.stop(signal.SIGKILL)
    service.wait(lambda: not service.pids("nas_assistant"), 10)


def test_nobody_is_turned_away_by_a_restart(service: Service, keeper: Keeper) -> None:
    """Of those who ask again and again meanwhile, on connections of their own."""
    # A busy machine may take longer for a start than other tests want to wait.
    keeper.stop()
    keeper.patience = 60
    keeper.start()
    service.start()
    over = threading.Event()

    def ask_on() -> list[int]:
        answers = []
        while not over.is_set():
            answers.append(keeper.ask().status_code)
        return answers

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(ask_on) for _ in range(4)]
        for _ in range(2):
            time.sleep(1)
            assert service.stop() == 0
            service.start()
        time.sleep(1)
        over.set()
        answers = [status for each in asking for status in each.result()]
    assert set(answers) == {200}
    assert len(answers) > 8


def test_a_long_answer_turns_nobody_away(models: Path, tmp_path: Path) -> None:
    """The role has the keeper wait for as long as an old service may take for its last answers."""
    timeout = 5
    keeper = Keeper(tmp_path, timeout + 10)
    keeper.start()
    service = Service(tmp_path, models, front=f"unix:{keeper.fetch}", timeout=timeout)
    try:
        service.start()
        # Without an end: the tokens by which this model ends are forbidden.
        endless: dict[str, Any] = {"max_tokens": 900, "logit_bias": {"0": -100, "2": -100}}
        with ThreadPoolExecutor() as pool:
            answering = [pool.submit(keeper.ask, **endless) for _ in range(2)]
            time.sleep(1)
            stopping = pool.submit(service.stop)
            time.sleep(1)
            began = time.monotonic()
            waiting = [pool.submit(keeper.ask) for _ in range(3)]
            assert stopping.result() == 0
            service.start()
            assert [each.result().status_code for each in waiting] == [200] * 3
            away = time.monotonic() - began
            for each in answering:
                each.exception()
        assert away > PATIENCE, "it was away for so short a time that this shows nothing"
    finally:
        service.stop(signal.SIGKILL)
        keeper.close()
        service.wait(lambda: not service.pids("nas_assistant"), 10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_one_that_does_not_come_back_is_said(
    service: Service, keeper: Keeper, number: signal.Signals
) -> None:
    service.start()
    assert keeper.ask().status_code == 200
    began = time.monotonic()
    service.stop(number)
    # Workers outlive the one that was killed for a moment, as they would not in a container.
    service.wait(lambda: not service.pids("nas_assistant"), 10)
    answer = keeper.ask(prompt="x" * 3_000_000)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "service_unavailable"
    assert answer.headers["retry-after"] == "5"
    assert PATIENCE <= time.monotonic() - began < PATIENCE + 10
    # From then on at once, and no more once it is there.
    began = time.monotonic()
    assert keeper.ask().status_code == 503
    assert time.monotonic() - began < 1
    service.start()
    assert keeper.ask().status_code == 200


def test_a_keeper_that_begins_anew_is_told_who_serves(service: Service, keeper: Keeper) -> None:
    service.start()
    keeper.stop()
    assert keeper.ask().status_code == 200, "it is not in the way"
    keeper.start()
    time.sleep(PATIENCE + 2)
    assert {keeper.ask().status_code for _ in range(10)} == {200}


def test_another_socket_is_one_that_this_service_does_not_hear(
    service: Service, keeper: Keeper
) -> None:
    service.start()
    keeper.close()
    again = Keeper(service.folder)
    again.start()
    assert service.process is not None
    assert service.process.wait(30) == 1
    service.start()
    assert again.ask().status_code == 200
    again.close()


def test_without_a_keeper_it_does_not_start(models: Path, tmp_path: Path) -> None:
    service = Service(tmp_path, models, front=f"unix:{tmp_path}/none.sock")
    code, lines = service.run("serve")
    assert code == 78
    assert "nas-assistant-fetch.socket" in lines[-1]["message"]


def test_nobody_else_gets_the_socket(service: Service, keeper: Keeper) -> None:
    keeper.stop()
    keeper.start(user=os.getuid() + 1)
    code, lines = service.run("serve")
    assert code == 78
    assert "it gave none" in lines[-1]["message"]


@pytest.mark.parametrize("told", [b"", b"GET / HTTP/1.1\r\n", b"\r\n\r\n", b"x" * 100_000])
def test_odd_clients_do_not_stop_the_keeper(keeper: Keeper, told: bytes) -> None:
    time.sleep(PATIENCE + 0.5)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(keeper.path))
        client.sendall(told)
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(keeper.fetch))
        os.close(socket.recv_fds(line, 1, 1)[1][0])
    assert keeper.ask().status_code == 503
