# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is found of a machine, what is wanted of it, and what to do where these differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.nas.assistant.plugins.module_utils._cpu import spoken
from ansible_collections.nas.assistant.plugins.plugin_utils._findings import (
    ILL,
    Finding,
    finding,
    gib,
    limits as checked,
    sentence,
    table,
)

GIB = 1 << 30
FIT, NOTE, WARNING, UNFIT = "fit", "note", "warning", "unfit"
VERDICTS = {FIT: "fit", NOTE: "fit", WARNING: "fit with warnings", UNFIT: "unfit"}
LIMITS = {
    "memory_min": 4,
    "memory_good": 8,
    "link_good": 1000,
    "free_min": 6,
    "free_good": 20,
    "free_system": 2,
}
# Firmware, graphics and the kernel keep a part of what is sold as 4 GB.
KEPT = 0.88
# Systems with a read-only root or tools of their own, that undo what is set beside them.
REFUSED = {
    "TrueNAS SCALE": "run the collection in a virtual machine with Debian 12 or 13 on it",
    "Synology DSM": "run the collection in Virtual Machine Manager, on Debian 12 or 13",
    "QNAP QTS": "run the collection in Virtualization Station, on Debian 12 or 13",
    "Unraid": "run the collection in a virtual machine with Debian 12 or 13 on it",
}
RELEASES = ("12", "13")
# Built on Debian, and nobody has tried them.
UNTRIED = ("UGOS", "fnOS")
# What the service counts beside weights and context, in bytes: engine and gateway, the texts of
# requests, and prompts that may come again (memory.py and sizing.py of the service, with which a
# test compares this).
MIB = 1 << 20
FIXED = (96 + 208) * MIB
CACHE = 128 * MIB
SLOTS = 4
# Tokens for each slot that it takes by itself, the most first.
CONTEXTS = (8192, 4096, 2048)
# With these drivers, powersave is as fast as is needed at the moment.
ON_DEMAND = ("intel_pstate", "amd-pstate-epp")
# Share of the memory's speed that the engine reaches while it writes an answer: models of one to
# four billion weights, about. Very small ones reach half of that.
REACHED = 0.6
FORECAST = (
    f"tokens/s of one client: about {REACHED:g} of the speed at which memory is read, over the "
    "weights; very small models reach half of that"
)
# Of an entry of preflight_models: what it has, with the least of it, and what that is.
ENTRY = {
    "bytes": (1, "the size of its file"),
    "bytes_per_token": (0, "2 x layers x heads of keys and values x their length x 2"),
    "tokens": (SLOTS * 256, "the context of four slots together"),
}
# What it may leave out.
WORKED_OUT = {"tokens"}


def preflight_findings(
    machine: Mapping[str, Any],
    facts: Mapping[str, Any],
    limits: Mapping[str, Any] | None = None,
    ports: Iterable[int] = (),
    installed: bool = False,
    pending: Iterable[str] = (),
) -> list[Finding]:
    """Return what there is to say of a machine, the worst first.

    Each has ``check``, ``verdict`` (``unfit``, ``warning``, ``note``, ``fit``), ``value`` that was
    found, ``limit``, ``reason`` why it matters, and ``remedy``; the last two are empty of what is
    fit, and of a note that only tells a fact.

    :param machine: the answer of ``nas.assistant.nas_info``.
    :param facts: ``distribution`` and ``distribution_major_version``, as of ``setup``.
    :param limits: those that differ from ``LIMITS``: memory and room in GB, a link in Mbit/s.
    :param ports: TCP ports that the proxy wants; none where it is not wanted.
    :param installed: whether the assistant is there already: what it takes is taken, so that little
        room is a warning.
    :param pending: folders that are to become pools, or volumes of them: only where one is, is the
        room of what lies in it of interest.
    :raises AnsibleFilterError: a limit is unknown, or is no number.
    """
    allowed = checked("preflight_limits", limits or {}, LIMITS)
    found = [
        *_system(machine, facts),
        *_cpu(machine["cpu"]),
        *_memory(machine, allowed),
        *_rooms(_of_interest(machine["rooms"], set(pending)), allowed, installed),
        *_drives(machine["drives"], machine["rooms"]),
        *_links(machine["nics"], allowed),
        *_ports(machine, list(ports)),
        *_rest(machine),
    ]
    order = [UNFIT, WARNING, NOTE, FIT]
    return sorted(found, key=lambda each: order.index(each["verdict"]))


