# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the entries of network_interfaces mean, and where the NAS answers after them."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.nas.assistant.plugins.filter.network import (
    network_addresses,
    network_host,
    network_in_force,
    network_interfaces,
    network_named,
)

DHCP = {"method": "dhcp", "addresses": [], "gateway": ""}
AUTO = {"method": "auto", "addresses": [], "gateway": "", "privacy": False}
NO_DNS: dict[str, list[str]] = {"servers": [], "search": []}
STATIC = {"name": "eth0", "ipv4": {"addresses": ["192.0.2.20/24"], "gateway": "192.0.2.1"}}


def one(**entry: Any) -> dict[str, Any]:
    (found,) = network_interfaces([{"name": "eth0", **entry}])
    return dict(found)


def test_what_is_left_out_is_automatic() -> None:
    assert one() == {"name": "eth0", "ipv4": DHCP, "ipv6": AUTO, "dns": NO_DNS, "mtu": 0}


def test_addresses_make_it_static() -> None:
    found = one(
        ipv4={"addresses": "192.0.2.20/24", "gateway": "192.0.2.1"},
        ipv6={"addresses": ["2001:DB8:0::20/64"], "gateway": "fe80::1", "privacy": True},
        dns={"servers": "192.0.2.1", "search": ["example.com"]},
        mtu=1400,
    )
    assert found["ipv4"] == {
        "method": "static",
        "addresses": ["192.0.2.20/24"],
        "gateway": "192.0.2.1",
    }
    assert found["ipv6"]["addresses"] == ["2001:db8::20/64"]
    assert found["dns"] == {"servers": ["192.0.2.1"], "search": ["example.com"]}
    assert network_in_force(found, "resolved") == [
        "address 192.0.2.20/24",
        "address 2001:db8::20/64",
        "disable_ipv6 0",
        "gateway 192.0.2.1",
        "gateway fe80::1",
        "mtu 1400",
        "nameserver 192.0.2.1",
        "use_tempaddr 2",
    ]


def test_without_ipv6_nothing_else_of_it_counts() -> None:
    found = one(ipv6={"method": "disabled"})
    assert network_in_force(found, "file") == ["ipv6 none"]


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ("eth0", "give a list"),
        ({"name": "eth0"}, "give a list"),
        (["eth0"], "an entry is a dictionary"),
        ([{"name": "eth0", "address": "192.0.2.20"}], "an entry is a dictionary"),
        ([{}], "name is that of an interface"),
        ([{"name": "lo"}], "name is that of an interface"),
        ([{"name": "eth0; reboot"}], "name is that of an interface"),
        ([{"name": "../x"}], "name is that of an interface"),
        ([{"name": "eth0", "mtu": 100}], "mtu is a number from 1280"),
        ([{"name": "eth0", "mtu": "big"}], "mtu is a number from 1280"),
        ([{"name": "eth0", "ipv4": "192.0.2.20"}], "ipv4 is a dictionary"),
        ([{"name": "eth0", "ipv4": {"privacy": True}}], "ipv4 is a dictionary"),
        ([{"name": "eth0", "ipv4": {"addresses": ["192.0.2.20"]}}], "with its length"),
        ([{"name": "eth0", "ipv4": {"addresses": ["2001:db8::2/64"]}}], "should be an IPv4"),
        ([{"name": "eth0", "ipv4": {"addresses": ["192.0.2.300/24"]}}], "192.0.2.300"),
        ([{"name": "eth0", "ipv4": {"addresses": ["192.0.2.0/24"]}}], "of the network"),
        ([{"name": "eth0", "ipv4": {"addresses": ["192.0.2.255/24"]}}], "of the network"),
        ([{"name": "eth0", "ipv4": {"addresses": ["127.0.0.1/8"]}}], "cannot be the address"),
        ([{"name": "eth0", "ipv6": {"addresses": ["ff02::1/64"]}}], "cannot be the address"),
        ([{"name": "eth0", "ipv4": {"method": "static"}}], "with static only"),
        ([{"name": "eth0", "ipv4": {"method": "auto"}}], "is none of dhcp, static, disabled"),
        (
            [{"name": "eth0", "ipv4": {"method": "dhcp", "addresses": ["192.0.2.20/24"]}}],
            "with static only",
        ),
        ([{"name": "eth0", "ipv4": {"gateway": "192.0.2.1"}}], "give an IPv4 gateway with"),
        (
            [{"name": "eth0", "ipv4": {"addresses": ["192.0.2.20/24"], "gateway": "fe80::1"}}],
            "give an IPv4 gateway with",
        ),
        (
            [{"name": "eth0", "ipv4": {"addresses": ["192.0.2.20/24"], "gateway": "192.0.3.1"}}],
            "not within 192.0.2.0/24",
        ),
        (
            [{"name": "eth0", "ipv4": {"addresses": ["192.0.2.20/24"], "gateway": "192.0.2.20"}}],
            "own address",
        ),
        ([{"name": "eth0", "ipv6": {"privacy": "yes"}}], "neither true nor false"),
        (
            [{"name": "eth0", "ipv4": {"method": "disabled"}, "ipv6": {"method": "disabled"}}],
            "nobody can reach it",
        ),
        ([{"name": "eth0", "dns": {"servers": ["dns.example.com"]}}], "is no address"),
        ([{"name": "eth0", "dns": {"search": ["example.com"]}}], "give dns.servers with it"),
        ([{"name": "eth0", "dns": {"search": ["a b"]}}], "is no domain"),
        ([{"name": "eth0", "dns": {"search": ["a\nb"]}}], "is no domain"),
        ([{"name": "eth0", "dns": ["192.0.2.1"]}], "dns is a dictionary"),
        ([STATIC, {**STATIC, "ipv4": {}}], "named twice"),
        ([STATIC, {"name": "eth1", "ipv4": {"addresses": ["192.0.2.20/16"]}}], "given twice"),
        (
            [
                STATIC,
                {
                    "name": "eth1",
                    "ipv4": {"addresses": ["198.51.100.2/24"], "gateway": "198.51.100.1"},
                },
            ],
            "one way out",
        ),
    ],
)
def test_what_cannot_work_is_refused(entries: Any, reason: str) -> None:
    with pytest.raises(AnsibleFilterError, match=reason):
        network_interfaces(entries)


