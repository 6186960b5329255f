# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Who manages an interface, and how ifupdown's own files are put aside and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _ifupdown as ifupdown
from ansible_collections.nas.assistant.plugins.modules import network_info

STOCK = """\
# The loopback network interface
auto lo
iface lo inet loopback

allow-hotplug eth0
iface eth0 inet dhcp
	# first we ask
	up echo \\
# not a comment
iface eth0 inet6 auto
iface eth1 inet static
	address 198.51.100.2/24
mapping eth0
	script /bin/true
source /etc/network/interfaces.d/*
"""
ASIDE = """\
# The loopback network interface
auto lo
iface lo inet loopback

allow-hotplug eth0
#nas.assistant: iface eth0 inet dhcp
	# first we ask
#nas.assistant: 	up echo \\
#nas.assistant: # not a comment
#nas.assistant: iface eth0 inet6 auto
iface eth1 inet static
	address 198.51.100.2/24
#nas.assistant: mapping eth0
#nas.assistant: 	script /bin/true
source /etc/network/interfaces.d/*
"""


def test_stanzas_are_put_aside_and_back() -> None:
    assert ifupdown.put_aside(STOCK, ["eth0"]) == ASIDE
    assert ifupdown.put_aside(ASIDE, ["eth0"]) == ASIDE
    assert ifupdown.put_back(ASIDE) == STOCK
    assert ifupdown.put_aside(ASIDE, []) == STOCK
    assert ifupdown.names_in(STOCK) == {"lo", "eth0", "eth1"}
    assert ifupdown.names_in(ASIDE) == {"lo", "eth1"}


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("source /etc/network/interfaces.d/*\n", True),
        ("source-directory /etc/network/interfaces.d\n", True),
        ("source interfaces.d/*\n", True),
        ("source /etc/network/interfaces.d/*.cfg\n", False),
        (f"{ifupdown.SOURCE}\n", False),  # that is ours
        ("", False),
    ],
)
def test_whether_the_main_file_reads_ours(text: str, reads: bool) -> None:
    assert ifupdown.reads_ours(text) == reads


def test_a_folder_that_is_read_for_plain_names_only() -> None:
    text = "source-directory /etc/network/interfaces.d\n"
    assert ifupdown.reads_ours(text, ["eth0", "lan-1"])
    assert not ifupdown.reads_ours(text, ["eth0", "lan.1"])


def test_files_that_the_main_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifupdown, "MAIN", str(tmp_path / "interfaces"))
    folder = tmp_path / "interfaces.d"
    folder.mkdir()
    for name in ("b", "a", "c.bak"):
        (folder / name).write_text("")

    def names(text: str) -> list[str]:
        return [Path(path).name for path in ifupdown.sourced(text)]

    assert names("source-directory interfaces.d\n") == ["a", "b"]
    assert names(f"source {folder}/*\n") == ["a", "b", "c.bak"]
    assert names("source \\\n interfaces.d/a\n") == ["a"]


def test_the_main_file_is_made_to_read_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = tmp_path / "interfaces"
    main.write_text("auto eth0\niface eth0 inet dhcp\n")
    monkeypatch.setattr(ifupdown, "MAIN", str(main))
    (file,) = network_info.ifupdown_files({"eth0"})
    assert file["content"] == (
        f"auto eth0\n{ifupdown.MARK}iface eth0 inet dhcp\n{ifupdown.SOURCE}\n"
    )
    main.write_text(file["content"])
    assert network_info.ifupdown_files({"eth0"}) == [file]
    (back,) = network_info.ifupdown_files(set())
    assert back["content"] == "auto eth0\niface eth0 inet dhcp\n"
    main.write_text(back["content"])
    assert network_info.ifupdown_files(set()) == []


def test_a_main_file_that_is_missing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ifupdown, "MAIN", str(tmp_path / "interfaces"))
    assert network_info.ifupdown_files(set()) == []
    (file,) = network_info.ifupdown_files({"eth0"})
    assert file["content"] == f"{ifupdown.SOURCE}\n"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("nameserver 192.0.2.1\n", "nameserver 192.0.2.1\n"),
        (
            f"# Ansible managed\nnameserver 192.0.2.53\n{ifupdown.MARK}nameserver 192.0.2.1\n"
            f"{ifupdown.MARK}options rotate\n",
            "nameserver 192.0.2.1\noptions rotate\n",
        ),
        ("# Ansible managed\nnameserver 192.0.2.53\n", ""),
        ("", ""),
    ],
)
def test_what_a_file_said_before_it_was_ours(tmp_path: Path, text: str, kept: str) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(text)
    assert network_info.before(str(path)) == kept


