# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The door, from outside the NAS: what is closed stays closed, and nobody is locked out."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import LONG
from site_lab import kill
from testinfra.host import Host

from lab import docker, label, network, paths, ssh

Playbook = Callable[..., subprocess.CompletedProcess[str]]
LAB = "molecule"
FOLDER = paths.lab(LAB)
SECONDS = 20  # that the NAS waits for a confirmation in the drills
# Ports of a container: TCP that nobody opened, TCP and UDP that the list has later.
CLOSED, OPENED = 8088, 8089
ALLOW = [{"service": "https"}, {"service": "http"}]
SERVER = """
import socket, threading
def tcp(port):
    with socket.create_server(("", port)) as server:
        while True:
            client, _ = server.accept()
            client.sendall(b"here")
            client.close()
def udp(port):
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("", port))
    while True:
        _, client = server.recvfrom(64)
        server.sendto(b"here", client)
for port in (8088, 8089):
    threading.Thread(target=tcp, args=(port,)).start()
    threading.Thread(target=udp, args=(port,)).start()
"""


@pytest.fixture(autouse=True)
def unbanned(lab_container: str) -> None:
    """Some tests fail to log in on purpose, more often than the NAS would have it."""
    (found,) = docker.inspect("network", [label.prefix(LAB)])
    us = network.gateway(found["IPAM"]["Config"][0]["Subnet"])
    for words in (["set", "sshd", "addignoreip", us], ["unban", "--all"]):
        docker.execute(lab_container, "fail2ban-client", *words, check=False)


@pytest.fixture(scope="module")
def scope() -> int:
    """This machine's end of the lab's network, which link-local addresses need."""
    (found,) = docker.inspect("network", [label.prefix(LAB)])
    return socket.if_nametoindex(f"br-{found['Id'][:12]}")


@pytest.fixture
def addresses(host: Host, address: str, scope: int) -> list[tuple[Any, ...]]:
    """The NAS over IPv4 and IPv6, to which a port is still to be added."""
    host.check_output(
        "sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0"
    )
    deadline = time.monotonic() + 10
    while True:
        shown = host.check_output("ip -j -6 address show dev eth0 scope link -tentative")
        found = [info for link in json.loads(shown) for info in link.get("addr_info", []) if info]
        if found:
            return [(address,), (found[0]["local"], 0, scope)]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def reaches(target: tuple[Any, ...], port: int, kind: socket.SocketKind) -> bool:
    """Whether something at this port answers with what the container says."""
    family = socket.AF_INET if len(target) == 1 else socket.AF_INET6
    with socket.socket(family, kind) as probe:
        probe.settimeout(2)
        try:
            probe.connect((target[0], port, *target[1:]))
            if kind is socket.SOCK_DGRAM:
                probe.send(b"anybody")
            return probe.recv(4) == b"here"
        except OSError:
            return False


@pytest.fixture
def published(host: Host, addresses: list[tuple[Any, ...]]) -> Iterator[None]:
    """A container that publishes ports, as somebody's media server does."""
    image = host.check_output("docker inspect nas-assistant --format '{{.Config.Image}}'")
    # So that Docker listens on IPv6 too, which it looks at when it starts.
    host.check_output("systemctl restart docker")
    ports = " ".join(f"-p {port}:{port} -p {port}:{port}/udp" for port in (CLOSED, OPENED))
    host.run("docker rm -f published")
    options = f"-d --name published --restart always {ports} --entrypoint python3"
    host.check_output(f"docker run {options} {image} -c %s", SERVER)
    yield
    host.check_output("docker rm -f published")


