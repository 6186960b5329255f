# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the entries of firewall_allow mean, and what they would close."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.nas.assistant.plugins.filter.firewall import (
    firewall_admits,
    firewall_closes,
    firewall_rules,
)

ROLE = Path(__file__).parents[2] / "roles/firewall"
SERVICES = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__firewall_services"]
LAN = ["192.168.1.0/24", "fd00::/8"]
HOME = {"v4": ["192.168.1.0/24"], "v6": ["fd00::/8"]}
ALL = {"v4": None, "v6": None}


def rule(protocol: str, *ports: str, name: str = "x", **more: Any) -> dict[str, Any]:
    return (
        {"name": name, "protocol": protocol, "ports": list(ports), "interfaces": []} | HOME | more
    )


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"service": "https"}, [rule("tcp", "443", name="https")]),
        ({"service": "mdns"}, [rule("udp", "5353", name="mdns")]),
        (
            {"service": "nfs", "from": ["10.0.0.0/8"]},
            [
                rule(protocol, "111", "2049", name="nfs", v4=["10.0.0.0/8"], v6=[])
                for protocol in ("tcp", "udp")
            ],
        ),
        ({"ports": 8096}, [rule("tcp", "8096", name="8096")]),
        ({"ports": ["8000-8010", 9], "name": "a b"}, [rule("tcp", "8000-8010", "9", name="a b")]),
        (
            {"ports": [53], "protocol": "udp", "from": ["any"]},
            [rule("udp", "53", name="53", **ALL)],
        ),
        ({"ports": [1], "from": ["any", "lan"]}, [rule("tcp", "1", name="1", **ALL)]),
        # A network inside another would be refused by nft.
        (
            {"ports": [1], "from": ["lan", "192.168.1.7", "192.168.0.0/24"]},
            [rule("tcp", "1", name="1", v4=["192.168.0.0/23"])],
        ),
        (
            {"ports": [1], "interfaces": ["eth0", "wg*"]},
            [rule("tcp", "1", name="1", interfaces=["eth0", "wg*"])],
        ),
    ],
    ids=str,
)
def test_rules(entry: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert firewall_rules([entry], SERVICES, LAN) == expected


@pytest.mark.parametrize(
    ("allow", "said"),
    [
        ("https", "give a list of entries"),
        (["https"], "an entry is a dictionary"),
        ([{"service": "telnet"}], "known services are dns, http"),
        ([{"service": "http", "ports": [80]}], "either a service or ports"),
        ([{"name": "x"}], "either a service or ports"),
        ([{"ports": [0]}], "no port from 1 to 65535"),
        ([{"ports": ["80; drop"]}], "no port from 1 to 65535"),
        ([{"ports": ["90-80"]}], "begins after its end"),
        ([{"ports": []}], "at least one port"),
        ([{"ports": [80], "protocol": "icmp"}], "protocol is tcp, udp or both"),
        ([{"ports": [80], "name": 'x" accept'}], "a name has letters"),
        ([{"ports": [80], "from": ["192.168.1.5/24"]}], "host bits set"),
        ([{"ports": [80], "from": ["home"]}], "sources are lan, any, or networks"),
        ([{"ports": [80], "interfaces": ['eth0" accept']}], "interfaces are names"),
        ([{"ports": [80], "source": "any"}], "some of from, interfaces, name"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(allow: Any, said: str) -> None:
    with pytest.raises(AnsibleFilterError, match=said):
        firewall_rules(allow, SERVICES, LAN)


@pytest.mark.parametrize(
    ("address", "port", "expected"),
    [
        ("192.168.1.9", 22, True),
        ("192.168.2.9", 22, False),
        ("192.168.1.9", 23, False),
        ("fd00::9", 22, True),
        ("2001:db8::1", 22, False),
        ("fe80::1%eth0", 22, False),
    ],
)
def test_admits(address: str, port: int, expected: bool) -> None:
    assert firewall_admits([rule("tcp", "20-22")], address, port) is expected


SOCKETS = """\
udp UNCONN 0 0 0.0.0.0:68 0.0.0.0:* users:(("dhclient",pid=601,fd=7))
udp UNCONN 0 0 0.0.0.0:5353 0.0.0.0:* users:(("avahi-daemon",pid=612,fd=12))
udp UNCONN 0 0 [fe80::1]%eth0:546 [::]:* users:(("systemd-network",pid=300,fd=20))
udp UNCONN 0 0 *:443 *:* users:(("nginx",pid=9,fd=6),("nginx",pid=8,fd=6))
tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=51,fd=3))
tcp LISTEN 0 50 0.0.0.0:445 0.0.0.0:* users:(("smbd",pid=700,fd=31))
tcp LISTEN 0 50 [::]:445 [::]:* users:(("smbd",pid=700,fd=29))
tcp LISTEN 0 64 0.0.0.0:2049 0.0.0.0:*
tcp LISTEN 0 244 127.0.0.1:5432 0.0.0.0:* users:(("postgres",pid=800,fd=6))
tcp LISTEN 0 4096 127.0.0.53%lo:53 0.0.0.0:* users:(("systemd-resolve",pid=4,fd=13))
tcp LISTEN 0 128 [::1]:631 [::]:* users:(("cupsd",pid=900,fd=7))
tcp LISTEN 0 511 0.0.0.0:443 0.0.0.0:* users:(("nginx",pid=9,fd=7))
tcp LISTEN 0 4096 *:8096 *:* users:(("docker-proxy",pid=1000,fd=4))
"""


def test_closes_names_what_would_be_lost() -> None:
    assert firewall_closes([rule("tcp", "443")], SOCKETS.splitlines(), [22, 8096]) == [
        "443/udp (nginx)",
        "445/tcp (smbd)",
        "2049/tcp (the kernel)",
        "5353/udp (avahi-daemon)",
    ]


def test_services_are_those_that_are_documented() -> None:
    spec = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())
    said = spec["argument_specs"]["main"]["options"]["firewall_allow"]["description"]
    for name in SERVICES:
        assert f"C({name})" in said
