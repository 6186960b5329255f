# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the site would make of a machine, as far as a look and the inventory tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ansible_collections.nas.assistant.plugins.plugin_utils._findings import gib

Row = dict[str, str]
Machine = Mapping[str, Any]
Wanted = Mapping[str, Any]


def preflight_plan(machine: Machine, wanted: Wanted) -> list[Row]:
    """Return a row for each thing that the site changes: ``what``, ``now`` (empty where a look does
    not tell), and ``then``. What the inventory leaves alone has none.

    What each file would say is shown by the site itself, in check mode with ``--diff``.

    :param machine: the answer of ``nas.assistant.nas_info``.
    :param wanted: what the inventory asks of the roles: ``ssh`` (with ``account``), ``firewall``
        (entries of ``firewall_allow``), ``network`` (``interfaces``, ``mdns``, ``upnp``),
        ``pools``, ``kernel`` (``parameters``, ``swap``), ``docker``, ``limits`` of the container,
        ``ports`` of the web server, ``copies``; empty, or none, of a role that is off.
    """
    parts = (_pools, _ssh, _firewall, _network, _kernel, _engine, _container, _web, _copies)
    return [
        {"what": what, "now": now, "then": then}
        for part in parts
        for what, now, then in part(machine, wanted)
    ]


def _pools(_: Machine, wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    for pool in wanted["pools"]:
        name = f"pool {pool['name']}"
        if pool.get("uuid"):
            yield name, f"UUID {pool['uuid']}", "taken as it is, with what is in it"
        elif pool.get("format"):
            yield name, ", ".join(pool.get("devices", [])), "formatted, if nothing is on them"


def _ssh(machine: Machine, wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    ssh = wanted["ssh"]
    if ssh:
        now = _listening(machine, "sshd")
        yield "SSH", now, f"port {ssh['port']}, {ssh['account']} with a key, nobody else"


def _firewall(machine: Machine, wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    if wanted["firewall"] is not None:
        count = len({each["port"] for each in machine["listeners"]})
        names = [
            str(each.get("service") or each.get("name") or each) for each in wanted["firewall"]
        ]
        then = f"only {', '.join(['SSH', *names])} from outside"
        yield "firewall", f"programs listen at {count} ports", then


def _network(_: Machine, wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    network = wanted["network"]
    for each in network.get("interfaces", []):
        yield f"address of {each['name']}", "", "as network_interfaces says"
    if network.get("mdns"):
        yield "name", "", "announced on the network (Avahi)"
    for each in network.get("upnp", []):
        yield "router", "", f"port {each['external_port']} opened to the world (UPnP)"


def _kernel(machine: Machine, wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    kernel = wanted["kernel"]
    if not kernel:
        return
    yield "kernel", "", f"{kernel['parameters']} parameters, and the queues of disks"
    swap = kernel["swap"]
    if swap["kind"] != "keep":
        there = [f"{each['kind']} {gib(each['size'])}" for each in machine["memory"]["swap"]]
        yield "swap", ", ".join(there) or "none", f"{swap['kind']} {swap['size']}"


def _engine(machine: Machine, wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    if wanted["docker"]:
        engine = machine["engine"]
        then = "kept, with some settings more" if engine else "the distribution's is installed"
        yield "Docker", engine or "none", then


def _container(machine: Machine, wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    limits = wanted["limits"]
    if limits:
        has = f"{gib(machine['memory']['total'])}, {machine['cpu']['count']} CPUs"
        cpus = limits["cpuset_cpus"]
        then = f"at most {gib(limits['memory'])}" + (f", on CPUs {cpus}" if cpus else "")
        yield "assistant's container", has, then


def _web(machine: Machine, wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    if wanted["ports"]:
        then = f"port {' and '.join(map(str, wanted['ports']))}"
        yield "Nginx", _listening(machine, "nginx") or "none", then


def _copies(_: Machine, wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    for copy in wanted["copies"]:
        yield f"copy {copy['name']}", "", "made by timers, with restic"


def _listening(machine: Machine, program: str) -> str:
    ports = {each["port"] for each in machine["listeners"] if each["program"] == program}
    return f"port {', '.join(map(str, sorted(ports)))}" if ports else ""


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"preflight_plan": preflight_plan}
