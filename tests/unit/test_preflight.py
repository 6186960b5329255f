# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is said of machines that are fit, that are not, and that are nearly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.nas.assistant.plugins.filter import preflight, preflight_plan
from ansible_collections.nas.assistant.plugins.filter.assistant import SHARE
from expressions import ROLES, load, page_of, templar, trusted

from nas_assistant.gguf import GgufHead
from nas_assistant.settings import Settings
from nas_assistant.sizing import Candidate, Sizing

GIB = 1 << 30
DEBIAN = {"distribution": "Debian", "distribution_major_version": "12"}
NIC = {"name": "eth0", "driver": "igc", "speed": 2500, "most": 2500, "duplex": "full"}
NIC |= {"up": True, "way_out": True, "wireless": False}
DISK = {"name": "sda", "kind": "hdd", "size": 4000787030016, "model": "EXAMPLE", "health": "good"}


REPORT: dict[str, Any] = {"host": "nas1", "verdict": "fit", "plan": []}


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
            "siblings": [[0], [1], [2], [3]],
            "features": ["avx2"],
            "crypto": ["aes"],
            "governor": "performance",
            "frequency_driver": "acpi-cpufreq",
        },
        "memory": {"total": int(7.6 * GIB), "available": 6 * GIB, "swap": []},
        "bandwidth": 20_000_000_000,
        "cgroup": {"version": 2, "controllers": ["cpu", "cpuset", "io", "memory", "pids"]},
        "drives": [DISK],
        "rooms": [room(100)],
        "nics": [NIC],
        "accelerators": [],
        "listeners": [{"port": 443, "address": "::", "program": "nginx"}],
        "vendor": "",
        "engine": "",
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
    there["disks"] = ["sda"]
    return {**there, **more}


def judged(found: dict[str, Any], facts: dict[str, str] = DEBIAN) -> list[dict[str, str]]:
    findings: list[dict[str, str]] = preflight.preflight_findings(found, facts, {}, [80, 443])
    for each in findings:
        if each["verdict"] != "fit" and not a_plain_fact(each):
            assert all(each[key] for key in ("value", "limit", "reason", "remedy")), each
    return findings


def a_plain_fact(found: dict[str, str]) -> bool:
    """Whether a note only tells what is there, with nothing to do about it."""
    facts = found["check"] in ("virtualisation", "TPM") or found["check"].startswith("accelerator")
    fast = found["check"].startswith("link") and found["value"].startswith("10000 Mbit/s")
    return found["verdict"] == "note" and (facts or fast)


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
        (
            {"cgroup": {"controllers": ["cpu", "cpuset", "io", "pids"]}},
            "memory limits",
            "unfit",
        ),
        (
            {"cgroup": {"controllers": ["cpu", "io", "memory"]}},
            "container limits",
            "warning",
        ),
        ({"rooms": [room(2)]}, "room in /", "unfit"),
        ({"rooms": [room(10)]}, "room in /", "warning"),
        ({"rooms": [room(100, read_only=True)]}, "room in /", "unfit"),
        ({"drives": [{**DISK, "health": "failing"}]}, "disk sda", "warning"),
        ({"rooms": [room(1.5, paths=["/"])]}, "room in /", "unfit"),
        ({"drives": [{**DISK, "health": "worn"}]}, "disk sda", "warning"),
        ({"drives": [{**DISK, "health": "unreadable"}]}, "disk sda", "warning"),
        ({"drives": [{**DISK, "health": ""}]}, "disk sda", "note"),
        ({"cpu": {"governor": "powersave"}}, "governor", "note"),
        ({"drives": [{**DISK, "health": "hot"}]}, "disk sda", "warning"),
        ({"drives": [{**DISK, "health": "silent"}]}, "disk sda", "warning"),
        ({"drives": [{**DISK, "kind": "mmc"}]}, "disk sda", "warning"),
        ({"nics": [{**NIC, "speed": 100}]}, "link eth0", "warning"),
        ({"nics": [{**NIC, "speed": 100, "most": 100}]}, "link eth0", "warning"),
        ({"nics": [{**NIC, "duplex": "half"}]}, "link eth0", "warning"),
        ({"nics": [{**NIC, "speed": 10000}]}, "link eth0", "note"),
        ({"nics": [{**NIC, "speed": 0}]}, "link eth0", "note"),
        ({"nics": [{**NIC, "speed": 0, "wireless": True}]}, "link eth0", "warning"),
        (
            {"listeners": [{"port": 80, "address": "::", "program": "apache2"}]},
            "port 80",
            "unfit",
        ),
        ({"vendor": "Synology DSM"}, "system", "unfit"),
        ({"clock_is_set": False}, "clock", "warning"),
        ({"cpu": {"crypto": []}}, "encryption", "note"),
        ({"tpm": ""}, "TPM", "note"),
        ({"virtualisation": "kvm"}, "virtualisation", "note"),
        (
            {"accelerators": [{"kind": "gpu", "name": "Intel 0x46d1", "device": ""}]},
            "accelerator, gpu",
            "note",
        ),
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
        ("UGOS", DEBIAN, "warning"),
        ("fnOS", DEBIAN, "warning"),
        ("fnOS", {**DEBIAN, "distribution_major_version": "11"}, "unfit"),
        ("", {"distribution": "Ubuntu", "distribution_major_version": "24"}, "unfit"),
        ("", {**DEBIAN, "distribution_major_version": "11"}, "unfit"),
    ],
)
def test_systems(vendor: str, facts: dict[str, str], verdict: str) -> None:
    findings = judged(machine(vendor=vendor), facts)
    assert next(each["verdict"] for each in findings if each["check"] == "system") == verdict