def preflight_verdict(findings: Sequence[Finding]) -> str:
    """Return ``fit``, ``fit with warnings`` or ``unfit``."""
    for verdict in (UNFIT, WARNING):
        if any(each["verdict"] == verdict for each in findings):
            return VERDICTS[verdict]
    return VERDICTS[FIT]


def preflight_model_faults(models: Any) -> list[str]:
    """Return a sentence for each thing that is wrong with ``preflight_models``."""
    if not isinstance(models, Sequence) or isinstance(models, str):
        return [f"{models} is no list of models"]
    faults = []
    for place, entry in enumerate(models, 1):
        if not isinstance(entry, Mapping) or not entry.get("name"):
            faults.append(f"entry {place}, {entry}, has no name")
            continue
        for key, (least, what) in ENTRY.items():
            if key in WORKED_OUT and key not in entry:
                continue
            value = entry.get(key, "missing")
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole and not (isinstance(value, str) and value.isdecimal()):
                faults.append(f"{entry['name']}: {key}={value}: give a whole number, {what}")
            elif int(value) < least:
                faults.append(f"{entry['name']}: {key}={value}: give {least} or more, {what}")
    return faults


def preflight_before(text: str) -> dict[str, Any]:
    """Return a report that was written before; empty where it cannot be read, or is one of another
    version that the page cannot show.

    :param text: the JSON, or nothing where the file cannot be read.
    """
    try:
        report = json.loads(text)
        # All that the page shows, beside what the console does.
        preflight_lines({"plan": [], **report})
        cpu, memory = report["machine"]["cpu"], report["machine"]["memory"]
        shown = [cpu["model"], cpu["architecture"], cpu["cores"], memory["total"] / GIB]
        shown += [each[key] for each in report["findings"] for key in finding("", "", "")]
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}
    return dict(report) if shown else {}


def preflight_model(
    machine: Mapping[str, Any], catalogue: Iterable[Mapping[str, Any]], share: int
) -> dict[str, Any]:
    """Return the largest model that fits, and the arithmetic.

    ``models`` lists all of the catalogue with ``name``, ``weights``, ``each`` (tokens of context
    that four clients have each, as the service works it out), ``context`` (bytes of that),
    ``overhead`` (bytes beside both), ``needed`` (bytes in all), ``fits`` and ``tokens`` (a second
    for one client, 0 where the memory's speed was not measured); ``best`` is the name of the
    largest that fits, or empty; ``share`` as it was given; ``forecast`` says what ``tokens`` are
    worth.

    :param catalogue: models with ``name``, ``bytes``, ``bytes_per_token`` of context, and
        ``tokens`` of context for all slots together where that is to be set.
    :param share: bytes that the assistant's container may have.
    """
    speed = machine["bandwidth"] * REACHED
    models = []
    for entry in catalogue:
        weights = int(entry["bytes"])
        each, context, overhead = _sizes(entry, share)
        needed = weights + context + overhead
        models.append(
            {
                "name": entry["name"],
                "weights": weights,
                "each": each,
                "context": context,
                "overhead": overhead,
                "needed": needed,
                "fits": needed <= share,
                "tokens": round(speed / weights, 1),
            }
        )
    models.sort(key=lambda each: int(each["weights"]))
    fitting = [each["name"] for each in models if each["fits"]]
    best = fitting[-1] if fitting else ""
    return {"models": models, "share": share, "best": best, "forecast": FORECAST}


