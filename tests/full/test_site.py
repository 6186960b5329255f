# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The whole site: a run that is killed, a fleet, the other Debian."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from site_lab import ROOT, Lab

MODELS = "/var/lib/nas-assistant/models"
QUESTION = {
    "messages": [{"role": "user", "content": "What is the capital of France? One sentence."}],
    "max_tokens": 40,
    "temperature": 0,
}


def answers(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", json=QUESTION)
    assert answer.status_code == 200, answer.text
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]


def test_a_run_killed_anywhere_is_finished_by_the_next(make_lab: Callable[..., Lab]) -> None:
    """Kill the controller at growing times, run to the end, and look at what was done twice."""
    lab = make_lab()
    (host,) = lab.hosts
    seen: dict[str, str] = {}  # model file -> identity when first seen complete
    for seconds in (6, 15, 22, 30, 40):
        run = subprocess.Popen(
            lab.command(), cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(seconds)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        for line in lab.on(host, "sh", "-c", f"stat -c '%n %i %Y' {MODELS}/*.gguf || true").split(
            "\n"
        ):
            name, _, identity = line.partition(" ")
            assert seen.setdefault(name, identity) == identity, f"{name} was fetched again"
    lab.site()
    with lab.client(host) as client:
        answers(client)
    assert lab.on(host, "find", MODELS, "-name", "*.part") == ""
    assert "changed=0" in lab.site()


@pytest.mark.parametrize("debian", ["13"])
def test_other_debian(make_lab: Callable[..., Lab], debian: str) -> None:
    lab = make_lab(debian=debian)
    lab.site("--check")
    lab.site()
    (host,) = lab.hosts
    with lab.client(host) as client:
        answers(client)
    assert "changed=0" in lab.site()


def test_fleet_of_three_answers_to_one_key(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(nas=3)
    lab.site()
    for host in lab.hosts:
        with lab.client(host) as client:
            answers(client)
            other: dict[str, Any] = {"Authorization": "Bearer " + "x" * 43}
            assert client.get("/v1/models", headers=other).status_code == 401
    assert lab.site().count("changed=0") == 3
