# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What there is to say of a NAS that runs: what is well, and what its owner should look after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.nas.assistant.plugins.plugin_utils._findings import (
    Finding,
    finding,
    limits as checked,
    table,
)

GOOD, NOTE, WARNING, BAD = "good", "note", "warning", "bad"
VERDICTS = {GOOD: "well", WARNING: "needs a look", BAD: "needs help"}
#: Free room in percent; ages and what a certificate has left in days.
LIMITS = {
    "room_good": 10,
    "room_least": 3,
    "certificate": 21,
    "backup": 2,
    "backup_full": 9,
    "drill": 40,
    "packages": 30,
}
DAY, HOUR = 86400, 3600
ILL = {
    "failing": "make a copy of what is on it now, and replace it",
    "silent": "see what the kernel says of it (journalctl -k), and have a copy of what is on it",
    "hot": "give it air: heat makes it slow, and shortens its life",
    "worn": "have a new one ready",
}


def status_findings(
    status: Mapping[str, Any], limits: Mapping[str, Any] | None = None
) -> list[Finding]:
    """Return what there is to say of a NAS, the worst first: ``bad``, ``warning``, ``note``,
    ``good``.

    :param status: the answer of ``nas.assistant.status_info``.
    :param limits: those that differ from ``LIMITS``.
    :raises AnsibleFilterError: a limit is unknown, or is no number.
    """
    allowed = checked("status_limits", limits or {}, LIMITS)
    now = int(status["now"])
    found = [
        *_assistant(status["assistant"]),
        *_certificates(status["certificates"], now, allowed["certificate"]),
        *_rooms(status["rooms"], allowed),
        *_drives(status["drives"]),
        *_pools(status["pools"]),
        *_snapshots(status["snapshots"], now),
        *_copies(status["copies"], now, allowed),
        *_units(status["failed_units"]),
        *_packages(status["packages"], now, allowed["packages"]),
    ]
    order = [BAD, WARNING, NOTE, GOOD]
    return sorted(found, key=lambda each: order.index(each["verdict"]))


def status_verdict(findings: Sequence[Finding]) -> str:
    """Return ``well``, ``needs a look`` or ``needs help``."""
    found = {each["verdict"] for each in findings}
    return VERDICTS[next((each for each in (BAD, WARNING) if each in found), GOOD)]


def status_summary(status: Mapping[str, Any]) -> dict[str, str]:
    """Return what the line of a NAS says in the table of a fleet: ``models``, ``free`` (of the
    fullest filesystem), ``copy`` (age of the oldest), ``packages`` (age).
    """
    now, copies = int(status["now"]), [int(each["success"]) for each in status["copies"]]
    free = [100 * room["free"] / max(1, room["size"]) for room in status["rooms"]]
    return {
        "models": ", ".join(status["assistant"]["models"]),
        "free": f"{min(free):.0f} %" if free else "",
        "copy": ("none yet" if not min(copies) else _age(now, min(copies))) if copies else "",
        "packages": _age(now, int(status["packages"]["changed"])),
    }


def status_lines(report: Mapping[str, Any]) -> list[str]:
    """Return a report as lines for the console."""
    return [f"{report['host']}: {report['verdict']}", *table(report["findings"])]


def _assistant(found: Mapping[str, Any]) -> Iterator[Finding]:
    version = f"version {found['version']}, " if found["version"] else ""
    value = f"{version}models {', '.join(found['models'])}" if found["ready"] else found["reason"]
    if found["ready"]:
        yield finding("assistant", GOOD, value)
    elif found["state"] == "missing":
        reason = "nothing answers questions"
        yield finding("assistant", BAD, "no container", "", reason, "run nas.assistant.site")
    else:
        yield finding(
            "assistant",
            BAD,
            f"{found['state']}, {value}",
            "ready",
            "it answers no question",
            "see what it says (docker logs nas-assistant), then run nas.assistant.site",
        )
    if found["restarts"]:
        yield finding(
            "restarts",
            WARNING,
            f"{found['restarts']} since it was made",
            "",
            "it ended by itself",
            "see why (docker logs nas-assistant)",
        )


def _certificates(
    certificates: Iterable[Mapping[str, Any]], now: int, least: float
) -> Iterator[Finding]:
    for each in certificates:
        left = (int(each["expires"]) - now) / DAY
        limit, renew = f"{least:g} days", "run nas.assistant.proxy, which makes a new one"
        if not each["expires"]:
            reason = "clients cannot connect"
            yield finding("certificate", BAD, "it cannot be read", limit, reason, renew)
        elif left <= 0:
            reason = "clients refuse it"
            yield finding("certificate", BAD, f"expired {-left:.0f} days ago", limit, reason, renew)
        elif left < least:
            reason = "clients will refuse it then"
            yield finding("certificate", WARNING, f"{left:.0f} days left", limit, reason, renew)
        else:
            yield finding("certificate", GOOD, f"{left:.0f} days left", limit)