def _sizes(entry: Mapping[str, Any], share: int) -> tuple[int, int, int]:
    """Tokens for each of four slots, bytes of these, and of what is beside weights and context.

    The most context that fits beside the prompt cache; the least is preferred to the cache.
    """
    set_by_hand = int(entry.get("tokens", 0)) // SLOTS
    contexts = (set_by_hand,) if set_by_hand else CONTEXTS
    choices = [(each, CACHE) for each in contexts] + [(contexts[-1], 0)]
    for each, cache in choices:
        context = int(entry["bytes_per_token"]) * each * SLOTS
        # Text of a request: 16 bytes for each token and 64 KiB, of which the engine makes 80 times
        # as much.
        overhead = FIXED + cache + (each * 16 + (64 << 10)) * 80 * SLOTS
        if int(entry["bytes"]) + context + overhead <= share:
            break
    return each, context, overhead


def preflight_lines(report: Mapping[str, Any]) -> list[str]:
    """Return a report as lines for the console: a table, what to do, the model that fits, and what
    the site would change."""
    lines = [f"{report['host']}: {report['verdict']}", *table(report["findings"])]
    model = report["model"]
    lines.append(f"a model may have {gib(model['share'])} here:")
    for each in model["models"]:
        need = " + ".join(gib(each[key]) for key in ("weights", "context", "overhead"))
        speed = f"about {each['tokens']:g} tokens/s" if each["tokens"] else "speed not measured"
        fits = "fits" if each["fits"] else "does not fit"
        four = f"{fits} with {SLOTS} times {each['each']} tokens"
        lines.append(f"  {each['name']}: {need} = {gib(each['needed'])}, {four}, {speed}")
    lines.append(f"  the largest that fits: {model['best'] or 'none of them'}")
    lines.append(f"  {FORECAST}")
    lines.append("what the site would change:")
    width = max((len(row["what"]) for row in report["plan"]), default=0)
    for row in report["plan"]:
        now = f"{row['now']} -> " if row["now"] else ""
        lines.append(f"  {row['what'].ljust(width)}  {now}{row['then']}")
    return lines


def _system(machine: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Finding]:
    vendor = machine["vendor"]
    release = f"{facts['distribution']} {facts['distribution_major_version']}"
    limit = f"Debian {' or '.join(RELEASES)}"
    if vendor in REFUSED:
        yield finding(
            "system",
            UNFIT,
            vendor,
            limit,
            "it has a root of its own that settings do not survive in",
            REFUSED[vendor],
        )
    elif release not in [f"Debian {each}" for each in RELEASES]:
        yield finding(
            "system",
            UNFIT,
            release,
            limit,
            "the collection is tested on these alone",
            "install one of them",
        )
    elif vendor in UNTRIED:
        yield finding(
            "system",
            WARNING,
            f"{vendor}, {release}",
            limit,
            "it is its vendor's, the collection was not tried on it, and an update of it may undo "
            "what was set",
            "have a copy of what is on it, and look at the site's --check --diff first",
        )
    else:
        yield finding("system", FIT, f"{vendor}, {release}" if vendor else release, limit)
    kind = machine["virtualisation"]
    if kind:
        yield finding("virtualisation", NOTE, kind)


