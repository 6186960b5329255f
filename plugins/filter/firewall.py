# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the firewall's variable means: rules that a template prints, and questions about them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.nas.assistant.plugins.plugin_utils._entries import (
    entries,
    has_keys,
    listed,
    named,
)
from ansible_collections.nas.assistant.plugins.plugin_utils._networks import networks

Rule = dict[str, Any]
KEYS = {"service", "name", "ports", "protocol", "from", "interfaces"}
PROTOCOLS = {"tcp": ["tcp"], "udp": ["udp"], "both": ["tcp", "udp"]}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,40}")
# What the kernel takes for the name of an interface, and nft for a word; * stands at the end only.
PROGRAM = re.compile(r'users:\(\("([^"]+)"')
INTERFACE = re.compile(r"[A-Za-z0-9_.:-]{1,15}[*]?")


def firewall_rules(
    allow: Iterable[Mapping[str, Any]], services: Mapping[str, Mapping[str, Any]], lan: list[str]
) -> list[Rule]:
    """Return the rules that entries of ``firewall_allow`` stand for, one a protocol.

    Each has ``name``, ``protocol`` (tcp or udp), ``ports`` (texts such as 80 or 8000-8010), ``v4``
    and ``v6`` (networks that may come, ``None`` for all), ``interfaces`` (names, none for all).

    :raises AnsibleFilterError: an entry cannot be understood; names it and what is allowed.
    """
    rules = []
    for entry in entries("firewall_allow", allow):
        rules += _rules(entry, services, lan)
    return rules


def firewall_admits(rules: list[Rule], address: str, port: int, protocol: str = "tcp") -> bool:
    """Whether a client with this address may open this port."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return any(
        rule["protocol"] == protocol
        and _has_port(rule["ports"], port)
        and (
            rule[f"v{ip.version}"] is None
            or any(ip in ipaddress.ip_network(network) for network in rule[f"v{ip.version}"])
        )
        for rule in rules
    )


def firewall_closes(
    rules: list[Rule], sockets: Iterable[str], kept: Iterable[int] = ()
) -> list[str]:
    """Return the programs that listen on the network now and that no rule opens, each as
    ``445/tcp (smbd)``.

    :param sockets: lines of ``ss -Hlntup``.
    :param kept: ports that are left out: SSH, and what the owner knows of.
    """
    known = {int(port) for port in kept}
    closed = {}
    for line in sockets:
        protocol, _, _, _, local, *rest = line.split()
        address, _, port_text = local.rpartition(":")
        if not port_text.isdigit() or int(port_text) in known or _is_local(address):
            continue
        port = int(port_text)
        if any(rule["protocol"] == protocol and _has_port(rule["ports"], port) for rule in rules):
            continue
        # Clients of DHCP listen for answers, which the firewall lets in anyway.
        if protocol == "udp" and port in (68, 546):
            continue
        program = PROGRAM.search(" ".join(rest))
        name = program.group(1) if program else "the kernel"
        closed[port, protocol] = f"{port}/{protocol} ({name})"
    return [closed[key] for key in sorted(closed)]


def _rules(
    entry: Mapping[str, Any], services: Mapping[str, Mapping[str, Any]], lan: list[str]
) -> list[Rule]:
    where = named("firewall_allow", entry)
    has_keys("an entry", entry, KEYS, where)
    service = entry.get("service")
    if service is not None and service not in services:
        raise AnsibleFilterError(
            f"{where}: known services are {', '.join(sorted(services))}; give others by ports"
        )
    meant = {**services.get(str(service), {}), **entry}
    if (service is None) == ("ports" not in entry):
        raise AnsibleFilterError(f"{where}: give either a service or ports")
    ports = [_port(item, where) for item in listed(meant["ports"])]
    if not ports:
        raise AnsibleFilterError(f"{where}: give at least one port")
    name = str(entry.get("name") or service or " ".join(ports))
    protocol = meant.get("protocol", "tcp")
    if protocol not in PROTOCOLS or not NAME.fullmatch(name):
        raise AnsibleFilterError(
            f"{where}: protocol is tcp, udp or both, a name has letters, digits, blanks, . _ -"
        )
    interfaces = [str(item) for item in listed(entry.get("interfaces") or [])]
    if not all(INTERFACE.fullmatch(item) for item in interfaces):
        raise AnsibleFilterError(f"{where}: interfaces are names such as eth0")
    sources = networks(listed(entry.get("from") or ["lan"]), lan, where)
    return [
        {"name": name, "protocol": each, "ports": ports, "interfaces": interfaces, **sources}
        for each in PROTOCOLS[protocol]
    ]


def _port(item: Any, where: str) -> str:
    first, _, last = str(item).partition("-")
    ends = [first, last or first]
    if not all(end.isascii() and end.isdigit() and 1 <= int(end) <= 65535 for end in ends):
        raise AnsibleFilterError(
            f"{where}: {item!r} is no port from 1 to 65535, and no range such as 8000-8010"
        )
    if int(ends[0]) > int(ends[1]):
        raise AnsibleFilterError(f"{where}: {item!r} begins after its end")
    return str(int(first)) if not last else f"{int(first)}-{int(last)}"


def _has_port(ports: list[str], port: int) -> bool:
    for item in ports:
        first, _, last = item.partition("-")
        if int(first) <= port <= int(last or first):
            return True
    return False


def _is_local(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.strip("[]").partition("%")[0]).is_loopback
    except ValueError:  # * and the like: every address
        return False


class FilterModule:
    """Ansible's way to find the filters."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {
            "firewall_admits": firewall_admits,
            "firewall_closes": firewall_closes,
            "firewall_rules": firewall_rules,
        }
