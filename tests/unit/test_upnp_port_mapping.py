# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A router's ports: what upnpc prints, what is decided, the units, and routers with their own ways.

The texts are those of upnpc 2.2.4 and 2.2.8, as they printed them in front of miniupnpd.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import (
    _upnp as upnp,
    _upnp_plan as plan,
    _upnp_units as units,
)
from ansible_collections.nas.assistant.plugins.module_utils._upnp import (
    Mapping,
    NoRouterError,
    Pinhole,
    UpnpError,
)
from ansible_collections.nas.assistant.plugins.module_utils._upnp_plan import Record, Wish
from ansible_collections.nas.assistant.plugins.modules import upnp_port_mapping as module

Answer = dict[str, Any]

BANNER = """\
upnpc : miniupnpc library test client, version 2.2.4.
 (c) 2005-2022 Thomas Bernard.
Go to http://miniupnp.free.fr/ or https://miniupnp.tuxfamily.org/
for more information.
"""
BANNER_228 = """\
upnpc: miniupnpc library test client, version 2.2.8.
 (c) 2005-2024 Thomas Bernard.
More information at https://miniupnp.tuxfamily.org/ or http://miniupnp.free.fr/

"""
URL = "http://172.19.0.2:5555/rootDesc.xml"
FOUND = f"""\
List of UPNP devices found on the network :
 desc: http://172.19.0.9:80/description.xml
 st: upnp:rootdevice

 desc: {URL}
 st: urn:schemas-upnp-org:device:InternetGatewayDevice:1

"""
VALID = "Found valid IGD : http://172.19.0.2:5555/ctl/IPConn\nLocal LAN ip address : 172.19.0.11\n"
STATUS = """\
Connection Type : IP_Routed
Status : Connected, uptime=12599s, LastConnectionError : ERROR_NONE
  Time started : Tue Nov 24 14:47:03 2026
MaxBitRateDown : 1410065408 bps (1410.0 Mbps)   MaxBitRateUp 1410065408 bps (1410.0 Mbps)
"""
EXTERNAL = "ExternalIPAddress = 11.22.33.44\n"
NO_EXTERNAL = "GetExternalIPAddress failed. (empty string)\n"
HEADER = " i protocol exPort->inAddr:inPort description remoteHost leaseTime\n"
ENTRIES = """\
 0 TCP  8090->172.19.0.2:8090  'other' '' 3593
 1 TCP  8080->172.19.0.11:8081  'nas.assistant' '' 81
10 UDP    53->172.19.0.11:53    'it's 'odd' '' 0
"""
END = "GetGenericPortMappingEntry() returned 713 (SpecifiedArrayIndexInvalid)\n"
NONSENSE = f"""\
{BANNER}Found valid IGD : http://172.19.0.2:8000/
Local LAN ip address : 172.19.0.11
GetConnectionTypeInfo failed.
GetStatusInfo failed.
GetLinkLayerMaxBitRates failed.
GetExternalIPAddress failed. (errorcode=-1)
{HEADER}GetGenericPortMappingEntry() returned -1 (Miniupnpc Unknown Error)
"""
FIREWALL = f"""\
{BANNER}List of UPNP devices found on the network :
 desc: http://[2a01:aaaa::1]:5555/rootDesc.xml
 st: urn:schemas-upnp-org:device:InternetGatewayDevice:1

Found valid IGD : http://[2a01:aaaa::1]:5555/ctl/IPConn
Local LAN ip address : 2a01:aaaa::11
FirewallEnabled: 1 & Inbound Pinhole Allowed: 1
GetFirewallStatus:
   Firewall Enabled: Yes
   Inbound Pinhole Allowed: Yes
Bytes:   Sent:      766	Recv:      516
Packets: Sent:        5	Recv:        6
"""
MINE = Mapping(8080, "tcp", "172.19.0.11", 8081, "nas.assistant", 81)
OTHER = Mapping(8090, "tcp", "172.19.0.2", 8090, "other", 3593)
ODD = Mapping(53, "udp", "172.19.0.11", 53, "it's 'odd", 0)