class Asked:
    """A NAS on which nothing but ifupdown is at home."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, interfaces: str, link: Any) -> None:
        self.main = interfaces
        monkeypatch.setattr(network_info, "links", lambda: {"lo": {}, "eth0": link})
        monkeypatch.setattr(network_info, "ways_out", dict)
        monkeypatch.setattr(network_info, "active", lambda unit: False)
        monkeypatch.setattr(network_info, "netplan_files", list)
        monkeypatch.setattr(network_info.shutil, "which", lambda name: name == "ifup" or None)
        monkeypatch.setattr(network_info, "read", lambda path: interfaces * (path == ifupdown.MAIN))
        monkeypatch.setattr(network_info, "ifupdown_files", lambda names: [])

    def refused(self) -> str:
        return str(network_info.look(["eth0"], [])["interfaces"]["eth0"]["refused"])


ADDRESS = {"addr_info": [{"local": "192.0.2.10", "prefixlen": 24, "scope": "global"}]}
LINK_LOCAL = {"addr_info": [{"local": "fe80::1", "prefixlen": 64, "scope": "link"}]}


@pytest.mark.parametrize(
    ("interfaces", "link", "reason"),
    [
        ("iface eth0 inet dhcp\n", ADDRESS, ""),
        (f"{ifupdown.MARK}iface eth0 inet dhcp\n", ADDRESS, ""),
        ("", LINK_LOCAL, ""),
        ("", ADDRESS, "none of the files here gives it"),
        ("iface eth0 inet dhcp\niface eth0:1 inet static\n", ADDRESS, "more of its addresses"),
    ],
)
def test_addresses_that_could_not_be_put_back(
    monkeypatch: pytest.MonkeyPatch, interfaces: str, link: Any, reason: str
) -> None:
    refused = Asked(monkeypatch, interfaces, link).refused()
    assert reason in refused if reason else refused == ""


NETWORKCTL = """\
  1 lo    loopback carrier     unmanaged
  2 eth0  ether    routable    configured
 10 eth1  ether    off         unmanaged
 11 eth10 ether    routable    configuring
"""


@pytest.mark.parametrize(
    ("name", "managed"), [("eth0", True), ("eth1", False), ("eth10", True), ("eth2", False)]
)
def test_what_networkd_manages(name: str, managed: bool) -> None:
    assert network_info.by_networkd(NETWORKCTL, name) == managed


@pytest.mark.parametrize(
    ("name", "managed"), [("eth0", True), ("eth1", False), ("docker0", True), ("wlan0", False)]
)
def test_what_networkmanager_manages(name: str, managed: bool) -> None:
    listing = "eth0:connected\ndocker0:connected (externally)\neth1:unmanaged\n"
    assert network_info.by_networkmanager(listing, name) == managed


LINKS: dict[str, dict[str, Any]] = {
    "lo": {},
    "eth0": {"linkinfo": {}},
    "eth1": {"master": "br0"},
    "eth2": {},
    "br0": {"linkinfo": {"info_kind": "bridge"}},
    "eth2.7": {"link": "eth2", "linkinfo": {"info_kind": "vlan"}},
    "lan0": {"linkinfo": {"info_kind": "veth"}, "link": "eth0"},
}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("eth0", ""),
        ("lan0", ""),
        ("eth1", "it is a part of br0"),
        ("eth2", "eth2.7 stands on it"),
        ("br0", "it is a bridge"),
        ("eth2.7", "it is a vlan"),
        ("eth9", "there is no such interface; there are br0, eth0"),
    ],
)
def test_interfaces_that_are_more_than_their_addresses(name: str, reason: str) -> None:
    found = network_info.unsuitable(name, LINKS)
    assert found.startswith(reason) if reason else found == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("network: {ethernets: {eth0: {dhcp4: true}}}", ""),
        ("network: {ethernets: {eth1: {addresses: [192.0.2.9/24]}}, version: 2}", ""),
        ("", ""),
        ("network: {ethernets: {eth0: {addresses: [192.0.2.9/24]}}}", "addresses of /etc/x.yaml"),
        ("network: {ethernets: {eth0: {routes: [], gateway4: x}}}", "gateway4, routes of"),
        ("network: [", "not what netplan could read"),
        ("- 1", "not what netplan could read"),
    ],
)
def test_files_of_netplan_that_would_add_to_ours(text: str, reason: str) -> None:
    found = network_info.netplan_conflict("eth0", {"/etc/x.yaml": text})
    assert reason in found if reason else found == ""
