# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""One address for all of them, which moves when the NAS that has it is gone."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from conftest import HELLO, ROOT
from site_lab import Lab, worked

from lab import docker, label

Play = Callable[..., subprocess.CompletedProcess[str]]
LIMIT = 12  # seconds that nobody may be found for: three missed words, and Nginx is asked twice


@pytest.fixture(scope="module")
def address(lab: Lab, play: Play) -> Iterator[str]:
    """An address of the lab's network that no NAS has; in the end none has it again."""
    (found,) = docker.inspect("network", [label.prefix("molecule")])
    subnet = ipaddress.ip_network(found["IPAM"]["Config"][0]["Subnet"])
    shared = str(subnet[-6])
    wish: dict[str, Any] = {"proxy_virtual": {"address": f"{shared}/{subnet.prefixlen}"}}
    worked(play("base", "--tags", "firewall", **wish))
    worked(play("proxy", **wish))
    assert worked(play("proxy", **wish)).count("changed=0 ") == 3
    yield shared
    worked(play("proxy"))
    worked(play("base", "--tags", "firewall"))
    assert holders(lab, shared) == []
    assert "vrrp" not in lab.on(lab.hosts[0], "systemctl list-units --all; nft list ruleset")


@pytest.fixture(scope="module")
def outages() -> Iterator[dict[str, float]]:
    """Seconds without an answer; in the end they are in a file."""
    found: dict[str, float] = {}
    yield found
    rounded = {how: round(seconds, 1) for how, seconds in found.items()}
    (ROOT / ".lab/outages.json").write_text(json.dumps(rounded, indent=1))


def holders(lab: Lab, shared: str) -> list[str]:
    """Names of the NAS that have the address, of those that run."""
    found = []
    for host in lab.hosts:
        look = ("ip", "-o", "address", "show", "dev", "eth0")
        done = docker.execute(host["container"], *look, check=False)
        found += [host["name"]] if f" {shared}/" in done.stdout else []
    return found


def wait_for_one(lab: Lab, shared: str) -> str:
    deadline = time.monotonic() + 30
    while len(found := holders(lab, shared)) != 1:
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    return found[0]


@contextlib.contextmanager
def looking(lab: Lab, shared: str) -> Iterator[list[float]]:
    """Look again and again, each time by a new connection; the moments at which all was well."""
    well: list[float] = []
    over = threading.Event()
    context = ssl.create_default_context(cafile=str(lab.folder / "credentials/ca.crt"))

    def look() -> None:
        while not over.is_set():
            with (
                contextlib.suppress(httpx.HTTPError),
                httpx.Client(verify=context, trust_env=False, timeout=1) as client,
            ):
                if client.get(f"https://{shared}/healthz").status_code == 200:
                    well.append(time.monotonic())
            time.sleep(0.1)

    thread = threading.Thread(target=look)
    thread.start()
    time.sleep(2)
    try:
        yield well
        time.sleep(3)
    finally:
        over.set()
        thread.join()


def longest_gap(well: list[float]) -> float:
    return max(after - before for before, after in itertools.pairwise(well))


def ask(lab: Lab, shared: str) -> int:
    folder = lab.folder / "credentials"
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    key = (folder / "api_key.owner").read_text().strip()
    with httpx.Client(verify=context, trust_env=False, timeout=120) as client:
        url = f"https://{shared}/v1/chat/completions"
        return client.post(url, json=HELLO, headers={"Authorization": f"Bearer {key}"}).status_code


def test_it_moves_when_the_nas_is_gone_and_stays_when_it_is_back(
    lab: Lab, address: str, outages: dict[str, float]
) -> None:
    first = wait_for_one(lab, address)
    assert ask(lab, address) == 200
    container = next(host["container"] for host in lab.hosts if host["name"] == first)
    try:
        with looking(lab, address) as well:
            docker.docker("kill", container)
            second = wait_for_one(lab, address)
            assert second != first
    finally:
        docker.docker("start", container)
    outages["NAS gone"] = gap = longest_gap(well)
    assert gap < LIMIT
    deadline = time.monotonic() + 60
    active = ("systemctl", "is-active", "nas-assistant-vrrp.service")
    while docker.execute(container, *active, check=False).returncode:
        assert time.monotonic() < deadline
        time.sleep(1)
    time.sleep(8)
    assert holders(lab, address) == [second]
    assert ask(lab, address) == 200


def test_it_moves_when_nginx_takes_no_connection(
    lab: Lab, address: str, outages: dict[str, float]
) -> None:
    holder = next(each for each in lab.hosts if each["name"] == wait_for_one(lab, address))
    try:
        with looking(lab, address) as well:
            lab.on(holder, "systemctl stop nginx")
            deadline = time.monotonic() + 30
            while wait_for_one(lab, address) == holder["name"]:
                assert time.monotonic() < deadline
                time.sleep(0.3)
    finally:
        lab.on(holder, "systemctl start nginx")
    outages["Nginx gone"] = gap = longest_gap(well)
    assert gap < LIMIT
    assert ask(lab, address) == 200