@pytest.mark.parametrize(
    ("text", "external", "connected", "mappings"),
    [
        (BANNER + FOUND + VALID + STATUS + EXTERNAL + HEADER + END, "11.22.33.44", True, ()),
        (BANNER_228 + FOUND + VALID + STATUS + EXTERNAL + HEADER, "11.22.33.44", True, ()),
        (
            BANNER + FOUND + VALID + STATUS + EXTERNAL + HEADER + ENTRIES + END,
            "11.22.33.44",
            True,
            (OTHER, MINE, ODD),
        ),
        # A private address at the router's other side, which miniupnpd does not tell.
        (
            BANNER
            + FOUND
            + VALID.replace("valid IGD", "a (not connected?) IGD").replace(
                "\nLocal", "\nTrying to continue anyway\nLocal"
            )
            + STATUS
            + NO_EXTERNAL
            + HEADER
            + END,
            None,
            True,
            (),
        ),
        (
            BANNER_228
            + FOUND
            + VALID.replace("valid IGD", "an IGD with a reserved IP address ()")
            + STATUS
            + NO_EXTERNAL
            + HEADER,
            None,
            True,
            (),
        ),
        # No connection.
        (
            BANNER
            + FOUND
            + VALID.replace("valid IGD", "a (not connected?) IGD")
            + STATUS.replace("Connected", "Disconnected")
            + NO_EXTERNAL
            + HEADER
            + END,
            None,
            False,
            (),
        ),
    ],
)
def test_a_router(
    text: str, external: str | None, connected: bool, mappings: tuple[Mapping, ...]
) -> None:
    router = upnp.parse_router(text)
    assert (router.url, router.own) == (URL, "172.19.0.11")
    assert (router.external, router.connected) == (external, connected)
    assert router.mappings == mappings
    assert not router.pinholes
    assert upnp.parse_router(text, "http://given/").url == "http://given/"


def test_a_router_with_pinholes() -> None:
    router = upnp.parse_router(FIREWALL)
    assert router.url == "http://[2a01:aaaa::1]:5555/rootDesc.xml"
    assert (router.own, router.pinholes) == ("2a01:aaaa::11", True)
    assert not upnp.parse_router(FIREWALL.replace("Yes", "No").replace("1\n", "0\n")).pinholes


NO_DEVICE = BANNER + "No IGD UPnP Device found on the network !\n"
NO_IGD = f"connect: Connection refused\n{BANNER}No valid UPNP Internet Gateway Device found.\n"
TELEVISION = """\
UPnP device found. Is it an IGD ? : http://192.168.1.64:80/
Trying to continue anyway
Local LAN ip address : 192.168.1.5
"""


@pytest.mark.parametrize(
    ("text", "given", "error", "words"),
    [
        (NO_DEVICE, "", NoRouterError, "switch UPnP on in the router, or give its address as rou"),
        (NO_IGD, "http://192.0.2.1/x", NoRouterError, "router=http://192.0.2.1/x: no router"),
        (TELEVISION, "", NoRouterError, "http://192.168.1.64:80/ answers, but is no router"),
        ("", "", NoRouterError, "no router that speaks UPnP was found: switch"),
        (NONSENSE, "", UpnpError, "does not speak the language of a router"),
        (VALID + STATUS, "", UpnpError, "upnpc broke off"),
        (VALID.replace("172.19.0.11", "unset"), "", UpnpError, "found no way to it (unset)"),
        (
            VALID + HEADER + END.replace("713", "606"),
            "",
            UpnpError,
            "does not tell its mappings: the router does not allow it",
        ),
    ],
)
def test_no_router(text: str, given: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        upnp.parse_router(text, given)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("AddPortMapping(81, 81, 172.19.0.11) failed with code 606 (Action not authorized)\n", 606),
        ("GetSpecificPortMappingEntry() failed with code -1 (Miniupnpc Unknown Error)\n", -1),
        ("UPNP_DeletePortMapping() failed with code : 606\n", 606),
        ("UPNP_DeletePortMapping() returned : 0\n", 0),
        ("UPNP_DeletePinhole() returned : 402\n", 402),
        ("UPNP_DeletePinhole() returned : 0\n", 0),
        ("AddPinhole([]:0 -> [2a01:aaaa::11]:443) failed with code 606 (Action not auth", 606),
        ("GetPinholePackets() failed with code 402 (Invalid Args)\n", 402),
        ("GetPinholePackets: Pinhole ID = 1 / PinholePackets = 0\n", 0),
        (BANNER, 0),
    ],
)
def test_codes(text: str, code: int) -> None:
    assert upnp.parse_code(text) == code


