# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The NAS that answer together, and what cannot be one of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.nas.assistant.plugins.filter.proxy import (
    FilterModule,
    proxy_alt_names,
    proxy_members,
    proxy_networks,
    proxy_virtual_address,
)
from expressions import ROLES, load, templar, trusted

SITE = "proxy/templates/etc/nginx/conf.d/nas-assistant.conf.j2"
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


def site(**given: Any) -> str:
    """The site as Nginx reads it, of a NAS that is one of a pool of three."""
    facts = {"hostname": "nas1", "distribution_major_version": "12", "cmdline": {"ro": True}}
    role = templar(
        "proxy",
        [FilterModule()],
        **{
            "ansible_managed": "",
            "ansible_facts": facts,
            "inventory_dir": "/inventory",
            "inventory_hostname": "one",
            "console_state": "present",
            "proxy_pool": POOL,
            "hostvars": {name: {"ansible_host": each["address"], "proxy_member": each["member"]}
                         for name, each in hosts().items()},
            **given,
        },
    )  # fmt: skip
    return str(role.template(trusted((ROLES / SITE).read_text(encoding="utf-8"))))


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """Servers and locations, each with what it says itself."""
    # Braces in a text, and comments, are none of Nginx's.
    text = re.sub(r"'[^']*'|\"[^\"]*\"", '""', re.sub(r"^ *#.*$|  #.*$", "", text, flags=re.M))
    found: list[tuple[str, list[str]]] = []
    outer: list[tuple[str, list[str]]] = []
    for said, end in re.findall(r"([^;{}]*)([;{}])", text):
        if end == "{":
            outer.append((" ".join(said.split()), []))
        elif end == "}":
            found.append(outer.pop())
        elif outer:
            outer[-1][1].append(" ".join(said.split()))
    assert not outer
    return found


@pytest.mark.parametrize("hsts", [0, 300])
def test_no_answer_of_nginx_is_without_its_headers(hsts: int) -> None:
    """What adds a header of its own loses those of its server."""
    parts = blocks(site(proxy_hsts=hsts))
    servers = {said[0]: said for what, said in parts if what == "server"}
    nosniff = "add_header X-Content-Type-Options nosniff always"
    strict = 'add_header Strict-Transport-Security "" always'
    assert (nosniff in servers["listen 443 ssl http2"]) is True
    assert (strict in servers["listen 443 ssl http2"]) is bool(hsts)
    assert nosniff in servers["listen 80"]
    # By HTTP it means nothing, and is not to be said (RFC 6797, 7.2).
    assert strict not in servers["listen 80"]
    own = [(what, said) for what, said in parts
           if what.startswith("location") and "add_header" in str(said)]  # fmt: skip
    # The page about trust, twice; away; too many; and what members say to each other.
    assert len(own) == 5
    for what, said in own:
        if what != "location /v1/":
            assert nosniff in said, what
    assert sum(strict in said for _, said in own) == (3 if hsts else 0)


def test_addresses_that_the_kernel_knows_nothing_of() -> None:
    facts = {"hostname": "nas1", "distribution_major_version": "12"}
    assert site().count("listen [::]:") == 3
    assert site(ansible_facts=facts).count("listen [::]:") == 3
    off = site(ansible_facts={**facts, "cmdline": {"ipv6.disable": "1"}})
    assert off.count("listen [::]:") == 0
    assert off.count("listen ") == 3


def test_a_member_that_is_down_asks_its_own_assistant_neither() -> None:
    hostvars = {name: {"ansible_host": each["address"], "proxy_member": each["member"]}
                for name, each in hosts(one={"down": True}).items()}  # fmt: skip
    down, up = site(hostvars=hostvars), site()
    assert "server 127.0.0.1:8443 weight=1 fail_timeout=5s down;" in down
    # By name too, where the last one that was asked took no connection.
    for said, whom in ((down, "away"), (up, "own")):
        assert f"error_page 502 = @nas_assistant_{whom};" in said
        assert f'"~-$" @nas_assistant_{whom};' in said


@pytest.mark.parametrize(
    ("certificate", "days", "renewed"),
    [
        ({}, 1825, 1460),
        ({"days": 400, "renew_days": 399}, 1825, 1460),
        ({"days": 2000, "renew_days": 1999}, 2000, 1999),
    ],
)
def test_what_members_know_each_other_by_lasts(
    certificate: dict[str, int], days: int, renewed: int
) -> None:
    role = templar("proxy", [FilterModule()], proxy_certificate=certificate, inventory_dir="/x")
    assert role.template(trusted("{{ __proxy_member_days }}")) == days
    assert role.template(trusted("{{ __proxy_member_renew_days }}")) == renewed


def test_erase_takes_what_certbot_ran() -> None:
    variables = load(ROLES / "proxy/vars/main.yml")
    text = (ROLES.parent / "playbooks/erase.yml").read_text(encoding="utf-8")
    (gone,) = [task["loop"] for task in yaml.safe_load(text)[-1]["tasks"] if "loop" in task]
    assert variables["__proxy_acme_hook"] in gone
