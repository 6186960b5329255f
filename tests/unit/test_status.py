# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is said of a NAS that is well, and of each thing that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.nas.assistant.plugins.filter import status
from expressions import page_of, templar, trusted

NOW = 1_800_000_000
DAY, GIB = 86400, 1 << 30
ASSISTANT = {"state": "running", "problem": "", "since": NOW - DAY, "restarts": 0, "image": "x:1"}
ASSISTANT |= {"version": "0.1.0", "ready": True, "reason": "", "models": ["default", "large"]}
ASSISTANT |= {"drained": False, "unproved": False, "degraded": ""}
COPY = {"name": "offsite", "run": NOW - DAY, "success": NOW - DAY, "cause": "", "points": 7}
COPY |= {"due": NOW - DAY - 60, "drill_due": NOW - 99, "drill_run": NOW - 9, "drill_cause": ""}
COPY |= {"drill_success": NOW - 9, "old": 0}
ROOM = {"mount": "/", "type": "ext4", "size": 100 * GIB, "free": 40 * GIB, "read_only": False}
TANK = {"name": "tank", "kind": "btrfs", "missing": [], "errors": []}
PACKAGES = {"fetched": NOW - DAY, "pending": ["dbus"], "security": 0, "reboot": []}
PACKAGES |= {"upgraded": NOW - 9 * DAY}
TLS = "/etc/nas-assistant/tls"


def certificate(file: str, days: int, own: bool = False) -> dict[str, Any]:
    """One that is good for so many days."""
    return {
        "path": f"{TLS}/{file}",
        "expires": NOW + days * DAY,
        "own": own,
        "fingerprint": "ab:cd",
    }


def nas(**more: Any) -> dict[str, Any]:
    """A NAS that is well; what differs takes the place of its parts."""
    return {
        "now": NOW,
        "assistant": ASSISTANT,
        "front": {"url": "https://127.0.0.1/readyz", "status": 200, "reason": ""},
        "certificates": [
            certificate("server.crt", 100, own=True),
            certificate("ca.crt", 900, own=True),
        ],
        "rooms": [ROOM],
        "drives": [{"name": "sda", "health": "good"}, {"name": "sdb", "health": ""}],
        "pools": [TANK],
        "not_mounted": [],
        "snapshots": [{"volume": "/tank/a", "every": 3600, "count": 24, "newest": NOW - 1800}],
        "copies": [COPY],
        "failed_units": [],
        "packages": PACKAGES,
        "kernel": "6.1.0",
        "versions": {"Debian": "12.9", "Docker": "20.10.24", "Nginx": ""},
        "blind": [],
        **more,
    }


def test_a_nas_that_is_well() -> None:
    found = status.status_findings(nas())
    assert {each["verdict"] for each in found} == {"good"}
    assert status.status_verdict(found) == "well"
    said = {each["check"]: each["value"] for each in found}
    assert said == {
        "assistant": "version 0.1.0, models default, large",
        "front": "Nginx answers",
        "certificate": "100 days left",
        "certificate ca": "900 days left",
        "room in /": "40 % free, 40.0 GiB",
        "disk sda": "good",
        "pool tank": "btrfs, whole",
        "snapshots of /tank/a": "24, the newest 30 min ago",
        "copy offsite": "1 d ago, 7 restore points",
        "drill of offsite": "9 s ago",
        "packages": "1 to upgrade, as of 1 d ago, the last upgrade 9 d ago",
    }
    assert status.status_summary(nas()) == {
        "models": "default, large",
        "free": "40 %",
        "snapshot": "30 min ago",
        "copy": "1 d ago",
        "certificate": "100 days left",
        "packages": "1",
        "upgraded": "9 d ago",
        "versions": "Debian 12.9, Docker 20.10.24, assistant 0.1.0",
    }