def test_published_ports_answer_only_from_the_list(
    host: Host,
    published: None,
    addresses: list[tuple[Any, ...]],
    lab_container: str,
    playbook: Playbook,
    wait_ready: Callable[[], float],
) -> None:
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)

    def open_ports() -> set[tuple[int, int, str]]:
        return {
            (4 if len(target) == 1 else 6, port, kind.name)
            for target in addresses
            for port in (CLOSED, OPENED)
            for kind in kinds
            if reaches(target, port, kind)
        }

    everything = {
        (version, port, kind.name)
        for version in (4, 6)
        for port in (CLOSED, OPENED)
        for kind in kinds
    }
    assert open_ports() == set()
    # Without the table all of them answer, so it is the table that closes them.
    host.check_output("nft delete table inet nas_assistant")
    assert open_ports() == everything
    # And here it is mended.
    listed = [*ALLOW, {"ports": [OPENED], "protocol": "both", "name": "media"}]
    done = playbook("base", "--tags", "firewall", firewall_allow=listed)
    assert done.returncode == 0, done.stdout
    allowed = {found for found in everything if found[1] == OPENED}
    assert open_ports() == allowed
    host.check_output("systemctl restart docker")
    assert open_ports() == allowed
    subprocess.run(["docker", "restart", lab_container], check=True, capture_output=True)
    wait_ready()
    # After the restart this lab's NAS has no IPv6 until somebody switches it on again.
    deadline = time.monotonic() + 60
    while {found for found in open_ports() if found[0] == 4} != {
        found for found in allowed if found[0] == 4
    }:
        assert time.monotonic() < deadline
    assert playbook("base", "--tags", "firewall").returncode == 0
    assert open_ports() == set()


def test_only_the_new_door_opens(address: str) -> None:
    found = ssh.door(FOLDER, address)
    assert found == ssh.DOORS[0]
    with pytest.raises(TimeoutError):
        socket.create_connection((address, 22), timeout=2)
    for user in ("root", "nobody"):
        refused = ssh.login(FOLDER, address, ssh.Door(found.port, user), "true")
        assert refused.returncode == 255
        assert "Permission denied (publickey)" in refused.stderr


def test_guessing_is_banned(host: Host, address: str, lab_container: str) -> None:
    """From an address of another container, so that the tests themselves are not banned."""
    image = docker.inspect("container", [lab_container])[0]["Image"]
    # A ban in the middle of a handshake leaves ssh waiting for ever.
    guess = (
        "for i in 1 2 3 4 5 6 7 8; do timeout 10 ssh -o StrictHostKeyChecking=no -o BatchMode=yes "
        f"-o ConnectTimeout=3 -p {ssh.DOORS[0].port} guess$i@{address} true; done; sleep 5; "
        f"timeout 3 bash -c 'read -n 4 x < /dev/tcp/{address}/{ssh.DOORS[0].port}' && echo open"
    )
    done = docker.docker(
        *("run", "--rm", *label.arguments(LAB), "--network", label.prefix(LAB)),
        *("--entrypoint", "sh", image, "-c", guess),
        check=False,
    )
    try:
        assert "Permission denied (publickey)" in done.stderr
        assert "open" not in done.stdout
        assert "Currently banned:\t1" in host.check_output("fail2ban-client status sshd")
    finally:
        host.check_output("fail2ban-client unban --all")


