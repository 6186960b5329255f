# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""`lab list`: what runs, of this checkout and of others."""

from __future__ import annotations

from lab import engine, label, paths, vm
from lab.docker import lines


def show() -> None:
    """Print one line per NAS."""
    machines = sorted(file.parent.parent for file in vm.running(paths.home()).values())
    for folder in machines:
        print(f"{folder.name:12} {'nas1':36} a virtual machine")
    if not engine.answers():
        print("No Docker engine answers, so no other lab runs.")
        return
    fields = (
        f'{{{{.Label "{label.LAB}"}}}}',
        "{{.Names}}",
        "{{.Status}}",
        f'{{{{.Label "{label.HOME}"}}}}',
    )
    template = "\t".join(fields)
    rows = lines("ps", "--all", "--filter", f"label={label.HOME}", "--format", template)
    if not rows and not machines:
        print("No lab. `make demo` makes one.")
    for row in sorted(rows):
        lab, name, status, home = row.split("\t")
        whose = "" if home == str(paths.home()) else f"  (of {home})"
        print(f"{lab:12} {name:36} {status}{whose}")
