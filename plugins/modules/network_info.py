#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: network_info
short_description: Finds what manages each network interface of a NAS, and what stands in the way of
  changing it
version_added: 0.1.0
description:
  - Says for each interface whether ifupdown, systemd-networkd, NetworkManager or netplan has it,
    and so where settings of it have to be written to take effect.
  - Looks whether another machine has an address already that the NAS is to get.
  - Reads only; nothing is changed.
author:
  - The nas.assistant contributors
extends_documentation_fragment: [nas.assistant.looks_only]
options:
  interfaces:
    description: Names of the interfaces that settings are meant for.
    type: list
    elements: str
    default: []
  addresses:
    description: Addresses that the NAS is to have. One that it has not yet is looked for on the
      network, which takes up to two seconds.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Look at the network
  nas.assistant.network_info:
    interfaces: [eth0]
    addresses: [192.0.2.20/24]
  register: network
"""

RETURN = r"""
interfaces:
  description:
    - What there is to say of each interface. C(ours) is set for those that were named, and those
      that a file of ours is left of; the others have C(ways_out) and C(addresses) only.
    - C(provider) is one of C(ifupdown), C(networkd), C(networkmanager), C(netplan), C(none).
    - C(addresses) are those that it has now, C(ways_out) the families (C(ipv4), C(ipv6)) that have
      a default route through it. C(refused) says why it cannot be changed, or is empty.
  type: dict
  returned: always
written:
  description: Files of ours that are there, each with C(path) and C(interface).
  type: list
  elements: dict
  returned: always
files:
  description: Files of ifupdown as they have to be so that ours alone count for the named
    interfaces, each with C(dest), C(content) and C(mode).
  type: list
  elements: dict
  returned: always
resolver:
  description: What has the list of name servers - C(resolved), C(resolvconf), C(networkmanager), or
    nobody but the file C(/etc/resolv.conf) itself, C(file).
  type: str
  returned: always
resolv_conf:
  description: What C(/etc/resolv.conf) said before it was ours, or says.
  type: str
  returned: always
resolv_conf_ours:
  description: Whether it is ours now.
  type: bool
  returned: always
avahi:
  description: What Avahi's settings said before they were ours; empty where there were none.
  type: str
  returned: always
taken:
  description: Those of O(addresses) that another machine answers to.
  type: list
  elements: str
  returned: always
mdns:
  description: Whether the name of this NAS is announced by the collection's own settings.
  type: bool
  returned: always
mapped:
  description: Ports of the router that M(nas.assistant.upnp_port_mapping) has opened, each with
    C(family), C(protocol) and C(external_port).
  type: list
  elements: dict
  returned: always
openmediavault:
  description: Whether this is OpenMediaVault, which writes the network's settings itself.
  type: bool
  returned: always
"""

import glob
import ipaddress
import json
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import _ifupdown as ifupdown
from ansible_collections.nas.assistant.plugins.module_utils._commands import run

# Where settings of one interface are written; {} stands for its name.
WRITTEN = (
    "/etc/network/interfaces.d/nas-assistant-{}",
    "/etc/systemd/network/05-nas-assistant-{}.network",
    "/etc/NetworkManager/system-connections/nas-assistant-{}.nmconnection",
    "/etc/netplan/99-nas-assistant-{}.yaml",
)
RESOLV_CONF = "/etc/resolv.conf"
AVAHI = "/etc/avahi/avahi-daemon.conf"
MDNS = "/etc/avahi/services/nas-assistant.service"
# Named by upnp_port_mapping.
MAPPED = "/var/lib/nas-assistant-upnp/nas-upnp-*.json"
OPENMEDIAVAULT = "/etc/openmediavault/config.xml"
# Addresses and ways that netplan would add to ours, where another of its files has them.
NETPLAN_LISTS = {"addresses", "routes", "gateway4", "gateway6", "nameservers"}
PATIENCE = 2.0  # seconds that a neighbour has to answer


def links() -> dict[str, dict[str, Any]]:
    """Return the interfaces as ``ip`` describes them, by name."""
    done = run(["ip", "-json", "-details", "address", "show"])
    return {link["ifname"]: link for link in json.loads(done.stdout or "[]") if link}


def addresses_of(link: dict[str, Any], scope: str = "") -> list[str]:
    """Return an interface's addresses with their prefix lengths, of one scope or of all."""
    return [
        f"{info['local']}/{info['prefixlen']}"
        for info in link.get("addr_info", ())
        if info and scope in ("", info.get("scope"))
    ]


