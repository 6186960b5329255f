# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The NAS that answer together, and what cannot be one of them."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.nas.assistant.plugins.filter.proxy import (
    proxy_alt_names,
    proxy_members,
    proxy_networks,
    proxy_virtual_address,
)

POOL = ["one", "two", "three"]


def hosts(**members: Any) -> dict[str, dict[str, Any]]:
    addresses = {
        "one": "192.0.2.1",
        "two": "192.0.2.2",
        "three": "2001:db8::3",
        "named": "nas.local",
        "linked": "fe80::1%eth0",
    }
    return {
        name: {"address": address, "port": 8443, "member": members.get(name, {})}
        for name, address in addresses.items()
    }


def test_this_one_comes_first_and_asks_itself_at_home() -> None:
    given = hosts(one={"weight": 3}, two={"backup": True}, three={"down": True})
    members = proxy_members(POOL, given, "two")
    assert [member["name"] for member in members] == ["two", "one", "three"]
    assert [member["address"] for member in members] == ["127.0.0.1", "192.0.2.1", "[2001:db8::3]"]
    assert [member["weight"] for member in members] == [1, 3, 1]
    assert [member["backup"] for member in members] == [True, False, False]
    assert [member["down"] for member in members] == [False, False, True]


def test_no_pool() -> None:
    assert proxy_members([], hosts(), "one") == []


def test_another_address_than_ansible_has() -> None:
    given = hosts(named={"address": "192.0.2.9"})
    members = proxy_members(["one", "named"], given, "one")
    assert members[1]["address"] == "192.0.2.9"


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    ("one", {}, "proxy_pool='one': give a list"),
    (["one", "four"], {}, "the inventory has no host 'four'"),
    (["one", "one"], {}, "'one' is named twice"),
    (["two", "three"], {}, "'one' itself is not in it"),
    (["one", "named"], {}, "address='nas.local' (by default ansible_host) is no IP address"),
    (["one", "linked"], {}, "address='fe80::1%eth0'"),
    (POOL, {"two": {"weight": 0}}, "two: proxy_member: {'weight': 0}: weight is a whole number"),
    (POOL, {"two": {"weight": True}}, "weight is a whole number from 1 to 100"),
    (POOL, {"two": {"backup": "yes"}}, "backup is true or false"),
    (POOL, {"two": {"role": "backup"}}, "with some of address, backup, down, weight"),
    (POOL, {"two": "backup"}, "is a dictionary"),
    (POOL, {name: {"backup": True} for name in POOL}, "nobody to stand in for"),
    (POOL, {name: {"down": True} for name in POOL}, "nobody is left to answer"),
]


@pytest.mark.parametrize(("pool", "members", "said"), REFUSED)
def test_what_is_no_pool(pool: Any, members: dict[str, Any], said: str) -> None:
    with pytest.raises(AnsibleFilterError) as error:
        proxy_members(pool, hosts(**members), "one")
    assert said in str(error.value)


def test_names_of_a_certificate() -> None:
    names = ["nas1", "2001:DB8:0::1", "nas1.local", "192.0.2.1", "*.example.com", "2001:db8::1"]
    assert proxy_alt_names(names) == [
        *("DNS:*.example.com", "DNS:nas1", "DNS:nas1.local"),
        *("IP:192.0.2.1", "IP:2001:db8::1"),
    ]


def test_who_may_see_the_admin_page() -> None:
    lan = ["192.168.0.0/16", "fc00::/7"]
    assert proxy_networks(["lan", "192.168.7.0/24", "2001:db8::/32"], lan) == [
        "192.168.0.0/16",
        "2001:db8::/32",
        "fc00::/7",
    ]
    assert proxy_networks(["any"], lan) is None
    assert proxy_networks([], lan) == []
    with pytest.raises(AnsibleFilterError, match=r"proxy_admin_from=\['home'\]: 'home' does not"):
        proxy_networks(["home"], lan)


PAIR = ["one", "two"]


def test_an_address_that_moves() -> None:
    members = proxy_members(PAIR, hosts(), "one")
    assert proxy_virtual_address("192.0.2.100/24", members, "192.0.2.1") == "192.0.2.100/24"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("192.0.2.100", "such as 192.0.2.100/24"),
        ("192.0.2.0/24", "such as 192.0.2.100/24"),
        ("192.0.2.255/24", "such as 192.0.2.100/24"),
        ("127.0.0.1/8", "such as 192.0.2.100/24"),
        ("nas.local/24", "such as 192.0.2.100/24"),
        ("192.0.2.1/24", "a member has it for itself"),
        ("192.0.2.2/24", "a member has it for itself"),
        ("2001:db8::9/64", "addresses of the other kind"),
    ],
)
def test_an_address_that_cannot_move(address: str, said: str) -> None:
    with pytest.raises(AnsibleFilterError, match=said):
        proxy_virtual_address(address, proxy_members(PAIR, hosts(), "one"), "192.0.2.1")