@pytest.mark.parametrize(
    ("code", "words"),
    [(606, "keeps this port"), (718, "another device"), (-3, "no sense"), (999, "router fails")],
)
def test_codes_in_words(code: int, words: str) -> None:
    assert words in upnp.explain(code)
    assert f"(UPnP error {code})" in upnp.explain(code)


def test_every_code_has_words() -> None:
    known = {402, 501, 606, 714, 718, *range(701, 710), 716, *range(724, 729)}
    assert known <= set(upnp.WORDS)


def test_a_pinhole() -> None:
    text = "AddPinhole: ([]:0 -> [2a01:aaaa::11]:8093) / Pinhole ID = 12\n"
    assert upnp.parse_pinhole(BANNER + text) == Pinhole("12", "2a01:aaaa::11", 8093)
    assert upnp.parse_pinhole(BANNER) is None


@pytest.mark.parametrize(
    ("external", "connected", "words"),
    [
        ("11.22.33.44", True, ""),
        ("11.22.33.44", False, ""),
        ("100.64.1.2", True, "100.64.1.2 is one that providers share among customers"),
        ("192.168.0.2", True, "192.168.0.2 is not one of the internet: the provider"),
        ("10.0.0.2", True, "a second router stands before it"),
        ("192.0.2.1", True, "is not one of the internet"),
        (None, True, "tells no address of its own on the internet: the provider"),
        ("0.0.0.0", True, "tells no address"),
        (None, False, "has no connection to the internet"),
    ],
)
def test_shared_addresses(external: str | None, connected: bool, words: str) -> None:
    reason = upnp.shared(upnp.Router(URL, "172.19.0.11", external, connected))
    assert words in reason
    assert bool(reason) == bool(words)


OPTIONS: Answer = {
    "state": "present",
    "external_port": 8080,
    "internal_port": None,
    "protocol": "tcp",
    "internal_client": None,
    "description": "nas.assistant",
    "lease": 3600,
    "renew": None,
    "family": "ipv4",
    "router": None,
    "search_port": 19001,
    "allow_shared_address": False,
}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"external_port": None}, "external_port is missing: give a number from 1 to 65535"),
        ({"external_port": 0}, "external_port=0: give"),
        ({"external_port": 65536}, "external_port=65536: give"),
        ({"internal_port": 0}, "internal_port=0: give"),
        ({"search_port": 1023}, "search_port=1023: give a number from 1024"),
        ({"lease": 119}, "lease=119: give a number from 120 to 604800, or 0 for good"),
        ({"lease": 604801}, "lease=604801"),
        ({"lease": 0, "family": "ipv6"}, "lease=0: give a number from 120 to 86400"),
        ({"internal_port": 81, "family": "ipv6"}, "internal_port=81: a pinhole changes no port"),
        ({"description": ""}, "description=''"),
        ({"description": "x" * 61}, "description='xxx"),
        ({"description": " x"}, "description=' x'"),
        ({"description": "x\n"}, r"description='x\n'"),
        ({"description": "<b>"}, "description='<b>'"),
        ({"description": "it's"}, 'description="it\'s"'),
        ({"description": "für"}, "description='für'"),
        ({"internal_client": "nas"}, "internal_client='nas': give the IPv4 address"),
        ({"internal_client": "2001:db8::1"}, "give the IPv4 address"),
        ({"internal_client": "127.0.0.1"}, "give the IPv4 address"),
        ({"internal_client": "192.0.2.1", "family": "ipv6"}, "give the IPv6 address"),
        ({"internal_client": "fe80::1%eth0", "family": "ipv6"}, "give the IPv6 address"),
        ({"router": "https://192.0.2.1/"}, "router='https://192.0.2.1/': give the URL"),
        ({"router": "http://192.0.2.1/ -d"}, "give the URL"),
        ({"router": 'http://192.0.2.1/"'}, "give the URL"),
    ],
)
def test_options_that_cannot_be(options: Answer, words: str) -> None:
    with pytest.raises(UpnpError) as raised:
        Wish.of({**OPTIONS, **options})
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"external_port": None, "state": "listed"},
        {"lease": 0},
        {"lease": 604800},
        {"description": "NAS (HTTPS), 100% = a+b @ #1"},
        {"router": "http://[2001:db8::1]:5000/rootDesc.xml"},
        {"router": "http://192.0.2.1"},
    ],
)
def test_options_that_can_be(options: Answer) -> None:
    Wish.of({**OPTIONS, **options})