def _cpu(cpu: Mapping[str, Any]) -> Iterator[Finding]:
    architecture, limit = cpu["architecture"], "x86_64 or aarch64 (ARMv8)"
    value = f"{architecture}, {cpu['model']}" if cpu["model"] else architecture
    if architecture not in ("x86_64", "aarch64"):
        yield finding(
            "processor",
            UNFIT,
            value,
            limit,
            "the engine is not built for it",
            "take a 64-bit machine; on a Raspberry Pi 3 or later, the 64-bit system",
        )
        return
    if cpu["bits"] != 64:
        yield finding(
            "processor",
            UNFIT,
            f"{value}, {cpu['bits']}-bit programs",
            limit,
            "a model has no room in 32 bits",
            "install the 64-bit system",
        )
        return
    yield finding("processor", FIT, value, limit)
    features = set(cpu["features"])
    listed = " ".join(cpu["features"]) or "none"
    if architecture == "x86_64" and "avx2" not in features:
        yield finding(
            "instructions",
            WARNING,
            listed,
            "avx2",
            "without it a prompt is read about 15 times slower",
            "keep the engine built from source (assistant_image.engine: source), contexts short",
        )
    elif architecture == "aarch64" and "dotprod" not in features:
        yield finding(
            "instructions",
            WARNING,
            listed,
            "dotprod",
            "without it a prompt is read slowly",
            "keep contexts short, and take a small model",
        )
    else:
        yield finding("instructions", FIT, listed)
    yield finding("cores", FIT, _cores(cpu))
    if cpu["governor"] == "powersave" and cpu["frequency_driver"] not in ON_DEMAND:
        yield finding(
            "governor",
            NOTE,
            "powersave",
            "schedutil",
            "it holds the CPUs at their lowest speed",
            "have the role kernel set it (kernel_governor: schedutil)",
        )


def _cores(cpu: Mapping[str, Any]) -> str:
    """Say how many there are, and by the kernel's numbers which of them are slower."""
    shown = f"{cpu['cores']} cores, {cpu['count']} threads"
    slow = cpu["efficient"]
    if not slow:
        return shown
    fast = [each for core in cpu["siblings"] for each in core if each not in slow]
    kinds = [f"{len(fast)} fast ({spoken(fast)})", f"{len(slow)} efficient ({spoken(slow)})"]
    return f"{shown}: {', '.join(kinds)}"


def _memory(machine: Mapping[str, Any], limits: Mapping[str, float]) -> Iterator[Finding]:
    total = machine["memory"]["total"]
    value = gib(total)
    if total < limits["memory_min"] * GIB * KEPT:
        yield finding(
            "memory",
            UNFIT,
            value,
            f"{limits['memory_min']:g} GB",
            "a model and the NAS together do not fit",
            "add memory, or take another machine",
        )
    elif total < limits["memory_good"] * GIB * KEPT:
        yield finding(
            "memory",
            WARNING,
            value,
            f"{limits['memory_good']:g} GB",
            "only small models fit beside what a NAS does",
            "take one of 1 to 2 billion parameters, or add memory",
        )
    else:
        yield finding("memory", FIT, value, f"{limits['memory_good']:g} GB")
    groups = machine["cgroup"]
    if "memory" in groups["controllers"]:
        yield finding("memory limits", FIT, f"cgroups v{groups['version']}")
    else:
        yield finding(
            "memory limits",
            UNFIT,
            "the kernel's memory controller is off",
            "on",
            "a container's memory limit would be taken and ignored, and starve the NAS",
            "have it switched on, with a reboot: ansible-playbook -i INVENTORY "
            "nas.assistant.memory_controller -e kernel_memory_controller=true (it is a word on the "
            "kernel's command line, which Raspberry Pi OS leaves out)",
        )
    yield from _controllers(groups)
    swap = [f"{each['kind']} {gib(each['size'])}" for each in machine["memory"]["swap"]]
    yield finding("swap", FIT, ", ".join(swap) or "none")


def _controllers(groups: Mapping[str, Any]) -> Iterator[Finding]:
    """What else a container may be held to: by itself ``pids`` and ``cpuset``."""
    wanted = ("pids", "cpuset", "cpu", "blkio" if groups["version"] == 1 else "io")
    missing = [each for each in wanted if each not in groups["controllers"]]
    if missing:
        yield finding(
            "container limits",
            WARNING,
            f"the kernel has no {', '.join(missing)}",
            ", ".join(wanted),
            "Docker drops such a limit, and the run ends where the container is asked for it",
            "take the distribution's kernel, or one with these controllers; without cpuset, "
            "assistant_resources.cpuset_cpus with all CPUs asks for nothing, and cpu and io are "
            "for its cpus, cpu_shares and blkio_weight alone",
        )


