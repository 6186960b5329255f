# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is said of machines that are fit, that are not, and that are nearly."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.nas.assistant.plugins.filter import preflight

GIB = 1 << 30
DEBIAN = {"distribution": "Debian", "distribution_major_version": "12"}
NIC = {"name": "eth0", "driver": "igc", "speed": 2500, "most": 2500, "duplex": "full"}
NIC |= {"up": True, "way_out": True}
DISK = {"name": "sda", "kind": "hdd", "size": 4000787030016, "model": "EXAMPLE", "health": "good"}


def machine(**more: Any) -> dict[str, Any]:
    """A NAS that nothing is to be said of; what differs is laid over its parts."""
    found: dict[str, Any] = {
        "cpu": {
            "architecture": "x86_64",
            "bits": 64,
            "model": "Intel N100",
            "count": 4,
            "cores": 4,
            "efficient": [],
            "features": ["avx2"],
            "crypto": ["aes"],
            "governor": "performance",
        },
        "memory": {"total": int(7.6 * GIB), "available": 6 * GIB, "swap": []},
        "bandwidth": 20_000_000_000,
        "cgroup": {"version": 2, "controllers": ["cpu", "memory"]},
        "drives": [DISK],
        "rooms": [room(100)],
        "nics": [NIC],
        "accelerators": [],
        "listeners": [{"port": 443, "address": "::", "program": "nginx"}],
        "vendor": "",
        "virtualisation": "",
        "tpm": "2",
        "clock_is_set": True,
    }
    for key, value in more.items():
        found[key] = {**found[key], **value} if isinstance(value, dict) else value
    return found


def room(free: float, **more: Any) -> dict[str, Any]:
    there: dict[str, Any] = {"mount": "/", "source": "/dev/sda1", "type": "ext4"}
    there["size"] = 200 * GIB
    there |= {"free": int(free * GIB), "read_only": False, "paths": ["/", "/var/lib/docker"]}
    return {**there, **more}


def judged(found: dict[str, Any], facts: dict[str, str] = DEBIAN) -> list[dict[str, str]]:
    findings: list[dict[str, str]] = preflight.preflight_findings(found, facts, {}, [80, 443])
    for each in findings:
        if each["verdict"] in ("unfit", "warning"):
            assert each["reason"], each
            assert each["remedy"], each
    return findings


def test_a_good_one_has_nothing_said_of_it() -> None:
    findings = judged(machine())
    assert {each["verdict"] for each in findings} == {"fit"}
    assert preflight.preflight_verdict(findings) == "fit"


@pytest.mark.parametrize(
    ("more", "check", "verdict"),
    [
        ({"cpu": {"architecture": "armv7l"}}, "processor", "unfit"),
        ({"cpu": {"architecture": "aarch64", "bits": 32}}, "processor", "unfit"),
        ({"cpu": {"features": ["sse4.2"]}}, "instructions", "warning"),
        (
            {"cpu": {"architecture": "aarch64", "features": ["neon"]}},
            "instructions",
            "warning",
        ),
        ({"memory": {"total": 2 * GIB}}, "memory", "unfit"),
        # What a machine with 4 GB has left: it is let in.
        ({"memory": {"total": int(3.7 * GIB)}}, "memory", "warning"),
        ({"cgroup": {"controllers": ["cpu", "pids"]}}, "memory limits", "unfit"),
        ({"rooms": [room(2)]}, "room in /", "unfit"),
        ({"rooms": [room(10)]}, "room in /", "warning"),
        ({"rooms": [room(100, read_only=True)]}, "room in /", "unfit"),
        ({"drives": [{**DISK, "health": "failing"}]}, "disk sda", "warning"),
        ({"rooms": [room(1.5, paths=["/"])]}, "room in /", "unfit"),
        ({"drives": [{**DISK, "health": "worn"}]}, "disk sda", "warning"),
        ({"drives": [{**DISK, "health": "hot"}]}, "disk sda", "warning"),
        ({"drives": [{**DISK, "health": "silent"}]}, "disk sda", "warning"),
        ({"drives": [{**DISK, "kind": "mmc"}]}, "disk sda", "warning"),
        ({"nics": [{**NIC, "speed": 100}]}, "link eth0", "warning"),
        ({"nics": [{**NIC, "speed": 100, "most": 100}]}, "link eth0", "warning"),
        ({"nics": [{**NIC, "duplex": "half"}]}, "link eth0", "warning"),
        ({"nics": [{**NIC, "speed": 10000}]}, "link eth0", "note"),
        ({"nics": [{**NIC, "speed": 0}]}, "link eth0", "note"),
        (
            {"listeners": [{"port": 80, "address": "::", "program": "apache2"}]},
            "port 80",
            "unfit",
        ),
        ({"vendor": "Synology DSM"}, "system", "unfit"),
        ({"clock_is_set": False}, "clock", "warning"),
        ({"cpu": {"crypto": []}}, "encryption", "note"),
        ({"tpm": ""}, "TPM", "note"),
    ],
)
def test_one_thing_is_wrong(more: dict[str, Any], check: str, verdict: str) -> None:
    findings = judged(machine(**more))
    # The worst comes first.
    assert (findings[0]["check"], findings[0]["verdict"]) == (check, verdict)
    assert {each["verdict"] for each in findings[1:]} == {"fit"}
    expected = {"unfit": "unfit", "warning": "fit with warnings", "note": "fit"}[verdict]
    assert preflight.preflight_verdict(findings) == expected