@pytest.fixture
def config_set(nas_name: str) -> Callable[..., list[str]]:
    """Return a function that gives the command line of one config_set on the NAS."""
    door = ssh.DOORS[0]

    def command(**arguments: Any) -> list[str]:
        return [
            *("ansible", "-i", os.environ["MOLECULE_EPHEMERAL_DIRECTORY"] + "/inventory", nas_name),
            *("--become", "-e", f"ansible_port={door.port}", "-e", f"ansible_user={door.user}"),
            *("-m", "nas.assistant.config_set", "-a", json.dumps(arguments)),
        ]

    return command


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    root = os.environ["MOLECULE_PROJECT_DIRECTORY"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


BLOCKING = """
table inet nas_drill
delete table inet nas_drill
table inet nas_drill {
    chain input {
        type filter hook input priority filter - 6; policy accept;
        ct state established accept
        tcp dport 2222 drop
    }
}
"""
RULES = "/etc/nas-assistant/drill.nft"
FIREWALL = "/etc/nas-assistant/firewall.nft"
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA other"
WRONG_KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
# As the role does it.
UNBAN = {"command": ["fail2ban-client", "unban", "--all"]}
# A rule set that is right in syntax and wrong in effect, and a port at which nobody can log in.
LOCKING_OUT: dict[str, dict[str, Any]] = {
    "firewall": {
        "name": "drill",
        "files": [{"dest": RULES, "content": BLOCKING, "check": ["nft", "-c", "-f", "%s"]}],
        "apply": [{"command": ["nft", "-f", RULES]}],
        "guard": {
            "seconds": SECONDS,
            "revert": [{"command": ["nft", "delete", "table", "inet", "nas_drill"]}, UNBAN],
        },
    },
    "sshd": {
        "name": "drill",
        "files": [
            {"dest": "/etc/ssh/sshd_config.d/10-drill.conf", "content": "AllowUsers nobody\n"}
        ],
        "checks": [["sshd", "-t"]],
        "units": [{"name": "ssh.service"}],
        "guard": {
            "seconds": SECONDS,
            "revert": [{"command": ["systemctl", "reload", "ssh.service"]}, UNBAN],
        },
    },
}


def wait_for_the_door(address: str, limit: float) -> float:
    """Wait until a new login works; return the seconds that it took."""
    began = time.monotonic()
    while ssh.door(FOLDER, address) is None:
        assert time.monotonic() - began < limit, "locked out"
        time.sleep(0.5)
    return time.monotonic() - began


def nothing_is_left(host: Host) -> None:
    assert host.run("nft list table inet nas_drill").rc != 0
    for path in (RULES, "/etc/ssh/sshd_config.d/10-drill.conf"):
        assert not host.file(path).exists
    assert host.check_output("ls -A /var/lib/nas-guard") == ""
    assert not host.file("/etc/systemd/system/nas-guard.service").exists


@pytest.mark.parametrize("drill", LOCKING_OUT)
def test_a_change_that_locks_out_is_taken_back(
    host: Host, address: str, config_set: Callable[..., list[str]], drill: str
) -> None:
    door = ssh.DOORS[0]
    # A session that was there before, and survives: it is no proof that anybody gets in.
    with session(address, f"sleep {SECONDS // 2}; echo alive; sleep {SECONDS}; echo still") as old:
        done = run(config_set(**LOCKING_OUT[drill]))
        assert old.communicate(timeout=60)[0].split() == ["alive", "still"]
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert f"no new connection to {door.user}@{address} port {door.port} could be made" in said
    assert "so the old state was put back" in said
    wait_for_the_door(address, 5)
    nothing_is_left(host)


@contextlib.contextmanager
def session(address: str, command: str) -> Iterator[subprocess.Popen[str]]:
    """A session over SSH that runs beside the test."""
    door = ssh.DOORS[0]
    argv = ["ssh", "-F", os.devnull, *ssh.options(FOLDER), "-o", "LogLevel=ERROR"]
    argv += ["-p", str(door.port), "-i", str(FOLDER / ssh.KEY), f"{door.user}@{address}", command]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        time.sleep(2)
        yield process


@pytest.mark.parametrize("ending", ["controller killed", "NAS restarted"])
def test_a_change_that_nobody_confirms_is_taken_back(
    host: Host,
    address: str,
    lab_container: str,
    config_set: Callable[..., list[str]],
    wait_ready: Callable[[], float],
    ending: str,
) -> None:
    # The very file that is loaded at boot, with a port at which nobody listens.
    before = host.file(FIREWALL).content_string
    after = before.replace("elements = { 2222 }", "elements = { 1 }")
    assert after != before
    load = {"command": ["nft", "-f", FIREWALL]}
    wish = {
        "name": "drill",
        "files": [{"dest": FIREWALL, "content": after, "mode": "0640"}],
        "apply": [load],
        "guard": {
            "seconds": SECONDS if ending == "controller killed" else 300,
            "revert": [load, UNBAN],
            # An address that never answers keeps the controller asking.
            "host": "192.0.2.1",
        },
    }
    root = os.environ["MOLECULE_PROJECT_DIRECTORY"]
    controller = subprocess.Popen(
        config_set(**wish), cwd=root, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        shown = ["nft", "list", "set", "inet", "nas_assistant", "ssh"]
        while "{ 1 }" not in docker.execute(lab_container, *shown, check=False).stdout:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        kill(controller)
    assert ssh.door(FOLDER, address) is None
    if ending == "NAS restarted":
        docker.docker("restart", lab_container)
        wait_ready()
    wait_for_the_door(address, SECONDS + 15)
    nothing_is_left(host)
    assert host.file(FIREWALL).content_string == before


def test_an_address_that_would_be_shut_out_is_refused(host: Host, playbook: Playbook) -> None:
    before = host.check_output("nft list table inet nas_assistant")
    done = playbook("base", "--tags", "firewall", firewall_ssh_from=["192.0.2.0/24"])
    assert done.returncode != 0
    assert "which is not among them, so it would lock you out" in done.stdout
    assert host.check_output("nft list table inet nas_assistant") == before


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"hardening_ssh": {"port": 70000}}, ["hardening_ssh.port=70000"]),
    ({"hardening_admin": {"name": "root"}}, ["hardening_admin.name=root"]),
    (
        {"hardening_admin": {"authorized_keys": ["rubbish"]}},
        ["one line of an authorized_keys file"],
    ),
    ({"firewall_allow": [{"service": "telnet"}]}, ["known services are", "telnet"]),
    ({"firewall_allow": [{"ports": ["80; drop"]}]}, ["80; drop", "no port from 1 to 65535"]),
    ({"firewall_lan": ["home"]}, ["home", "sources are lan, any, or networks"]),
]


