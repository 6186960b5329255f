# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A dead man's switch: a NAS puts an old state back by itself unless somebody confirms the new one.

Before a change that may lock its owner out, the files that it touches are copied to a folder of the
guard's own, together with a script that puts them back, and systemd is told to run that script in
so many seconds. Who can still reach the NAS confirms, and the script never runs. It also runs at
the next boot, before the network comes up, should the power fail in between. Nothing but a shell
and systemd is needed for that: no Python, no network, no controller.

Who renames the folder first decides: the script to ``<name>.reverting``, a confirmation to
``<name>.confirmed``. So neither happens after the other.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.nas.assistant.plugins.module_utils._commands import run

FOLDER = "/var/lib/nas-guard"
# Which confirmation came last, for one that is sent twice; of no use after a reboot.
CONFIRMED = "/run/nas-guard"
UNITS = "/etc/systemd/system"
# In a guard's folder: which units make the change, until they were seen to have ended.
APPLIED_BY = "applied-by"
BOOT_UNIT = "nas-guard.service"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
# A revert runs a few commands; one that hangs must not be waited for without end.
PATIENCE = 120

BOOT_UNIT_TEXT = f"""\
# Written by nas.assistant while a change waits for its confirmation; removed with it.
[Unit]
Description=Put back what nobody confirmed before the NAS went down
DefaultDependencies=no
RequiresMountsFor={FOLDER}
After=local-fs.target systemd-remount-fs.service
Before=sysinit.target network-pre.target shutdown.target
Wants=network-pre.target
Conflicts=shutdown.target

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'for script in {FOLDER}/*/revert.sh; do /bin/sh "$script" boot; done'

[Install]
WantedBy=sysinit.target
"""


class GuardError(Exception):
    """The guard cannot do what is asked; one sentence with the reason."""


@dataclass(frozen=True)
class Command:
    """A command as an argument list; it is run only if ``only_if`` ends with 0."""

    argv: tuple[str, ...]
    only_if: tuple[str, ...] = ()

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Command:
        """From the dictionary that modules take: ``{command, only_if}``."""
        return cls(tuple(value["command"]), tuple(value.get("only_if") or ()))

    def shell(self) -> str:
        """As a line of a shell script that goes on when the command fails."""
        line = f"{shlex.join(self.argv)} || echo {shlex.quote('failed: ' + self.argv[0])}"
        if self.only_if:
            return f"if {shlex.join(self.only_if)} >/dev/null 2>&1; then {line}; fi"
        return line


def checked_name(name: str) -> str:
    """Return ``name``; raise GuardError unless it can name a folder and a unit."""
    if not NAME.fullmatch(name):
        raise GuardError(f"name={name!r}: use lower-case letters, digits, - and _, 32 at most")
    return name


def revert_script(name: str, files: Sequence[tuple[str, bool]], commands: Sequence[Command]) -> str:
    """Return the script that puts the files back and then runs the commands.

    :param files: path of each file, and whether it existed; its copy is ``old/<number>``.
    """
    guard, reverting = f"{FOLDER}/{name}", f"{FOLDER}/{name}.reverting"
    # Should the disk be full, moving the copy itself needs no room where it is on the same one.
    lines = [
        "#!/bin/sh",
        "# Puts back what nobody confirmed. With the word boot, no daemon runs yet.",
        "set -u",
        "failed=",
        f"mv -T {guard} {reverting} 2>/dev/null",
        f"[ -d {reverting} ] || exit 0  # it was confirmed meanwhile",
        f"echo {shlex.quote(f'{name}: nobody confirmed the change; putting the old state back')}",
    ]
    for number, (path, existed) in enumerate(files):
        target, draft = shlex.quote(path), shlex.quote(f"{path}.nas-guard")
        if existed:
            copy = f"{reverting}/old/{number}"
            lines += [
                f"if [ -e {copy} ] || [ -h {copy} ]; then",
                f"  cp -a -T {copy} {draft} && mv -T {draft} {target} || {{ rm -f {draft};",
                f"    mv -T {copy} {target} || failed=yes; }}",
                "fi",
            ]
        else:
            lines += [f"rm -f {target} || failed=yes"]
    lines += ["systemctl daemon-reload"]
    lines += ['if [ "${1:-}" != boot ]; then', "  :"]
    lines += [f"  {command.shell()}" for command in commands]
    links = shlex.join(_boot_unit_files())
    lines += [
        "fi",
        # What could not be put back is kept, and tried again at the next boot and the next run.
        "[ -z \"$failed\" ] || { echo 'not everything could be put back'; exit 1; }",
        f"rm -rf {reverting}",
        # Unless another change waits, nothing is to be done at the next boot.
        f"for other in {FOLDER}/*; do",
        '  case "$other" in *.confirmed) ;; *) [ ! -e "$other" ] || exit 0 ;; esac',
        "done",
        f"rm -f {links}",
        "",
    ]
    return "\n".join(lines)