def _of_interest(
    rooms: Iterable[Mapping[str, Any]], pending: set[str]
) -> Iterator[Mapping[str, Any]]:
    """What is to lie in a volume lies in another filesystem for now, which need not hold it."""
    for room in rooms:
        paths = [path for path in room["paths"] if _is_in_place(path, room["mount"], pending)]
        if paths:
            yield {**room, "paths": paths}


def _is_in_place(path: str, mount: str, pending: set[str]) -> bool:
    places = [each for each in pending if f"{path}/".startswith(f"{each.rstrip('/')}/")]
    # A volume may lie in the place of another one.
    return not places or f"{mount}/".startswith(f"{max(places, key=len).rstrip('/')}/")


def _rooms(
    rooms: Iterable[Mapping[str, Any]], limits: Mapping[str, float], installed: bool
) -> Iterator[Finding]:
    for room in rooms:
        check = f"room in {room['mount']}"
        value = f"{room['free'] / GIB:.1f} of {room['size'] / GIB:.1f} GiB free"
        # Where Docker and the models lie elsewhere, there are packages and logs alone.
        system = list(room["paths"]) == ["/"]
        least = limits["free_system"] if system else limits["free_min"]
        good = limits["free_system"] if system else limits["free_good"]
        if room["read_only"]:
            yield finding(
                check,
                UNFIT,
                f"read-only {room['type']}",
                "writable",
                "nothing can be installed there",
                f"see why (journalctl -k), then: mount -o remount,rw {room['mount']}; where the "
                "kernel refuses that after an error, reboot, so that it is checked",
            )
        elif room["free"] < least * GIB:
            yield finding(
                check,
                WARNING if installed else UNFIT,
                value,
                f"{least:g} GiB",
                "an update may find no room"
                if installed
                else "what is installed there does not fit",
                "make room"
                if system
                else "make room, or give Docker and the models a place on a larger disk "
                "(storage_pools)",
            )
        elif room["free"] < good * GIB:
            yield finding(
                check,
                WARNING,
                value,
                f"{good:g} GiB",
                "there is little room for a second model, or for an update of the image",
                "make room, or give the models a place on a larger disk (storage_pools)",
            )
        else:
            yield finding(check, FIT, value, f"{good:g} GiB")


def _drives(
    drives: Iterable[Mapping[str, Any]], rooms: Iterable[Mapping[str, Any]]
) -> Iterator[Finding]:
    used = {disk for room in rooms for disk in room["disks"]}
    for drive in drives:
        check = f"disk {drive['name']}"
        about = f"{drive['kind']}, {drive['size'] / 1e9:.0f} GB"
        about += f", {drive['model']}" if drive["model"] else ""
        if drive["health"] in ILL:
            value = f"{about}, {drive['health']}"
            yield finding(check, WARNING, value, "good", *ILL[drive["health"]])
        elif drive["kind"] == "mmc" and drive["name"] in used:
            yield finding(
                check,
                WARNING,
                about,
                "a disk",
                "cards wear out under Docker's and a log's writes",
                "keep Docker and the models on a disk (storage_pools)",
            )
        elif drive["health"] or drive["kind"] in ("mmc", "virtual"):
            yield finding(check, FIT, f"{about}, {drive['health']}".removesuffix(", "))
        else:
            yield finding(
                check,
                NOTE,
                f"{about}, it does not say how it is",
                "good",
                "nobody would know that it is about to fail",
                "apt install smartmontools; behind some USB bridges it cannot say",
            )


