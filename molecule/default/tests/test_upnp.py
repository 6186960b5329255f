# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A port of a real router (miniupnpd), opened by the NAS and used from the internet behind it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import docker, label, paths, ssh
from lab.errors import LabError

LAB = "molecule"
INVENTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "inventory")
ROOT = os.environ["MOLECULE_PROJECT_DIRECTORY"]
PORT, INSIDE, OTHER = 8443, 4430, 8090  # at the router, at the NAS, of another device
HTTP = 5555  # where the router answers
# miniupnpd takes only addresses of the internet, so the network behind it has some. It is cut off
# from the real one.
LAN6, WAN6 = "2a01:aaaa:", "2a01:bbbb:"
NAME = f"nas-upnp-ipv4-tcp-{PORT}"
NAME6 = f"nas-upnp-ipv6-tcp-{INSIDE}"
SERVER = f"""
import socket
with socket.create_server(("", {INSIDE}), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    while True:
        client, _ = server.accept()
        client.sendall(b"here")
        client.close()
"""
# What the packages of other systems prepare for miniupnpd; Debian's of nftables does not.
TABLE = """
table inet filter
delete table inet filter
table inet filter {
    chain forward {
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        jump miniupnpd
    }
    chain miniupnpd { }
    chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
    chain postrouting { type nat hook postrouting priority 100; jump postrouting_miniupnpd; }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
}
"""
SETTINGS = f"""
ext_ifname=eth1
listening_ip=eth0
http_port={HTTP}
secure_mode=yes
lease_file=/var/lib/upnp.leases
uuid=5d8f1a4e-0000-4000-8000-000000000001
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


class Net:
    """A router with a network behind it, in which one client stands for the internet."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.prefix = label.prefix(LAB)
        self.router = f"{self.prefix}-upnp-router"
        self.client = f"{self.prefix}-upnp-client"
        self.internet = f"{self.prefix}-upnp-internet"
        self.subnet = self.lan = ""

    @property
    def address(self) -> str:
        """The router's on the internet."""
        return self.subnet.replace(".0/24", ".44")

    @property
    def url(self) -> str:
        """Of the router's description."""
        return f"http://{self.lan}:{HTTP}/rootDesc.xml"

    def up(self) -> None:
        """Make it."""
        self.down()
        self._network()
        self._container(self.router, self.prefix)
        packages = "miniupnpd-nftables miniupnpc nftables"
        self.sh(f"apt-get -q update && apt-get -qy install --no-install-recommends {packages}")
        docker.docker("network", "connect", "--ip", self.address, self.internet, self.router)
        self._container(self.client, self.internet)
        (found,) = docker.inspect("container", [self.router])
        self.lan = found["NetworkSettings"]["Networks"][self.prefix]["IPAddress"]
        for where, device, address in (
            (self.router, "eth0", f"{LAN6}:1/64"),
            (self.router, "eth1", f"{WAN6}:1/64"),
            (self.client, "eth0", f"{WAN6}:45/64"),
        ):
            sysctl = f"sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.{device}"
            self.sh(f"{sysctl}.disable_ipv6=0; ip addr add {address} dev {device} nodad", where)
        self.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        self.sh(f"ip -6 route add default via {WAN6}:1", self.client)
        self.write("/etc/miniupnpd.conf", SETTINGS)
        self.write("/etc/table.nft", TABLE)

    def _network(self) -> None:
        for number in range(33, 43):
            self.subnet = f"11.22.{number}.0/24"
            options = ["--internal", "--subnet", self.subnet, *label.arguments(LAB)]
            try:
                docker.docker("network", "create", *options, self.internet)
            except LabError:
                continue
            return
        pytest.fail("no network is free")

    def _container(self, name: str, where: str) -> None:
        # systempaths: so that IPv6 can be switched on in it.
        options = ["--cap-add", "NET_ADMIN", "--security-opt", "systempaths=unconfined"]
        options += ["--name", name, "--network", where, "--entrypoint", "sleep"]
        docker.docker("run", "-d", *label.arguments(LAB), *options, self.image, "infinity")

    def down(self) -> None:
        """Remove what is there of it."""
        docker.docker("rm", "--force", "--volumes", self.router, self.client, check=False)
        docker.docker("network", "rm", self.internet, check=False)

    def sh(self, script: str, where: str = "") -> str:
        """Run a script on the router, or elsewhere."""
        return docker.execute(where or self.router, "sh", "-c", script, timeout=120).stdout

    def write(self, path: str, text: str) -> None:
        """Write a file on the router."""
        docker.docker("exec", "-i", self.router, "tee", path, stdin=text)

    def off(self) -> None:
        """Have the router speak no UPnP."""
        self.sh("kill $(pidof miniupnpd); while pidof miniupnpd; do sleep 0.1; done; true")

    def start(self) -> None:
        """Have the router speak UPnP."""
        run = "miniupnpd -d -f /etc/miniupnpd.conf >/var/log/miniupnpd.log 2>&1"
        docker.docker("exec", "-d", self.router, "sh", "-c", run)
        self.sh(f"until timeout 1 bash -c '< /dev/tcp/{self.lan}/{HTTP}'; do sleep 0.1; done")

    def restart(self) -> None:
        """Restart the router, which forgets all."""
        self.off()
        self.sh("nft -f /etc/table.nft; rm -f /var/lib/upnp.leases")
        self.start()

    def rules(self) -> str:
        """What the router lets in, as its kernel has it."""
        chains = ("miniupnpd", "prerouting_miniupnpd")
        listed = "; ".join(f"nft list chain inet filter {chain}" for chain in chains)
        return "".join(line for line in self.sh(listed).splitlines() if "dport" in line)

    def reaches(self, address: str, port: int) -> bool:
        """Whether the internet gets the NAS's answer at an address."""
        script = (
            "import socket, sys\n"
            "with socket.create_connection((sys.argv[1], int(sys.argv[2])), 3) as found:\n"
            "    print(found.recv(4).decode())"
        )
        words = ("python3", "-c", script, address, str(port))
        return "here" in docker.execute(self.client, *words, check=False).stdout