ILL: list[tuple[dict[str, Any], str, str, str]] = [
    (
        {"assistant": ASSISTANT | {"state": "missing", "ready": False, "reason": "no socket"}},
        *("assistant", "bad", "no container"),
    ),
    (
        {"assistant": ASSISTANT | {"ready": False, "reason": "it loads"}},
        *("assistant", "bad", "running, it loads"),
    ),
    (
        {"assistant": ASSISTANT | {"degraded": "x.gguf does not exist"}},
        *("assistant", "warning", "degraded, x.gguf does not exist"),
    ),
    (
        {"assistant": ASSISTANT | {"ready": False, "state": "unknown", "problem": "no daemon"}},
        *("assistant", "bad", "unknown, no daemon"),
    ),
    ({"assistant": ASSISTANT | {"restarts": 2}}, "restarts", "warning", "2, the last 1 d ago"),
    (
        {"assistant": ASSISTANT | {"drained": True}},
        *("pool", "warning", "drained, it takes nothing new"),
    ),
    ({"front": {"status": 0, "reason": "refused"}}, "front", "bad", "refused"),
    ({"front": {"status": 404, "reason": ""}}, "front", "bad", "status 404"),
    (
        {"certificates": [certificate("server.crt", -2)]},
        *("certificate", "bad", "expired 2 days ago"),
    ),
    (
        {"certificates": [certificate("member.crt", 5)]},
        *("certificate member", "warning", "5 days left"),
    ),
    (
        {"certificates": [certificate("server.crt", 0) | {"expires": 0}]},
        *("certificate", "bad", "it cannot be read"),
    ),
    ({"rooms": [ROOM | {"free": 5 * GIB}]}, "room in /", "warning", "5 % free, 5.0 GiB"),
    ({"rooms": [ROOM | {"free": GIB}]}, "room in /", "bad", "1 % free, 1.0 GiB"),
    ({"rooms": [ROOM | {"read_only": True}]}, "room in /", "bad", "read-only ext4"),
    ({"drives": [{"name": "sda", "health": "failing"}]}, "disk sda", "bad", "failing"),
    ({"drives": [{"name": "sda", "health": "worn"}]}, "disk sda", "warning", "worn"),
    (
        {"pools": [TANK | {"missing": ["device 2"]}]},
        *("pool tank", "bad", "missing: device 2"),
    ),
    (
        {"pools": [TANK | {"errors": ["device 1: 3 read_errs"]}]},
        *("pool tank", "warning", "device 1: 3 read_errs"),
    ),
    ({"not_mounted": ["/srv/docs"]}, "volume /srv/docs", "bad", "not mounted"),
    (
        {"snapshots": [{"volume": "v", "every": 3600, "count": 1, "newest": NOW - 11000}]},
        *("snapshots of v", "warning", "the newest is 3 h ago"),
    ),
    (
        {"snapshots": [{"volume": "v", "every": 86400, "count": 0, "newest": 0}]},
        *("snapshots of v", "warning", "none"),
    ),
    (
        {"snapshots": [{"volume": "v", "every": 3600, "count": 9, "newest": NOW + 9 * DAY}]},
        *("snapshots of v", "warning", "the newest is in 9 d"),
    ),
    (
        {"copies": [COPY | {"cause": "unreachable", "success": NOW - 3 * DAY}]},
        *("copy offsite", "bad", "failed: unreachable, the last success 3 d ago"),
    ),
    (
        {"copies": [COPY | {"success": NOW - 3 * DAY, "due": NOW - 2 * DAY}]},
        *("copy offsite", "bad", "due 2 d ago, the last success 3 d ago"),
    ),
    (
        {"copies": [COPY | {"success": 0, "due": NOW - 2 * DAY}]},
        *("copy offsite", "bad", "due 2 d ago, no success before"),
    ),
    ({"copies": [COPY | {"success": NOW + 3 * DAY}]}, "copy offsite", "warning", "dated in 3 d"),
    (
        {"copies": [COPY | {"drill_success": NOW - 50 * DAY, "drill_due": NOW - 20 * DAY}]},
        *("drill of offsite", "warning", "due 20 d ago, the last success 50 d ago"),
    ),
    (
        {"copies": [COPY | {"points": 70, "old": 40}]},
        *("old points of offsite", "warning", "keep would drop 40 of 70"),
    ),
    ({"failed_units": ["x.service"]}, "service", "warning", "x.service failed"),
    (
        {"packages": PACKAGES | {"fetched": NOW - 40 * DAY}},
        *("packages", "warning", "nobody looked for new ones since 40 d ago"),
    ),
    (
        {"packages": PACKAGES | {"security": 1}},
        *("packages", "warning", "1 to upgrade, 1 of them close holes"),
    ),
    (
        {"packages": PACKAGES | {"reboot": ["linux-image-6.1"]}},
        *("reboot", "warning", "linux-image-6.1"),
    ),
    (
        {"drives": [], "blind": [{"part": "drives", "why": "no end after 30 s"}]},
        *("drives", "warning", "no look: no end after 30 s"),
    ),
]


@pytest.mark.parametrize(("more", "check", "verdict", "value"), ILL)
def test_what_is_not_well_comes_first_with_a_remedy(
    more: dict[str, Any], check: str, verdict: str, value: str
) -> None:
    first = status.status_findings(nas(**more))[0]
    assert (first["check"], first["verdict"], first["value"]) == (check, verdict, value)
    assert first["reason"]
    assert first["remedy"]
    expected = {"bad": "needs help", "warning": "needs a look"}[verdict]
    assert status.status_verdict([first]) == expected
    lines = status.status_lines({"host": "nas1", "verdict": expected, "findings": [first]})
    assert lines[0] == f"nas1: {expected}"
    assert first["remedy"] in lines[2]


