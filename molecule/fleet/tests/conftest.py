# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The three NAS, and clients that go on asking the first one whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from site_lab import Lab

ROOT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "inventory")
HELLO = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
COUNT = {"messages": [{"role": "user", "content": "Count from 1 to 300."}], "max_tokens": 300}


@dataclass
class Load:
    """What came of the requests: how many each NAS answered, what failed, the longest wait."""

    by: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    slowest: float = 0.0


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The three."""
    hosts = json.loads((ROOT / ".lab/molecule/lab.json").read_text())["hosts"]
    return Lab("molecule", INVENTORY, hosts)


@pytest.fixture(scope="session")
def connect(lab: Lab) -> Callable[[], httpx.Client]:
    """Return a function that makes a client of the first NAS, which trusts the fleet's CA."""
    credentials = lab.folder / "credentials"

    def make() -> httpx.Client:
        key = (credentials / "api_key.owner").read_text().strip()
        return httpx.Client(
            base_url=f"https://{lab.hosts[0]['ssh_host']}",
            verify=ssl.create_default_context(cafile=str(credentials / "ca.crt")),
            headers={"Authorization": f"Bearer {key}"},
            trust_env=False,
            timeout=120,
        )

    return make


@pytest.fixture(scope="session")
def under_load(
    connect: Callable[[], httpx.Client],
) -> Callable[[], contextlib.AbstractContextManager[Load]]:
    """Return a context in which four clients ask the first NAS one question after the other."""

    @contextlib.contextmanager
    def asking() -> Iterator[Load]:
        load, over, lock = Load(), threading.Event(), threading.Lock()

        def ask() -> None:
            with connect() as client:
                while not over.is_set():
                    began = time.monotonic()
                    try:
                        answer = client.post("/v1/chat/completions", json=HELLO)
                        said = "" if answer.is_success else f"{answer.status_code} {answer.text}"
                        by = answer.headers.get("x-nas", "last resort")
                    except httpx.HTTPError as error:
                        said, by = repr(error), ""
                    with lock:
                        load.by[by] += not said
                        load.failed += [said] if said else []
                        load.slowest = max(load.slowest, time.monotonic() - began)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(3)
            yield load
            time.sleep(3)
        finally:
            over.set()
            for thread in threads:
                thread.join()

    return asking


@pytest.fixture(scope="session")
def long_answer(connect: Callable[[], httpx.Client]) -> Callable[[], tuple[str, str]]:
    """Return a function that has an answer of 300 tokens streamed, and says who gave it, and how
    it ended: whole, or cut short, of which the client is told or is not.
    """

    def stream() -> tuple[str, str]:
        wish = COUNT | {"stream": True}
        with (
            connect() as client,
            client.stream("POST", "/v1/chat/completions", json=wish) as answer,
        ):
            how = "cut short, and not told"
            try:
                for line in answer.iter_lines():
                    how = "whole" if line == "data: [DONE]" else how
            except httpx.HTTPError:
                how = "told"
            return answer.headers.get("x-nas", "last resort"), how

    return stream


@pytest.fixture(scope="session")
def play(lab: Lab) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a playbook with extra variables."""

    def run(name: str, *arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        extra = ["--extra-vars", json.dumps(variables)]
        return subprocess.run(
            lab.command(*arguments, *extra, playbook=name),
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run