@pytest.mark.parametrize(("variables", "said"), REFUSED, ids=lambda value: str(value)[:40])
def test_wrong_input_is_refused_before_anything_changes(
    host: Host, playbook: Playbook, variables: dict[str, Any], said: list[str]
) -> None:
    before = host.check_output("sshd -T; nft list table inet nas_assistant")
    done = playbook("base", **variables)
    assert done.returncode != 0
    for words in said:
        assert words in done.stdout, done.stdout
    assert "changed=0" in done.stdout
    assert host.check_output("sshd -T; nft list table inet nas_assistant") == before


DROP_IN = "/etc/ssh/sshd_config.d/00-nas-assistant.conf"
SYSCTL = "/etc/sysctl.d/99-zz-nas-assistant-hardening.conf"
SUDOERS = "/etc/sudoers.d/nas-assistant-nasadmin"
KEYS = "/etc/ssh/authorized_keys.d/nasadmin"
SOCKET = "/etc/systemd/system/ssh.socket.d/nas-assistant.conf"
MAIN = "/etc/ssh/sshd_config"
# What somebody does by hand, how it shows, and what the next run makes of it.
ALTERED = {
    "sshd drop-in": (f"echo MaxAuthTries 9 > {DROP_IN}", "sshd -T | grep ^maxa", "maxauthtries 4"),
    "sshd main file": (f"echo 'Port 2022' >> {MAIN}", "sshd -T | grep ^port", "port 2222"),
    "sshd main file's mode": (f"chmod 0666 {MAIN}", f"stat -c %a {MAIN}", "600"),
    "ssh socket": (f"rm {SOCKET}",
                   f"grep -c 2222 {SOCKET}", "2"),
    "ssh at boot": ("systemctl disable ssh", "systemctl is-enabled ssh", "enabled"),
    "sudoers": (f"echo '# x' >> {SUDOERS}", f"grep -c x$ {SUDOERS}", "0"),
    "keys' mode": (f"chmod 0755 {KEYS}", f"stat -c %a {KEYS}", "644"),
    "banner": ("echo > /etc/issue.net", "grep -c private /etc/issue.net", "1"),
    "fail2ban": ("systemctl disable --now fail2ban", "systemctl is-active fail2ban", "active"),
    "jail": ("rm /etc/fail2ban/jail.d/nas-assistant.local",
             "grep -c 2222 /etc/fail2ban/jail.d/nas-assistant.local", "1"),
    "kernel": ("sysctl -qw net.ipv4.conf.all.send_redirects=1",
               "sysctl -n net.ipv4.conf.all.send_redirects", "0"),
    "kernel at boot": (f"echo '-net.ipv4.tcp_syncookies = 0' >> {SYSCTL}",
                       f"grep -c syncookies {SYSCTL}", "2"),
    "journal": ("rm /etc/systemd/journald.conf.d/60-nas-assistant.conf",
                "grep -c 200M /etc/systemd/journald.conf.d/60-nas-assistant.conf", "1"),
    "ssh when memory runs out": ("rm /etc/systemd/system/ssh.service.d/nas-assistant.conf",
                                 "systemctl show -p OOMPolicy --value ssh", "continue"),
    "shadow": ("chmod 0644 /etc/shadow", "stat -c %a:%G /etc/shadow", "640:shadow"),
    "PAM": ("pam-auth-update --package --remove nas-faillock",
            "grep -c pam_faillock.so /etc/pam.d/common-auth", "3"),
    "rules in force": ("nft insert rule inet nas_assistant input tcp dport 9999 accept",
                       "nft list table inet nas_assistant | grep -c 9999", "0"),
    "rules at boot": ("echo '# x' >> /etc/nas-assistant/firewall.nft",
                      "grep -c 'x$' /etc/nas-assistant/firewall.nft", "0"),
    "firewall at boot": ("systemctl disable nas-assistant-firewall",
                         "systemctl is-enabled nas-assistant-firewall", "enabled"),
}  # fmt: skip