@pytest.mark.parametrize(
    ("file", "check", "remedy"),
    [
        ("server.crt", "certificate", f"{status.RUN}, which makes a new one"),
        ("member.crt", "certificate member", f"{status.RUN}, which makes a new one"),
        ("acme.pem", "certificate acme", "certbot renew"),
        ("own.pem", "certificate own", "where proxy_certificate says"),
        ("ca.crt", "certificate ca", "not ca.key"),
    ],
)
def test_each_certificate_has_its_own_remedy(file: str, check: str, remedy: str) -> None:
    for expires in (0, NOW - DAY, NOW + DAY):
        found = nas(certificates=[certificate(file, 0) | {"expires": expires}])
        first = status.status_findings(found)[0]
        assert first["check"] == check
        assert remedy in first["remedy"]


@pytest.mark.parametrize(
    ("own", "days", "handed", "value"),
    [
        (True, 358, "ab:cd", ""),
        (True, 358, "12:34", "another one than was handed out"),
        # None was handed to this machine, or clients know it by a CA.
        (True, 358, "", ""),
        (False, 358, "12:34", ""),
        (True, 8, "12:34", "8 days left"),
    ],
)
def test_one_that_the_nas_made_by_itself_is_to_be_handed_out(
    own: bool, days: int, handed: str, value: str
) -> None:
    found = nas(certificates=[certificate("server.crt", days, own)])
    first = status.status_findings(found, {}, handed)[0]
    if value:
        assert (first["check"], first["verdict"]) == ("certificate", "warning")
        assert first["value"] == value
        assert status.RUN in first["remedy"]
    else:
        assert first["verdict"] == "good"


def test_who_lets_the_nas_renew_it_alone_is_told_what_that_means() -> None:
    for own in (True, False):
        found = nas(certificates=[certificate("server.crt", 8, own)])
        remedy = status.status_findings(found)[0]["remedy"]
        assert ("which clients do not know" in remedy) is own


@pytest.mark.parametrize(
    ("copy", "value"),
    [
        ({"success": 0, "due": 0}, "not yet"),  # its time has not come
        ({"success": 0, "due": NOW - 60}, "not yet"),  # it runs now
        ({"success": 0, "due": None}, "none, and no timer makes one"),
        ({"success": NOW - 300 * DAY, "due": None}, "300 d ago, 7 restore points"),
        # Monthly, and it was off for a while.
        ({"success": NOW - 40 * DAY, "due": NOW - 40 * DAY - 60}, "40 d ago, 7 restore points"),
    ],
)
def test_copies_that_are_as_they_should_be(copy: dict[str, Any], value: str) -> None:
    found = status.status_findings(nas(copies=[COPY | copy]))
    (said,) = [each for each in found if each["check"] == "copy offsite"]
    assert said["value"] == value
    assert status.status_verdict(found) == "well"


def test_what_ended_long_ago_is_but_a_note() -> None:
    lived = ASSISTANT | {"restarts": 2, "since": NOW - 30 * DAY}
    assert status.status_verdict(status.status_findings(nas(assistant=lived))) == "well"


@pytest.mark.parametrize(
    ("points", "old"),
    [
        (61, 31),  # pruned once a month
        (1500, 740),  # hourly ones, of which as many stay
    ],
)
def test_old_points_that_are_no_reason_to_worry(points: int, old: int) -> None:
    found = status.status_findings(nas(copies=[COPY | {"points": points, "old": old}]))
    assert status.status_verdict(found) == "well"


def test_limits_of_ones_own() -> None:
    few = COPY | {"points": 9, "old": 6}
    assert status.status_findings(nas(copies=[few]), {"old": 5})[0]["verdict"] == "warning"
    old = COPY | {"success": NOW - 3 * DAY, "due": NOW - 2 * DAY}
    assert status.status_findings(nas(copies=[old]), {"late": 72})[0]["verdict"] == "good"


def test_nothing_set_up_is_nothing_said() -> None:
    bare = nas(certificates=[], rooms=[], drives=[], pools=[], snapshots=[], copies=[], front={})
    said = [each["check"] for each in status.status_findings(bare)]
    assert said == ["assistant", "packages"]
    told = status.status_summary(bare)
    assert {told[each] for each in ("free", "snapshot", "copy", "certificate")} == {""}