def _links(nics: Sequence[Mapping[str, Any]], limits: Mapping[str, float]) -> Iterator[Finding]:
    used = [nic for nic in nics if nic["way_out"]] or [nic for nic in nics if nic["up"]]
    good = limits["link_good"]
    for nic in used:
        check, speed = f"link {nic['name']}", nic["speed"]
        value = f"{speed} Mbit/s {nic['duplex']}".strip() if speed else "it does not say"
        limit = f"{good:g} Mbit/s"
        if nic["wireless"]:
            yield finding(
                check,
                WARNING,
                "Wi-Fi",
                f"a cable with {limit}",
                "its speed changes by the minute, and what is under way may break off",
                "connect the NAS by cable",
            )
        elif not speed:
            yield finding(
                check,
                NOTE,
                value,
                limit,
                "a slow one would not be noticed",
                "see at the switch; a virtual machine has its host's",
            )
        elif nic["duplex"] == "half":
            yield finding(
                check,
                WARNING,
                value,
                "full duplex",
                "both sides talk in turn, with collisions",
                "set the switch's port to automatic, or try another cable",
            )
        elif speed < good and nic["most"] >= good:
            yield finding(
                check,
                WARNING,
                value,
                limit,
                f"it could have {nic['most']} Mbit/s",
                "try another cable (four pairs, CAT 5e or better) and another port of the switch",
            )
        elif speed < good:
            yield finding(
                check,
                WARNING,
                value,
                limit,
                "copies and models take long",
                "answers are short and do not suffer; for the rest, take a faster interface",
            )
        else:
            yield finding(check, NOTE if speed >= 10000 else FIT, value, limit)


def _ports(machine: Mapping[str, Any], wanted: Sequence[int]) -> Iterator[Finding]:
    taken = {(each["port"], each["program"]) for each in machine["listeners"]}
    for port, program in sorted(each for each in taken if each[0] in wanted):
        if program == "nginx":
            # What the proxy is made of, and OpenMediaVault's page too.
            if machine["vendor"] == "OpenMediaVault":
                yield finding(
                    f"port {port}",
                    NOTE,
                    "Nginx, with OpenMediaVault's page",
                    "free, or Nginx",
                    "the page stays what answers to other names than the assistant's",
                    "move it (System, Workbench) or give the assistant others (proxy_https_port, "
                    "proxy_http_port) to keep the two apart",
                )
            continue
        yield finding(
            f"port {port}",
            UNFIT,
            program or "taken",
            "free, or Nginx",
            "the assistant is to answer there",
            "stop that program or move it, or give the assistant others (proxy_https_port, "
            "proxy_http_port)",
        )


def _rest(machine: Mapping[str, Any]) -> Iterator[Finding]:
    if machine["clock_is_set"]:
        yield finding("clock", FIT, "follows a time server")
    else:
        yield finding(
            "clock",
            WARNING,
            "follows no time server",
            "a time server",
            "certificates, backups and logs go by the time",
            "see whether its time service runs and is answered (timedatectl, chronyc tracking); "
            "where there is none, apt install systemd-timesyncd",
        )
    crypto = machine["cpu"]["crypto"]
    if "aes" in crypto:
        yield finding("encryption", FIT, " ".join(crypto))
    else:
        yield finding(
            "encryption",
            NOTE,
            "not in the processor",
            "aes",
            "encrypted disks are slow",
            "encrypt what needs it, and leave the models as they are: they are no secret",
        )
    yield finding("TPM", FIT if machine["tpm"] else NOTE, machine["tpm"] or "none")
    for each in machine["accelerators"]:
        device = each["device"] or "no driver"
        yield finding(f"accelerator, {each['kind']}", NOTE, f"{each['name']} ({device})")


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "preflight_before": preflight_before,
            "preflight_findings": preflight_findings,
            "preflight_lines": preflight_lines,
            "preflight_model": preflight_model,
            "preflight_model_faults": preflight_model_faults,
            "preflight_sentence": sentence,
            "preflight_verdict": preflight_verdict,
        }