@pytest.fixture(scope="module")
def mended(address: str, playbook: Playbook) -> Callable[[str], str]:
    """Alter everything, run the playbook once; return a function that looks."""

    def on_nas(command: str) -> str:
        return ssh.as_root(FOLDER, address, command).stdout.strip()

    for alter, _, _ in ALTERED.values():
        done = ssh.as_root(FOLDER, address, alter)
        assert done.returncode == 0, done.stderr
    mends = playbook("base")
    assert mends.returncode == 0, mends.stdout
    again = playbook("base")
    assert "changed=0" in again.stdout, again.stdout
    return on_nas


@pytest.mark.parametrize("what", ALTERED)
def test_what_was_altered_by_hand_is_mended(mended: Callable[[str], str], what: str) -> None:
    _, look, expected = ALTERED[what]
    assert mended(look) == expected


def test_what_another_file_overrules_is_said(host: Host, playbook: Playbook) -> None:
    """sshd takes the first value: a file that is read before ours would win."""
    path = "/etc/ssh/sshd_config.d/00-a-vendor.conf"
    host.check_output(f"echo 'PermitRootLogin yes' > {path}")
    try:
        done = playbook("base", "--tags", "hardening")
        assert done.returncode != 0
        assert "should say permitrootlogin no, and says permitrootlogin yes" in " ".join(
            done.stdout.split()
        )
    finally:
        host.check_output(f"rm {path}")


def test_openmediavault_keeps_its_ssh(host: Host, playbook: Playbook) -> None:
    host.check_output("mkdir -p /etc/openmediavault; touch /etc/openmediavault/config.xml")
    try:
        done = playbook("base")
        assert done.returncode != 0
        assert "runs OpenMediaVault, which writes sshd_config itself" in done.stdout
        assert "changed=0" in done.stdout
        beside = playbook("base", hardening_ssh={"managed": False})
        assert beside.returncode == 0, beside.stdout
    finally:
        host.check_output("rm -r /etc/openmediavault")


def test_keys_of_the_inventory_are_the_only_ones(host: Host, playbook: Playbook) -> None:
    mine = (FOLDER / f"{ssh.KEY}.pub").read_text().strip()
    host.check_output(f"echo 'ssh-ed25519 AAAAintruder x' >> {KEYS}")
    host.check_output("install -d -o nasadmin -m 0700 /home/nasadmin/.ssh")
    elsewhere = "/home/nasadmin/.ssh/authorized_keys"
    host.check_output(f"install -o nasadmin -m 0600 {KEYS} {elsewhere}")
    done = playbook("base", "--tags", "hardening", hardening_admin={"authorized_keys": [mine]})
    assert done.returncode == 0, done.stdout
    assert host.file(KEYS).content_string.strip() == mine
    # What the account itself wrote lets nobody in.
    shown = host.check_output("sshd -T -C user=nasadmin,host=x,addr=192.0.2.1")
    assert f"authorizedkeysfile {KEYS}" in shown.splitlines()
    wrong = playbook("base", "--tags", "hardening", hardening_admin={"authorized_keys": [OTHER]})
    assert wrong.returncode != 0
    assert "so the old state was put back" in " ".join(wrong.stdout.split())
    assert host.file(KEYS).content_string.strip() == mine