def arm(
    name: str,
    files: Sequence[str],
    commands: Sequence[Command],
    seconds: int,
    applied_by: Sequence[str] = (),
) -> str:
    """Keep copies of the files, and have them put back in so many seconds; return the token that
    confirms.

    :param commands: what to run after the files are back, to make daemons read them.
    :param applied_by: units that make the change by themselves; what is confirmed while they still
        have to run is the old state.
    :raises GuardError: it is armed already, or systemd does not take the timer.
    """
    folder = os.path.join(FOLDER, checked_name(name))
    if pending(name):
        raise GuardError(f"{name}: an earlier change still waits for its confirmation; revert it")
    folders = [path for path in files if os.path.isdir(path) and not os.path.islink(path)]
    if folders:
        raise GuardError(f"{name}: {', '.join(folders)} is a folder; name the files in it")
    draft = os.path.join(FOLDER, f".{name}")
    for rest in (draft, f"{folder}.confirmed"):
        shutil.rmtree(rest, ignore_errors=True)
    os.makedirs(os.path.join(draft, "old"), mode=0o700)
    os.chmod(FOLDER, 0o700)
    existed = []
    for number, path in enumerate(files):
        existed.append((path, os.path.lexists(path)))
        if existed[-1][1]:
            copy = os.path.join(draft, "old", str(number))
            _run(["cp", "-a", "-T", path, copy])
    token = secrets.token_hex(16)
    _write(os.path.join(draft, "token"), token)
    if applied_by:
        _write(os.path.join(draft, APPLIED_BY), "\n".join(applied_by))
    # What is about to be applied must not come after the old state.
    stops = [
        Command(("systemctl", "stop", unit), ("systemctl", "is-active", "--quiet", unit))
        for unit in applied_by
    ]
    _write(os.path.join(draft, "revert.sh"), revert_script(name, existed, [*stops, *commands]))
    _ensure_boot_unit()
    os.sync()
    # From here on it counts: the boot unit looks for folders by their whole name.
    os.rename(draft, folder)
    # Where power fails next, the change must not be on the disk without its way back.
    _flush(FOLDER)
    unit = f"nas-guard-{name}"
    _run(["systemctl", "reset-failed", f"{unit}.service", f"{unit}.timer"], check=False)
    try:
        _run([
            *("systemd-run", "--quiet", "--collect", "--unit", unit, f"--on-active={seconds}"),
            *("--timer-property=AccuracySec=100ms", "/bin/sh", f"{folder}/revert.sh"),
        ])  # fmt: skip
    except GuardError:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_boot_unit()
        raise
    return token


def confirm(name: str, token: str) -> bool:
    """Keep the new state for good; return False where that has to be asked again, over a connection
    made after the change: it has only just been made, or is still to come.

    :raises GuardError: the old state was put back already, or the token is another change's.
    """
    folder = os.path.join(FOLDER, checked_name(name))
    confirmed = f"{folder}.confirmed"
    try:
        with open(os.path.join(folder, "token"), encoding="ascii") as stream:
            if not secrets.compare_digest(stream.read(), token):
                raise GuardError(f"{name}: another change waits for a confirmation, not this one")
        if _still_applied(folder):
            return False
        os.rename(folder, confirmed)
    except FileNotFoundError:
        if _last_confirmed(name) == token:  # the answer to the first confirmation was lost
            return True
        raise GuardError(
            f"{name}: the confirmation came too late, the old state was put back"
        ) from None
    os.makedirs(CONFIRMED, mode=0o700, exist_ok=True)
    _write(os.path.join(CONFIRMED, name), token)
    _run(["systemctl", "stop", f"nas-guard-{name}.timer"], check=False)
    shutil.rmtree(confirmed, ignore_errors=True)
    _remove_boot_unit()
    return True