def test_what_switches_the_memory_controller_on_is_said_as_it_is_typed() -> None:
    """No inventory is the default, so the command names one."""
    (found,) = [
        each
        for each in judged(machine(cgroup={"controllers": ["cpuset", "cpu", "io", "pids"]}))
        if each["verdict"] == "unfit"
    ]
    *_, task = load(ROLES / "assistant/tasks/assert.yml")
    said = " ".join(task["ansible.builtin.assert"]["fail_msg"].split())
    command = "ansible-playbook -i INVENTORY nas.assistant.memory_controller -e "
    for text in (found["remedy"], said):
        assert f"{command}kernel_memory_controller=true" in text


@pytest.mark.parametrize(
    ("version", "controllers", "missing"),
    [
        (2, ["cpu", "cpuset", "io", "memory", "pids"], ""),
        (2, ["cpu", "io", "memory"], "pids, cpuset"),
        (1, ["blkio", "cpu", "cpuset", "memory", "pids"], ""),
        (1, ["cpu", "cpuset", "memory", "pids"], "blkio"),
    ],
)
def test_controllers_beside_that_of_memory(
    version: int, controllers: list[str], missing: str
) -> None:
    found = judged(machine(cgroup={"version": version, "controllers": controllers}))
    said = [each["value"] for each in found if each["check"] == "container limits"]
    assert said == ([f"the kernel has no {missing}"] if missing else [])


def test_who_listens_elsewhere_is_in_nobodys_way() -> None:
    listeners = [{"port": 8080, "address": "::", "program": "java"}]
    assert preflight.preflight_verdict(judged(machine(listeners=listeners))) == "fit"


def test_a_system_disk_may_be_small_and_a_card_idle() -> None:
    rooms = [room(5, paths=["/"]), room(900, mount="/srv/tank", disks=["sdb"])]
    card = {**DISK, "name": "mmcblk0", "kind": "mmc"}
    assert preflight.preflight_verdict(judged(machine(rooms=rooms, drives=[card]))) == "fit"


@pytest.mark.parametrize(
    ("cpu", "said"),
    [
        ({}, "4 cores, 4 threads"),
        (
            {"cores": 8, "count": 8, "efficient": [4, 5, 6, 7]}
            | {"siblings": [[each] for each in range(8)]},
            "8 cores, 8 threads: 4 fast (0-3), 4 efficient (4-7)",
        ),
        # Only the fast ones have two threads; of ARM's, the slow ones come first.
        (
            {"cores": 4, "count": 6, "efficient": [4, 5]}
            | {"siblings": [[0, 1], [2, 3], [4], [5]]},
            "4 cores, 6 threads: 4 fast (0-3), 2 efficient (4-5)",
        ),
        (
            {"efficient": [0, 2]},
            "4 cores, 4 threads: 2 fast (1,3), 2 efficient (0,2)",
        ),
    ],
)
def test_cores_and_which_of_them_are_slow(cpu: dict[str, Any], said: str) -> None:
    (found,) = [each for each in judged(machine(cpu=cpu)) if each["check"] == "cores"]
    assert (found["verdict"], found["value"]) == ("fit", said)