@pytest.mark.parametrize(
    ("vendor", "facts", "verdict"),
    [
        ("OpenMediaVault", DEBIAN, "fit"),
        ("", {"distribution": "Ubuntu", "distribution_major_version": "24"}, "unfit"),
        ("", {**DEBIAN, "distribution_major_version": "11"}, "unfit"),
    ],
)
def test_systems(vendor: str, facts: dict[str, str], verdict: str) -> None:
    findings = judged(machine(vendor=vendor), facts)
    assert next(each["verdict"] for each in findings if each["check"] == "system") == verdict


def test_who_listens_elsewhere_is_in_nobodys_way() -> None:
    listeners = [{"port": 8080, "address": "::", "program": "java"}]
    assert preflight.preflight_verdict(judged(machine(listeners=listeners))) == "fit"


def test_a_system_disk_may_be_small_and_a_card_idle() -> None:
    rooms = [room(5, paths=["/"]), room(900, mount="/srv/tank", source="/dev/sdb")]
    card = {**DISK, "name": "mmcblk0", "kind": "mmc"}
    assert preflight.preflight_verdict(judged(machine(rooms=rooms, drives=[card]))) == "fit"


def test_a_port_is_named_once_and_openmediavaults_page_noted() -> None:
    twice = [{"port": 80, "address": each, "program": "apache2"} for each in ("0.0.0.0", "::")]
    found = [each for each in judged(machine(listeners=twice)) if each["check"] == "port 80"]
    assert len(found) == 1
    (note, *_) = judged(machine(vendor="OpenMediaVault"))
    assert (note["check"], note["verdict"]) == ("port 443", "note")


def test_limits_are_the_owners() -> None:
    small = machine(memory={"total": 2 * GIB})
    limits = {"memory_min": 2, "memory_good": 2}
    assert preflight.preflight_verdict(preflight.preflight_findings(small, DEBIAN, limits)) == "fit"
    for wrong, why in (({"memory": 2}, "memory is unknown; there are"), ({"free_min": "6"}, "'6'")):
        with pytest.raises(AnsibleFilterError, match=why):
            preflight.preflight_findings(small, DEBIAN, wrong)


def test_what_the_assistant_took_itself_is_no_reason_to_refuse_it() -> None:
    full = machine(rooms=[room(3), room(1.5, paths=["/"])])
    found = preflight.preflight_findings(full, DEBIAN, {}, [80, 443], True)
    assert preflight.preflight_verdict(found) == "fit with warnings"
    read_only = machine(rooms=[room(100, read_only=True)])
    found = preflight.preflight_findings(read_only, DEBIAN, {}, [80, 443], True)
    assert preflight.preflight_verdict(found) == "unfit"


def test_the_largest_model_that_fits() -> None:
    catalogue = [
        {"name": "large", "bytes": 2_500_000_000, "bytes_per_token": 147456, "tokens": 16384},
        {"name": "small", "bytes": 1_000_000_000, "bytes_per_token": 28672, "tokens": 16384},
    ]
    found = preflight.preflight_model(machine(), catalogue, 0.6)
    assert found["best"] == "small"
    small, large = found["models"]
    assert small["needed"] == small["weights"] + small["context"] + small["overhead"]
    assert (small["fits"], large["fits"]) == (True, False)
    assert small["tokens"] == 12
    assert preflight.preflight_model(machine(), catalogue, 0.8)["best"] == "large"
    nothing = preflight.preflight_model(machine(bandwidth=0), catalogue, 0.1)
    assert (nothing["best"], nothing["models"][0]["tokens"]) == ("", 0)


def test_lines_and_sentences() -> None:
    found = machine(memory={"total": 2 * GIB})
    findings = judged(found)
    catalogue = [{"name": "small", "bytes": GIB, "bytes_per_token": 0, "tokens": 0}]
    model = preflight.preflight_model(found, catalogue, 0.5)
    report = {"host": "nas1", "verdict": "unfit", "findings": findings, "model": model}
    lines = preflight.preflight_lines(report)
    assert lines[0] == "nas1: unfit"
    assert lines[1].split() == ["unfit", "memory", "2.0", "GiB"]
    assert lines[2].split()[-1] == "machine"
    assert lines[-1].endswith(
        "1.0 GiB + 0.0 GiB + 0.5 GiB = 1.5 GiB, does not fit, about 11.2 tokens/s"
    )
    assert preflight.sentence(findings[0]) == (
        "memory: 2.0 GiB, wanted 4 GB; a model and the NAS together do not fit: add memory, or "
        "take another machine."
    )
