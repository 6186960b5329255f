# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What there is to say of a NAS that runs: what is well, and what its owner should look after."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.nas.assistant.plugins.plugin_utils._findings import (
    ILL,
    Finding,
    finding,
    limits as checked,
    table,
)

GOOD, NOTE, WARNING, BAD = "good", "note", "warning", "bad"
VERDICTS = {GOOD: "well", WARNING: "needs a look", BAD: "needs help"}
#: Free room in percent; days that a certificate has left, and that lists of packages are old;
#: hours after which a copy that was due should be there; restore points that nobody has pruned.
LIMITS = {
    "room_good": 10,
    "room_least": 3,
    "certificate": 21,
    "late": 24,
    # A month of daily ones: who prunes monthly is well.
    "old": 31,
    "packages": 14,
}
DAY, HOUR, MINUTE = 86400, 3600, 60
#: What the line of a NAS has, in the table of a fleet.
SUMMARY = ("models", "free", "snapshot", "copy", "certificate", "packages", "upgraded", "versions")
#: What renews a certificate, by its file. The others come with a run.
RUN = "run nas.assistant.proxy --tags proxy_certificate"
RENEW = {
    "acme": "see why it was not renewed (certbot renew, /var/log/letsencrypt/letsencrypt.log)",
    "own": "put a newer one where proxy_certificate says, and run nas.assistant.proxy",
    "ca": "delete .credentials/ca.crt beside the inventory, not ca.key, run nas.assistant.proxy "
    "over all NAS, and have clients trust the new one",
}


def status_findings(
    status: Mapping[str, Any],
    limits: Mapping[str, Any] | None = None,
    handed: str = "",
    assistant: bool = True,
) -> list[Finding]:
    """Return what there is to say of a NAS, the worst first: ``bad``, ``warning``, ``note``,
    ``good``.

    :param status: the answer of ``nas.assistant.status_info``.
    :param limits: those that differ from ``LIMITS``.
    :param handed: fingerprint of the NAS's certificate that its owner has, if any.
    :param assistant: whether the NAS is to have one.
    :raises AnsibleFilterError: a limit is unknown, or is no number.
    """
    allowed = checked("status_limits", limits or {}, LIMITS)
    now = int(status["now"])
    judges: dict[str, Callable[[Any], Iterator[Finding]]] = {
        "assistant": lambda part: _assistant(part, now) if assistant else _unwanted(),
        "front": _front,
        "certificates": lambda part: _certificates(part, now, allowed["certificate"], handed),
        "rooms": lambda part: _rooms(part, allowed),
        "drives": _drives,
        "pools": _pools,
        "not_mounted": _mounts,
        "snapshots": lambda part: _snapshots(part, now),
        "copies": lambda part: _copies(part, now, allowed),
        "failed_units": _units,
        "packages": lambda part: _packages(part, now, allowed["packages"]),
    }
    blind = {each["part"]: each["why"] for each in status["blind"]}
    found = [each for part in judges if part not in blind for each in judges[part](status[part])]
    reason, remedy = "what is wrong there goes unseen", "see what the NAS says of it (journalctl)"
    found += [finding(part, WARNING, f"no look: {why}", "", reason, remedy)
              for part, why in blind.items()]  # fmt: skip
    order = [BAD, WARNING, NOTE, GOOD]
    return sorted(found, key=lambda each: order.index(each["verdict"]))


def status_verdict(findings: Sequence[Finding]) -> str:
    """Return ``well``, ``needs a look`` or ``needs help``."""
    found = {each["verdict"] for each in findings}
    return VERDICTS[next((each for each in (BAD, WARNING) if each in found), GOOD)]


