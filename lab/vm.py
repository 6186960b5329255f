# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""One NAS as a virtual machine: for what a container cannot show, a kernel and a CPU of its own.

Its disk is filled from the same Dockerfile as the containers are made of; it has an address in the
lab's network, and its owner's key and identity before it first boots.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab import apt, disks, engine, image, inventory, label, network, paths, ssh
from lab.docker import docker, inspect
from lab.errors import LabError
from lab.lock import held
from lab.progress import say, step
from lab.run import run

_QEMU = "qemu-system-x86_64"
_ROOT_SIZE = "8G"  # sparse
_KVM_PATIENCE = 60  # seconds; a boot takes 5 s where KVM works, and some machines hang in it
_PATIENCE = 400  # seconds; an emulated boot takes 50 s on an idle machine
_OFF_PATIENCE = 60
_HOST_KEY = "ssh_host_ed25519_key"


@dataclass(frozen=True)
class Wish:
    """What the virtual machine should be. ``cpu`` is one of ``qemu-system-x86_64 -cpu help``,
    ``image`` a stage of the Dockerfile. ``scsi``: with two small disks more whose
    serial numbers are ``turns`` and ``still``, and so they are."""

    name: str
    debian: str
    cpu: str
    disks: int
    disk_size: str
    inventory: Path | None
    image: str = "vm"
    scsi: bool = False
    memory: int = 4096  # MiB; with less, the preflight refuses it
    append: str = ""  # to the kernel's command line

    @property
    def hardware(self) -> str:
        """What one that runs cannot be changed in."""
        return f"{self.cpu} {self.memory} {self.append}"


@dataclass(frozen=True)
class Vm:
    """Where a lab's virtual machine is: its files, its place on the network."""

    lab: str
    address: str

    @property
    def folder(self) -> Path:
        """Its disks, kernel and console log."""
        return paths.lab(self.lab) / "vm"

    @property
    def pid_file(self) -> Path:
        """Also what its process is known by."""
        return self.folder / "qemu.pid"

    @property
    def tap(self) -> str:
        """Its network device on this machine; at most 15 characters."""
        return f"nl{uuid.uuid5(uuid.NAMESPACE_URL, str(self.folder)).hex[:10]}"


def up(wish: Wish) -> None:
    """Make a lab of one virtual machine run, and write lab.json and the inventory."""
    label.checked(wish.name)
    size = disks.parse_size(wish.disk_size)
    if os.uname().machine != "x86_64":
        raise LabError(f"the lab's virtual machine is x86_64, this machine {os.uname().machine}.")
    if os.geteuid() != 0:
        raise LabError("you are not root, and a virtual machine's network needs it: use sudo.")
    if not shutil.which(_QEMU):
        apt.install(["qemu-system-x86"], why="a NAS as a virtual machine is run by QEMU")
    engine.ensure()
    with held(f"lab-{wish.name}"):
        _up(wish, size)


