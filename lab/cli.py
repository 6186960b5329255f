# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The commands of the lab."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import down, engine, image, listing, locks, minilm, paths, report, timed, up, venv, vm
from lab.errors import LabError
from lab.progress import say


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code: 0, or 1 with the reason on standard error."""
    options = _parser().parse_args(argv)
    try:
        options.command(options)
    except LabError as error:
        print(f"lab: error: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; the same command goes on from here", file=sys.stderr, flush=True)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m lab", description="A NAS for the tests.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], None], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        return sub

    def debian(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--debian", choices=sorted(image.SUITES), default="12", help="release (12)"
        )

    command("venv", _venv, "build .venv from requirements.txt")
    command("lock", lambda _: locks.compile_all(), "compile the lock files anew")
    command("engine", lambda _: engine.ensure(), "make a Docker engine answer")
    model = command(
        "minilm", lambda options: minilm.fetch(options.folder), "make small models of vectors"
    )
    model.add_argument("folder", type=Path, help="where it is to be")
    debian(command("prepare", _prepare, "venv, engine and images, side by side"))

    def lab(sub: argparse.ArgumentParser, name: str) -> None:
        debian(sub)
        sub.add_argument("--name", default=name, help=f"the lab's name ({name})")
        sub.add_argument("--disks", type=int, default=2, metavar="N", help="disks of each NAS (2)")
        sub.add_argument("--disk-size", default="8G", metavar="SIZE", help="of each, sparse (8G)")
        sub.add_argument(
            "--inventory", type=Path, metavar="FILE", help="write an Ansible inventory there"
        )

    sub = command("up", _up, "make a lab run, from nothing or from what is left of it")
    lab(sub, "demo")
    sub.add_argument("--nas", type=int, default=1, metavar="N", help="how many NAS (1)")

    sub = command("vm", _vm, "make a lab of one NAS run that is a virtual machine")
    lab(sub, "vm")
    sub.add_argument("--cpu", default="max", help="a model that QEMU knows (max)")
    sub.add_argument(
        "--memory", type=int, default=4096, metavar="MIB", help="of the machine (4096)"
    )
    sub.add_argument("--append", default="", metavar="TEXT", help="to the kernel's command line")
    sub.add_argument("--zfs", action="store_true", help="with ZFS, compiled for its kernel")
    sub.add_argument("--scsi", action="store_true", help="with two SCSI disks more, one that turns")

    which = command(
        "down", _down, "remove a lab, or all that the lab made"
    ).add_mutually_exclusive_group()
    which.add_argument("--name", default="demo", help="the lab's name (demo)")
    which.add_argument(
        "--all", action="store_true", help="all labs, the images, an engine of its own"
    )

    command("list", lambda _: listing.show(), "list the NAS that run")

    sub = command(
        "demo-report", _report, "ask each NAS of the lab demo a question and say how to go on"
    )
    sub.add_argument(
        "--credentials",
        type=Path,
        default=paths.lab(report.NAME) / "credentials",
        metavar="DIR",
        help="api_key.owner and <host>.crt, as the playbooks left them (.lab/demo/credentials)",
    )
    sub.add_argument("--inventory", default="inventories/lab", help="the inventory that was used")

    sub = command("timed", _timed, "run a command and record its seconds in timings.json")
    sub.add_argument("step", metavar="NAME", help="what timings.json calls it")
    sub.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command")
    return parser


def _venv(_: argparse.Namespace) -> None:
    if not venv.build():
        say(".venv is up to date")


def _prepare(options: argparse.Namespace) -> None:
    def images() -> None:
        engine.ensure()
        image.ensure_nas(options.debian)

    # One waits for the disk, the other for the network.
    with ThreadPoolExecutor() as pool:
        first, second = pool.submit(venv.build), pool.submit(images)
        first.result()
        second.result()


def _up(options: argparse.Namespace) -> None:
    up.up(
        up.Wish(
            name=options.name,
            nas=options.nas,
            debian=options.debian,
            disks=options.disks,
            disk_size=options.disk_size,
            inventory=options.inventory,
        )
    )


def _vm(options: argparse.Namespace) -> None:
    vm.up(
        vm.Wish(
            name=options.name,
            debian=options.debian,
            cpu=options.cpu,
            disks=options.disks,
            disk_size=options.disk_size,
            inventory=options.inventory,
            image="vm-zfs" if options.zfs else "vm",
            scsi=options.scsi,
            memory=options.memory,
            append=options.append,
        )
    )


def _down(options: argparse.Namespace) -> None:
    if options.all:
        down.down_all()
    else:
        down.down(options.name)


def _report(options: argparse.Namespace) -> None:
    report.report(options.credentials, options.inventory)


def _timed(options: argparse.Namespace) -> None:
    timed.timed(options.step, [word for i, word in enumerate(options.argv) if i or word != "--"])