def status_summary(status: Mapping[str, Any]) -> dict[str, str]:
    """Return what the line of a NAS says in the table of a fleet: ``models``, ``free`` (of the
    fullest filesystem), ``snapshot`` and ``copy`` (age of the newest of the volume and of the copy
    that are most behind), ``certificate`` (when the first one ends), ``packages`` to upgrade,
    ``upgraded`` (when some were), ``versions``.
    """
    versions = {**status["versions"], "assistant": status["assistant"].get("version", "")}
    upgraded = int(status["packages"].get("upgraded", 0))
    now, copies = int(status["now"]), [int(each["success"]) for each in status["copies"]]
    taken = [int(each["newest"]) for each in status["snapshots"]]
    ends = [int(each["expires"]) for each in status["certificates"]]
    free = [100 * room["free"] / max(1, room["size"]) for room in status["rooms"]]
    return {
        "models": ", ".join(status["assistant"].get("models", [])),
        "free": f"{min(free):.0f} %" if free else "",
        "snapshot": ("none yet" if not min(taken) else _age(now, min(taken))) if taken else "",
        "copy": ("none yet" if not min(copies) else _age(now, min(copies))) if copies else "",
        "certificate": ("unreadable" if not min(ends) else _end(now, min(ends))) if ends else "",
        "packages": str(len(status["packages"].get("pending", []))),
        "upgraded": _age(now, upgraded) if upgraded else "",
        "versions": ", ".join(f"{name} {each}" for name, each in versions.items() if each),
    }


def status_before(text: str) -> dict[str, Any]:
    """Return a report that was written before; empty where it cannot be read, or is one of another
    version that the page cannot show.

    :param text: the JSON, or nothing where the file cannot be read.
    """
    try:
        report = json.loads(text)
        # All that the page shows, beside what the console does.
        status_lines(report)
        found = report["found"]
        shown = [int(found["now"]), found["kernel"]]
        shown += [found["assistant"][key] for key in ("version", "image")]
        shown += [each[key] for each in report["findings"] for key in finding("", "", "")]
        known = report["verdict"] in VERDICTS.values()
        # What there was no word on yet is not said.
        report["summary"] = dict.fromkeys(SUMMARY, "") | report["summary"]
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}
    return dict(report) if shown and known else {}


def status_lines(report: Mapping[str, Any]) -> list[str]:
    """Return a report as lines for the console."""
    return [f"{report['host']}: {report['verdict']}", *table(report["findings"])]


def _assistant(found: Mapping[str, Any], now: int) -> Iterator[Finding]:
    version = f"version {found['version']}, " if found["version"] else ""
    if found["ready"] and found["degraded"]:
        yield finding(
            "assistant",
            WARNING,
            f"degraded, {found['degraded']}",
            "ready",
            "a cloud answers in its place, and keys that stay at home get no answer",
            "run nas.assistant.models, which brings what is missing or damaged; docker logs "
            "nas-assistant says more",
        )
    elif found["ready"]:
        yield finding("assistant", GOOD, f"{version}models {', '.join(found['models'])}")
    elif found["state"] == "missing":
        reason = "nothing answers questions"
        yield finding("assistant", BAD, "no container", "", reason, "run nas.assistant.site")
    else:
        yield finding(
            "assistant",
            BAD,
            f"{found['state']}, {found['problem'] or found['reason']}",
            "ready",
            "it answers no question",
            "see what it says (systemctl status docker, docker logs nas-assistant), then run "
            "nas.assistant.site",
        )
    if found["restarts"]:
        ago = now - int(found["since"])
        reason, remedy = "it ended by itself", "see why (docker logs nas-assistant)"
        value = f"{found['restarts']}, the last {_age(now, found['since'])}"
        lately = ago < 7 * DAY
        yield finding("restarts", WARNING if lately else NOTE, value, "", reason, remedy)
    if found["drained"]:
        reason, remedy = "the others of its pool do its work", "rm /run/nas-assistant-drained"
        yield finding("pool", WARNING, "drained, it takes nothing new", "", reason, remedy)
    if found["unproved"]:
        reason, remedy = "what ran before is still kept", "run nas.assistant.rollout to its end"
        yield finding("rollout", WARNING, "one did not end", "", reason, remedy)


def _unwanted() -> Iterator[Finding]:
    yield finding("assistant", GOOD, "none is wanted (assistant_state)")


