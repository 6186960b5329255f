#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: upnp_port_mapping
short_description: Has the router send a port of the internet to this NAS, by UPnP, and keeps it so
version_added: 0.1.0
description:
  - Asks the router (an internet gateway device of UPnP) for a port mapping, and with O(family=ipv6)
    for a pinhole in its IPv6 firewall. It talks to the router with C(upnpc) of the package
    C(miniupnpc), on the NAS.
  - A mapping has an end, so that one which nobody wants any more goes away. A timer of systemd on
    the NAS asks for it again before it ends, and so also after the router forgot it in a restart.
  - A port that the router gave to another device is never taken over.
  - An open port is open to the whole internet. Open only what asks for a good password or key, or
    use a VPN instead.
author:
  - The nas.assistant contributors
requirements:
  - On the NAS, C(upnpc) (package C(miniupnpc)).
options:
  state:
    description:
      - V(present) has the port open, V(absent) closed, with no timer left.
      - V(listed) changes nothing and says what the router lets in.
    type: str
    choices: [present, absent, listed]
    default: present
  external_port:
    description: The port at the router. Needed unless O(state=listed).
    type: int
  internal_port:
    description: The port at the NAS, O(external_port) unless given. A pinhole has only one port.
    type: int
  protocol:
    description: What the port is of.
    type: str
    choices: [tcp, udp]
    default: tcp
  internal_client:
    description:
      - Where the router sends what arrives. Unless given, this NAS, by the address that it has
        towards the router whenever it asks.
      - Most routers open ports only for the device that asks.
    type: str
  description:
    description:
      - What the router's page shows, up to 60 characters. A pinhole has none there.
      - It may have letters, digits, blanks, and the signs full stop, underscore, colon, slash,
        brackets, plus, comma, C(=), C(@), C(#), C(%) and hyphen.
    type: str
    default: nas.assistant
  lease:
    description:
      - Seconds until the router closes the port by itself, from V(120) to V(604800) (a week); V(0)
        is for good. A pinhole lasts a day (V(86400)) at most.
      - Some routers know only mappings without an end, and some none; the module takes what they
        have and says so.
    type: int
    default: 3600
  renew:
    description:
      - Whether the NAS asks again by itself, a little before half of the lease is over.
      - Unless given, it does where the mapping has an end.
      - After the router alone restarted, the port stays closed until then. A shorter O(lease) makes
        that shorter.
    type: bool
  family:
    description:
      - V(ipv4) is a port mapping.
      - V(ipv6) is a pinhole, which lets the internet reach one port of this NAS by its own address.
        Not every router has them.
    type: str
    choices: [ipv4, ipv6]
    default: ipv4
  router:
    description:
      - URL of the router's root description, as C(upnpc -l) prints it after C(desc). Unless given,
        the router is searched for, which also finds one whose URL changes when it restarts.
    type: str
  search_port:
    description:
      - UDP port that the search is sent from. A firewall on the NAS has to let in what comes to it
        from UDP port 1900 of the router.
    type: int
    default: 19001
  allow_shared_address:
    description:
      - Goes on although the router's own address is not on the internet, because somebody opened
        the port in the router before it as well.
    type: bool
    default: false
attributes:
  check_mode:
    description: Asks the router. Where C(upnpc) is not installed yet, a change is foretold.
    support: full
  diff_mode:
    description: Shows the mapping, and the files on the NAS.
    support: full
"""

EXAMPLES = r"""
- name: Let the internet reach the NAS's HTTPS at port 8443 of the router
  nas.assistant.upnp_port_mapping:
    external_port: 8443
    internal_port: 443
    description: NAS HTTPS

- name: The same by IPv6
  nas.assistant.upnp_port_mapping:
    external_port: 8443
    family: ipv6

- name: See what the router lets in
  nas.assistant.upnp_port_mapping:
    state: listed
  register: open_ports

- name: Close it
  nas.assistant.upnp_port_mapping:
    external_port: 8443
    state: absent
"""

RETURN = r"""
mappings:
  description: What the router lets in after this task; with O(family=ipv6) this NAS's own pinholes,
    since a router lists none.
  type: list
  elements: dict
  returned: always
  contains:
    external_port:
      description: The port at the router.
      type: int
    protocol:
      description: V(tcp) or V(udp).
      type: str
    internal_client:
      description: Where it leads.
      type: str
    internal_port:
      description: To which port there.
      type: int
    description:
      description: What it is for.
      type: str
    lease_left:
      description: Seconds until it ends, 0 for good; null for a pinhole, whose router does not
        tell.
      type: int
external_address:
  description: Where the internet finds the port - the router's address, with O(family=ipv6) the
    NAS's own. Null when the router tells none.
  type: str
  returned: always
shared_address:
  description: Whether that address is not one of the internet, or missing - the provider shares
    it, a second router stands before this one, or there is no connection.
  type: bool
  returned: always
router:
  description: URL of the router's root description; empty when none was found.
  type: str
  returned: always
"""

import contextlib
import ipaddress
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, replace as with_fields
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import (
    _files as files,
    _systemd as systemd,
    _upnp as upnp,
    _upnp_plan as plan,
    _upnp_units as units,
)
from ansible_collections.nas.assistant.plugins.module_utils._commands import run
from ansible_collections.nas.assistant.plugins.module_utils._upnp import (
    Mapping,
    NoRouterError,
    Pinhole,
    Router,
    UpnpError,
)
from ansible_collections.nas.assistant.plugins.module_utils._upnp_plan import Record, Wish

FOLDER = f"/var/lib/{units.STATE}"
# Seconds for one command: the queue, a search, and a router that is slow to answer.
PATIENCE = 150


class Asker:
    """Puts one task's questions to the router."""

    def __init__(self, wish: Wish, program: str) -> None:
        self.wish, self.program = wish, program
        self.url = wish.router

    def ask(self, *what: str) -> str:
        """Run upnpc and return all that it prints.

        :raises UpnpError: it did not come to an end.
        """
        argv = upnp.command(self.program, self.wish.ipv6, self.url, self.wish.search_port, True)
        try:
            done = run([*argv, *what], timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise UpnpError(
                f"{self.url or 'the router'} was still answering after {PATIENCE} s. Restart the "
                "router, or give another as router=URL"
            ) from None
        if done.returncode == upnp.BUSY:
            raise UpnpError(
                f"another upnpc has been running on this NAS for {upnp.QUEUE} s. Try again later"
            )
        return str(done.stdout + done.stderr)

    def router(self) -> Router:
        """Return what the router says of itself; later questions go straight to it.

        :raises UpnpError: there is none, or it makes no sense.
        """
        found = upnp.parse_router(self.ask("-S" if self.wish.ipv6 else "-l"), self.url)
        # A URL with a link-local address lacks the interface, so that one is searched for again.
        self.url = "" if "[fe80" in found.url.lower() else found.url
        return found

    def add(self, wanted: Mapping) -> int:
        """Have the router make or prolong a mapping; return the error, 0 without one."""
        for lease in dict.fromkeys((self.wish.lease, 0)):
            said = self.ask(*upnp.add_mapping(wanted, wanted.internal_client, lease))
            # What else fails afterwards is that it is shown, and it is looked for anyway.
            code = upnp.parse_code(said) if "AddPortMapping(" in said else 0
            if code != upnp.ONLY_PERMANENT:
                break
        return code

    def delete(self) -> None:
        """Have the router remove the mapping; one that is gone already is as good."""
        wish = self.wish
        said = self.ask("-d", str(wish.external_port), wish.protocol.upper())
        code = upnp.parse_code(said)
        if "UPNP_DeletePortMapping() returned" not in said and code != upnp.NO_SUCH_MAPPING:
            raise UpnpError(f"{wish.title} cannot be closed: {upnp.explain(code)}")

    def open(self, client: str) -> tuple[Pinhole, str]:
        """Have the router make or prolong a pinhole; return it, and the line that tells of it."""
        wish = self.wish
        said = self.ask(*upnp.add_pinhole(client, wish.internal_port, wish.protocol, wish.lease))
        pinhole = upnp.parse_pinhole(said)
        if not pinhole:
            raise UpnpError(f"{wish.title}: {upnp.explain(upnp.parse_code(said))}")
        return pinhole, next(line for line in said.splitlines() if "Pinhole ID = " in line)

    def close(self, client: str) -> None:
        """Have the router remove a pinhole."""
        # A router that restarted counts anew, and the number that was kept may be that of another
        # pinhole by now. Asked for the same one again, it tells the number.
        pinhole, _ = self.open(client)
        said = self.ask("-D", pinhole.number)
        if "UPNP_DeletePinhole() returned : 0" not in said:
            why = upnp.explain(upnp.parse_code(said))
            raise UpnpError(f"{self.wish.title} cannot be closed: {why}")

    def has(self, pinhole: Pinhole | None) -> bool:
        """Whether the router knows a pinhole."""
        return pinhole is not None and "PinholePackets = " in self.ask("-K", pinhole.number)


def read(path: str) -> str:
    """Return a file's text; empty when there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


class Task:
    """One task of the module, from what is to what should be; ``answer`` is its result."""

    def __init__(self, module: AnsibleModule, wish: Wish, answer: dict[str, Any]) -> None:
        self.module, self.wish, self.answer = module, wish, answer
        self.check: bool = module.check_mode
        name = units.name(wish.ipv6, wish.protocol, wish.external_port)
        self.timer, self.service = f"{name}.timer", f"{name}.service"
        self.record_file, self.pinhole_file = f"{FOLDER}/{name}.json", f"{FOLDER}/{name}.pinhole"
        self.record = Record.parse(read(self.record_file))
        self.pinhole = upnp.parse_pinhole(read(self.pinhole_file))
        self.program = module.get_bin_path("upnpc") or ""
        self.asker = Asker(wish, self.program)

    def run(self, state: str) -> None:
        """Carry it out."""
        if not self.program and self.check and state == "present":
            self.module.warn("upnpc is not installed yet, so the router was not asked")
            self.answer["changed"] = True
            return
        try:
            router = self._remembered_router() if state == "absent" else None
            router = router or self._router()
        except NoRouterError as error:
            if state != "absent":
                raise
            self._absent_without_router(str(error))
            return
        if state == "present":
            self._present(router)
        elif state == "absent":
            self._absent(router)

    def _remembered_router(self) -> Router | None:
        """Ask the router that the mapping was made at, without a search; None if it is not there.

        What closes a port in the inventory may have closed the firewall to answers as well.
        """
        if self.program and self.record and self.record.router and not self.wish.router:
            self.asker.url = self.record.router
            with contextlib.suppress(UpnpError):
                return self._router()
            self.asker.url = ""
        return None

    def _router(self) -> Router:
        """Ask the router, and put what it says in the answer."""
        if not self.program:
            raise NoRouterError("upnpc is missing on this NAS: install the package miniupnpc")
        router = self.asker.router()
        client = self.wish.client or router.own
        if self.wish.ipv6:
            where, shared = client, not upnp.is_global(client)
        else:
            where, shared = router.external, bool(upnp.shared(router))
        facts = {"router": router.url, "external_address": where, "shared_address": shared}
        self.answer.update(facts)
        self._list(router)
        return router

    def _list(self, router: Router) -> None:
        found = self._pinholes() if self.wish.ipv6 else router.mappings
        self.answer["mappings"] = [asdict(mapping) for mapping in found]

    def _pinholes(self) -> list[Mapping]:
        """Return this NAS's pinholes that the router still knows."""
        found = []
        for entry in sorted(os.listdir(FOLDER)) if os.path.isdir(FOLDER) else []:
            named = re.fullmatch(r"nas-upnp-ipv6-(tcp|udp)-\d+\.pinhole", entry)
            path = f"{FOLDER}/{entry}"
            pinhole = upnp.parse_pinhole(read(path)) if named else None
            if named and pinhole and self.asker.has(pinhole):
                record = Record.parse(read(f"{path.removesuffix('.pinhole')}.json"))
                text, port = record.description if record else "", pinhole.port
                found.append(Mapping(port, named[1], pinhole.client, port, text, None))
        return found

    def _present(self, router: Router) -> None:
        client = self.wish.client or router.own
        self._must_be_reachable(router, client)
        wanted = self.wish.mapping(client, None)
        if self.wish.ipv6:
            found, made = self._present_pinhole(wanted)
        else:
            found, made = self._present_mapping(router, wanted)
        self._difference(found, made)
        self._keep(made)
        if self.wish.ipv6 and not self.check:
            self._list(router)
        self._warn(made)

    def _must_be_reachable(self, router: Router, client: str) -> None:
        if not self.wish.ipv6:
            reason = upnp.shared(router)
        elif ipaddress.ip_address(router.own).version != 6:
            raise UpnpError(f"router={router.url} is reached by IPv4: give its URL with IPv6")
        elif not router.pinholes:
            raise UpnpError(
                f"{router.url} opens no pinholes for IPv6: it does not know them "
                "(WANIPv6FirewallControl), or forbids them. Allow them in the router, or open the "
                "port there by hand"
            )
        else:
            reason = (
                ""
                if upnp.is_global(client)
                else (
                    f"{client} cannot be reached from the internet. Give the NAS's global IPv6 "
                    "address as internal_client, or ask the provider for IPv6"
                )
            )
        if reason and not self.wish.allow_shared:
            raise UpnpError(reason)

    def _present_mapping(self, router: Router, wanted: Mapping) -> tuple[Mapping | None, Mapping]:
        """Have the mapping as wanted; return what was there and what is."""
        lease, found = self.wish.lease, self._find(router)
        if found and not plan.is_ours(found, wanted.internal_client, self.record):
            raise UpnpError(
                f"{self.wish.title} of the router belongs to {found.internal_client} port "
                f"{found.internal_port} ({found.description}). Choose another external_port, or "
                "remove that one in the router or on that device"
            )
        if found and plan.is_wanted(found, wanted, lease, self.record):
            return found, found
        self.answer["changed"] = True
        if self.check:
            return found, with_fields(wanted, lease_left=lease)
        return found, self._make(wanted, found)

    def _find(self, router: Router) -> Mapping | None:
        key = (self.wish.protocol, self.wish.external_port)
        return next((m for m in router.mappings if (m.protocol, m.external_port) == key), None)

    def _make(self, wanted: Mapping, found: Mapping | None) -> Mapping:
        code, made = self._add(wanted)
        # Not every router changes a mapping that is there, so it may have to go first.
        stuck = made is None or not (
            plan.leads_to(made, wanted) and plan.is_described(made, wanted, None)
        )
        if found and (code == upnp.CONFLICT or (code == 0 and stuck)):
            self.asker.delete()
            code, made = self._add(wanted)
        if code:
            raise UpnpError(f"{self.wish.title}: {upnp.explain(code)}")
        if made is None or not plan.leads_to(made, wanted):
            raise UpnpError(
                f"{self.wish.title}: the router says that it is open, and does not list it. "
                "Restart the router, and look for a new version of its software"
            )
        return made

    def _add(self, wanted: Mapping) -> tuple[int, Mapping | None]:
        code = self.asker.add(wanted)
        if code:
            return code, None
        router = self.asker.router()
        self._list(router)
        return 0, self._find(router)

    def _present_pinhole(self, wanted: Mapping) -> tuple[Mapping | None, Mapping]:
        """Have the pinhole as wanted; return what was there and what is."""
        there = self.asker.has(self.pinhole)
        found = None
        if self.pinhole and there:
            found = with_fields(wanted, internal_client=self.pinhole.client)
        known = self.record.lease if self.record else None
        if found == wanted and known == self.wish.lease:
            return found, wanted
        self.answer["changed"] = True
        if not self.check:
            if found and found.internal_client != wanted.internal_client:
                self.asker.close(found.internal_client)
            _, line = self.asker.open(wanted.internal_client)
            files.replace(self.pinhole_file, f"{line}\n".encode(), 0, 0, 0o644)
        return found, wanted

    def _keep(self, made: Mapping) -> None:
        """Bring the files and the timer to where they should be."""
        wish, permanent = self.wish, made.lease_left == 0
        record = Record(
            made.internal_client,
            made.internal_port,
            wish.description,
            made.description,
            wish.lease,
            permanent,
            self.answer["router"],
        )
        # A router that has another URL since it restarted is no change of what was asked for.
        if self.record and with_fields(self.record, router=record.router) == record:
            if record != self.record and not self.check:
                files.replace(self.record_file, record.text().encode(), 0, 0, 0o644)
        else:
            self._write({self.record_file: record.text()})
        renew = wish.renew if wish.renew is not None else wish.lease > 0 or not permanent
        if not renew:
            self._remove_units()
            return
        pinhole_file = self.pinhole_file if wish.ipv6 else ""
        service = units.service(wish.title, self._renewal(permanent), pinhole_file)
        changed = self._write(
            {
                f"{units.UNITS}/{self.service}": service,
                f"{units.UNITS}/{self.timer}": units.timer(wish.title, wish.lease),
            }
        )
        if changed and not self.check:
            systemd.systemctl("daemon-reload")
        properties = systemd.show([self.timer])[self.timer]
        self._carry_out(self.timer, systemd.plan(properties, ["unit"] * changed, "restart"))

    def _renewal(self, permanent: bool) -> Sequence[str]:
        wish = self.wish
        # Whether a router has an IPv4 address of its own does not matter to a pinhole.
        lenient = wish.allow_shared or wish.ipv6
        argv = upnp.command(self.program, wish.ipv6, wish.router, wish.search_port, lenient)
        # upnpc puts the address of the moment in the place of @.
        client = wish.client or "@"
        if wish.ipv6:
            what = upnp.add_pinhole(client, wish.internal_port, wish.protocol, wish.lease)
        else:
            lease = 0 if permanent else wish.lease
            what = upnp.add_mapping(wish.mapping(client, None), client, lease)
        return [*argv, *what]

    def _remove_units(self) -> None:
        properties = systemd.show([self.timer, self.service])
        for unit, found in properties.items():
            self._carry_out(unit, systemd.plan_off(found))
        # The link is left where somebody removed the timer's file without disabling it.
        names = (f"timers.target.wants/{self.timer}", self.timer, self.service)
        if self._write({f"{units.UNITS}/{name}": "" for name in names}) and not self.check:
            systemd.systemctl("daemon-reload")
            # A service that failed last would be remembered although its file is gone.
            run(["systemctl", "reset-failed", self.service])

    def _carry_out(self, unit: str, verbs: Sequence[str]) -> None:
        self.answer["changed"] |= bool(verbs)
        if not self.check:
            systemd.carry_out(unit, verbs, "")

    def _write(self, wanted: dict[str, str]) -> bool:
        """Bring files to their text, empty for none; return whether one changes."""
        changed = False
        for path, text in wanted.items():
            old = read(path)
            if old == text and os.path.lexists(path) == bool(text):
                continue
            changed = True
            self._show(path, old, text)
            if self.check:
                continue
            if text:
                files.replace(path, text.encode(), 0, 0, 0o644)
            else:
                os.unlink(path)
        self.answer["changed"] |= changed
        return changed

    def _absent(self, router: Router) -> None:
        if self.wish.ipv6:
            found = None
            if self.pinhole and self.asker.has(self.pinhole):
                found = self.wish.mapping(self.pinhole.client, None)
        else:
            found = self._find(router)
            if found and not plan.is_ours(found, self.wish.client or router.own, self.record):
                self.module.warn(
                    f"{self.wish.title} of the router belongs to {found.internal_client} port "
                    f"{found.internal_port} ({found.description}), and was left as it is"
                )
                found = None
        # The timer first: it would open the port again.
        self._remove_units()
        self._difference(found, None)
        self.answer["changed"] |= found is not None
        if found and not self.check:
            if self.wish.ipv6:
                self.asker.close(found.internal_client)
            else:
                self.asker.delete()
        self._forget()
        if found and not self.check:
            self._list(router if self.wish.ipv6 else self.asker.router())

    def _absent_without_router(self, reason: str) -> None:
        left = self.record
        self._remove_units()
        self._forget()
        if left:
            end = "for good" if left.permanent else "until its lease ends"
            self.module.warn(f"What the router may have of {self.wish.title} stays {end}: {reason}")

    def _forget(self) -> None:
        self._write({self.record_file: "", self.pinhole_file: ""})
        if not self.check:
            # Others may have theirs there.
            with contextlib.suppress(OSError):
                os.rmdir(FOLDER)

    def _difference(self, found: Mapping | None, made: Mapping | None) -> None:
        if plan.shown(found) != plan.shown(made):
            self._show(self.answer["router"], plan.shown(found), plan.shown(made))

    def _show(self, header: str, before: str, after: str) -> None:
        shown = {"before_header": header, "after_header": header, "before": before, "after": after}
        self.answer["diff"].append(shown)

    def _warn(self, made: Mapping) -> None:
        wish, permanent = self.wish, made.lease_left == 0
        place = self.answer["external_address"] or "the router's address"
        self.module.warn(
            f"{wish.title} at {place} {'would be' if self.check else 'is'} open to the whole "
            f"internet, and leads to {made.internal_client} port {made.internal_port}. What "
            "listens there must ask for a good password or key"
        )
        if permanent and wish.lease:
            self.module.warn(
                f"The router knows only mappings without an end, so {wish.title} stays open until "
                "state=absent, or until somebody removes it in the router"
            )
        if not permanent and not wish.lease:
            end = "closes when its lease ends" if wish.renew is False else "is renewed by a timer"
            self.module.warn(f"The router knows no mappings without an end, so {wish.title} {end}")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["present", "absent", "listed"],
                "default": "present",
            },
            "external_port": {"type": "int"},
            "internal_port": {"type": "int"},
            "protocol": {"type": "str", "choices": ["tcp", "udp"], "default": "tcp"},
            "internal_client": {"type": "str"},
            "description": {"type": "str", "default": "nas.assistant"},
            "lease": {"type": "int", "default": 3600},
            "renew": {"type": "bool"},
            "family": {"type": "str", "choices": ["ipv4", "ipv6"], "default": "ipv4"},
            "router": {"type": "str"},
            "search_port": {"type": "int", "default": 19001},
            "allow_shared_address": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    answer: dict[str, Any] = {
        "changed": False,
        "mappings": [],
        "external_address": None,
        "shared_address": False,
        "router": "",
        "diff": [],
    }
    try:
        Task(module, Wish.of(module.params), answer).run(module.params["state"])
    except (UpnpError, systemd.SystemdError, OSError) as error:
        module.fail_json(msg=str(error), **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
