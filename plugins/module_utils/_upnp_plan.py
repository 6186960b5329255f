# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What a task wants of a router's ports, and whether what the router has will do."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping as Dictionary
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.nas.assistant.plugins.module_utils._upnp import Mapping, UpnpError

_DAY, _WEEK = 86400, 604800
# Nothing that XML, a unit file or the list of upnpc could take for more than text.
_CHARACTER = r"[A-Za-z0-9._:/()+,=@#%-]"
_TEXT = re.compile(rf"{_CHARACTER}([ A-Za-z0-9._:/()+,=@#%-]{{0,58}}{_CHARACTER})?")
_URL = re.compile(r"http://[A-Za-z0-9._~:\[\]%-]+(/[A-Za-z0-9._~:/?=&;@+,%-]*)?")


@dataclass(frozen=True)
class Wish:
    """What the task asks for, checked. ``client`` empty: this NAS, whatever its address."""

    ipv6: bool
    protocol: str
    external_port: int
    internal_port: int
    client: str
    description: str
    lease: int
    renew: bool | None
    router: str
    search_port: int
    allow_shared: bool

    @property
    def title(self) -> str:
        """How a sentence speaks of it."""
        return f"{self.protocol} port {self.external_port}"

    def mapping(self, client: str, lease_left: int | None) -> Mapping:
        """As the router should list it."""
        ports = self.external_port, self.internal_port
        return Mapping(ports[0], self.protocol, client, ports[1], self.description, lease_left)

    @classmethod
    def of(cls, params: Dictionary[str, Any]) -> Wish:
        """From the options of the module.

        :raises UpnpError: one has a value that cannot be; with its name, the value, the remedy.
        """
        ipv6, external = params["family"] == "ipv6", params["external_port"]
        internal = external if params["internal_port"] is None else params["internal_port"]
        if params["state"] != "listed":
            _within("external_port", external, 1, 65535)
            _within("internal_port", internal, 1, 65535)
        _within("search_port", params["search_port"], 1024, 65535)
        if ipv6:
            _within("lease", params["lease"], 120, _DAY, " (a pinhole lasts a day at most)")
        elif params["lease"] != 0:
            _within("lease", params["lease"], 120, _WEEK, ", or 0 for good")
        if ipv6 and internal != external:
            raise UpnpError(
                f"internal_port={internal}: a pinhole changes no port. Leave it out, or give the "
                f"external_port={external}"
            )
        if not _TEXT.fullmatch(params["description"]):
            raise UpnpError(
                f"description={params['description']!r}: give up to 60 letters, digits, blanks "
                "between them and . _ : / ( ) + , = @ # % -"
            )
        return cls(
            ipv6=ipv6,
            protocol=params["protocol"],
            external_port=external or 0,
            internal_port=internal or 0,
            client=_client(params["internal_client"] or "", ipv6),
            description=params["description"],
            lease=params["lease"],
            renew=params["renew"],
            router=_router(params["router"] or ""),
            search_port=params["search_port"],
            allow_shared=params["allow_shared_address"],
        )


@dataclass(frozen=True)
class Record:
    """What the NAS remembers of a mapping of its own, to know it again when its address changed.

    ``listed``: the description as the router lists it. ``permanent``: the router made the mapping
    without an end, whatever was asked for. ``router``: the URL it had; by then a firewall may let
    in no answer to a search any more.
    """

    internal_client: str
    internal_port: int
    description: str
    listed: str
    lease: int
    permanent: bool
    router: str = ""

    def text(self) -> str:
        """As its file holds it."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def parse(cls, text: str) -> Record | None:
        """From its file; None when that was lost or damaged, and then it is written anew."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError):
            return None


def lease_fits(left: int | None, lease: int, record: Record | None) -> bool:
    """Whether what is left of a lease is what the task wants, or as near as the router gets."""
    if record is not None and record.lease != lease:
        return False
    if ((left or 0) > 0) == (lease > 0):
        return True
    return record is not None and record.permanent == (left == 0)


def is_ours(found: Mapping, client: str, record: Record | None) -> bool:
    """Whether a mapping leads to our client, or to where the NAS had it lead before."""
    if found.internal_client == client:
        return True
    return record is not None and (
        (record.internal_client, record.internal_port, record.listed)
        == (found.internal_client, found.internal_port, found.description)
    )


def leads_to(found: Mapping, wanted: Mapping) -> bool:
    """Whether a mapping leads where it should."""
    return (found.internal_client, found.internal_port) == (
        wanted.internal_client,
        wanted.internal_port,
    )


def is_described(found: Mapping, wanted: Mapping, record: Record | None) -> bool:
    """Whether a mapping has the wanted description, or what the router made of it."""
    # Some routers keep only its beginning, or nothing.
    if wanted.description.startswith(found.description):
        return True
    return record is not None and (
        (record.description, record.listed) == (wanted.description, found.description)
    )


def is_wanted(found: Mapping, wanted: Mapping, lease: int, record: Record | None) -> bool:
    """Whether a mapping may stay as it is."""
    described = is_described(found, wanted, record)
    return leads_to(found, wanted) and described and lease_fits(found.lease_left, lease, record)


def shown(mapping: Mapping | None) -> str:
    """Return a mapping as the difference shows it."""
    if mapping is None:
        return ""
    # How much is left would differ every time.
    lease = "for good" if mapping.lease_left == 0 else "with an end"
    return (
        f"{mapping.protocol} port {mapping.external_port} to {mapping.internal_client} "
        f"port {mapping.internal_port}, {mapping.description}, {lease}\n"
    )


def _within(option: str, value: int | None, low: int, high: int, also: str = "") -> None:
    if value is None:
        raise UpnpError(f"{option} is missing: give a number from {low} to {high}{also}")
    if not low <= value <= high:
        raise UpnpError(f"{option}={value}: give a number from {low} to {high}{also}")


def _client(text: str, ipv6: bool) -> str:
    if not text:
        return ""
    version = 6 if ipv6 else 4
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = ipaddress.ip_address("::")
    if (
        address.version != version
        or "%" in text
        or address.is_loopback
        or address.is_unspecified
        or address.is_multicast
    ):
        raise UpnpError(
            f"internal_client={text!r}: give the IPv{version} address of a device, or leave it out "
            "for this NAS"
        )
    return str(address)


def _router(text: str) -> str:
    if text and (not _URL.fullmatch(text) or len(text) > 200):
        raise UpnpError(
            f"router={text!r}: give the URL of the router's description, such as "
            "http://192.0.2.1:5000/rootDesc.xml, or leave it out to have it searched for"
        )
    return text