@pytest.mark.parametrize(
    ("swap", "said"),
    [
        ([], "none"),
        (
            [{"kind": "zram", "size": 2 * GIB}, {"kind": "file", "size": GIB}],
            "zram 2.0 GiB, file 1.0 GiB",
        ),
    ],
)
def test_swap(swap: list[dict[str, Any]], said: str) -> None:
    found = judged(machine(memory={"swap": swap}))
    assert [each["value"] for each in found if each["check"] == "swap"] == [said]


def test_powersave_is_no_crawl_with_every_driver() -> None:
    found = judged(machine(cpu={"governor": "powersave", "frequency_driver": "intel_pstate"}))
    assert {each["verdict"] for each in found} == {"fit"}


def test_a_volume_that_is_to_come_needs_no_room_where_its_folder_is_now() -> None:
    tight = room(1, paths=["/var/lib/docker"], mount="/var")
    made = room(1, paths=["/var/lib/docker"], mount="/var/lib/docker")
    for rooms, verdict in (([tight], "fit"), ([made], "unfit")):
        found = preflight.preflight_findings(
            machine(rooms=rooms), DEBIAN, {}, [], False, ["/var/lib/docker"]
        )
        assert preflight.preflight_verdict(found) == verdict


EXAMPLE = """
storage_pools:
  - name: tank
    volumes:
      - {name: docker, path: /var/lib/docker, migrate: true}
      - {name: models, path: /var/lib/nas-assistant/models, compression: none}
      - {name: own}
"""
MODELS = "/var/lib/nas-assistant/models"


@pytest.mark.parametrize(
    ("given", "paths", "docker", "free", "verdict"),
    [
        # Packages alone are to be there: the inventory's own example.
        (EXAMPLE, ["/", MODELS], True, 4, "fit"),
        (EXAMPLE, ["/", MODELS], True, 1, "unfit"),
        (f"{EXAMPLE}storage_state: absent", ["/", MODELS], True, 4, "unfit"),
        ("{}", ["/", MODELS], True, 4, "unfit"),
        # Folders below the place of a pool that has no volume for them.
        (
            "{storage_pools: [{name: tank}], docker_daemon: {data-root: /srv/tank/docker}, "
            "assistant_data_dir: /srv/tank/assistant}",
            ["/", "/srv/tank/assistant/models", "/srv/tank/docker"], False, 4, "fit",
        ),
        (
            "{storage_pools: [{name: tank, mount: /mnt/x}], assistant_data_dir: /mnt/x/a}",
            ["/", "/mnt/x/a/models"], True, 4, "unfit",
        ),
        # No parent, for all that its name begins alike.
        (
            "{storage_pools: [{name: tank}], assistant_data_dir: /srv/tanks}",
            ["/", "/srv/tanks/models"], True, 4, "unfit",
        ),
        ("{preflight_paths: [/srv]}", ["/srv"], False, 4, "unfit"),
    ],
)  # fmt: skip
def test_what_a_pool_is_to_hold_needs_no_room_on_the_systems_disk(
    given: str, paths: list[str], docker: bool, free: float, verdict: str
) -> None:
    role = templar("preflight", [preflight.FilterModule()], **yaml.safe_load(given))
    assert role.template(trusted("{{ __preflight_paths }}")) == paths
    (look, *_) = load(ROLES / "preflight/tasks/look.yml")
    assert role.template(look["nas.assistant.nas_info"]["docker_root"]) is docker
    pending = role.template(trusted("{{ __preflight_pending }}"))
    rooms = [room(free, paths=[*paths, *(["/var/lib/docker"] if docker else [])])]
    found = preflight.preflight_findings(machine(rooms=rooms), DEBIAN, {}, [], False, pending)
    assert preflight.preflight_verdict(found) == verdict


