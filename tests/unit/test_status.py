# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is said of a NAS that is well, and of each thing that is not."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.nas.assistant.plugins.filter import status

NOW = 1_800_000_000
DAY, GIB = 86400, 1 << 30
ASSISTANT = {"state": "running", "since": "2027-01-01T00:00:00Z", "restarts": 0, "image": "x:1"}
ASSISTANT |= {"version": "0.1.0", "ready": True, "reason": "", "models": ["default", "large"]}
COPY = {"name": "offsite", "full": False, "run": NOW - DAY, "success": NOW - DAY, "cause": ""}
COPY |= {"points": 7, "drill_run": NOW - 9, "drill_success": NOW - 9, "drill_cause": ""}
ROOM = {"mount": "/", "type": "ext4", "size": 100 * GIB, "free": 40 * GIB, "read_only": False}


def nas(**more: Any) -> dict[str, Any]:
    """A NAS that is well; what differs takes the place of its parts."""
    return {
        "now": NOW,
        "assistant": ASSISTANT,
        "certificates": [{"path": "/server.crt", "expires": NOW + 100 * DAY}],
        "rooms": [ROOM],
        "drives": [{"name": "sda", "health": "good"}, {"name": "sdb", "health": ""}],
        "pools": [{"name": "tank", "kind": "btrfs", "problems": []}],
        "snapshots": [{"volume": "/tank/a", "every": 3600, "count": 24, "newest": NOW - 1800}],
        "copies": [COPY],
        "failed_units": [],
        "packages": {"changed": NOW - 3 * DAY, "fetched": NOW - DAY, "reboot": []},
        "kernel": "6.1.0",
        **more,
    }


def test_a_nas_that_is_well() -> None:
    found = status.status_findings(nas())
    assert {each["verdict"] for each in found} == {"good"}
    assert status.status_verdict(found) == "well"
    said = {each["check"]: each["value"] for each in found}
    assert said == {
        "assistant": "version 0.1.0, models default, large",
        "certificate": "100 days left",
        "room in /": "40 % free, 40.0 GiB",
        "disk sda": "good",
        "pool tank": "btrfs, whole",
        "snapshots of /tank/a": "24, the newest 30 min ago",
        "copy offsite": "1 d ago, 7 restore points",
        "drill of offsite": "9 s ago",
        "packages": "last looked after 1 d ago",
    }
    summary = {"models": "default, large", "free": "40 %", "copy": "1 d ago"}
    assert status.status_summary(nas()) == summary | {"packages": "3 d ago"}


ILL: list[tuple[dict[str, Any], str, str, str]] = [
    (
        {"assistant": ASSISTANT | {"state": "missing", "ready": False, "reason": "no socket"}},
        *("assistant", "bad", "no container"),
    ),
    (
        {"assistant": ASSISTANT | {"ready": False, "reason": "it loads"}},
        *("assistant", "bad", "running, it loads"),
    ),
    ({"assistant": ASSISTANT | {"restarts": 2}}, "restarts", "warning", "2 since it was made"),
    (
        {"certificates": [{"path": "", "expires": NOW - 2 * DAY}]},
        *("certificate", "bad", "expired 2 days ago"),
    ),
    (
        {"certificates": [{"path": "", "expires": NOW + 5 * DAY}]},
        *("certificate", "warning", "5 days left"),
    ),
    ({"certificates": [{"path": "", "expires": 0}]}, "certificate", "bad", "it cannot be read"),
    ({"rooms": [ROOM | {"free": 5 * GIB}]}, "room in /", "warning", "5 % free, 5.0 GiB"),
    ({"rooms": [ROOM | {"free": GIB}]}, "room in /", "bad", "1 % free, 1.0 GiB"),
    ({"rooms": [ROOM | {"read_only": True}]}, "room in /", "bad", "read-only ext4"),
    ({"drives": [{"name": "sda", "health": "failing"}]}, "disk sda", "warning", "failing"),
    (
        {"pools": [{"name": "tank", "kind": "btrfs", "problems": ["device 2 is missing"]}]},
        *("pool tank", "bad", "device 2 is missing"),
    ),
    (
        {"snapshots": [{"volume": "v", "every": 3600, "count": 1, "newest": NOW - 11000}]},
        *("snapshots of v", "warning", "the newest is 3 h ago"),
    ),
    (
        {"snapshots": [{"volume": "v", "every": 86400, "count": 0, "newest": 0}]},
        *("snapshots of v", "warning", "none"),
    ),
    (
        {"copies": [COPY | {"cause": "unreachable", "success": NOW - 3 * DAY}]},
        *("copy offsite", "bad", "failed: unreachable, the last success 3 d ago"),
    ),
    ({"copies": [COPY | {"success": NOW - 3 * DAY}]}, "copy offsite", "bad", "3 d ago"),
    ({"copies": [COPY | {"success": 0}]}, "copy offsite", "warning", "not yet"),
    (
        {"copies": [COPY | {"drill_success": NOW - 50 * DAY}]},
        *("drill of offsite", "warning", "50 d ago"),
    ),
    ({"failed_units": ["x.service"]}, "service", "warning", "x.service failed"),
    (
        {"packages": {"changed": 0, "fetched": NOW - 40 * DAY, "reboot": []}},
        *("packages", "warning", "last looked after 40 d ago"),
    ),
    (
        {"packages": {"changed": NOW, "fetched": NOW, "reboot": ["linux-image-6.1"]}},
        *("reboot", "warning", "linux-image-6.1"),
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


def test_a_new_copy_has_no_drill_yet() -> None:
    found = status.status_findings(nas(copies=[COPY | {"drill_success": 0}]))
    (drill,) = [each for each in found if each["check"] == "drill of offsite"]
    assert (drill["verdict"], drill["value"]) == ("note", "not yet")
    assert status.status_verdict(found) == "well"


def test_a_disk_of_its_own_has_a_week() -> None:
    old = COPY | {"full": True, "success": NOW - 8 * DAY}
    assert status.status_verdict(status.status_findings(nas(copies=[old]))) == "well"
    assert status.status_findings(nas(copies=[old]), {"backup_full": 7})[0]["verdict"] == "bad"


def test_nothing_set_up_is_nothing_said() -> None:
    bare = nas(certificates=[], rooms=[], drives=[], pools=[], snapshots=[], copies=[])
    said = [each["check"] for each in status.status_findings(bare)]
    assert said == ["assistant", "packages"]
    assert status.status_summary(bare)["free"] == status.status_summary(bare)["copy"] == ""


def test_a_limit_that_cannot_be() -> None:
    with pytest.raises(
        AnsibleFilterError, match=r"status_limits: speed is unknown; there are room"
    ):
        status.status_findings(nas(), {"speed": 1})