RECORD = Record("172.19.0.11", 8081, "nas.assistant", "nas.assistant", 3600, False)


@pytest.mark.parametrize(
    ("left", "lease", "record", "fits"),
    [
        (10, 3600, None, True),
        (10, 3600, RECORD, True),
        (10, 7200, RECORD, False),
        (0, 0, None, True),
        (10, 0, None, False),
        (0, 3600, None, False),
        # The router knows only those without an end, or none; that was found out before.
        (0, 3600, replace(RECORD, permanent=True), True),
        (10, 0, replace(RECORD, lease=0), True),
    ],
)
def test_leases(left: int, lease: int, record: Record | None, fits: bool) -> None:
    assert plan.lease_fits(left, lease, record) == fits


@pytest.mark.parametrize(
    ("client", "record", "ours"),
    [
        ("172.19.0.11", None, True),
        ("172.19.0.12", None, False),
        # The NAS had another address when it made it.
        ("172.19.0.12", RECORD, True),
        ("172.19.0.12", replace(RECORD, internal_port=1), False),
        ("172.19.0.12", replace(RECORD, listed="x"), False),
    ],
)
def test_whose_mapping(client: str, record: Record | None, ours: bool) -> None:
    assert plan.is_ours(MINE, client, record) == ours


@pytest.mark.parametrize(
    ("change", "record", "wanted"),
    [
        ({}, None, True),
        ({"internal_port": 1}, None, False),
        ({"internal_client": "172.19.0.12"}, None, False),
        ({"description": "x"}, None, False),
        # Routers that keep no description, its beginning, or one of their own.
        ({"description": ""}, None, True),
        ({"description": "nas.ass"}, None, True),
        ({"description": "x"}, replace(RECORD, listed="x"), True),
    ],
)
def test_what_may_stay(change: Answer, record: Record | None, wanted: bool) -> None:
    assert plan.is_wanted(replace(MINE, **change), MINE, 3600, record) == wanted


@pytest.mark.parametrize("text", ["", "{", "[]", '{"lease": 1}', "null"])
def test_a_damaged_record(text: str) -> None:
    assert Record.parse(text) is None
    assert Record.parse(RECORD.text()) == RECORD