def ways_out() -> dict[str, set[str]]:
    """Return the interfaces with a default route, and the families that have it."""
    found: dict[str, set[str]] = {}
    for family, option in (("ipv4", "-4"), ("ipv6", "-6")):
        done = run(["ip", "-json", option, "route", "show", "default"])
        for route in json.loads(done.stdout or "[]"):
            if "gateway" in route:
                found.setdefault(route["dev"], set()).add(family)
    return found


def unsuitable(name: str, known: dict[str, dict[str, Any]]) -> str:
    """Return why an interface's settings are more than its addresses, or nothing."""
    link = known.get(name)
    if link is None:
        return f"there is no such interface; there are {', '.join(sorted(set(known) - {'lo'}))}"
    if link.get("master"):
        return f"it is a part of {link['master']}, which has the address"
    kind = link.get("linkinfo", {}).get("info_kind", "")
    if kind in ("bridge", "bond", "team", "vlan"):
        return f"it is a {kind}, which is made where its address is set; change the address there"
    upon = [
        other
        for other, entry in known.items()
        if entry.get("link") == name and entry.get("linkinfo", {}).get("info_kind") == "vlan"
    ]
    if upon:
        return f"{', '.join(upon)} stands on it, which is made where its address is set"
    if os.path.exists(f"/sys/class/net/{name}/phy80211"):
        return "it is wireless, and its network and password stand beside its address"
    return ""


def active(unit: str) -> bool:
    """Whether a unit of systemd runs."""
    return bool(run(["systemctl", "is-active", "--quiet", unit]).returncode == 0)


def by_networkmanager(listing: str, name: str) -> bool:
    """Whether NetworkManager has this interface. ``listing``: nmcli's devices and states."""
    for line in listing.splitlines():
        device, _, state = line.partition(":")
        if device == name:
            return not state.startswith("unmanaged")
    return False


def by_networkd(listing: str, name: str) -> bool:
    """Whether systemd-networkd has this interface. ``listing``: networkctl's, legend left out."""
    for line in listing.splitlines():
        words = line.split()
        if len(words) >= 5 and words[1] == name:
            return words[-1] not in ("unmanaged", "n/a")
    return False