@pytest.mark.parametrize(
    ("path", "mount", "seen"),
    [
        (MODELS, "/", False),
        (MODELS, MODELS, True),
        # The pool is mounted, the volume in it not yet.
        ("/srv/tank/own/models", "/srv/tank", True),
        ("/srv/tank/own/models", "/srv/tank/own", True),
        ("/srv/tank/deep/models", "/srv/tank", False),
        ("/srv/tank/deep/models", "/srv/tank/deep/models", True),
        ("/srv/tank/deep/models", "/", False),
    ],
)
def test_a_place_is_looked_at_once_it_is_there(path: str, mount: str, seen: bool) -> None:
    rooms = [room(1, paths=[path], mount=mount)]
    pending = [MODELS, "/srv/tank", "/srv/tank/deep/"]
    found = preflight.preflight_findings(machine(rooms=rooms), DEBIAN, {}, [], False, pending)
    assert ("room in" in str(found)) is seen


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ({}, 0),
        ({"assistant_resources": {"cpus": 0}}, 0),
        # As the engine rounds it; half a CPU is one thread.
        ({"assistant_resources": {"cpus": 2.5}}, 2),
        ({"assistant_resources": {"cpus": "0.5"}}, 1),
        ({"assistant_engine": {"threads": 2}}, 2),
        ({"assistant_engine": {"threads": 6}, "assistant_resources": {"cpus": 3}}, 3),
        ({"assistant_engine": {"threads": 2}, "assistant_resources": {"cpus": 3}}, 2),
        # What is none is refused by the role assistant.
        ({"assistant_resources": {"cpus": "two"}}, 0),
    ],
)
def test_memory_is_measured_with_the_engines_threads(given: dict[str, Any], threads: int) -> None:
    role = templar("preflight", [preflight.FilterModule()], **given)
    (look, *_) = load(ROLES / "preflight/tasks/look.yml")
    assert int(role.template(look["nas.assistant.nas_info"]["threads"])) == threads


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
    found = preflight.preflight_model(machine(), catalogue, int(4.5 * GIB))
    assert found["best"] == "small"
    small, large = found["models"]
    assert small["needed"] == small["weights"] + small["context"] + small["overhead"]
    assert (small["fits"], large["fits"]) == (True, False)
    assert (small["each"], large["each"]) == (4096, 4096)
    assert small["tokens"] == 12
    assert preflight.preflight_model(machine(), catalogue, 6 * GIB)["best"] == "large"
    nothing = preflight.preflight_model(machine(bandwidth=0), catalogue, GIB)
    assert (nothing["best"], nothing["models"][0]["tokens"]) == ("", 0)
    found = {**REPORT, "findings": judged(machine()), "model": nothing}
    lines = "\n".join(preflight.preflight_lines(found))
    assert re.search("does not fit with 4 times [0-9]+ tokens, speed not measured", lines)


@pytest.mark.parametrize(
    ("memory", "best"),
    [(4, "Qwen2.5 1.5B Instruct"), (8, "Qwen3 4B"), (16, "Qwen3 8B"), (32, "Qwen3 14B")],
)
def test_the_catalogue_has_a_model_for_each_size_of_nas(memory: int, best: str) -> None:
    catalogue = load(ROLES / "preflight/vars/main.yml")["__preflight_catalogue"]
    share = assistant_memory(memory)
    assert preflight.preflight_model_faults(catalogue) == []
    assert preflight.preflight_model(machine(), catalogue, share)["best"] == best


def assistant_memory(size: int) -> int:
    """Bytes that the container has by itself of a machine with so many GB."""
    return int(size * preflight.KEPT * GIB * SHARE)


GOOD: dict[str, Any] = {"name": "own", "bytes": "500", "bytes_per_token": 0, "tokens": 1024}