def _front(found: Mapping[str, Any]) -> Iterator[Finding]:
    if not found:
        return
    # 503 is Nginx's own word, or the assistant's, for one that is not ready: said elsewhere.
    if found["status"] in (200, 503):
        yield finding("front", GOOD, "Nginx answers")
        return
    value = f"status {found['status']}" if found["status"] else found["reason"]
    reason, remedy = (
        "no client gets in",
        "see why (systemctl status nginx), run nas.assistant.proxy",
    )
    yield finding("front", BAD, value, "200", reason, remedy)


def _certificates(
    certificates: Iterable[Mapping[str, Any]], now: int, least: float, handed: str
) -> Iterator[Finding]:
    for each in certificates:
        name = str(each["path"]).rpartition("/")[2].rpartition(".")[0]
        check = "certificate" if name == "server" else f"certificate {name}"
        left = (int(each["expires"]) - now) / DAY
        limit = f"{least:g} days"
        alone = name == "server" and each["own"]
        renew = RENEW.get(name, f"{RUN}, which makes a new one")
        if not each["expires"]:
            reason = "clients cannot connect"
            yield finding(check, BAD, "it cannot be read", limit, reason, renew)
        elif left <= 0:
            reason = "clients refuse it"
            yield finding(check, BAD, f"expired {-left:.0f} days ago", limit, reason, renew)
        elif left < least:
            reason = "clients will refuse it then"
            if alone:
                renew += "; in the last days the NAS makes one by itself, which clients do not know"
            yield finding(check, WARNING, f"{left:.0f} days left", limit, reason, renew)
        elif alone and handed and each["fingerprint"] != handed:
            reason = "clients that trust that one refuse it"
            remedy = f"{RUN}, which hands out the one that is there, and tell clients"
            value = "another one than was handed out"
            yield finding(check, WARNING, value, "the same", reason, remedy)
        else:
            yield finding(check, GOOD, f"{left:.0f} days left", limit)


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
        check, health = f"disk {drive['name']}", drive["health"]
        if health in ILL:
            verdict = BAD if health == "failing" else WARNING
            yield finding(check, verdict, health, "good", *ILL[health])
        elif health:
            yield finding(check, GOOD, health)