class Managers:
    """Who has which interface; each manager is asked once, and only where it runs."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.netplan = bool(shutil.which("netplan") and netplan_files())
        self.networkmanager = self.networkd = ""
        self.runs_networkmanager = active("NetworkManager.service")
        self.runs_networkd = active("systemd-networkd.service")
        if self.runs_networkmanager:
            self.networkmanager = run(
                ["nmcli", "--terse", "--fields", "DEVICE,STATE", "device"]
            ).stdout
        if self.runs_networkd:
            self.networkd = run(["networkctl", "--no-pager", "--no-legend", "list"]).stdout
        self.ifupdown = {name for text in texts for name in ifupdown.names_in(text)}
        self.has_ifupdown = shutil.which("ifup") is not None

    def holder(self, name: str) -> str:
        """Who has the interface; an empty text where nobody does."""
        if self.netplan:
            return "netplan"
        if by_networkmanager(self.networkmanager, name):
            return "networkmanager"
        if by_networkd(self.networkd, name):
            return "networkd"
        return "ifupdown" if self.has_ifupdown and name in self.ifupdown else ""

    def taker(self) -> str:
        """Who would take an interface that nobody has."""
        if self.runs_networkd:
            return "networkd"
        return "ifupdown" if self.has_ifupdown else "none"


def netplan_files() -> list[str]:
    """Return the files that netplan reads, ours left out."""
    folders = ("/etc", "/lib", "/run")
    found = [path for folder in folders for path in glob.glob(f"{folder}/netplan/*.yaml")]
    return [path for path in found if "/99-nas-assistant-" not in path]


def netplan_conflict(name: str, texts: dict[str, str]) -> str:
    """Return why another file of netplan's would add to ours, or nothing. ``texts``: by path."""
    import yaml  # netplan itself depends on it; elsewhere it may be missing

    for path, text in texts.items():
        try:
            network = (yaml.safe_load(text) or {}).get("network") or {}
            kinds = [kind for kind in network.values() if isinstance(kind, dict)]
            settings = [kind[name] for kind in kinds if isinstance(kind.get(name), dict)]
        except (yaml.YAMLError, AttributeError):
            return f"{path} is not what netplan could read"
        lists = sorted({key for each in settings for key in each if key in NETPLAN_LISTS})
        if lists:
            return f"netplan adds {', '.join(lists)} of {path} to ours: remove them there"
    return ""


