# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Addresses that move, through each of what manages networks, and come back when they are wrong."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import LONG
from site_lab import kill

from lab import docker, label, paths, ssh

Run = Callable[..., subprocess.CompletedProcess[str]]
LAB = "molecule"
ROOT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
NETWORK = f"{label.prefix(LAB)}-lan"
SUBNETS = ("10.213.77.0/24", "fd12:3456:77::/64")
OLD, NEW = "10.213.77.10", "10.213.77.20"
OLD6, NEW6 = "fd12:3456:77::10", "fd12:3456:77::20"
WRONG = "10.213.99.20"
SECONDS = 30  # that the NAS waits for a confirmation in the drills
# What is shown by one manager already, and takes half a minute more with each of the others.
FULL = LONG

# How each comes to manage the interface, with the old address.
MANAGERS = {
    "ifupdown": """
        apt-get -qq install --no-install-recommends ifupdown > /dev/null
        printf 'source interfaces.d/*\\nauto {nic}\\n' > /etc/network/interfaces
        printf 'iface {nic} inet6 static\\n\\taddress {old6}/64\\n' >> /etc/network/interfaces
        printf 'iface {nic} inet static\\n\\taddress {old}/24\\n' >> /etc/network/interfaces
        ip address flush dev {nic} scope global
        ifup --force {nic}
        """,
    "networkd": """
        apt-get -qq install --no-install-recommends systemd-resolved > /dev/null
        # Its account is younger than the bus, which lets nobody else have the name.
        systemctl reload dbus && systemctl restart systemd-resolved
        printf '[Match]\\nName={nic}\\n[Network]\\nAddress={old}/24\\n' \
            > /etc/systemd/network/10-lan.network
        # An address that is there already makes it fail, and end when it is asked to begin again.
        ip address flush dev {nic} scope global
        systemctl start systemd-networkd
        until ip -4 address show dev {nic} | grep -q {old}; do sleep 0.2; done
        """,
    "networkmanager": """
        mkdir -p /etc/NetworkManager/conf.d /etc/NetworkManager/system-connections
        printf '[keyfile]\\nunmanaged-devices=*,except:interface-name:{nic}\\n' \
            > /etc/NetworkManager/conf.d/lab.conf
        cd /etc/NetworkManager/system-connections
        printf '[connection]\\nid=lan\\ntype=ethernet\\ninterface-name={nic}\\n' > lan.nmconnection
        printf '[ipv4]\\nmethod=manual\\naddress1={old}/24\\n' >> lan.nmconnection
        chmod 600 lan.nmconnection
        apt-get -qq install --no-install-recommends network-manager > /dev/null
        nmcli connection up lan
        """,
    "netplan": """
        apt-get -qq install --no-install-recommends netplan.io > /dev/null
        # It would have udevd look at all interfaces again, which does not run in a container.
        ln -sf /bin/true /usr/local/sbin/udevadm
        mkdir -p /etc/netplan
        printf 'network: {{version: 2}}\\n' > /etc/netplan/10-lab.yaml
        """,
}
GONE = """
    systemctl stop NetworkManager systemd-networkd.socket systemd-networkd systemd-resolved
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq purge ifupdown network-manager netplan.io systemd-resolved > /dev/null
    rm -rf /etc/network /run/network /etc/NetworkManager /etc/netplan /run/systemd/network
    rm -f /etc/systemd/network/*.network /usr/local/sbin/udevadm
    rm -f /etc/resolv.conf && cp /root/resolv.conf /etc/resolv.conf
    ip address flush dev {nic} scope global
    ip address add {old}/24 dev {nic}
    ip link set dev {nic} mtu 1500 up
"""


@pytest.fixture(scope="module")
def inside(lab_container: str) -> Callable[..., str]:
    """Return a function that runs a shell command on the NAS without its network."""

    def run(script: str, check: bool = True) -> str:
        done = docker.execute(
            lab_container, "timeout", "180", "sh", "-c", script, check=check, timeout=190
        )
        return str(done.stdout)

    return run


