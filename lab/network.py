# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A lab's own network.

Addresses are fixed: a certificate names them, and a restart must not change them.
"""

from __future__ import annotations

import ipaddress

from lab import label
from lab.docker import docker, inspect
from lab.errors import LabError

_FIRST = 10  # nas1 has the address 11; below are the gateway and what joins without a fixed address
MOST = 200


def ensure(name: str) -> str:
    """Make the lab's network if it is missing, and return its subnet."""
    network = label.prefix(name)
    found = inspect("network", [network])
    if not found:
        # The engine knows which range is free, but gives fixed addresses only in a range that was
        # named. The probe has a name of its own, so that a kill in between leaves no half network.
        probe = f"{network}-probe"
        docker("network", "rm", probe, check=False)
        docker("network", "create", *label.arguments(name), probe)
        subnet = _subnet(inspect("network", [probe])[0])
        docker("network", "rm", probe)
        docker("network", "create", "--subnet", subnet, *label.arguments(name), network)
        found = inspect("network", [network])
    return _subnet(found[0])


def address(subnet: str, number: int) -> str:
    """The address of a lab's NAS by its number."""
    network = ipaddress.ip_network(subnet)
    if number > min(MOST, network.num_addresses - _FIRST - 2):
        raise LabError(f"nas{number} has no address in {subnet}: ask for fewer NAS.")
    return str(network[_FIRST + number])


def gateway(subnet: str) -> str:
    """The address of this machine in a subnet of the engine's: its first."""
    return str(ipaddress.ip_network(subnet)[1])


def _subnet(network: dict[str, object]) -> str:
    ipam = network["IPAM"]
    assert isinstance(ipam, dict)  # noqa: S101  # the engine's API
    for config in ipam["Config"]:
        if "." in config["Subnet"]:
            return str(config["Subnet"])
    raise LabError(f"network {network['Name']} has no IPv4 range: `make down`, then run it again.")
