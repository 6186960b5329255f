# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the entries of network_interfaces mean, and where a NAS answers once they are in force."""

from __future__ import annotations

import contextlib
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

Interface = dict[str, Any]
Address = ipaddress.IPv4Interface | ipaddress.IPv6Interface
KEYS = {"name", "ipv4", "ipv6", "dns", "mtu"}
FAMILY_KEYS = {
    4: {"method", "addresses", "gateway"},
    6: {"method", "addresses", "gateway", "privacy"},
}
METHODS = {4: ("dhcp", "static", "disabled"), 6: ("auto", "static", "disabled")}
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
DOMAIN = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}([.][A-Za-z0-9_-]{1,63})*[.]?")
# IPv6 asks for 1280 at least.
MTU = range(1280, 9217)


def network_interfaces(given: Iterable[Mapping[str, Any]]) -> list[Interface]:
    """Return the entries with all that they leave out.

    Each has ``name``, ``ipv4`` and ``ipv6`` (``method``, ``addresses`` with their prefix lengths,
    ``gateway`` or an empty text; ``privacy`` with ipv6), ``dns`` (``servers``, ``search``), ``mtu``
    (0: as it is).

    :raises AnsibleFilterError: an entry cannot be understood, or cannot work; names it and why.
    """
    found = [_interface(entry) for entry in entries("network_interfaces", given)]
    names = [interface["name"] for interface in found]
    for name in names:
        if names.count(name) > 1:
            raise AnsibleFilterError(f"network_interfaces: {name} is named twice")
    addresses = [each.partition("/")[0] for entry in found for each in network_addresses([entry])]
    for address in addresses:
        if addresses.count(address) > 1:
            raise AnsibleFilterError(f"network_interfaces: {address} is given twice")
    for family in ("ipv4", "ipv6"):
        ways = [interface["name"] for interface in found if interface[family]["gateway"]]
        if len(ways) > 1:
            raise AnsibleFilterError(
                f"network_interfaces: {' and '.join(ways)} both have a gateway for {family}; a NAS "
                "has one way out, so name it at one of them"
            )
    return found


def network_addresses(interfaces: Iterable[Interface]) -> list[str]:
    """Return the fixed addresses of interfaces, with their prefix lengths."""
    return [
        address
        for interface in interfaces
        for family in ("ipv4", "ipv6")
        for address in interface[family]["addresses"]
    ]


def network_named(given: Any) -> list[str]:
    """Return the addresses that entries name, without their lengths, where a NAS is looked for.

    Whatever is wrong with them is passed over: it is the role's to say, once the NAS is found.
    """
    found = []
    for entry in given if isinstance(given, list) else []:
        for key in ("ipv4", "ipv6"):
            family = entry.get(key) if isinstance(entry, Mapping) else None
            for item in listed(family.get("addresses")) if isinstance(family, Mapping) else []:
                with contextlib.suppress(ValueError):
                    found.append(str(ipaddress.ip_interface(str(item)).ip))
    return found


def network_in_force(interface: Interface, resolver: str) -> list[str]:
    """Return what the role's own look at an interface must find, one line each, sorted.

    :param resolver: ``resolved`` where the name servers of each interface can be asked for.
    """
    ipv4, ipv6 = interface["ipv4"], interface["ipv6"]
    lines = [f"address {address}" for address in network_addresses([interface])]
    lines += [f"gateway {family['gateway']}" for family in (ipv4, ipv6) if family["gateway"]]
    lines += [f"mtu {interface['mtu']}"] if interface["mtu"] else []
    if ipv6["method"] == "disabled":
        # Not the switch: systemd-networkd gives no address and leaves it alone.
        lines += ["ipv6 none"]
    else:
        lines += ["disable_ipv6 0", f"use_tempaddr {2 if ipv6['privacy'] else 0}"]
    if resolver == "resolved":
        lines += [f"nameserver {server}" for server in interface["dns"]["servers"]]
    return sorted(set(lines))


def network_host(
    interfaces: list[Interface], present: Mapping[str, Iterable[str]], reached_at: str, host: str
) -> str:
    """Return where the NAS answers once the interfaces are as they should be.

    :param present: addresses that each interface has now, with or without prefix length.
    :param reached_at: the NAS's own address that Ansible came to.
    :param host: what Ansible calls the NAS, a name or an address; it stays where nothing moves.
    """
    bare = reached_at.partition("%")[0]
    if bare in {address.partition("/")[0] for address in network_addresses(interfaces)}:
        return host
    for interface in interfaces:
        now = {address.partition("/")[0] for address in present.get(interface["name"], ())}
        if bare and bare in now:
            family = f"ipv{ipaddress.ip_address(bare).version}"
            for address in interface[family]["addresses"]:
                return str(address.partition("/")[0])
    return host


