# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What `upnpc` is told and what it says: routers, port mappings, pinholes and errors, in words.

Written against miniupnpc 2.2.4 (Debian 12) and 2.2.8 (Debian 13). Error codes: WANIPConnection:2
and WANIPv6FirewallControl:1 of the UPnP Forum.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

# Seconds that a command waits for others of this NAS. A search without an answer takes 8.
QUEUE = 60
BUSY = 75  # exit code of flock when others took longer (EX_TEMPFAIL)
CONFLICT, ONLY_PERMANENT, NO_SUCH_MAPPING = 718, 725, 714

WORDS = {
    402: "the router finds something in the request wrong, or its table is full",
    501: "the router could not do it; it may have no connection to the internet, or a full table",
    605: "the router finds the description too long",
    606: "the router does not allow it: it keeps this port to itself, or lets no device open it "
    "(many keep all below 1024). Choose another external_port, or allow it in the router",
    701: "the router has no room for another pinhole",
    702: "the router's IPv6 firewall is off, so there is nothing to open",
    703: "the router allows no pinholes. Allow them in the router",
    704: "the router has no such pinhole",
    705: "the router opens no pinholes for this protocol",
    706: "the router wants the internal port named",
    707: "the router wants the protocol named",
    708: "the router does not take this internal_client",
    709: "no packet has passed the pinhole yet",
    714: "the router has no such mapping",
    715: "the router wants the remote address named, and this module opens ports to all",
    716: "the router wants the external port named",
    718: "the router gave this port to another device, or uses it itself. Choose another "
    "external_port, or remove what has it in the router",
    724: "the router wants internal_port to be the same as external_port",
    725: "the router knows only mappings without an end",
    726: "the router takes no remote address",
    727: "the router maps only all ports at once",
    728: "the router's table of mappings is full. Remove some in the router",
    729: "another setting of the router has this port already",
}

# What routers answer when asked for the entry after the last. 713 is the right one.
_END = (713, 714, 402)
_ENTRY = re.compile(
    r"^ *\d+ (?P<protocol>TCP|UDP) +(?P<external>\d+)->(?P<client>[^\s']*):(?P<internal>\d+) *"
    r"'(?P<description>.*?)' '[^'\n]*' (?P<lease>\d*)$",
    re.MULTILINE | re.DOTALL,
)
_CODES = (
    re.compile(r"failed with code ?:? (-?\d+)"),
    re.compile(r"UPNP_DeletePinhole\(\) returned : (-?\d+)"),
)
_PINHOLE = re.compile(r"AddPinhole: \(\[[^]]*]:\d+ -> \[([^]]+)]:(\d+)\) / Pinhole ID = (\d+)")


class UpnpError(Exception):
    """It cannot be done; one sentence that says why, and the remedy."""


class NoRouterError(UpnpError):
    """No router was found that could be asked."""


@dataclass(frozen=True)
class Mapping:
    """A port that a router lets in. ``lease_left``: seconds; 0 has no end, None is not known."""

    external_port: int
    protocol: str
    internal_client: str
    internal_port: int
    description: str
    lease_left: int | None


@dataclass(frozen=True)
class Router:
    """A router as it describes itself.

    ``url`` is that of its root description, ``own`` this NAS's address towards it, ``external`` its
    address on the internet. ``pinholes``: whether it opens its IPv6 firewall on request.
    """

    url: str
    own: str
    external: str | None = None
    connected: bool = False
    mappings: tuple[Mapping, ...] = ()
    pinholes: bool = False


@dataclass(frozen=True)
class Pinhole:
    """A pinhole that the router made, by the number that it gave it."""

    number: str
    client: str
    port: int


def command(program: str, ipv6: bool, url: str, search_port: int, lenient: bool) -> list[str]:
    """Return the start of a command line of upnpc; what it should do follows.

    One at a time: two that search from the same port would take each other's answers. The program
    is its own lock, since any user can open it and it is always there.

    :param url: the router's root description; empty has it searched for.
    :param lenient: go on with a router that has no address of its own on the internet.
    """
    queue = ["flock", "--wait", str(QUEUE), "--conflict-exit-code", str(BUSY), program]
    place = ["-u", url] if url else ["-z", str(search_port)]
    return [*queue, program, *(["-6"] if ipv6 else []), *(["-i"] if lenient else []), *place]


def add_mapping(mapping: Mapping, client: str, lease: int) -> list[str]:
    """Return the arguments that make a mapping, or prolong one that is the same."""
    ports = [str(mapping.internal_port), str(mapping.external_port)]
    return ["-e", mapping.description, "-a", client, *ports, mapping.protocol.upper(), str(lease)]


def add_pinhole(client: str, port: int, protocol: str, lease: int) -> list[str]:
    """Return the arguments that make a pinhole; the same again prolongs it and keeps its number."""
    return ["-A", "", "0", client, str(port), protocol.upper(), str(lease)]