@pytest.fixture(scope="module")
def net(lab_container: str) -> Iterator[Net]:
    """A router and the internet, with a NAS that lets their packets in."""
    made = Net(docker.inspect("container", [lab_container])[0]["Image"])
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def nas(lab_container: str) -> Callable[[str], str]:
    """Return a function that runs a script on the NAS."""

    def sh(script: str) -> str:
        return docker.execute(lab_container, "sh", "-c", script, timeout=120).stdout

    return sh


@pytest.fixture(scope="module", autouse=True)
def open_nas(net: Net, nas: Callable[[str], str]) -> Iterator[None]:
    """The NAS with upnpc, a server, a way back to the internet, and a firewall that allows both."""
    chain = "inet nas_assistant input"
    rules = ["udp sport 1900 udp dport 19001 accept", f"tcp dport {INSIDE} accept"]
    # It has none in the drills of the door.
    firewall = "nas_assistant" in nas("nft list tables")
    there = nas("command -v upnpc || true")
    device = "net.ipv6.conf.eth0.disable_ipv6"
    before = nas(f"sysctl -n {device}").strip()
    handles = []
    try:
        if not there:
            nas("apt-get -q update && apt-get -qy install --no-install-recommends miniupnpc")
        for rule in rules if firewall else []:
            echo = nas(f"nft --echo --handle insert rule {chain} {rule} comment upnp-test")
            handles.append(echo.split("# handle ")[1].split()[0])
        nas(f"sysctl -qw net.ipv6.conf.all.disable_ipv6=0 {device}=0")
        nas(f"ip addr add {LAN6}:11/64 dev eth0 nodad")
        nas(f"ip route add {net.subnet} via {net.lan}; ip route add {WAN6}:/64 via {LAN6}:1")
        nas(f"systemd-run --unit upnp-server python3 -c '{SERVER}'")
        yield
    finally:
        nas("systemctl stop upnp-server || true")
        nas(f"ip route del {net.subnet}; ip route del {WAN6}:/64; true")
        nas(f"ip addr del {LAN6}:11/64 dev eth0; sysctl -qw {device}={before}; true")
        for handle in handles:
            nas(f"nft delete rule {chain} handle {handle} || true")
        if not there:
            nas("apt-get -qy purge miniupnpc libminiupnpc* || true")


@pytest.fixture(autouse=True)
def fresh(net: Net, nas: Callable[[str], str], open_nas: None) -> Iterator[None]:
    """A router that has just started, and nothing left on the NAS afterwards."""
    net.restart()
    yield
    nas("systemctl stop 'nas-upnp-*'; rm -rf /var/lib/nas-assistant-upnp")
    nas("rm -f /etc/systemd/system/nas-upnp-* /etc/systemd/system/*/nas-upnp-*")
    nas("systemctl daemon-reload; systemctl reset-failed")