def test_the_line_of_a_nas_says_what_is_most_behind() -> None:
    volumes = [{"volume": each, "every": 3600, "count": 1, "newest": NOW - age}
               for each, age in (("a", 60), ("b", 3 * DAY), ("c", 7200))]  # fmt: skip
    ends = [certificate("server.crt", 90), certificate("member.crt", 12)]
    told = status.status_summary(nas(snapshots=volumes, certificates=ends))
    assert (told["snapshot"], told["certificate"]) == ("3 d ago", "12 days left")
    ends = [certificate("server.crt", 90), certificate("member.crt", -2)]
    volumes[0]["newest"] = 0
    told = status.status_summary(nas(snapshots=volumes, certificates=ends))
    assert (told["snapshot"], told["certificate"]) == ("none yet", "expired 2 d ago")
    ends[0]["expires"] = 0
    assert status.status_summary(nas(certificates=ends))["certificate"] == "unreadable"


def test_a_nas_that_is_to_have_no_assistant() -> None:
    away = ASSISTANT | {"state": "missing", "ready": False, "models": [], "version": ""}
    found = status.status_findings(nas(assistant=away), assistant=False)
    assert status.status_verdict(found) == "well"
    assert {each["check"]: each["value"] for each in found}["assistant"].startswith(
        "none is wanted"
    )
    for state, wanted in (("present", "needs help"), ("absent", "well")):
        role = templar("status", [status.FilterModule()], assistant_state=state,
                       __status_found=nas(assistant=away), __status_handed_print="")  # fmt: skip
        said = role.template(trusted("{{ __status_findings | nas.assistant.status_verdict }}"))
        assert said == wanted


def report(host: str) -> dict[str, Any]:
    """As it is written for a host."""
    found, findings = nas(), status.status_findings(nas())
    return {
        "host": host,
        "verdict": status.status_verdict(findings),
        "findings": findings,
        "summary": status.status_summary(found),
        "found": found,
    }


def page(folder: Path, asked: dict[str, dict[str, Any]], others: list[str]) -> str:
    """The page of a run that asked some of a fleet."""

    text = page_of(
        "status",
        [status.FilterModule()],
        ansible_managed="",
        ansible_play_hosts_all=list(asked),
        groups={"nas": [*asked, *others]},
        hostvars=asked,
        status_report_dir=str(folder),
    )
    return " ".join(text.split())


def test_a_look_at_a_part_of_a_fleet_keeps_what_was_found_of_the_others(tmp_path: Path) -> None:
    older = report("older")
    older["summary"] = {"models": "default"}
    texts = {"whole": json.dumps(report("whole")), "older": json.dumps(older)}
    texts |= {"cut": texts["whole"][:-99], "empty": "", "list": "[]", "text": '"x"'}
    texts["other"] = json.dumps({**report("other"), "verdict": "fit"})
    texts["words"] = json.dumps({**report("words"), "findings": ["good"]})
    texts["none"] = json.dumps({**report("none"), "found": {}})
    for name, text in texts.items():
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "closed.json").write_bytes(b"\xff")
    asked: dict[str, dict[str, Any]] = {"nas1": {"__status_report": report("nas1")}, "away": {}}
    said = page(tmp_path, asked, [*texts, "closed", "never"])
    assert "3 of 12 well, on " in said
    assert "what was found then" in said
    assert '<a href="#nas1">nas1</a></td> <td class="good">well</td>' in said
    then = "<small>2027-01-15 08:00 UTC</small>"
    for each in ("whole", "older"):
        assert f'<a href="#{each}">{each}</a></td> <td class="good">well{then}</td>' in said
        assert f'<h2 id="{each}">' in said
    assert '<td>away</td><td class="bad">no answer</td>' in said
    for each in [each for each in texts if each not in ("whole", "older")] + ["closed"]:
        assert f'<td>{each}</td><td class="warning">its report cannot be read' in said
    assert "never" not in said
    # A cell for each column.
    for row in said.split("<table>")[1].split("</table>")[0].split("<tr>")[1:]:
        assert row.count("</th>") + row.count("</td>") == 11


def test_a_page_that_nobody_has_answered(tmp_path: Path) -> None:
    """As it is begun, and stays where no NAS does."""
    said = page(tmp_path, {"nas1": {}}, [])
    assert "0 of 1 well" in said
    assert '<td>nas1</td><td class="bad">no answer</td>' in said
    assert "found then" not in said


def test_a_limit_that_cannot_be() -> None:
    with pytest.raises(
        AnsibleFilterError, match=r"status_limits: speed is unknown; there are room"
    ):
        status.status_findings(nas(), {"speed": 1})
