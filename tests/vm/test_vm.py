# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The site on a virtual machine: a kernel of its own, a reboot, another CPU."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from site_lab import (
    ROOT,
    Lab,
    check_answer,
    kill,
    make_inventory,
    read_lab,
    reboot,
    run_lab,
    wait_for,
)

from lab import ssh, vm

NAME = f"vm{os.getpid()}"
PATIENCE = 900  # seconds; the model is warmed up on an emulated CPU, perhaps beside other work


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inventory(tmp_path_factory.mktemp("vm") / "inventory")


@pytest.fixture(scope="module")
def lab(inventory: Path) -> Iterator[Lab]:
    boot("max", inventory)
    try:
        lab = read_lab(NAME, inventory.parent)
        lab.site()
        yield lab
    finally:
        run_lab("down", "--name", NAME)


def give_address(lab: Lab) -> None:
    """Have the inventory ask for a second address beside the present one, and for name servers."""
    (host,) = lab.hosts
    ((link, info),) = [
        (link, info)
        for link in json.loads(lab.on(host, "ip -json -4 address"))
        for info in link.get("addr_info", ())
        if info and info["local"] == host["ssh_host"]
    ]
    servers = lab.on(host, "sed -n 's/^nameserver //p' /etc/resolv.conf").split()
    addresses = [f"{each}/{info['prefixlen']}" for each in (host["ssh_host"], second(host))]
    gateway = lab.on(host, "ip -4 route show default").split()[2]
    interface = {
        "name": link["ifname"],
        "ipv4": {"addresses": addresses, "gateway": gateway},
        "dns": {"servers": servers},
    }
    folder = lab.inventory / "host_vars"
    folder.mkdir()
    text = yaml.safe_dump({"network_interfaces": [interface]})
    (folder / "nas1.yml").write_text(text, encoding="utf-8")


def second(host: dict[str, str]) -> str:
    """The second address: out of the reach of the lab's own."""
    return str(ipaddress.ip_address(host["ssh_host"]) + 212)


def boot(cpu: str, inventory: Path) -> None:
    run_lab("vm", "--name", NAME, "--cpu", cpu, "--inventory", str(inventory))


def reachable(address: str) -> bool:
    """Whether an SSH daemon greets us there."""
    try:
        with socket.create_connection((address, ssh.DOORS[0].port), timeout=10) as stream:
            return stream.recv(4) == b"SSH-"
    except OSError:
        return False


def test_a_second_run_changes_nothing(lab: Lab) -> None:
    assert "changed=0" in lab.site()


def test_a_second_address_is_given(lab: Lab) -> None:
    """Through systemd-networkd, as the image has it, with the list of name servers."""
    give_address(lab)
    lab.site()
    assert "changed=0" in lab.site()


def test_answers_again_after_a_reboot(lab: Lab) -> None:
    (host,) = lab.hosts
    reboot(lab, PATIENCE)
    with lab.client(host, PATIENCE) as client:
        wait_for(client, "/readyz", 200, PATIENCE)
        check_answer(client)


def test_the_door_is_as_closed_after_a_reboot(lab: Lab) -> None:
    """Follows the reboot above: what is in force now was loaded at boot."""
    (host,) = lab.hosts
    assert ssh.door(lab.folder, host["ssh_host"]) == ssh.DOORS[0]
    with pytest.raises(TimeoutError):
        socket.create_connection((host["ssh_host"], 22), timeout=5)
    assert "policy drop" in lab.on(host, "nft list table inet nas_assistant")
    times = {
        unit: int(lab.on(host, f"systemctl show {unit} --value --property={what}"))
        for unit, what in (
            ("nas-assistant-firewall.service", "ExecMainExitTimestampMonotonic"),
            ("systemd-networkd.service", "ExecMainStartTimestampMonotonic"),
        )
    }
    firewall, network = times.values()
    assert 0 < firewall < network
    # All that the role asks for, whatever else is read at boot; and Docker's own.
    listed = lab.on(host, "grep '^-' /etc/sysctl.d/*nas-assistant-hardening.conf").splitlines()
    wanted = dict(line.removeprefix("-").split(" = ") for line in listed)
    assert len(wanted) > 30
    wanted["net.ipv4.ip_forward"] = "1"
    found = lab.on(host, f"sysctl {' '.join(wanted)}").splitlines()
    assert dict(line.split(" = ") for line in found) == wanted


def test_the_address_is_there_after_a_reboot(lab: Lab) -> None:
    (host,) = lab.hosts
    assert reachable(second(host))
    assert "nameserver" in lab.on(host, "grep -A3 'Ansible managed' /etc/resolv.conf")
    # Nothing waits for a confirmation any more.
    assert lab.on(host, "ls /var/lib/nas-guard") == ""


def test_power_that_fails_before_the_confirmation(lab: Lab, inventory: Path) -> None:
    """The wrong address is in the very file that is read at boot, and the timer is gone."""
    (host,) = lab.hosts
    path = lab.inventory / "host_vars/nas1.yml"
    right = path.read_text(encoding="utf-8")
    wrong = yaml.safe_load(right)
    wrong["network_interfaces"][0]["ipv4"] = {"addresses": ["198.51.100.20/24"]}
    path.write_text(yaml.safe_dump(wrong), encoding="utf-8")
    run = subprocess.Popen(
        lab.command("--tags", "network"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + PATIENCE
    while reachable(host["ssh_host"]):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    vm.stop_below(lab.folder)
    kill(run)
    path.write_text(right, encoding="utf-8")
    boot("max", inventory)
    assert lab.on(host, "ls /var/lib/nas-guard") == ""
    assert reachable(second(host))
    site = lab.site()
    assert "changed=0" in site, site


def test_a_cpu_without_avx2_is_recognised(lab: Lab, inventory: Path) -> None:
    (host,) = lab.hosts
    boot("Nehalem", inventory)
    with lab.client(host, PATIENCE) as client:
        wait_for(client, "/v1/models", 503, PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while "start_refused" not in (
        log := lab.on(host, "docker logs --tail 1 nas-assistant 2>&1 || true")
    ):
        assert time.monotonic() < deadline, log
        time.sleep(2)
    assert "avx2" in log
    refused = subprocess.run(lab.command(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    said = " ".join(refused.stdout.split())
    assert "this CPU lacks avx" in said, refused.stdout
    assert 'the image built with the engine "source"' in said
    assert lab.on(host, "docker inspect -f '{{.State.Running}}' nas-assistant") == "false"

    boot("max", inventory)
    lab.site()
    with lab.client(host, PATIENCE) as client:
        check_answer(client)