def read(path: str) -> str:
    """Return a file's text, an empty one where it is missing."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except OSError:
        return ""


def written() -> list[dict[str, str]]:
    """Return the files of ours that are there."""
    found = []
    for pattern in WRITTEN:
        name = re.compile(re.escape(pattern).replace(r"\{\}", "(.+)"))
        for path in sorted(glob.glob(pattern.format("*"))):
            matched = name.fullmatch(path)
            if matched:
                found.append({"path": path, "interface": matched[1]})
    return found


def mapped() -> list[dict[str, Any]]:
    """Return the ports of the router that this NAS had opened."""
    found = []
    for path in sorted(glob.glob(MAPPED)):
        words = os.path.basename(path).removesuffix(".json").split("-")
        if len(words) == 5 and words[4].isdigit():
            found.append({"family": words[2], "protocol": words[3], "external_port": int(words[4])})
    return found


def ifupdown_files(names: set[str]) -> list[dict[str, str]]:
    """Return the files of ifupdown as they have to be, those that say nothing of it left out.

    :param names: interfaces of which only our files may speak.
    """
    main = read(ifupdown.MAIN)
    if not main.strip():
        content = f"{ifupdown.SOURCE}\n"
        return [{"dest": ifupdown.MAIN, "content": content, "mode": "0644"}] if names else []
    found = []
    for path in [ifupdown.MAIN, *ifupdown.sourced(main)]:
        if os.path.basename(path).startswith(ifupdown.OURS):
            continue
        text = read(path)
        content = ifupdown.put_aside(text, names)
        if path == ifupdown.MAIN and names and not ifupdown.reads_ours(main, names):
            content = f"{content.rstrip()}\n{ifupdown.SOURCE}\n"
        if content != text or ifupdown.MARK in text:
            mode = f"{stat.S_IMODE(os.stat(path).st_mode):04o}"
            found.append({"dest": path, "content": content, "mode": mode})
    return found


def before(path: str) -> str:
    """Return what a file said before it was ours: our own keep that as comments."""
    lines = read(path).splitlines()
    kept = [line.removeprefix(ifupdown.MARK) for line in lines if line.startswith(ifupdown.MARK)]
    if kept:
        return "\n".join(kept) + "\n"
    return "" if any("Ansible managed" in line for line in lines[:2]) else read(path)


def resolver(managers: Managers) -> str:
    """Return what has the list of name servers."""
    target = os.path.realpath("/etc/resolv.conf")
    if target.startswith("/run/systemd/resolve/"):
        return "resolved"
    if target.startswith("/run/resolvconf/") or shutil.which("resolvconf"):
        return "resolvconf"
    return "networkmanager" if managers.runs_networkmanager else "file"


def taken(addresses: list[str], known: dict[str, dict[str, Any]]) -> list[str]:
    """Return the addresses that another machine on the same network answers to."""
    ours = {each.partition("/")[0] for link in known.values() for each in addresses_of(link)}
    sought = [each for each in (item.partition("/")[0] for item in addresses) if each not in ours]
    for address in sought:
        # What is remembered of a neighbour may be old; one that is there answers anew.
        run(["ip", "neighbour", "flush", "to", address])
        _ask(address)
    deadline = time.monotonic() + (PATIENCE if sought else 0)
    while True:
        found = [address for address in sought if _answers(address)]
        # The first that answers does not hurry the others.
        if time.monotonic() >= deadline or len(found) == len(sought):
            return found
        time.sleep(0.1)


def _ask(address: str) -> None:
    """Have the kernel ask who has an address, by sending it a packet that nobody awaits."""
    version = ipaddress.ip_address(address).version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # discard
            probe.send(b"")
        except OSError:  # no way leads there yet, so nobody near us has it
            return


def _answers(address: str) -> bool:
    done = run(["ip", "-json", "neighbour", "show", "to", address])
    neighbours = json.loads(done.stdout or "[]")
    return any("REACHABLE" in entry.get("state", ()) for entry in neighbours)


def look(names: list[str], addresses: list[str]) -> dict[str, Any]:
    """Return the module's result."""
    known, files = links(), written()
    main = read(ifupdown.MAIN)
    paths = [ifupdown.MAIN, *ifupdown.sourced(main)]
    texts = [ifupdown.put_back(read(path)) for path in paths]
    managers = Managers(texts)
    ways = ways_out()
    interfaces: dict[str, dict[str, Any]] = {
        name: {
            "addresses": addresses_of(link),
            "ways_out": sorted(ways.get(name, ())),
            "ours": False,
        }
        for name, link in known.items()
    }
    for name in dict.fromkeys([*names, *(entry["interface"] for entry in files)]):
        holder = managers.holder(name)
        provider = holder or managers.taker()
        refused = unsuitable(name, known)
        if not refused and provider == "netplan":
            refused = netplan_conflict(name, {path: read(path) for path in netplan_files()})
        if not refused and provider == "none":
            refused = "nothing here manages networks: neither ifupdown, systemd-networkd, "
            refused += "NetworkManager nor netplan"
        elif not refused and not holder and addresses_of(known[name], "global"):
            refused = "it has addresses that none of the files here gives it, so they could not be "
            refused += "put back; give them by what manages networks here first"
        elif not refused and any(each.startswith(f"{name}:") for each in managers.ifupdown):
            refused = f"ifupdown has more of its addresses as {name}:…, which is given up with it; "
            refused += f"write them as addresses of {name}"
        interface = interfaces.setdefault(name, {"addresses": [], "ways_out": []})
        interface |= {"ours": True, "provider": provider, "refused": refused}
    with_ifupdown = {name for name in names if interfaces[name]["provider"] == "ifupdown"}
    return {
        "changed": False,
        "interfaces": interfaces,
        "written": files,
        "files": ifupdown_files(with_ifupdown),
        "resolver": resolver(managers),
        "resolv_conf": before(RESOLV_CONF),
        "resolv_conf_ours": read(RESOLV_CONF) != before(RESOLV_CONF),
        "avahi": before(AVAHI),
        "taken": taken(addresses, known),
        "mapped": mapped(),
        "mdns": os.path.exists(MDNS),
        "openmediavault": os.path.exists(OPENMEDIAVAULT),
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "interfaces": {"type": "list", "elements": "str", "default": []},
            "addresses": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**look(module.params["interfaces"], module.params["addresses"]))
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"the network cannot be looked at: {error}")


if __name__ == "__main__":
    main()
