# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the proxy's variables mean: the NAS that answer together, as Nginx takes them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.nas.assistant.plugins.plugin_utils._entries import (
    entries,
    has_keys,
    named,
)
from ansible_collections.nas.assistant.plugins.plugin_utils._networks import networks

KEYS = {"weight", "backup", "down", "address"}
MOST = 100  # weight


def proxy_members(
    pool: Any, hosts: Mapping[str, Mapping[str, Any]], own: str
) -> list[dict[str, Any]]:
    """Return the NAS that answer together, this one first; each with ``name``, ``address`` (as a
    URL has it; this one's is its own), ``weight``, ``backup``, ``down``,
    ``port``. None without a pool.

    :param pool: ``proxy_pool``, names of hosts.
    :param hosts: by name, what the inventory says of each: ``address`` by which Ansible reaches it,
        ``port``, its ``proxy_pool_port``, and ``member``, its ``proxy_member``.
    :param own: the name of this host.
    :raises AnsibleFilterError: names the variable, its value, and the remedy.
    """
    names = [str(name) for name in entries("proxy_pool", pool)]
    if not names:
        return []
    for name in names:
        if name not in hosts:
            raise AnsibleFilterError(f"proxy_pool={names}: the inventory has no host {name!r}")
        if names.count(name) > 1:
            raise AnsibleFilterError(f"proxy_pool={names}: {name!r} is named twice")
    if own not in names:
        raise AnsibleFilterError(
            f"proxy_pool={names}: {own!r} itself is not in it; give the variable to those that are"
        )
    members = [_member(name, hosts[name], name == own) for name in sorted(names, key=own.__ne__)]
    if all(member["backup"] for member in members):
        raise AnsibleFilterError(
            f"proxy_pool={names}: all are backup, so there is nobody to stand in for"
        )
    if all(member["down"] for member in members):
        raise AnsibleFilterError(f"proxy_pool={names}: all are down, so nobody is left to answer")
    return members


def _member(name: str, host: Mapping[str, Any], own: bool) -> dict[str, Any]:
    given = host["member"]
    where = f"{name}: {named('proxy_member', given)}"
    has_keys("it", given, KEYS, where)
    weight = given.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int) or not 1 <= weight <= MOST:
        raise AnsibleFilterError(f"{where}: weight is a whole number from 1 to {MOST}")
    for key in ("backup", "down"):
        if not isinstance(given.get(key, False), bool):
            raise AnsibleFilterError(f"{where}: {key} is true or false")
    return {
        "name": name,
        "address": "127.0.0.1" if own else _address(given.get("address", host["address"]), where),
        "weight": weight,
        "backup": given.get("backup", False),
        "down": given.get("down", False),
        "port": int(host["port"]),
    }


def _address(given: Any, where: str) -> str:
    """A name would be looked up when Nginx starts, which does not start without an answer."""
    try:
        address = ipaddress.ip_address(str(given))
        if getattr(address, "scope_id", None):  # a link-local one, of no use to Nginx
            raise ValueError
    except ValueError:
        raise AnsibleFilterError(
            f"{where}: address={given!r} (by default ansible_host) is no IP address; give one by "
            "which the others reach this NAS"
        ) from None
    return f"[{address}]" if address.version == 6 else str(address)


def proxy_alt_names(names: Iterable[str]) -> list[str]:
    """Return names and addresses of a NAS as a certificate has them: names first, each kind sorted,
    and each address in its one short form.
    """
    kinds: dict[str, list[str]] = {"DNS": [], "IP": []}
    for name in names:
        try:
            kinds["IP"].append(str(ipaddress.ip_address(name)))
        except ValueError:
            kinds["DNS"].append(name)
    return [f"{kind}:{name}" for kind, found in kinds.items() for name in sorted(set(found))]


def proxy_networks(sources: Any, lan: list[str]) -> list[str] | None:
    """Return the networks that ``proxy_admin_from`` stands for; ``None`` stands for all.

    :raises AnsibleFilterError: one is neither ``lan``, ``any`` nor a network.
    """
    given = entries("proxy_admin_from", sources)
    found = networks(given, lan, f"proxy_admin_from={given}")
    if found["v4"] is None or found["v6"] is None:
        return None
    return [*found["v4"], *found["v6"]]


def proxy_virtual_address(given: Any, members: Iterable[Mapping[str, Any]], own: str) -> str:
    """Return the address that the NAS of a pool have in turn, with its network's length.

    :param members: as of :func:`proxy_members`.
    :param own: by which the others reach this NAS.
    :raises AnsibleFilterError: it is no address of a machine, or one that a member has for itself.
    """
    wrong = f"proxy_virtual.address={given!r}: give an address with its network's length, such as "
    wrong += "192.0.2.100/24"
    try:
        found = ipaddress.ip_interface(str(given))
    except ValueError:
        raise AnsibleFilterError(wrong) from None
    ends = (found.network.network_address, found.network.broadcast_address)
    alone = found.network.num_addresses == 1
    if alone or found.ip in ends or found.is_multicast or found.is_loopback:
        raise AnsibleFilterError(wrong)
    taken = [own, *(str(member["address"]).strip("[]") for member in members)]
    if str(found.ip) in taken:
        # Whoever hands it over would be left without any.
        raise AnsibleFilterError(
            f"proxy_virtual.address={given!r}: a member has it for itself; give one that nobody has"
        )
    if any((":" in each) != (found.version == 6) for each in taken if each != "127.0.0.1"):
        raise AnsibleFilterError(
            f"proxy_virtual.address={given!r}: the members know each other by addresses of the "
            f"other kind ({', '.join(taken)})"
        )
    return str(found)


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "proxy_alt_names": proxy_alt_names,
            "proxy_members": proxy_members,
            "proxy_networks": proxy_networks,
            "proxy_virtual_address": proxy_virtual_address,
        }