def parse_router(text: str, given: str = "") -> Router:
    """Return the router that upnpc talked to, with its mappings (-l) or its firewall (-S).

    :param given: the URL that upnpc was given, if it did not search.
    :raises NoRouterError: none answered, or what answered is no router.
    :raises UpnpError: its answers make no sense.
    """
    found = re.search(r"^(Found|UPnP device found)(.*) : (http\S+)$", text, re.MULTILINE)
    own = re.search(r"^Local LAN ip address : (\S+)$", text, re.MULTILINE)
    if not found or not own or "igd ?" in found[2].lower():
        raise NoRouterError(no_router(given, found[3] if found else ""))
    url = given or _description(text, found[3])
    address = _address(own[1])
    if address is None:
        raise UpnpError(f"{url}: upnpc found no way to it ({own[1]})")
    if not re.search(r"^ i protocol exPort|Inbound Pinhole Allowed: ", text, re.MULTILINE):
        raise UpnpError(f"{url}: upnpc broke off. Try again, or restart the router")
    external = re.search(r"^ExternalIPAddress = (\S+)$", text, re.MULTILINE)
    return Router(
        url=url,
        own=address,
        external=_address(external[1]) if external else None,
        connected="Status : Connected" in text,
        mappings=parse_mappings(text, url),
        pinholes="Inbound Pinhole Allowed: Yes" in text,
    )


def parse_mappings(text: str, url: str) -> tuple[Mapping, ...]:
    """Return the mappings of a list.

    :raises UpnpError: the list ended in an error, so that some may be missing.
    """
    end = re.search(r"^GetGenericPortMappingEntry\(\) returned (-?\d+)", text, re.MULTILINE)
    if end and int(end[1]) not in _END:
        if int(end[1]) < 0:
            raise UpnpError(
                f"{url}: what answers there does not speak the language of a router. Give the "
                "router's own URL as router, as `upnpc -l` prints it after desc, or leave it out"
            )
        raise UpnpError(f"{url} does not tell its mappings: {explain(int(end[1]))}")
    return tuple(
        Mapping(
            external_port=int(entry["external"]),
            protocol=entry["protocol"].lower(),
            internal_client=entry["client"],
            internal_port=int(entry["internal"]),
            description=entry["description"],
            lease_left=int(entry["lease"] or 0),
        )
        for entry in _ENTRY.finditer(text)
    )


def parse_code(text: str) -> int:
    """Return the error that upnpc reports; 0 without one.

    Its exit code is not enough: 2.2.4 ends with 0 when a pinhole is refused.
    """
    for pattern in _CODES:
        if found := pattern.search(text):
            return int(found[1])
    return 0


def parse_pinhole(text: str) -> Pinhole | None:
    """Return the pinhole that upnpc reports as made."""
    found = _PINHOLE.search(text)
    return Pinhole(found[3], _address(found[1]) or found[1], int(found[2])) if found else None


def explain(code: int) -> str:
    """Return an error of a router in words."""
    words = WORDS.get(
        code, "the router's answer makes no sense" if code < 0 else "the router fails"
    )
    return f"{words} (UPnP error {code})"


def no_router(given: str, other: str) -> str:
    """Return why there is no router, and the remedy.

    :param given: the URL that was given.
    :param other: what answered instead.
    """
    if given:
        return (
            f"router={given}: no router answers there. Give the URL of its description, as "
            "`upnpc -l` prints it after desc, or leave it out to have it searched for"
        )
    seen = f"{other} answers, but is no router; " if other else ""
    return (
        f"no router that speaks UPnP was found: {seen}switch UPnP on in the router, or give its "
        "address as router=URL. A firewall of this NAS must let answers in, which come from UDP "
        "port 1900 of the router to search_port"
    )


def shared(router: Router) -> str:
    """Return why nobody on the internet can reach this router; empty when it can be reached."""
    if router.external is None or ipaddress.ip_address(router.external).is_unspecified:
        if not router.connected:
            return "the router has no connection to the internet. Look at its own page"
        # miniupnpd, which many routers run, does not tell an address that is not public.
        return f"the router tells no address of its own on the internet: {_BEHIND}"
    address = ipaddress.ip_address(router.external)
    if address.is_global and not address.is_multicast:
        return ""
    if address in ipaddress.ip_network("100.64.0.0/10"):
        return (
            f"the router's address {address} is one that providers share among customers "
            "(carrier-grade NAT), so nothing from the internet arrives there. Ask the provider for "
            "an address of your own, use IPv6, or a VPN"
        )
    return f"the router's address {address} is not one of the internet: {_BEHIND}"


_BEHIND = (
    "the provider shares one among customers (carrier-grade NAT), or a second router stands before "
    "it. Open the port in that one too and set allow_shared_address, ask the provider for an "
    "address of your own, use IPv6, or a VPN"
)


def is_global(address: str) -> bool:
    """Whether an address can be reached from the internet, firewalls aside."""
    parsed = ipaddress.ip_address(address)
    return parsed.is_global and not parsed.is_multicast


def _description(text: str, control: str) -> str:
    """Return the URL of the root description of the device whose control URL is known."""
    origin = control.split("/")[2]
    urls = [str(url) for url in re.findall(r"^ desc: (\S+)$", text, re.MULTILINE)]
    return next((url for url in urls if url.split("/")[2:3] == [origin]), control)


def _address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