def test_addresses_at_the_edges_that_are_fine() -> None:
    assert one(ipv4={"addresses": ["192.0.2.0/31"]})["ipv4"]["addresses"] == ["192.0.2.0/31"]
    assert one(ipv4={"addresses": ["192.0.2.0/32"]})["ipv4"]["addresses"] == ["192.0.2.0/32"]


@pytest.mark.parametrize(
    ("reached_at", "host"),
    [
        ("192.0.2.10", "192.0.2.20"),
        ("192.0.2.20", "nas.example.com"),  # it is there already, so its name stays
        ("2001:db8::10", "2001:db8::20"),
        ("fe80::10%eth0", "2001:db8::20"),
        ("198.51.100.9", "nas.example.com"),  # by another interface
        ("", "nas.example.com"),
    ],
)
def test_where_the_nas_answers_afterwards(reached_at: str, host: str) -> None:
    found = network_interfaces(
        [{**STATIC, "ipv6": {"addresses": ["2001:db8::20/64"]}}, {"name": "eth1"}]
    )
    assert network_addresses(found) == ["192.0.2.20/24", "2001:db8::20/64"]
    present = {
        "eth0": ["192.0.2.10/24", "2001:db8::10/64", "fe80::10/64"],
        "eth1": ["198.51.100.9/24"],
    }
    assert network_host(found, present, reached_at, "nas.example.com") == host


def test_an_address_that_dhcp_will_give_is_not_known() -> None:
    found = network_interfaces([{"name": "eth0"}])
    assert network_host(found, {"eth0": ["192.0.2.10/24"]}, "192.0.2.10", "nas") == "nas"


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([STATIC, {"ipv6": {"addresses": "2001:db8::20/64"}}], ["192.0.2.20", "2001:db8::20"]),
        ([{"ipv4": {"addresses": ["192.0.2.20", "nas", None, {}]}}], ["192.0.2.20"]),
        ([{"ipv4": "192.0.2.20/24"}, "eth0", None, []], []),
        ("eth0", []),
        (None, []),
        ({"ipv4": {"addresses": ["192.0.2.20/24"]}}, []),
    ],
)
def test_where_a_nas_is_looked_for_whatever_is_wrong(entries: Any, found: list[str]) -> None:
    assert network_named(entries) == found