@pytest.fixture(scope="module")
def nic(lab_container: str, inside: Callable[..., str]) -> Iterator[str]:
    """A second network of the NAS; the name of its interface there."""
    docker.docker("network", "rm", NETWORK, check=False)
    subnets = [word for subnet in SUBNETS for word in ("--subnet", subnet)]
    docker.docker(
        *("network", "create", "--internal", "--ipv6", *subnets),
        *(*label.arguments(LAB), NETWORK),
    )
    docker.docker("network", "connect", "--ip", OLD, NETWORK, lab_container)
    # The engine mounts its own over it, which nobody could replace.
    inside("cp /etc/resolv.conf /root/resolv.conf; umount /etc/resolv.conf || true")
    inside("cp /root/resolv.conf /etc/resolv.conf; apt-get -qq update")
    try:
        links = json.loads(inside("ip -json address"))
        yield next(
            str(link["ifname"])
            for link in links
            if OLD in [info.get("local") for info in link["addr_info"]]
        )
    finally:
        docker.docker("network", "disconnect", "--force", NETWORK, lab_container)
        docker.docker("network", "rm", NETWORK)


@pytest.fixture(params=MANAGERS)
def manager(request: pytest.FixtureRequest, nic: str, inside: Callable[..., str]) -> Iterator[str]:
    """What manages the interface."""
    inside(GONE.format(nic=nic, old=OLD, old6=OLD6), check=False)
    inside(
        f"set -e; export DEBIAN_FRONTEND=noninteractive; {MANAGERS[request.param]}".format(
            nic=nic, old=OLD, old6=OLD6
        )
    )
    yield str(request.param)
    inside(GONE.format(nic=nic, old=OLD, old6=OLD6), check=False)