@pytest.fixture
def task(address: str, nas_name: str) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the module; ``said`` of its result is all that was printed."""
    door = ssh.door(paths.lab(LAB), address)
    assert door

    def run(*options: str, fails: bool = False, **arguments: Any) -> dict[str, Any]:
        place = ["-e", f"ansible_port={door.port}", "-e", f"ansible_user={door.user}"]
        done = subprocess.run(
            [
                *("ansible", "-i", str(INVENTORY), nas_name, "--become", *place, *options),
                *("-m", "nas.assistant.upnp_port_mapping", "-a", json.dumps(arguments)),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
                "ANSIBLE_FORCE_COLOR": "0",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, said
        result, _ = json.JSONDecoder().raw_decode(done.stdout.partition(" => ")[2])
        return {**result, "said": " ".join(said.split())}

    return run


def mappings(result: dict[str, Any]) -> list[tuple[int, str, int]]:
    """Where the ports lead."""
    return [
        (one["external_port"], one["internal_client"], one["internal_port"])
        for one in result["mappings"]
    ]


def nothing_is_left(net: Net, nas: Callable[[str], str]) -> None:
    assert not net.rules()
    left = nas("ls /etc/systemd/system /etc/systemd/system/* /var/lib; systemctl list-units --all")
    assert "nas-upnp" not in left
    assert "nas-assistant-upnp" not in left


def test_open_used_and_closed(
    net: Net, nas: Callable[[str], str], task: Callable[..., dict[str, Any]], address: str
) -> None:
    wish = {"external_port": PORT, "internal_port": INSIDE, "description": "NAS 100% test"}
    assert not net.reaches(net.address, PORT)
    plan = task("--check", "--diff", **wish)
    assert plan["changed"]
    assert f"+tcp port {PORT} to {address} port {INSIDE}" in plan["said"]
    nothing_is_left(net, nas)

    done = task(**wish)
    assert done["changed"]
    assert mappings(done) == [(PORT, address, INSIDE)]
    assert done["external_address"] == net.address
    assert not done["shared_address"]
    assert done["router"] == net.url
    assert f"{PORT} at {net.address} is open to the whole internet" in done["said"]
    listed = net.sh(f"upnpc -u {net.url} -l")
    assert f"TCP  {PORT}->{address}:{INSIDE}" in listed
    assert "'NAS 100% test'" in listed
    assert net.reaches(net.address, PORT)
    assert not task(**wish)["changed"]

    gone = task(external_port=PORT, state="absent", router=net.url)
    assert gone["changed"]
    assert gone["mappings"] == []
    nothing_is_left(net, nas)
    assert not net.reaches(net.address, PORT)
    assert not task(external_port=PORT, state="absent", router=net.url)["changed"]


def test_kept_without_the_controller(
    net: Net, nas: Callable[[str], str], task: Callable[..., dict[str, Any]]
) -> None:
    wish = {"external_port": PORT, "internal_port": INSIDE, "lease": 600, "router": net.url}
    state = f"systemctl show {NAME}.timer --property=ActiveState,UnitFileState"
    began = nas("date +@%s").strip()
    journal = f"journalctl --since {began} --output cat --unit {NAME}.service"
    assert task(**wish)["changed"]
    assert "ActiveState=active\nUnitFileState=enabled" in nas(state)
    # Lest it opens the port of itself before that was looked at.
    nas(f"systemctl stop {NAME}.timer {NAME}.service")
    net.restart()
    assert not net.reaches(net.address, PORT)
    nas(f"systemctl start {NAME}.service")
    assert net.reaches(net.address, PORT)
    assert nas(journal).strip() in ("", "-- No entries --")

    # What somebody changed by hand is seen and mended, all at once.
    net.restart()
    nas(f"systemctl disable {NAME}.timer; echo '# mine' >> /etc/systemd/system/{NAME}.service")
    assert task(**wish)["changed"]
    assert net.reaches(net.address, PORT)
    assert "ActiveState=active\nUnitFileState=enabled" in nas(state)
    assert "mine" not in nas(f"cat /etc/systemd/system/{NAME}.service")
    assert not task(**wish)["changed"]

    net.off()
    failed = nas(f"systemctl start {NAME}.service 2>&1; systemctl is-failed {NAME}.service")
    assert failed.endswith("failed\n")
    assert "No valid UPNP Internet Gateway Device found" in nas(journal)
    assert "no router answers there" in task(fails=True, **wish)["msg"]
    lost = task(fails=True, external_port=PORT, internal_port=INSIDE)
    assert "no router that speaks UPnP was found: switch UPnP on in the router" in lost["msg"]
    gone = task(state="absent", **wish)
    assert gone["changed"]
    assert f"tcp port {PORT} stays until its lease ends" in gone["said"]
    net.restart()
    nothing_is_left(net, nas)


def test_what_the_router_keeps_from_the_nas(
    net: Net, nas: Callable[[str], str], task: Callable[..., dict[str, Any]]
) -> None:
    there = {"router": net.url}
    refused = task(fails=True, external_port=81, internal_port=INSIDE, **there)
    assert "tcp port 81: the router does not allow it" in refused["msg"]
    assert "606" in refused["msg"]
    net.sh(f"upnpc -u {net.url} -e other -a @ {OTHER} {OTHER} tcp 3600")
    before = net.rules()
    taken = task(fails=True, external_port=OTHER, **there)
    assert f"belongs to {net.lan} port {OTHER} (other)" in taken["msg"]
    left = task(external_port=OTHER, state="absent", **there)
    assert not left["changed"]
    assert f"belongs to {net.lan}" in left["said"]
    assert mappings(task(state="listed", **there)) == [(OTHER, net.lan, OTHER)]
    assert net.rules() == before
    assert "nas-upnp" not in nas("ls /etc/systemd/system")
    # Without an end, this router knows none, and says a week.
    wish = {"external_port": PORT, "internal_port": INSIDE, "lease": 0, **there}
    week = task(**wish)
    assert "knows no mappings without an end" in week["said"]
    assert not task(**wish)["changed"]


def test_an_address_that_is_not_of_the_internet(
    net: Net, task: Callable[..., dict[str, Any]]
) -> None:
    net.sh(f"ip addr add 192.168.77.2/24 dev eth1; ip addr del {net.address}/24 dev eth1")
    try:
        net.restart()
        refused = task(fails=True, external_port=PORT)
        assert "a second router stands before it" in refused["msg"]
        assert refused["shared_address"]
        # When told to go on, it asks, and this router refuses.
        wish = {"external_port": PORT, "router": net.url, "allow_shared_address": True}
        assert "(UPnP error 501)" in task(fails=True, **wish)["msg"]
    finally:
        net.sh(f"ip addr del 192.168.77.2/24 dev eth1; ip addr add {net.address}/24 dev eth1")


def test_a_pinhole(
    net: Net, nas: Callable[[str], str], task: Callable[..., dict[str, Any]]
) -> None:
    wish = {"external_port": INSIDE, "family": "ipv6", "description": "by IPv6"}
    mine, url = f"{LAN6}:11", f"http://[{LAN6}:1]:{HTTP}/rootDesc.xml"
    assert not net.reaches(mine, INSIDE)
    plan = task("--check", **wish)
    assert (plan["changed"], plan["router"]) == (True, url)
    assert not net.rules()
    wish["router"] = url
    done = task(**wish)
    assert done["changed"]
    assert mappings(done) == [(INSIDE, mine, INSIDE)]
    assert done["mappings"][0]["description"] == "by IPv6"
    assert (done["external_address"], done["shared_address"]) == (mine, False)
    assert net.reaches(mine, INSIDE)
    nas(f"systemctl stop {NAME6}.timer {NAME6}.service")
    net.restart()
    assert not net.reaches(mine, INSIDE)
    nas(f"systemctl start {NAME6}.service {NAME6}.timer")
    assert net.reaches(mine, INSIDE)
    assert not task(**wish)["changed"]
    gone = task(state="absent", **wish)
    assert gone["changed"]
    assert gone["mappings"] == []
    nothing_is_left(net, nas)
    assert not net.reaches(mine, INSIDE)

    # A router that does not know them: the description of this one, with nobody behind it.
    net.sh("mkdir -p /srv/old")
    fetch = "import sys, urllib.request as u; u.urlretrieve(*sys.argv[1:])"
    docker.execute(net.router, "python3", "-c", fetch, net.url, "/srv/old/rootDesc.xml")
    serve = "python3 -m http.server --bind :: --directory /srv/old 8000"
    docker.docker("exec", "-d", net.router, "sh", "-c", serve)
    net.sh(f"until timeout 1 bash -c '< /dev/tcp/{net.lan}/8000'; do sleep 0.1; done")
    none = task(fails=True, **{**wish, "router": url.replace(str(HTTP), "8000")})
    assert "opens no pinholes for IPv6" in none["msg"]


def test_the_role_opens_router_and_firewall(
    net: Net,
    nas: Callable[[str], str],
    playbook: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """The last here: it loads the firewall anew, and so without the rules of this test."""
    allow = [{"service": "https"}, {"service": "http"}, {"ports": [INSIDE], "from": ["any"]}]
    ports = [{"external_port": PORT, "internal_port": INSIDE}]
    tags = ("--tags", "firewall,network")

    run = playbook("base", *tags, firewall_allow=allow, network_upnp=ports)
    assert run.returncode == 0, run.stdout
    assert net.reaches(net.address, PORT)
    again = playbook("base", *tags, firewall_allow=allow, network_upnp=ports)
    assert "changed=0" in again.stdout, again.stdout

    # What the inventory no longer has is closed, in both.
    closed = playbook("base", *tags)
    assert closed.returncode == 0, closed.stdout
    assert not net.reaches(net.address, PORT)
    nothing_is_left(net, nas)
    assert "sport 1900" not in nas("nft list table inet nas_assistant")