@pytest.mark.parametrize(
    ("models", "fault"),
    [
        ({"own": GOOD}, "is no list of models"),
        ("own", "own is no list of models"),
        (["own"], "entry 1, own, has no name"),
        ([GOOD, {**GOOD, "name": ""}], "entry 2, .* has no name"),
        ([{**GOOD, "bytes": 0}], "own: bytes=0: give 1 or more, the size of its file"),
        ([{**GOOD, "bytes": "2 GB"}], "own: bytes=2 GB: give a whole number, the size of"),
        ([{**GOOD, "bytes": 1.5}], "own: bytes=1.5: give a whole number"),
        ([{**GOOD, "tokens": True}], "own: tokens=True: give a whole number, the context"),
        ([{**GOOD, "tokens": -1}], "own: tokens=-1: give 1024 or more"),
        ([{"name": "own", "bytes": 1}], "own: bytes_per_token=missing: give a"),
    ],
)
def test_models_that_are_none(models: Any, fault: str) -> None:
    (found,) = preflight.preflight_model_faults(models)
    assert re.search(fault, found)
    worked_out = {key: value for key, value in GOOD.items() if key != "tokens"}
    assert preflight.preflight_model_faults([GOOD, worked_out]) == []
    assert preflight.preflight_model(machine(), [GOOD], GIB)["best"] == "own"
    (task,) = load(ROLES / "preflight/tasks/assert.yml")
    role = templar("preflight", [preflight.FilterModule()], preflight_models=models)
    assert not role.evaluate_conditional(task["ansible.builtin.assert"]["that"])
    said = role.template(task["ansible.builtin.assert"]["fail_msg"])
    assert said == f"preflight_models: {found}. Nothing was changed."


def test_a_report_of_before_that_cannot_be_shown(tmp_path: Path) -> None:
    """A page with one that can, one that was cut off, one of another version, and one that the
    owner of the controller cannot read."""
    model = preflight.preflight_model(machine(), [GOOD], GIB)
    report = {**REPORT, "findings": judged(machine()), "model": model, "machine": machine()}
    whole = json.dumps(report)
    texts = {"whole": whole, "cut": whole[:-9], "list": "[]", "empty": "", "binary": "\0"}
    texts["other"] = json.dumps({key: value for key, value in report.items() if key != "model"})
    texts["older"] = json.dumps({**report, "machine": {"cpu": {}}})
    texts["words"] = json.dumps({**report, "findings": ["fit"]})
    for name, text in texts.items():
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "closed.json").write_bytes(b"\xff")

    page = page_of(
        "preflight",
        [preflight.FilterModule()],
        ansible_managed="",
        ansible_play_hosts_all=["asked"],
        groups={"nas": ["asked", *texts, "closed", "never"]},
        hostvars={"asked": {}},
        preflight_report_dir=str(tmp_path),
    )
    assert '<td>asked</td><td class="unfit">did not answer</td>' in page
    assert '<h2 id="whole">whole: <span class="fit">fit</span></h2>' in page
    assert preflight.FORECAST in page
    for name in [each for each in texts if each != "whole"] + ["closed"]:
        assert f'<td>{name}</td><td class="warning">its report cannot be read' in page
        assert f'<h2 id="{name}">' not in page
    assert "never" not in page


# Heads as large as that of Qwen3 1.7B: 28 layers, 8 heads of 128 for keys and for values.
QWEN = {"block_count": 28, "embedding_length": 2048, "attention.head_count": 16}
QWEN |= {"attention.head_count_kv": 8, "attention.key_length": 128, "attention.value_length": 128}
QWEN |= {"context_length": 40960}
BYTES = 1_110_000_000


@pytest.mark.parametrize(
    ("share", "each", "cache", "fits"),
    [
        (8.0, 8192, 128, True),
        (5.03, 8192, 128, True),
        (5.0, 4096, 128, True),
        (3.25, 4096, 128, True),
        (3.23, 2048, 128, True),
        (2.37, 2048, 128, True),
        (2.357, 2048, 124, True),
        (2.24, 2048, 0, True),
        (2.22, 2048, 128, False),  # with two slots
        (1.0, 2048, 0, False),
    ],
)
def test_a_models_need_is_what_the_service_works_out(
    tmp_path: Path, share: float, each: int, cache: int, fits: bool
) -> None:
    """To the byte, where it fits with four slots; where it does not, the service has fewer."""
    config = tmp_path / "config.ini"
    config.write_text(f"[model:default]\nfile = x.gguf\nsha256 = {'0' * 64}\n")
    settings = Settings.load(config, {})
    parameters = {f"qwen3.{key}": value for key, value in QWEN.items()}
    head = GgufHead({"general.architecture": "qwen3", **parameters}, {}, 1, BYTES)
    candidate = Candidate(settings.models["default"], head, BYTES, QWEN["context_length"])
    sizing = Sizing(settings, {"default": candidate}, int(share * GIB))
    catalogue = [{"name": "qwen", "bytes": BYTES, "bytes_per_token": 114688}]
    (model,) = preflight.preflight_model(machine(), catalogue, int(share * GIB))["models"]
    assert (model["each"], model["fits"]) == (each, fits)
    assert (sizing.settings.slots == 4) is fits
    assert sizing.settings.cache_mib == cache
    if fits:
        assert sizing.settings.models["default"].context == each
        # The least that is needed; what is left below a whole cache is not said.
        assert sizing.need("default").total - model["needed"] == (cache % 128) * (1 << 20)


