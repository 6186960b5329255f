# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Cockpit behind Nginx, and a shell in the container: from its terminal, and over SSH."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from cockpit import terminal
from conftest import LONG
from testinfra.host import Host

from lab import apt, paths, ssh
from lab.errors import LabError
from service.tests.browser import find_chromium

Playbook = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = LONG
CONF = "/etc/cockpit/cockpit.conf"
ON = {"console_state": "present"}


@pytest.fixture(scope="module", autouse=True)
def console(playbook: Playbook) -> Iterator[None]:
    """The console, as long as these tests run."""
    planned = playbook("console", "--check", "--diff", **ON)
    assert planned.returncode == 0, planned.stdout
    for name in ("console", "proxy"):
        done = playbook(name, **ON)
        assert done.returncode == 0, done.stdout
        assert "changed=0" in playbook(name, **ON).stdout
    yield
    for name in ("console", "proxy"):
        done = playbook(name, console_state="absent")
        assert done.returncode == 0, done.stdout
        assert "changed=0" in playbook(name, console_state="absent").stdout


@pytest.fixture
def password(host: Host) -> Iterator[str]:
    """The account's, as long as a test needs one."""
    given = "correct horse battery staple"
    host.check_output("echo %s | chpasswd", f"nasadmin:{given}")
    yield given
    host.check_output("passwd --lock nasadmin")


@pytest.fixture
def chromium() -> str:
    """A browser, from Debian's packages."""
    if not find_chromium():
        try:
            apt.install(["chromium"], why="the test types in Cockpit's terminal")
        except LabError as error:
            pytest.skip(str(error))
    found = find_chromium()
    assert found
    return found


def test_it_is_for_those_at_home_with_a_password(
    host: Host, client: httpx.Client, address: str, playbook: Playbook, password: str
) -> None:
    page = client.get("/console/")
    assert page.status_code == 200
    assert "cockpit" in page.text.lower()
    # Nginx alone asks it.
    assert "127.0.0.1:9090" in host.check_output("ss -Hltn sport = :9090")
    with pytest.raises(TimeoutError):
        socket.create_connection((address, 9090), timeout=2)
    refused = client.get("/console/cockpit/login", auth=("nasadmin", "wrong"))
    assert refused.status_code in (401, 403)
    answer = client.get("/console/cockpit/login", auth=("nasadmin", password))
    assert answer.json()["csrf-token"]
    # Its session is for nobody else at this address, the assistant's container included.
    cookie = answer.headers["set-cookie"]
    assert "Path=/console/" in cookie
    assert "Secure" in cookie
    away = playbook("proxy", **ON, proxy_admin_from=["192.0.2.0/24"])
    assert away.returncode == 0, away.stdout
    # Whatever somebody writes of who it is.
    for more in ({}, {"X-Forwarded-For": "192.0.2.7", "X-Real-IP": "192.0.2.7"}):
        refused = client.get("/console/", headers=more)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_at_home")
    assert playbook("proxy", **ON).returncode == 0


def test_a_cockpit_of_somebody_else_is_left_alone(host: Host, playbook: Playbook) -> None:
    ours = host.file(CONF).content_string
    host.check_output(f"echo '[WebService]' > {CONF}")
    try:
        done = playbook("console", **ON)
        assert done.returncode != 0
        assert "has a Cockpit that this role did not set up" in " ".join(done.stdout.split())
        assert host.file(CONF).content_string == "[WebService]\n"
    finally:
        host.check_output(f"printf %s > {CONF}", ours)


def test_its_terminal_opens_a_shell_in_the_container(
    host: Host, address: str, password: str, chromium: str, tmp_path: Path
) -> None:
    """By one short command, which first shows what the assistant's programs are started with."""
    inspected = host.check_output(
        "docker inspect nas-assistant --format '{{range .Config.Env}}{{println .}}{{end}}'"
    )
    environment = [line for line in inspected.split() if line.startswith(("PATH=", "PYTHON"))]
    assert "PYTHONPATH=/app" in environment
    url = f"https://{address}/console"
    with terminal(chromium, tmp_path, url, "nasadmin", password) as shown:
        shown.enter("assistant-shell")
        shown.wait(*environment)
        # A terminal there too, for whoever wants to edit a line.
        shown.enter("id -u; test -t 0 && echo terminal-$((40+2))")
        shown.wait("10001", "terminal-42")


def test_a_shell_in_the_container(lab_container: str, address: str) -> None:
    folder = paths.lab("molecule")
    door = ssh.DOORS[0]
    told = ssh.login(folder, address, door, "echo 'id -u; exit' | assistant-shell").stdout
    assert "PATH=/" in told
    assert "PYTHONPATH=/app" in told
    assert told.splitlines()[-1] == "10001"
    words = "assistant-shell /opt/venv/bin/python -c 'import json; print(json.dumps(\"a b\"))'"
    assert json.loads(ssh.login(folder, address, door, words).stdout) == "a b"