def running(folder: Path) -> dict[int, Path]:
    """The processes of virtual machines below a folder: process id to pid file."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it ended meanwhile
            continue
        if Path(words[0]).name == _QEMU and "-pidfile" in words:
            pid_file = Path(words[words.index("-pidfile") + 1])
            if pid_file.is_relative_to(folder):
                found[int(entry.parent.name)] = pid_file
    return found


def stop_below(folder: Path) -> None:
    """Switch off every virtual machine whose files are below a folder, as a power cut does."""
    for pid in running(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _wait_for_end(pid, _OFF_PATIENCE)


def _up(wish: Wish, size: int) -> None:
    subnet = network.ensure(wish.name)
    vm = Vm(wish.name, network.address(subnet, 1))
    folder = paths.lab(wish.name)
    vm.folder.mkdir(parents=True, exist_ok=True)
    public_key = ssh.ensure_key(folder, wish.name)
    identity = vm.folder / "machine-id"
    if not (vm.folder / "root.img").exists():
        picture = image.ensure_nas(wish.debian, wish.image)
        with step(f"disk of {wish.name}"):
            identity.write_text(f"{uuid.uuid4().hex}\n", encoding="utf-8")
            _fill(vm, picture, subnet, public_key, identity.read_text(encoding="utf-8"))
    files = [vm.folder / f"disk{number}.img" for number in range(1, wish.disks + 1)]
    for file in files:
        if not file.exists():
            with file.open("wb") as stream:
                stream.truncate(size)
    host_key = (vm.folder / f"{_HOST_KEY}.pub").read_text(encoding="utf-8")
    inventory.replace(folder / ssh.KNOWN_HOSTS, ssh.known_hosts("", {vm.address: host_key}))
    with step(f"boot {wish.name}: Debian {wish.debian}, CPU {wish.cpu}"):
        _ensure_running(vm, wish, files)
    devices = [f"/dev/vd{letter}" for letter, _ in zip("bcdefgh", files, strict=False)]
    key = str(folder / ssh.KEY)
    identity_text = identity.read_text(encoding="utf-8").strip()
    host = inventory.Host("nas1", "", identity_text, vm.address, 22, "root", key, devices)
    inventory.write(wish.name, wish.debian, [host])
    if wish.inventory:
        inventory.write_ansible(wish.inventory.resolve(), wish.name, wish.debian, [host])
    say(f"nas1: root@{vm.address}, console log {vm.folder / 'console.log'}")


def _fill(vm: Vm, picture: str, subnet: str, public_key: str, machine_id: str) -> None:
    """Make the system disk from an image, with what tells this NAS from others."""
    with tempfile.TemporaryDirectory(dir=vm.folder, prefix="root-") as draft:
        root = Path(draft)
        created = docker("create", *label.arguments(vm.lab), picture, "none").stdout.strip()
        archive = root.with_suffix(".tar")
        try:
            docker("export", "--output", str(archive), created)
            run(["tar", "--extract", "--numeric-owner", "--file", archive, "--directory", root])
        finally:
            docker("rm", created)
            archive.unlink(missing_ok=True)
        # Docker's mark, by which systemd would take the machine for a container.
        (root / ".dockerenv").unlink(missing_ok=True)
        for name in ("vmlinuz", "initrd.img"):
            (found,) = (root / "boot").glob(f"{name}-*")
            shutil.copyfile(found, vm.folder / name)
        key = vm.folder / _HOST_KEY
        key.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "nas1", "-f", key])
        _, length = subnet.split("/")
        seed = {
            "root/.ssh/authorized_keys": public_key,
            "etc/machine-id": machine_id,
            "etc/hostname": "nas1\n",
            "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 nas1\n",
            "etc/resolv.conf": _resolver(),
            f"etc/ssh/{_HOST_KEY}": key.read_text(encoding="utf-8"),
            f"etc/ssh/{_HOST_KEY}.pub": key.with_suffix(".pub").read_text(encoding="utf-8"),
            "etc/systemd/network/10-lan.network": "[Match]\nType=ether\n\n[Network]\n"
            f"Address={vm.address}/{length}\nGateway={network.gateway(subnet)}\n",
        }
        (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        for name, text in seed.items():
            (root / name).unlink(missing_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        (root / f"etc/ssh/{_HOST_KEY}").chmod(0o600)
        disk = vm.folder / "root.img.draft"
        disk.unlink(missing_ok=True)
        run(["mkfs.ext4", "-q", "-L", "nas", "-d", root, disk, _ROOT_SIZE])
        disk.rename(vm.folder / "root.img")


def _resolver() -> str:
    """The name servers of this machine that a guest can reach too."""
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        with suppress(OSError):
            lines = Path(path).read_text(encoding="utf-8").splitlines()
            servers = [line for line in lines if line.startswith("nameserver ")]
            servers = [line for line in servers if not line.split()[1].startswith(("127.", "::1"))]
            if servers:
                return "\n".join(servers) + "\n"
    raise LabError("this machine's name servers are its own alone; name one in /etc/resolv.conf.")


def _ensure_running(vm: Vm, wish: Wish, files: list[Path]) -> None:
    """Leave it, or start it; one that runs with other hardware is shut down first."""
    chosen = vm.folder / "accelerator"
    runs = {pid for pid, file in running(vm.folder).items() if file == vm.pid_file}
    hardware = vm.folder / "hardware"
    if runs and hardware.read_text(encoding="utf-8") == wish.hardware:
        _attach(vm)
        return
    for pid in runs:
        _shut_down(vm, pid)
    known = chosen.read_text(encoding="utf-8") if chosen.exists() else ""
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK)
    for accelerator in [known] if known else ["kvm", "tcg"] if usable else ["tcg"]:
        guess = accelerator == "kvm" and not known
        if not _start(vm, wish, accelerator, files, check=not guess):
            continue
        hardware.write_text(wish.hardware, encoding="utf-8")
        if _logs_in(vm, _KVM_PATIENCE if guess else _PATIENCE):
            chosen.write_text(accelerator, encoding="utf-8")
            return
        stop_below(vm.folder)
    console = (vm.folder / "console.log").read_text(encoding="utf-8", errors="replace")
    said = "\n".join(console.splitlines()[-15:])
    raise LabError(f"the virtual machine {vm.lab} does not boot; its console says:\n{said}")


def _start(vm: Vm, wish: Wish, accelerator: str, files: list[Path], *, check: bool) -> bool:
    drives = [vm.folder / "root.img", *files]
    cpu = "host" if (accelerator, wish.cpu) == ("kvm", "max") else wish.cpu
    argv: list[str | Path] = [
        *(_QEMU, "-nodefaults", "-display", "none", "-machine", "q35", "-smp", "2"),
        *("-m", str(wish.memory), "-cpu", cpu),
        *("-accel", "tcg,thread=multi" if accelerator == "tcg" else accelerator),
        *("-kernel", vm.folder / "vmlinuz", "-initrd", vm.folder / "initrd.img"),
        *("-append", f"root=/dev/vda rw console=ttyS0 panic=5 {wish.append}".rstrip()),
        *("-serial", f"file:{vm.folder / 'console.log'}", "-device", "virtio-rng-pci"),
        *(word for disk in drives for word in ("-drive", _drive(disk))),
        *(_scsi(vm) if wish.scsi else ()),
        *("-netdev", f"tap,id=lan,ifname={vm.tap},script=no,downscript=no"),
        *("-device", "virtio-net-pci,netdev=lan"),
        *("-daemonize", "-pidfile", vm.pid_file),
    ]
    done = run(argv, check=check, remedy=f"`{_QEMU} -cpu help` lists the CPUs.")
    if done.returncode != 0:
        say(f"{accelerator} does not work here: {done.stderr.strip().splitlines()[0]}")
        return False
    _attach(vm)
    return True


# By QEMU's own name, they are known for disks that a host plays.
_MAKER = "vendor=EXAMPLE,product=DISK"


def _scsi(vm: Vm) -> list[str]:
    words = ["-device", "virtio-scsi-pci"]
    # The kernel may call either sda. Turns in a minute; 1 says that nothing turns.
    for name, rate in (("turns", 7200), ("still", 1)):
        file = vm.folder / f"{name}.img"
        with file.open("ab") as stream:
            stream.truncate(64 << 20)
        words += ["-drive", _drive(file).replace("if=virtio", f"if=none,id={name}")]
        words += ["-device", f"scsi-hd,drive={name},serial={name},{_MAKER},rotation_rate={rate}"]
    return words


def _drive(disk: Path) -> str:
    # A comma in a path is written twice. A crash of this machine may cost the disk's content.
    path = str(disk).replace(",", ",,")
    return f"file={path},format=raw,if=virtio,cache=unsafe"


def _attach(vm: Vm) -> None:
    """Put its network device, which lives as long as its process, on the lab's bridge."""
    found = inspect("network", [label.prefix(vm.lab)])[0]
    bridge = found["Options"].get("com.docker.network.bridge.name") or f"br-{found['Id'][:12]}"
    run(["ip", "link", "set", vm.tap, "master", bridge, "up"])


def _logs_in(vm: Vm, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if ssh.answers(paths.lab(vm.lab), vm.address):
            return True
        time.sleep(1)
    return False


def _shut_down(vm: Vm, pid: int) -> None:
    """As its power button does; as a power cut where that does not help."""
    say(f"{vm.lab} runs with other hardware: shutting it down")
    ssh.as_root(paths.lab(vm.lab), vm.address, "systemctl poweroff")
    if not _wait_for_end(pid, _OFF_PATIENCE):
        stop_below(vm.folder)


def _wait_for_end(pid: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