def _still_applied(folder: str) -> bool:
    """Whether units had to make the change when this was last asked."""
    path = os.path.join(folder, APPLIED_BY)
    if not os.path.exists(path):
        return False
    with open(path, encoding="ascii") as stream:
        units = stream.read().split()
    states = _run(["systemctl", "is-active", *units], check=False).split()
    if not {"active", "activating", "deactivating", "reloading"} & set(states):
        os.unlink(path)
    # Also when they have just ended: the connection that asks may be older than that.
    return True


def _last_confirmed(name: str) -> str:
    try:
        with open(os.path.join(CONFIRMED, name), encoding="ascii") as stream:
            return stream.read()
    except OSError:
        return ""


def revert(name: str) -> bool:
    """Put the old state back now; return whether there was anything to put back."""
    folder = os.path.join(FOLDER, checked_name(name))
    shutil.rmtree(f"{folder}.confirmed", ignore_errors=True)
    unit = f"nas-guard-{name}"
    if not pending(name):
        return False
    _run(["systemctl", "stop", f"{unit}.timer"], check=False)
    deadline = time.monotonic() + PATIENCE
    # The timer may just have fired; what it has begun is waited for, what a crash left is finished.
    while _run(["systemctl", "is-active", f"{unit}.service"], check=False) in (
        "active",
        "activating",
    ):
        if time.monotonic() > deadline:
            raise GuardError(f"{name}: {unit}.service does not end; see journalctl -u {unit}")
        time.sleep(0.1)
    for script in (f"{folder}/revert.sh", f"{folder}.reverting/revert.sh"):
        if os.path.exists(script):
            _run(["/bin/sh", script])
    _remove_boot_unit()
    return True


def armed(name: str) -> bool:
    """Whether a change waits for its confirmation, and nothing has begun to put it back."""
    return os.path.isdir(os.path.join(FOLDER, checked_name(name)))


def pending(name: str) -> bool:
    """Whether a change waits for its confirmation, or is being put back."""
    folder = os.path.join(FOLDER, checked_name(name))
    return os.path.isdir(folder) or os.path.isdir(f"{folder}.reverting")


def _boot_unit_files() -> tuple[str, str]:
    return f"{UNITS}/sysinit.target.wants/{BOOT_UNIT}", f"{UNITS}/{BOOT_UNIT}"


def _ensure_boot_unit() -> None:
    link, path = _boot_unit_files()
    _write(f"{path}.draft", BOOT_UNIT_TEXT, 0o644)
    os.rename(f"{path}.draft", path)
    # The link and no daemon-reload: systemd reads it at the boot that it is for.
    os.makedirs(os.path.dirname(link), mode=0o755, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.symlink(path, link)


def _remove_boot_unit() -> None:
    """Remove it unless another change waits."""
    entries = [entry for entry in os.listdir(FOLDER) if not entry.startswith(".")]
    if any(not entry.endswith(".confirmed") for entry in entries):
        return
    for path in _boot_unit_files():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _write(path: str, text: str, mode: int = 0o600) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)


def _flush(folder: str) -> None:
    """Have a folder's entries on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _run(argv: Sequence[str], check: bool = True) -> str:
    try:
        done = run(argv, PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise GuardError(f"{shlex.join(argv)}: no end after {PATIENCE} s") from error
    if check and done.returncode != 0:
        raise GuardError(f"{shlex.join(argv)}: {(done.stderr or done.stdout).strip()}")
    return str(done.stdout.strip())