def test_a_host_key_is_found_under_its_old_name(
    address: str, tmp_path: Path, playbook_in: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Whoever knew the NAS before it was hardened knows its key under the old port only."""
    keys = ssh.as_root(FOLDER, address, "cat /etc/ssh/ssh_host_*_key.pub").stdout.splitlines()
    (tmp_path / "known_hosts").write_text(
        "".join(f"{address} {' '.join(key.split()[:2])}\n" for key in keys)
    )
    inventory = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "inventory")
    text = (inventory / "lab.yml").read_text()
    there = str(FOLDER / ssh.KNOWN_HOSTS)
    assert there in text
    (tmp_path / "hosts.yml").write_text(text.replace(there, str(tmp_path / "known_hosts")))
    (tmp_path / "group_vars").symlink_to((inventory / "group_vars").resolve())
    # No connection that is there already, which would look up no key.
    fresh = {"ANSIBLE_SSH_CONTROL_PATH_DIR": str(tmp_path)}
    done = playbook_in(tmp_path / "hosts.yml", fresh, "base", "--tags", "firewall")
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "known_hosts").write_text(f"{address} ssh-ed25519 {WRONG_KEY}\n")
    fresh = {"ANSIBLE_SSH_CONTROL_PATH_DIR": str(tmp_path / "again")}
    done = playbook_in(tmp_path / "hosts.yml", fresh, "base", "--tags", "firewall")
    assert done.returncode != 0
    assert "Host key verification failed" in " ".join(done.stdout.split())


def switch(host: Host, off: str, on: str) -> None:
    """Have systemd listen for sshd, or sshd itself; SSH is away meanwhile."""
    steps = f"systemctl disable {off}; systemctl stop ssh.socket ssh.service"
    steps += f"; systemctl enable --now {on}"
    host.check_output(f"systemd-run --wait sh -c '{steps}'")


@pytest.mark.parametrize("listens", ["ssh.service", pytest.param("ssh.socket", marks=LONG)])
def test_the_port_can_be_moved_again(
    host: Host, address: str, playbook: Playbook, listens: str
) -> None:
    other = ssh.Door(2223, "nasadmin")
    if listens == "ssh.socket":
        switch(host, "ssh.service", "ssh.socket")
    try:
        done = playbook("base", hardening_ssh={"port": other.port})
        assert done.returncode == 0, done.stdout
        assert ssh.door(FOLDER, address) is None
        assert ssh.login(FOLDER, address, other, "true").returncode == 0
        # The inventory says 2222 again, and the NAS is at neither that nor the first port.
        back = playbook("base")
        assert back.returncode == 0, back.stdout
        assert ssh.door(FOLDER, address) == ssh.DOORS[0]
        assert "changed=0" in playbook("base").stdout
        active = ssh.as_root(FOLDER, address, f"systemctl is-active {listens}").stdout.strip()
        assert active == "active"
    finally:
        if listens == "ssh.socket":
            switch(host, "ssh.socket", "ssh.service")


def test_a_first_run_closes_nothing_that_is_in_use(host: Host, playbook: Playbook) -> None:
    assert playbook("base", "--tags", "firewall", firewall_state="absent").returncode == 0
    host.check_output("systemd-run --unit media python3 -m http.server 8765")
    host.check_output("mkdir -p /etc/ufw; echo ENABLED=yes > /etc/ufw/ufw.conf")
    try:
        done = playbook("base", "--tags", "firewall")
        assert done.returncode != 0
        assert "has a firewall already: ufw" in " ".join(done.stdout.split())
        host.check_output("rm -r /etc/ufw")
        done = playbook("base", "--tags", "firewall")
        assert done.returncode != 0
        said = " ".join(done.stdout.split())
        assert "the firewall would close 8765/tcp (python3" in said
        # What is open or known is not named.
        assert "nginx" not in said
        assert "sshd" not in said
        assert host.run("nft list table inet nas_assistant").rc != 0
        known = playbook("base", "--tags", "firewall", firewall_acknowledged=[8765])
        assert known.returncode == 0, known.stdout
    finally:
        host.run("systemctl stop media; rm -rf /etc/ufw")
    assert "policy drop" in host.check_output("nft list table inet nas_assistant")


def test_undone_and_done_again(host: Host, address: str, playbook: Playbook) -> None:
    # The port that another test wrote there would come back as well, and be the old door.
    host.check_output(f"sed -i '/Port 2022/d' {MAIN}")
    gone = playbook("base", hardening_state="absent", firewall_state="absent")
    assert gone.returncode == 0, gone.stdout
    assert ssh.door(FOLDER, address) == ssh.DOORS[1]
    look = "nft list tables; sshd -T | grep ^permitroot; find /etc/systemd/system -xtype l"
    left = ssh.as_root(FOLDER, address, look)
    assert "nas_assistant" not in left.stdout
    assert "nas-assistant" not in left.stdout
    assert "permitrootlogin without-password" in left.stdout
    again = playbook("base", hardening_state="absent", firewall_state="absent")
    assert "changed=0" in again.stdout, again.stdout
    back = playbook("base")
    assert back.returncode == 0, back.stdout
    assert ssh.door(FOLDER, address) == ssh.DOORS[0]
    assert "changed=0" in playbook("base").stdout