def test_the_renewal_fails_clearly_and_succeeds_quietly(tmp_path: Path) -> None:
    def run(script: str, *argv: str) -> tuple[int, str]:
        done = subprocess.run(
            ["sh", "-c", script, "x", *argv], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    assert run(units.RENEW, "echo", "a") == (0, "")
    said = "echo banner; echo 'AddPortMapping() failed with code 718'; exit 2"
    assert run(units.RENEW, "sh", "-c", said) == (2, "AddPortMapping() failed with code 718\n")
    assert run(units.RENEW, "sh", "-c", "echo what; exit 3") == (3, "what\n")
    file = tmp_path / "pinhole"
    line = "AddPinhole: ([]:0 -> [2a01:aaaa::11]:8093) / Pinhole ID = 12"
    assert run(units.RENEW_PINHOLE, str(file), "echo", f"{BANNER}{line}") == (0, "")
    assert file.read_text() == f"{line}\n"
    refused = "AddPinhole([]:0 -> [::]:443) failed with code 606 (Action not authorized)"
    assert run(units.RENEW_PINHOLE, str(file), "echo", BANNER + refused) == (1, f"{refused}\n")
    assert file.read_text() == f"{line}\n"


def test_units() -> None:
    argv = upnp.command("/usr/bin/upnpc", False, "", 19001, False)
    argv += upnp.add_mapping(replace(MINE, description="100% $HOME"), "@", 3600)
    text = units.service("tcp port 8080", argv)
    assert text.count("\nExecStart=") == 1
    expected = (
        '"flock" "--wait" "60" "--conflict-exit-code" "75" "/usr/bin/upnpc" "/usr/bin/upnpc" "-z" '
        '"19001" "-e" "100%% $$HOME" "-a" "@" "8081" "8080" "TCP" "3600"\nDynamicUser=yes\n'
    )
    assert expected in text
    assert "CapabilityBoundingSet=\n" in text
    # Nothing of the scripts is taken for a specifier or a variable.
    line = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    assert "$" not in line.replace("$$", "")
    assert "%" not in line.replace("%%", "")
    pinhole = units.service("tcp port 8080", ["x"], "/var/lib/nas-assistant-upnp/x.pinhole")
    assert "StateDirectory=nas-assistant-upnp\n" in pinhole
    assert "DynamicUser" not in pinhole
    assert "OnBootSec=480\nOnUnitActiveSec=1770\n" in units.timer("tcp port 8080", 3600)


@pytest.mark.parametrize("lease", [120, 600, 3600, 604800])
def test_one_failed_renewal_is_made_good_before_the_end(lease: int) -> None:
    # The random delay and the accuracy of the timer come on top.
    assert 0 < 2 * (units.interval(lease) + 15) < lease


class FakeRouter:
    """A router with ways of its own, behind the same text as upnpc prints."""

    def __init__(self) -> None:
        self.mappings: dict[tuple[str, str], Mapping] = {}
        self.external = "11.22.33.44"
        self.own = "172.19.0.11"
        self.permanent_only = False
        self.never_changes = False
        self.renames = False
        self.forgets = False
        self.asked: list[str] = []
        self.warnings: list[str] = []

    def warned(self) -> str:
        """What the module warned of since this was last asked."""
        text = " ".join(self.warnings)
        self.warnings.clear()
        return text

    def ask(self, *what: str) -> str:
        """As Asker.ask."""
        self.asked.append(what[0])
        if what[0] == "-l":
            return self._list()
        if what[0] == "-d":
            self.mappings.pop((what[1], what[2]), None)
            return "UPNP_DeletePortMapping() returned : 0\n"
        _, description, _, client, internal, external, protocol, lease = what
        code = self._add(description, client, internal, external, protocol, int(lease))
        return f"AddPortMapping({external}, {internal}, {client}) failed with code {code}" * bool(
            code
        )

    def _add(
        self, description: str, client: str, internal: str, external: str, protocol: str, lease: int
    ) -> int:
        if self.permanent_only and lease:
            return 725
        if (external, protocol) in self.mappings and self.never_changes:
            return 718
        text = f"UPnP {description}" if self.renames else description
        made = Mapping(int(external), protocol.lower(), client, int(internal), text, lease)
        if not self.forgets:
            self.mappings[external, protocol] = made
        return 0

    def _list(self) -> str:
        lines = [
            f"{number:2d} {one.protocol.upper()} {one.external_port:5d}->{one.internal_client}:"
            f"{one.internal_port:<5d} '{one.description}' '' {one.lease_left}\n"
            for number, one in enumerate(self.mappings.values())
        ]
        external = EXTERNAL.replace("11.22.33.44", self.external)
        valid = VALID.replace("172.19.0.11", self.own)
        return FOUND + valid + STATUS + external + HEADER + "".join(lines) + END


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRouter:
    """A router, and a NAS whose files are elsewhere and whose systemd remembers one timer."""
    made = FakeRouter()
    # Where Ansible itself was imported, as by other tests, it prints them at once.
    monkeypatch.setattr(module.AnsibleModule, "warn", lambda _, text: made.warnings.append(text))
    active: list[str] = []

    def show(names: list[str]) -> dict[str, dict[str, str]]:
        state = {True: ("active", "enabled"), False: ("inactive", "disabled")}
        return {
            name: dict(
                zip(("ActiveState", "UnitFileState"), state[name in active], strict=True),
                LoadState="loaded",
            )
            for name in names
        }

    def carry_out(unit: str, verbs: list[str], _: str) -> None:
        if "start" in verbs:
            active.append(unit)
        if "stop" in verbs:
            active.remove(unit)

    def write(path: str, content: bytes, *_: int) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)

    monkeypatch.setattr(module, "FOLDER", str(tmp_path / "state"))
    monkeypatch.setattr(units, "UNITS", str(tmp_path / "units"))
    monkeypatch.setattr(module.Asker, "ask", lambda _, *what: made.ask(*what))
    monkeypatch.setattr(module.AnsibleModule, "get_bin_path", lambda *_: "/usr/bin/upnpc")
    monkeypatch.setattr(module.files, "replace", write)
    monkeypatch.setattr(module, "run", lambda _: None)
    monkeypatch.setattr(module.systemd, "systemctl", lambda *_: "")
    monkeypatch.setattr(module.systemd, "show", show)
    monkeypatch.setattr(module.systemd, "carry_out", carry_out)
    return made


Call = Callable[..., Answer]