def _pools(pools: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    for pool in pools:
        check = f"pool {pool['name']}"
        if pool["missing"]:
            value = f"missing: {', '.join(pool['missing'])}"
            reason = "one more fault may lose data"
            yield finding(check, BAD, value, "whole", reason, "replace the disk (docs/storage.md)")
        elif pool["errors"]:
            yield finding(
                check,
                WARNING,
                ", ".join(pool["errors"]),
                "no errors",
                "a disk gave back other data than was written, or none",
                "scrub it; where that adds to them, replace the disk; where not, count anew "
                "(btrfs device stats -z)",
            )
        else:
            yield finding(check, GOOD, f"{pool['kind']}, whole")


def _mounts(paths: Iterable[str]) -> Iterator[Finding]:
    for path in paths:
        reason = "what is written there lands elsewhere, and what was there is not seen"
        remedy = f"see why (systemctl status '{path}'), and whether its disks are there"
        yield finding(f"volume {path}", BAD, "not mounted", "", reason, remedy)


def _snapshots(volumes: Iterable[Mapping[str, Any]], now: int) -> Iterator[Finding]:
    for each in volumes:
        check = f"snapshots of {each['volume']}"
        late = 2 * each["every"] + HOUR
        # One that is dated ahead, by a clock that was wrong, says nothing of those since.
        if not -HOUR < now - each["newest"] <= late:
            value = f"the newest is {_age(now, each['newest'])}" if each["newest"] else "none"
            yield finding(
                check,
                WARNING,
                value,
                f"every {_span(each['every'])}",
                "what is deleted by mistake may be gone",
                "see why (journalctl -u nas-snapshots, btrfs subvolume list -s)",
            )
        else:
            yield finding(check, GOOD, f"{each['count']}, the newest {_age(now, each['newest'])}")


def _copies(
    copies: Iterable[Mapping[str, Any]], now: int, limits: Mapping[str, float]
) -> Iterator[Finding]:
    late = limits["late"] * HOUR
    for copy in copies:
        see = f"see why (journalctl -u nas-backup@{copy['name']})"
        yield _done(f"copy {copy['name']}", copy, "", now, late, see)
        see = f"see why (journalctl -u nas-drill@{copy['name']})"
        yield _done(f"drill of {copy['name']}", copy, "drill_", now, late, see)
        kept = copy["points"] - copy["old"]
        if copy["old"] > max(limits["old"], kept):
            yield finding(
                f"old points of {copy['name']}",
                WARNING,
                f"keep would drop {copy['old']} of {copy['points']}",
                f"{max(limits['old'], kept):g}",
                "the copy grows without end, and nobody read all of it",
                "run nas.assistant.prune, and have a timer do so (docs/backup.md, Old points)",
            )


def _done(check: str, copy: Mapping[str, Any], of: str, now: int, late: float, see: str) -> Finding:
    success, cause, due = copy[f"{of}success"], copy[f"{of}cause"], copy[f"{of}due"]
    what = "a copy that nobody read back may be none" if of else "what changed since has no copy"
    ago = f"the last success {_age(now, success)}" if success else "no success before"
    if cause:
        return finding(check, BAD, f"failed: {cause}, {ago}", "", what, see)
    if success > now + HOUR:
        return finding(check, WARNING, f"dated {_age(now, success)}", "", what, "set the clock")
    if due and success < due < now - late:
        value = f"due {_age(now, due)}, {ago}"
        return finding(check, WARNING if of else BAD, value, "", what, see)
    if not success:
        # Made by hand only, or its time has not come: the first night, the first month.
        value = "not yet" if due is not None else "none, and no timer makes one"
        return finding(check, NOTE, value, "", what)
    points = "" if of else f", {copy['points']} restore points"
    return finding(check, GOOD, f"{_age(now, success)}{points}")


def _units(units: Sequence[str]) -> Iterator[Finding]:
    for unit in units:
        reason, remedy = "it does not do its work", f"see why (journalctl -u {unit})"
        yield finding("service", WARNING, f"{unit} failed", "", reason, remedy)


def _packages(packages: Mapping[str, Any], now: int, most: float) -> Iterator[Finding]:
    fetched, pending = packages["fetched"], len(packages["pending"])
    remedy = "apt update && apt upgrade"
    if packages["security"]:
        value = f"{pending} to upgrade, {packages['security']} of them close holes"
        yield finding("packages", WARNING, value, "0", "holes that are known stay open", remedy)
    elif now - fetched > most * DAY:
        value = f"nobody looked for new ones since {_age(now, fetched)}"
        if not fetched:
            value = "nobody ever looked for new ones"
        reason = "holes that are known stay open"
        yield finding("packages", WARNING, value, f"{most:g} days", reason, remedy)
    else:
        value = f"{pending} to upgrade, as of {_age(now, fetched)}"
        if packages["upgraded"]:
            value += f", the last upgrade {_age(now, packages['upgraded'])}"
        yield finding("packages", GOOD, value)
    if packages["reboot"]:
        value = ", ".join(packages["reboot"])
        reason = "what was upgraded is not in use yet"
        yield finding("reboot", WARNING, value, "", reason, "restart the NAS when nobody minds")


def _age(now: int, then: int) -> str:
    return f"in {_span(then - now)}" if then > now else f"{_span(now - then)} ago"


def _end(now: int, then: int) -> str:
    return f"expired {_age(now, then)}" if then <= now else f"{(then - now) // DAY} days left"


def _span(seconds: int) -> str:
    for size, unit in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0):
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "status_before": status_before,
            "status_findings": status_findings,
            "status_lines": status_lines,
            "status_summary": status_summary,
            "status_verdict": status_verdict,
        }