def _interface(entry: Mapping[str, Any]) -> Interface:
    where = named("network_interfaces", entry)
    has_keys("an entry", entry, KEYS, where)
    name = str(entry.get("name") or "")
    if not NAME.fullmatch(name) or name == "lo":
        raise AnsibleFilterError(f"{where}: name is that of an interface, such as eth0")
    mtu = entry.get("mtu") or 0
    if not isinstance(mtu, int) or (mtu and mtu not in MTU):
        raise AnsibleFilterError(f"{where}: mtu is a number from {MTU[0]} to {MTU[-1]}")
    found: Interface = {
        "name": name,
        "ipv4": _family(4, entry.get("ipv4") or {}, where),
        "ipv6": _family(6, entry.get("ipv6") or {}, where),
        "dns": _dns(entry.get("dns") or {}, where),
        "mtu": mtu,
    }
    if {found["ipv4"]["method"], found["ipv6"]["method"]} == {"disabled"}:
        raise AnsibleFilterError(f"{where}: without IPv4 and IPv6 nobody can reach it")
    return found


def _family(version: int, given: Any, where: str) -> dict[str, Any]:
    family = f"ipv{version}"
    has_keys(family, given, FAMILY_KEYS[version], where)
    addresses = [_address(item, version, where) for item in listed(given.get("addresses"))]
    method = given.get("method", "static" if addresses else METHODS[version][0])
    if method not in METHODS[version]:
        raise AnsibleFilterError(
            f"{where}: {family}.method={method!r} is none of {', '.join(METHODS[version])}"
        )
    if (method == "static") != bool(addresses):
        raise AnsibleFilterError(
            f"{where}: {family}.method={method} and addresses={[str(each) for each in addresses]}: "
            "addresses are given with static, and with static only"
        )
    gateway = _gateway(given.get("gateway"), addresses, version, where)
    found: dict[str, Any] = {
        "method": method,
        "addresses": [str(address) for address in addresses],
        "gateway": gateway,
    }
    if version == 6:
        privacy = given.get("privacy", False)
        if not isinstance(privacy, bool):
            raise AnsibleFilterError(f"{where}: ipv6.privacy={privacy!r} is neither true nor false")
        found["privacy"] = privacy
    return found


def _address(item: Any, version: int, where: str) -> Address:
    example = "192.0.2.20/24" if version == 4 else "2001:db8::20/64"
    try:
        address = ipaddress.ip_interface(str(item))
    except ValueError as error:
        raise AnsibleFilterError(f"{where}: {error}; give an address such as {example}") from None
    if address.version != version or "/" not in str(item):
        raise AnsibleFilterError(
            f"{where}: {item} should be an IPv{version} address with its length, such as {example}"
        )
    if address.is_multicast or address.is_loopback or address.is_unspecified:
        raise AnsibleFilterError(f"{where}: {item} cannot be the address of one machine")
    network = address.network
    edges = {network.network_address, network.broadcast_address} if version == 4 else set()
    if network.prefixlen < network.max_prefixlen - 1 and address.ip in edges:
        raise AnsibleFilterError(f"{where}: {item} is the address of the network {network} itself")
    return address


def _gateway(given: Any, addresses: list[Address], version: int, where: str) -> str:
    if not given:
        return ""
    try:
        gateway = ipaddress.ip_address(str(given))
    except ValueError as error:
        raise AnsibleFilterError(f"{where}: gateway: {error}") from None
    if gateway.version != version or not addresses:
        raise AnsibleFilterError(
            f"{where}: gateway={given}: give an IPv{version} gateway with IPv{version} addresses"
        )
    if gateway in {address.ip for address in addresses}:
        raise AnsibleFilterError(f"{where}: gateway={given} is the NAS's own address")
    link_local = version == 6 and gateway.is_link_local
    if not link_local and not any(gateway in address.network for address in addresses):
        networks = ", ".join(str(address.network) for address in addresses)
        raise AnsibleFilterError(f"{where}: gateway={given} is not within {networks}")
    return str(gateway)


def _dns(given: Any, where: str) -> dict[str, list[str]]:
    has_keys("dns", given, {"servers", "search"}, where)
    servers, search = (
        [str(item) for item in listed(given.get(key))] for key in ("servers", "search")
    )
    for server in servers:
        try:
            ipaddress.ip_address(server)
        except ValueError:
            raise AnsibleFilterError(f"{where}: dns.servers: {server} is no address") from None
    for domain in search:
        if not DOMAIN.fullmatch(domain):
            raise AnsibleFilterError(f"{where}: dns.search: {domain!r} is no domain")
    if search and not servers:
        raise AnsibleFilterError(f"{where}: dns.search={search}: give dns.servers with it")
    return {"servers": servers, "search": search}


class FilterModule:
    """Ansible's way to find the filters."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {
            "network_addresses": network_addresses,
            "network_host": network_host,
            "network_in_force": network_in_force,
            "network_interfaces": network_interfaces,
            "network_named": network_named,
        }