def _rooms(rooms: Iterable[Mapping[str, Any]], limits: Mapping[str, float]) -> Iterator[Finding]:
    for room in rooms:
        check, free = f"room in {room['mount']}", 100 * room["free"] / max(1, room["size"])
        value = f"{free:.0f} % free, {room['free'] / (1 << 30):.1f} GiB"
        limit = f"{limits['room_good']:g} %"
        if room["read_only"]:
            reason, remedy = "nothing can be written", "see why (journalctl -k)"
            yield finding(check, BAD, f"read-only {room['type']}", "writable", reason, remedy)
        elif free < limits["room_good"]:
            verdict = BAD if free < limits["room_least"] else WARNING
            reason = "what is full loses what comes next"
            remedy = "delete what nobody needs, or add a disk (docs/storage.md)"
            yield finding(check, verdict, value, limit, reason, remedy)
        else:
            yield finding(check, GOOD, value, limit)


def _drives(drives: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    for drive in drives:
        check = f"disk {drive['name']}"
        if drive["health"] in ILL:
            reason = "it is not well"
            yield finding(check, WARNING, drive["health"], "good", reason, ILL[drive["health"]])
        elif drive["health"]:
            yield finding(check, GOOD, drive["health"])


def _pools(pools: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    for pool in pools:
        check, problems = f"pool {pool['name']}", ", ".join(pool["problems"])
        if problems:
            reason = "one more fault may lose data"
            remedy = "replace the disk (docs/storage.md)"
            yield finding(check, BAD, problems, "whole", reason, remedy)
        else:
            yield finding(check, GOOD, f"{pool['kind']}, whole")


def _snapshots(volumes: Iterable[Mapping[str, Any]], now: int) -> Iterator[Finding]:
    for each in volumes:
        check = f"snapshots of {each['volume']}"
        late = 2 * each["every"] + HOUR
        if now - each["newest"] > late:
            value = f"the newest is {_age(now, each['newest'])}" if each["newest"] else "none"
            yield finding(
                check,
                WARNING,
                value,
                f"every {_span(each['every'])}",
                "what is deleted by mistake is gone",
                "see why (journalctl -u nas-snapshots)",
            )
        else:
            yield finding(check, GOOD, f"{each['count']}, the newest {_age(now, each['newest'])}")


def _copies(
    copies: Iterable[Mapping[str, Any]], now: int, limits: Mapping[str, float]
) -> Iterator[Finding]:
    for copy in copies:
        days = limits["backup_full" if copy["full"] else "backup"]
        see = f"see why (journalctl -u nas-backup@{copy['name']})"
        yield _aged(f"copy {copy['name']}", copy, "", now, days, see)
        see = f"see why (journalctl -u nas-drill@{copy['name']})"
        yield _aged(f"drill of {copy['name']}", copy, "drill_", now, limits["drill"], see)


def _aged(check: str, copy: Mapping[str, Any], of: str, now: int, days: float, see: str) -> Finding:
    success, cause, limit = copy[f"{of}success"], copy[f"{of}cause"], f"{days:g} days"
    what = "a copy that nobody read back may be none" if of else "what changed since has no copy"
    if cause:
        since = f", the last success {_age(now, success)}" if success else ", no success before"
        return finding(check, BAD, f"failed: {cause}{since}", limit, what, see)
    if not success:
        # A new copy has its first run in the night, and its first drill within a month.
        verdict = NOTE if of else WARNING
        return finding(check, verdict, "not yet", limit, what, "" if of else "wait for the night")
    if now - success > days * DAY:
        return finding(check, WARNING if of else BAD, _age(now, success), limit, what, see)
    points = "" if of else f", {copy['points']} restore points"
    return finding(check, GOOD, f"{_age(now, success)}{points}", limit)


def _units(units: Sequence[str]) -> Iterator[Finding]:
    for unit in units:
        reason, remedy = "it does not do its work", f"see why (journalctl -u {unit})"
        yield finding("service", WARNING, f"{unit} failed", "", reason, remedy)


def _packages(packages: Mapping[str, Any], now: int, most: float) -> Iterator[Finding]:
    last = max(packages["changed"], packages["fetched"])
    value, limit = f"last looked after {_age(now, last)}", f"{most:g} days"
    if now - last > most * DAY:
        reason, remedy = "holes that are known stay open", "apt update && apt upgrade"
        yield finding("packages", WARNING, value, limit, reason, remedy)
    else:
        yield finding("packages", GOOD, value, limit)
    if packages["reboot"]:
        value = ", ".join(packages["reboot"])
        reason = "what was upgraded is not in use yet"
        yield finding("reboot", WARNING, value, "", reason, "restart the NAS when nobody minds")


def _age(now: int, then: int) -> str:
    seconds = now - then
    if seconds < 0:
        return "in the future"
    return f"{_span(seconds)} ago"


def _span(seconds: int) -> str:
    for size, unit in ((DAY, "d"), (HOUR, "h"), (60, "min")):
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0):
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "status_findings": status_findings,
            "status_lines": status_lines,
            "status_summary": status_summary,
            "status_verdict": status_verdict,
        }