def test_lines_and_sentences() -> None:
    found = machine(memory={"total": 2 * GIB})
    findings = judged(found)
    catalogue = [{"name": "small", "bytes": GIB, "bytes_per_token": 0}]
    model = preflight.preflight_model(found, catalogue, GIB)
    plan = [{"what": "Docker", "now": "none", "then": "installed"}]
    report = {"host": "nas1", "verdict": "unfit", "findings": findings, "model": model}
    lines = preflight.preflight_lines({**report, "plan": plan})
    assert lines[0] == "nas1: unfit"
    assert lines[1].split() == ["unfit", "memory", "2.0", "GiB,", "wanted", "4", "GB"]
    assert lines[2].split()[-1] == "machine"
    assert lines[-5:] == [
        "  small: 1.0 GiB + 0.0 GiB + 0.3 GiB = 1.3 GiB, does not fit with 4 times 2048 tokens, "
        "about 11.2 tokens/s",
        "  the largest that fits: none of them",
        f"  {preflight.FORECAST}",
        "what the site would change:",
        "  Docker  none -> installed",
    ]
    assert preflight.sentence(findings[0]) == (
        "memory: 2.0 GiB, wanted 4 GB; a model and the NAS together do not fit: add memory, or "
        "take another machine."
    )


WANTED: dict[str, Any] = {
    "pools": [
        {"name": "own", "uuid": "0f3c", "volumes": []},
        {"name": "tank", "devices": ["/dev/sdb", "/dev/sdc"], "format": True},
        {"name": "made", "devices": ["/dev/sdd"]},
    ],
    "ssh": {"port": 2222, "account": "nasadmin"},
    "firewall": [{"service": "https"}, {"name": "game", "ports": [4000]}],
    "network": {"interfaces": [{"name": "eth0"}], "mdns": True, "upnp": [{"external_port": 443}]},
    "kernel": {"parameters": 24, "swap": {"kind": "zram", "size": "2G"}},
    "docker": True,
    "limits": {"memory": 2 * GIB, "cpuset_cpus": "1-3"},
    "ports": [443, 80],
    "copies": [{"name": "offsite"}],
}
OFF: dict[str, Any] = {
    "pools": [],
    "ssh": {},
    "firewall": None,
    "network": {},
    "kernel": {},
    "docker": False,
    "limits": {},
    "ports": [],
    "copies": [],
}


def test_what_the_site_would_change() -> None:
    listeners = [{"port": 22, "address": each, "program": "sshd"} for each in ("0.0.0.0", "::")] + [
        {"port": 445, "address": "::", "program": "smbd"}
    ]
    rows = preflight_plan.preflight_plan(
        machine(listeners=listeners, engine="20.10.24+dfsg1"), WANTED
    )
    assert [tuple(row.values()) for row in rows] == [
        ("pool own", "UUID 0f3c", "taken as it is, with what is in it"),
        ("pool tank", "/dev/sdb, /dev/sdc", "formatted, if nothing is on them"),
        ("SSH", "port 22", "port 2222, nasadmin with a key, nobody else"),
        ("firewall", "programs listen at 2 ports", "only SSH, https, game from outside"),
        ("address of eth0", "", "as network_interfaces says"),
        ("name", "", "announced on the network (Avahi)"),
        ("router", "", "port 443 opened to the world (UPnP)"),
        ("kernel", "", "24 parameters, and the queues of disks"),
        ("swap", "none", "zram 2G"),
        ("Docker", "20.10.24+dfsg1", "kept, with some settings more"),
        ("assistant's container", "7.6 GiB, 4 CPUs", "at most 2.0 GiB, on CPUs 1-3"),
        ("Nginx", "none", "port 443 and 80"),
        ("copy offsite", "", "made by timers, with restic"),
    ]
    assert preflight_plan.preflight_plan(machine(), OFF) == []