def test_made_once(router: FakeRouter, call: Call, tmp_path: Path) -> None:
    wish = {"external_port": 8080, "description": "x"}
    planned = call(module.main, check=True, **wish)
    assert planned["changed"]
    assert not router.mappings
    assert not list(tmp_path.iterdir())
    done = call(module.main, **wish)
    assert done["changed"]
    assert [one["external_port"] for one in done["mappings"]] == [8080]
    assert "open to the whole internet" in router.warned()
    assert not call(module.main, **wish)["changed"]
    assert call(module.main, **{**wish, "lease": 600})["changed"]
    assert call(module.main, **{**wish, "lease": 600, "renew": False})["changed"]
    assert not list((tmp_path / "units").iterdir())
    assert not call(module.main, **{**wish, "lease": 600, "renew": False})["changed"]
    assert call(module.main, state="absent", **wish)["changed"]
    assert not list(tmp_path.rglob("*upnp*"))
    assert not call(module.main, state="absent", **wish)["changed"]


def test_a_router_without_leases(router: FakeRouter, call: Call, tmp_path: Path) -> None:
    router.permanent_only = True
    done = call(module.main, external_port=8080)
    assert done["mappings"][0]["lease_left"] == 0
    assert "knows only mappings without an end" in router.warned()
    (service,) = (tmp_path / "units").glob("*.service")
    assert '"TCP" "0"' in service.read_text()
    again = call(module.main, external_port=8080)
    assert not again["changed"]
    assert "knows only mappings without an end" in router.warned()


def test_for_good(router: FakeRouter, call: Call, tmp_path: Path) -> None:
    assert call(module.main, external_port=8080, lease=0)["changed"]
    assert not (tmp_path / "units").exists()
    assert not call(module.main, external_port=8080, lease=0)["changed"]


@pytest.mark.parametrize("way", ["never_changes", "renames"])
def test_a_router_with_ways_of_its_own(router: FakeRouter, call: Call, way: str) -> None:
    setattr(router, way, True)
    assert call(module.main, external_port=8080)["changed"]
    assert call(module.main, external_port=8080, internal_port=80)["changed"]
    assert router.mappings["8080", "TCP"].internal_port == 80
    assert not call(module.main, external_port=8080, internal_port=80)["changed"]


def test_the_nas_has_a_new_address(router: FakeRouter, call: Call) -> None:
    assert call(module.main, external_port=8080)["changed"]
    router.own = "172.19.0.12"
    assert call(module.main, external_port=8080)["changed"]
    assert router.mappings["8080", "TCP"].internal_client == "172.19.0.12"


def test_a_router_that_does_not_do_what_it_says(router: FakeRouter, call: Call) -> None:
    router.forgets = True
    assert "does not list it" in call(module.main, external_port=8080)["msg"]


def test_of_another_device(router: FakeRouter, call: Call) -> None:
    router.mappings["8090", "TCP"] = OTHER
    assert "belongs to 172.19.0.2" in call(module.main, external_port=8090)["msg"]
    left = call(module.main, external_port=8090, state="absent")
    assert not left["changed"]
    assert "belongs to 172.19.0.2" in router.warned()
    assert set(router.asked) == {"-l"}


def test_shared_unless_allowed(router: FakeRouter, call: Call) -> None:
    router.external = "100.64.1.2"
    refused = call(module.main, external_port=8080)
    assert "carrier-grade NAT" in refused["msg"]
    assert (refused["shared_address"], refused["external_address"]) == (True, "100.64.1.2")
    assert call(module.main, state="listed")["shared_address"]
    allowed = call(module.main, external_port=8080, allow_shared_address=True)
    assert allowed["changed"]
    assert allowed["shared_address"]


def test_without_upnpc(
    router: FakeRouter, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wish = {"external_port": 8080}
    call(module.main, **wish)
    monkeypatch.setattr(module.AnsibleModule, "get_bin_path", lambda *_: None)
    assert "install the package miniupnpc" in call(module.main, **wish)["msg"]
    planned = call(module.main, check=True, **wish)
    assert planned["changed"]
    assert "router was not asked" in router.warned()
    gone = call(module.main, state="absent", **wish)
    assert gone["changed"]
    assert "stays until its lease ends" in router.warned()
    assert not list(tmp_path.rglob("*upnp*"))
    assert not call(module.main, state="absent", **wish)["changed"]
