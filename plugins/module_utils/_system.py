# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What system a NAS runs, who listens on it, and what is in it beside processor and disks."""

from __future__ import annotations

import glob
import json
import os
import re
from dataclasses import dataclass

from ansible_collections.nas.assistant.plugins.module_utils import _sysfs as sysfs
from ansible_collections.nas.assistant.plugins.module_utils._commands import answer

# What a system of its own is known by. The first that is there counts.
_VENDORS = (
    ("TrueNAS SCALE", "usr/bin/midclt"),
    ("Synology DSM", "etc/synoinfo.conf"),
    ("QNAP QTS", "etc/config/uLinux.conf"),
    ("Unraid", "etc/unraid-version"),
    ("OpenMediaVault", "etc/openmediavault/config.xml"),
    ("Proxmox VE", "usr/bin/pveversion"),
    ("Armbian", "etc/armbian-release"),
    ("Raspberry Pi OS", "etc/rpi-issue"),
    # UGREEN's, which call themselves Debian: by the module of their access lists.
    ("UGOS", "sys/module/ugacl_vfs"),
    ("fnOS", "usr/trim"),
)
_DISPLAY, _PROCESSING = "0x03", "0x12"  # PCI classes
_MAKERS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x1022": "AMD", "0x8086": "Intel"}
# Of Coral's Edge TPU: on PCI; on USB before its firmware is loaded, and after.
_CORAL_PCI = ("0x1ac1", "0x089a")
_CORAL_USB = (("1a6e", "089a"), ("18d1", "9302"))
_HAILO = "0x1e60"
# AMD's XDNA says that it processes signals.
_XDNA = (("0x1022", "0x1502"), ("0x1022", "0x17f0"))
_ENGINE = re.compile(r"version (\S+?),? ")
_PROGRAM = re.compile(r'"([^"]+)",pid=')


@dataclass(frozen=True)
class Accelerator:
    """What may run a model beside the processor. ``kind``: ``gpu``, ``npu`` or ``coral``;
    ``device`` the file that a program opens, empty where the kernel has no driver for it."""

    kind: str
    name: str
    device: str


@dataclass(frozen=True)
class Listener:
    """A program that takes connections over TCP; the name is empty where it is not known."""

    port: int
    address: str
    program: str


def parse_listeners(text: str) -> list[Listener]:
    """Return the listeners of ``ss -Hlntp``, in the order of their ports."""
    found = set()
    for line in text.splitlines():
        words = line.split(maxsplit=5)
        if len(words) < 5:
            continue
        address, _, port = words[3].rpartition(":")
        address = address.split("%")[0].strip("[]")
        programs = _PROGRAM.findall(words[5]) if len(words) > 5 else []
        found.add((int(port), address, programs[0] if programs else ""))
    return [Listener(*each) for each in sorted(found)]


def vendor(root: str = "/") -> str:
    """Return the name of a NAS system, empty for a plain distribution."""
    for name, path in _VENDORS:
        if os.path.exists(os.path.join(root, path)):
            return name
    return ""


def tpm(root: str = "/") -> str:
    """Return the version of the first TPM, such as ``2``; empty where there is none."""
    return str(sysfs.text(root, "sys/class/tpm/tpm0/tpm_version_major"))


def accelerators(root: str = "/") -> list[Accelerator]:
    """Look for them on PCI, on USB, and among those that are a part of the chip."""
    found = []
    for place in sorted(glob.glob(os.path.join(root, "sys/bus/pci/devices/*"))):
        class_, maker = sysfs.text(place, "class"), sysfs.text(place, "vendor")
        name = f"{_MAKERS.get(maker, maker)} {sysfs.text(place, 'device')}"
        if (maker, sysfs.text(place, "device")) == _CORAL_PCI:
            node = sysfs.first(root, "dev/apex_*")
            found.append(Accelerator("coral", "Coral Edge TPU", f"/dev/{node}" if node else ""))
        elif maker == _HAILO:
            node = sysfs.first(root, "dev/hailo*")
            found.append(Accelerator("npu", "Hailo", f"/dev/{node}" if node else ""))
        elif class_.startswith(_DISPLAY) and maker in _MAKERS:
            node = sysfs.first(place, "drm/renderD*")
            found.append(Accelerator("gpu", name, f"/dev/dri/{node}" if node else ""))
        elif class_.startswith(_PROCESSING) or (maker, sysfs.text(place, "device")) in _XDNA:
            node = sysfs.first(place, "accel/accel*")
            found.append(Accelerator("npu", name, f"/dev/accel/{node}" if node else ""))
    for place in sorted(glob.glob(os.path.join(root, "sys/bus/usb/devices/*"))):
        if (sysfs.text(place, "idVendor"), sysfs.text(place, "idProduct")) in _CORAL_USB:
            bus, number = sysfs.text(place, "busnum"), sysfs.text(place, "devnum")
            device = f"/dev/bus/usb/{int(bus or 0):03}/{int(number or 0):03}"
            found.append(Accelerator("coral", "Coral Edge TPU", device))
    # What a driver of a chip's own offers: Mali and VideoCore, Rockchip's NPU.
    for place in sorted(glob.glob(os.path.join(root, "sys/class/drm/renderD*"))):
        if "/pci" not in os.path.realpath(place):
            driver = sysfs.target(os.path.realpath(place), "device/driver")
            if driver.startswith("virtio"):  # a guest's screen, which its host's processor draws
                continue
            kind = "npu" if driver in ("rknpu", "RKNPU") else "gpu"
            found.append(Accelerator(kind, driver, f"/dev/dri/{os.path.basename(place)}"))
    return found


def listeners() -> list[Listener]:
    """Look who listens."""
    return parse_listeners(answer(["ss", "-Hlntp"]))


def engine() -> str:
    """Return the version of Docker's client; empty where there is none."""
    found = _ENGINE.search(answer(["docker", "--version"]))
    return found[1] if found else ""


def docker_root(root: str = "/") -> str:
    """Return the folder of Docker's data: that of its settings, which the role docker keeps, or its
    own."""
    try:
        settings = json.loads(sysfs.text(root, "etc/docker/daemon.json"))
    except ValueError:
        settings = {}
    found = settings.get("data-root") if isinstance(settings, dict) else None
    return found if isinstance(found, str) and found.startswith("/") else "/var/lib/docker"


def virtualisation() -> str:
    """Return what this machine is a part of, such as ``kvm`` or ``docker``; empty for metal."""
    found: str = answer(["systemd-detect-virt"]).strip()
    return "" if found == "none" else found


def clock_is_set() -> bool:
    """Whether the clock follows a time server."""
    shown: str = answer(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    return shown.strip() == "yes"