@pytest.fixture
def inventory(tmp_path: Path, address: str, nas_name: str) -> Path:
    """The NAS as its owner on the second network has it, with nothing remembered of it."""
    options = [*ssh.options(paths.lab(LAB)), "-o", f"HostKeyAlias={address}"]
    host = {
        "ansible_host": OLD,
        "ansible_port": 2222,
        "ansible_user": "nasadmin",
        "ansible_ssh_private_key_file": str(paths.lab(LAB) / ssh.KEY),
        "ansible_ssh_common_args": " ".join(options),
    }
    hosts = {"nas": {"hosts": {nas_name: host}, "vars": {"lab_dir": str(tmp_path)}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(hosts))
    (tmp_path / "group_vars").symlink_to(ROOT / "inventories/lab/group_vars")
    return tmp_path / "hosts.yml"


@pytest.fixture
def base(playbook_in: Callable[..., subprocess.CompletedProcess[str]], inventory: Path) -> Run:
    """Return a function that runs the role with these interfaces."""

    def run(interfaces: list[dict[str, Any]], **variables: Any) -> subprocess.CompletedProcess[str]:
        extra = {"network_interfaces": interfaces, "network_confirm_seconds": SECONDS, **variables}
        arguments = ("--tags", "network", "--extra-vars", json.dumps(extra))
        return playbook_in(inventory, {}, "base", *arguments)

    return run


def wanted(nic: str, address: str = NEW) -> list[dict[str, Any]]:
    return [
        {
            "name": nic,
            "ipv4": {"addresses": [f"{address}/24"]},
            "ipv6": {"addresses": [f"{NEW6}/64"]},
            "dns": {"servers": ["192.0.2.53"], "search": ["example.com"]},
            "mtu": 1400,
        }
    ]


def answers(address: str, port: int = 2222) -> bool:
    """Whether an SSH daemon greets us there."""
    try:
        with socket.create_connection((address, port), timeout=3) as stream:
            return stream.recv(4) == b"SSH-"
    except OSError:
        return False


def changed(run: subprocess.CompletedProcess[str]) -> bool:
    assert run.returncode == 0, run.stdout
    # The door is remembered on the controller, which is a change there.
    return re.search(r"^changed: \[nas\d\]$", run.stdout, re.MULTILINE) is not None


def test_an_address_moves_and_comes_back(
    manager: str, nic: str, base: Run, inside: Callable[..., str]
) -> None:
    assert answers(OLD)
    assert changed(base(wanted(nic)))
    assert answers(NEW)
    assert answers(NEW6)
    # Under netplan the old one is the engine's, which networkd leaves alone when it starts.
    assert answers(OLD) == (manager == "netplan")
    assert inside(f"cat /sys/class/net/{nic}/mtu").strip() == "1400"
    resolv = "resolvectl dns" if manager == "networkd" else "cat /etc/resolv.conf"
    assert "192.0.2.53" in inside(resolv)

    # The inventory still has the old address: the new one is found.
    again = base(wanted(nic))
    assert not changed(again), again.stdout

    inside(f"ip address del {NEW6}/64 dev {nic}")
    assert changed(base(wanted(nic)))
    assert answers(NEW6)

    back = base([], network_confirm_host=OLD)
    if manager == "netplan":  # no file has the old address, so there is none to go back to
        assert back.returncode != 0
        assert answers(NEW)
        return
    assert changed(back)
    assert answers(OLD)
    assert not answers(NEW)
    assert manager != "ifupdown" or answers(OLD6)
    assert "192.0.2.53" not in inside(resolv)
    assert inside(f"cat /sys/class/net/{nic}/mtu") == "1500\n"
    assert "nas-assistant" not in inside("ls -R /etc/network /etc/systemd/network || true", False)


@pytest.mark.parametrize(
    "manager",
    ["ifupdown", "networkd", *(pytest.param(n, marks=FULL) for n in ("networkmanager", "netplan"))],
    indirect=True,
)
def test_a_wrong_address_is_taken_back(
    manager: str, nic: str, base: Run, inside: Callable[..., str]
) -> None:
    before = inside(f"ip -o -4 address show dev {nic}")
    if manager == "ifupdown":  # the lab's own network has the way out
        second = wanted(nic)
        second[0]["ipv4"]["gateway"] = NEW.replace(".20", ".1")
        assert "ifupdown takes one way out only" in " ".join(base(second).stdout.split())
    wrong = wanted(nic, WRONG)
    wrong[0]["ipv6"] = {"method": "disabled"}  # which the old state must find switched on again
    run = base(wrong)
    assert run.returncode != 0
    said = " ".join(run.stdout.split())
    assert f"no new connection to nasadmin@{WRONG} port 2222 could be made" in said, run.stdout
    assert f"so the old state was put back, and nasadmin@{OLD} port 2222 answers again" in said
    assert answers(OLD)
    assert manager != "ifupdown" or answers(OLD6)
    assert inside(f"ip -o -4 address show dev {nic}") == before
    assert inside(f"cat /sys/class/net/{nic}/mtu") == "1500\n"
    assert inside("ls /var/lib/nas-guard") == ""


@pytest.mark.parametrize("manager", ["ifupdown"], indirect=True)
def test_a_controller_that_dies_leaves_the_old_address(
    manager: str, nic: str, inventory: Path, inside: Callable[..., str]
) -> None:
    extra = {"network_interfaces": wanted(nic), "network_confirm_seconds": SECONDS}
    command = ["ansible-playbook", "-i", str(inventory), "nas.assistant.base", "--tags", "network"]
    run = subprocess.Popen(
        [*command, "--extra-vars", json.dumps(extra)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while inside("systemctl is-active nas-apply-network.timer || true").strip() != "active":
        assert time.monotonic() < deadline
    kill(run)
    deadline = time.monotonic() + 10
    while not answers(NEW):  # what it was killed for came to be
        assert time.monotonic() < deadline
    deadline = time.monotonic() + SECONDS + 20
    while not answers(OLD):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert not answers(NEW)


@pytest.mark.parametrize(
    "manager",
    ["networkd", *(pytest.param(n, marks=FULL) for n in ("networkmanager", "netplan"))],
    indirect=True,
)
def test_ipv6_off_and_on(manager: str, nic: str, base: Run, inside: Callable[..., str]) -> None:
    without = [{"name": nic, "ipv4": {"addresses": [f"{OLD}/24"]}, "ipv6": {"method": "disabled"}}]
    assert changed(base(without))
    assert inside(f"ip -6 address show dev {nic}") == ""
    assert not changed(base(without))
    private = [{**without[0], "ipv6": {"addresses": [f"{NEW6}/64"], "privacy": True}}]
    assert changed(base(private))
    assert answers(NEW6)
    assert inside(f"cat /proc/sys/net/ipv6/conf/{nic}/use_tempaddr") == "2\n"


# A router with a DHCP server, in a network namespace of the NAS's, and the interface that asks it.
ROUTER = """
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq install --no-install-recommends dnsmasq-base > /dev/null
    ip netns add router
    ip link add dhcp0 type veth peer name port netns router
    ip -n router address add 10.213.78.1/24 dev port
    ip -n router link set port up
    ip netns exec router dnsmasq --port=0 --interface=port --dhcp-leasefile=/run/leases \
        --dhcp-range=10.213.78.50,10.213.78.60,2m --pid-file=/run/router.pid
"""
NO_ROUTER = """
    kill "$(cat /run/router.pid)"
    pkill -F /run/dhclient.dhcp0.pid
    ip netns delete router
    ip link delete dhcp0
    rm -f /run/leases
"""
CLIENTS = {
    "ifupdown": """
        apt-get -qq install --no-install-recommends ifupdown isc-dhcp-client > /dev/null
        printf 'source interfaces.d/*\\niface dhcp0 inet dhcp\\n' > /etc/network/interfaces
        timeout 60 ifup dhcp0
        """,
    "networkd": """
        printf '[Match]\\nName=dhcp0\\n[Network]\\nDHCP=ipv4\\n' \
            > /etc/systemd/network/20-dhcp.network
        systemctl start systemd-networkd
        networkctl reload
        """,
}


@pytest.mark.parametrize("client", ["ifupdown", pytest.param("networkd", marks=FULL)])
def test_from_dhcp_to_an_address_and_back(
    client: str, nic: str, base: Run, inside: Callable[..., str]
) -> None:
    def addresses() -> list[str]:
        shown = json.loads(inside("ip -json -4 address show dev dhcp0"))
        return [info["local"] for link in shown for info in link.get("addr_info", ()) if info]

    def leased() -> bool:
        deadline = time.monotonic() + 20
        while not (found := addresses()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return len(found) == 1 and 50 <= int(found[0].rpartition(".")[2]) <= 60

    inside(GONE.format(nic=nic, old=OLD, old6=OLD6) + NO_ROUTER, check=False)
    try:
        inside(f"set -e; {ROUTER} {CLIENTS[client]}")
        assert leased()
        fixed = [{"name": "dhcp0", "ipv4": {"addresses": ["10.213.78.20/24"]}}]
        assert changed(base(fixed))
        assert addresses() == ["10.213.78.20"]
        # Whoever renews the lease would bring its address back.
        assert "dhclient" not in inside("ps -e -o args", check=False)
        assert not changed(base(fixed))
        assert changed(base([]))
        assert leased()
    finally:
        inside(NO_ROUTER + GONE.format(nic=nic, old=OLD, old6=OLD6), check=False)


def test_what_cannot_be_is_refused_before_anything_changes(
    nic: str, base: Run, inside: Callable[..., str]
) -> None:
    inside(GONE.format(nic=nic, old=OLD, old6=OLD6), check=False)
    before = inside(f"ip -o address show dev {nic}")
    router = SUBNETS[0].replace(".0/24", ".1")  # this machine
    for interfaces, reason in (
        ([{"name": "eth77"}], "there is no such interface"),
        ([{"name": "docker0"}], "it is a bridge"),
        (wanted(nic, router), f"{router}: another machine on the network answers to it"),
        (wanted(nic), "nothing here manages networks"),
    ):
        run = base(interfaces)
        assert run.returncode != 0
        assert reason in " ".join(run.stdout.split()), run.stdout
    inside("apt-get -qq install --no-install-recommends ifupdown > /dev/null")
    alias = f"iface {nic} inet static\\n\\taddress {OLD}/24\\niface {nic}:1 inet static"
    inside(f"printf '{alias}\\n\\taddress 10.213.77.11/24\\n' > /etc/network/interfaces")
    assert f"more of its addresses as {nic}:…" in " ".join(base(wanted(nic)).stdout.split())
    inside("mkdir -p /etc/openmediavault; touch /etc/openmediavault/config.xml")
    try:
        said = " ".join(base(wanted(nic)).stdout.split())
        assert "runs OpenMediaVault, which writes the network's settings itself" in said
        assert "failed=0" in base([]).stdout
    finally:
        inside("rm -r /etc/openmediavault")
    assert inside(f"ip -o address show dev {nic}") == before


def asked_by_mdns(name: str, through: str) -> bytes:
    """Ask the network of the address ``through`` for a name; return the first answer, if any."""
    question = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    packet = struct.pack(">6H", 7, 0, 1, 0, 0, 0) + question + struct.pack(">2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(through))
        client.settimeout(1)
        for _ in range(5):
            client.sendto(packet, ("224.0.0.251", 5353))
            try:
                return client.recv(1500)
            except TimeoutError:
                continue
    return b""


@pytest.fixture
def us(address: str) -> str:
    """This machine's address on the lab's own network."""
    (found,) = docker.inspect("network", [label.prefix(LAB)])
    return str(found["IPAM"]["Config"][0].get("Gateway") or address.rsplit(".", 1)[0] + ".1")


def test_the_nas_is_found_by_its_name(
    playbook: Run, address: str, us: str, inside: Callable[..., str]
) -> None:
    assert asked_by_mdns("hub.local", us) == b""
    mdns = {"enabled": True, "name": "hub"}
    run = playbook("base", "--tags", "firewall,network", network_mdns=mdns)
    assert run.returncode == 0, run.stdout
    assert socket.inet_aton(address) in asked_by_mdns("hub.local", us)
    again = playbook("base", "--tags", "firewall,network", network_mdns=mdns)
    assert "changed=0" in again.stdout
    inside("sed -i s/host-name=hub/host-name=other/ /etc/avahi/avahi-daemon.conf")
    inside("systemctl stop avahi-daemon.socket avahi-daemon.service")
    assert playbook("base", "--tags", "network", network_mdns=mdns).returncode == 0
    assert socket.inet_aton(address) in asked_by_mdns("hub.local", us)
    run = playbook("base", "--tags", "firewall,network")
    assert run.returncode == 0, run.stdout
    assert asked_by_mdns("hub.local", us) == b""
    assert inside("systemctl is-active avahi-daemon.service", check=False).strip() == "inactive"


def test_an_announcer_of_before_goes_on_afterwards(
    playbook: Run, address: str, us: str, inside: Callable[..., str]
) -> None:
    path = "/etc/avahi/avahi-daemon.conf"
    # The firewall still lets the questions in, as the inventory has it.
    allow = [{"ports": 5353, "protocol": "udp"}]
    theirs = "[server]\\nhost-name=theirs\\nallow-interfaces=eth0\\n"
    inside("DEBIAN_FRONTEND=noninteractive apt-get -qq install avahi-daemon > /dev/null")
    inside(f"printf '{theirs}' > {path}; systemctl enable --now avahi-daemon; sleep 1")
    inside("systemctl restart avahi-daemon")
    before = inside(f"cat {path}")
    try:
        mdns = {"enabled": True, "name": "hub"}
        run = playbook("base", "--tags", "firewall,network", network_mdns=mdns)
        assert run.returncode == 0, run.stdout
        assert socket.inet_aton(address) in asked_by_mdns("hub.local", us)
        assert asked_by_mdns("theirs.local", us) == b""
        run = playbook("base", "--tags", "firewall,network", firewall_allow=allow)
        assert run.returncode == 0, run.stdout
        assert inside(f"cat {path}") == before
        assert socket.inet_aton(address) in asked_by_mdns("theirs.local", us)
        again = playbook("base", "--tags", "network", firewall_allow=allow)
        assert "changed=0" in again.stdout
    finally:
        inside("systemctl disable --now avahi-daemon.socket avahi-daemon.service", check=False)
        inside("apt-get -qq purge avahi-daemon > /dev/null", check=False)
        playbook("base", "--tags", "firewall")
