# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Cockpit behind Nginx, and a shell in the container."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator

import httpx
import pytest
from conftest import LONG
from testinfra.host import Host

from lab import paths, ssh

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


def test_it_is_for_those_at_home_with_a_password(
    host: Host, client: httpx.Client, address: str, playbook: Playbook
) -> None:
    page = client.get("/console/")
    assert page.status_code == 200
    assert "cockpit" in page.text.lower()
    # Nginx alone asks it.
    assert "127.0.0.1:9090" in host.check_output("ss -Hltn sport = :9090")
    with pytest.raises(TimeoutError):
        socket.create_connection((address, 9090), timeout=2)
    password = "correct horse battery staple"
    host.check_output("echo %s | chpasswd", f"nasadmin:{password}")
    try:
        refused = client.get("/console/cockpit/login", auth=("nasadmin", "wrong"))
        assert refused.status_code in (401, 403)
        answer = client.get("/console/cockpit/login", auth=("nasadmin", password))
        assert answer.json()["csrf-token"]
        # Its session is for nobody else at this address, the assistant's container included.
        cookie = answer.headers["set-cookie"]
        assert "Path=/console/" in cookie
        assert "Secure" in cookie
    finally:
        host.check_output("passwd --lock nasadmin")
    away = playbook("proxy", **ON, proxy_admin_from=["192.0.2.0/24"])
    assert away.returncode == 0, away.stdout
    refused = client.get("/console/")
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


def test_a_shell_in_the_container(lab_container: str, address: str) -> None:
    folder = paths.lab("molecule")
    door = ssh.DOORS[0]
    told = ssh.login(folder, address, door, "echo 'id -u; exit' | assistant-shell").stdout
    assert "PATH=/" in told
    assert "PYTHONPATH=/app" in told
    assert told.splitlines()[-1] == "10001"
    words = "assistant-shell /opt/venv/bin/python -c 'import json; print(json.dumps(\"a b\"))'"
    assert json.loads(ssh.login(folder, address, door, words).stdout) == "a b"
