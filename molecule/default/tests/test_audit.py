# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What auditors say of the finished NAS; docs/security.md has what they fault, and why it stays."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from testinfra.host import Host

from lab import apt, ssh
from lab.errors import LabError

# Above what devsec.hardening's two roles reach on the same container.
LEAST_INDEX = 74
PORTS = "1-1024,2000-2500,8000-8100"
DOOR = ssh.DOORS[0].port


@pytest.fixture(scope="module", autouse=True)
def auditors() -> None:
    """The two that look from outside, from Debian's packages."""
    missing = [name for name in ("ssh-audit", "nmap") if not shutil.which(name)]
    if missing:
        try:
            apt.install(missing, why="they audit the NAS")
        except LabError as error:
            pytest.skip(str(error))


def test_ssh_audit_finds_no_failure(address: str) -> None:
    done = subprocess.run(
        ["ssh-audit", "--no-colors", "--port", str(DOOR), address],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "(kex)" in done.stdout
    assert "[fail]" not in done.stdout


def test_nmap_finds_what_is_on_the_list(address: str) -> None:
    done = subprocess.run(
        [*("nmap", "-Pn", "-n", "-T4", "--max-retries", "1"), "-p", PORTS, address],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(re.findall(r"(\d+)/tcp +open", done.stdout)) == {"80", "443", str(DOOR)}
    # Nothing says that there is a machine at all behind the other ports.
    assert "closed" not in done.stdout
    assert "filtered tcp ports (no-response)" in done.stdout


def test_lynis_warns_of_nothing(host: Host) -> None:
    host.check_output("apt-get install --yes --no-install-recommends lynis")
    try:
        host.run("lynis audit system --quick --no-colors --quiet")
        report = host.file("/var/log/lynis-report.dat").content_string
    finally:
        host.check_output("apt-get purge --yes lynis")
    warnings = re.findall(r"^warning\[\]=(.*)", report, re.MULTILINE)
    assert warnings == []
    (index,) = re.findall(r"^hardening_index=(\d+)", report, re.MULTILINE)
    assert int(index) >= LEAST_INDEX
