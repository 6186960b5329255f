#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: config_set
short_description: Installs a set of configuration files and makes what reads them use them, in one
  step
version_added: 0.1.0
description:
  - Compares all files of a set with the NAS, writes those that differ, checks the whole, and only
    then has the daemons read them. When a check or a daemon refuses, the old files are put back.
  - One round trip for the whole set, however many files, folders and services it has.
  - Its arguments are not in the NAS's journal, since files may hold secrets. Ansible shows them at
    C(-vvv), so give the task C(no_log) where they do.
  - With I(guard), a change that could lock its owner out is confirmed over a new connection; if
    none
    comes, the NAS puts the old state back by itself. See M(nas.assistant.guard).
  - What is looked at is the NAS as it is, each time. No marker says that all was well once.
author:
  - The nas.assistant contributors
options:
  name:
    description: What the set is called in messages, and the name of its guard.
    type: str
    required: true
  files:
    description: The files, in the order in which they are written.
    type: list
    elements: dict
    default: []
    suboptions:
      dest:
        description: Path on the NAS. Missing folders above it are made, for all to read.
        type: path
        required: true
      content:
        description: What is in it; for a template, C(lookup('ansible.builtin.template', ...)).
        type: str
      owner:
        description: User, by name or number.
        type: str
        default: root
      group:
        description: Group, by name or number.
        type: str
        default: root
      mode:
        description: Octal mode, quoted; V(0644) unless given, and V(0755) for a folder.
        type: str
      state:
        description:
          - V(attributes) leaves the content alone, and a file that is missing too.
          - V(absent) takes a file away; one of more than 16 MiB would not come back.
          - V(directory) makes a folder, and leaves alone what is in it; a link to one is followed.
            I(units) do not read it, and a guard does not take it away again.
        type: str
        choices: [present, absent, attributes, directory]
        default: present
      edits:
        description:
          - With V(attributes). Changes single lines of a file that somebody else writes, each
            given as C(line), a
            regular expression that must match the whole line, and C(becomes), which may refer to
            its groups.
        type: list
        elements: dict
        default: []
        suboptions:
          line:
            description: Regular expression.
            type: str
            required: true
          becomes:
            description: What takes the line's place.
            type: str
            required: true
      secret:
        description: Keeps the content out of the diff.
        type: bool
        default: false
      check:
        description: >-
          A command that must accept the new file before it takes the old one's place; C(%s) stands
          for its path.
        type: list
        elements: str
  checks:
    description: Commands that must end with 0 once all files are in place, before anything reads
      them.
    type: list
    elements: list
    default: []
  expect:
    description: >-
      What a program must say of the configuration it has, such as C(sshd -T). It shows what a file
      elsewhere overrules. Looked at in each run, also when no file differs.
    type: list
    elements: dict
    default: []
    suboptions:
      command:
        description: The program and its arguments.
        type: list
        elements: str
        required: true
      lines:
        description: >-
          Lines that must be in its output. The first word of a line is its key; all lines of that
          key in the output must be among these.
        type: list
        elements: str
        required: true
      remedy:
        description: What the message says to do when a line is not there.
        type: str
        default: ""
  same:
    description: >-
      Pairs of commands that must print the same, such as the rules that the kernel has and those
      that the file
      describes. Where they differ, the set counts as changed and is applied again.
    type: list
    elements: dict
    default: []
    suboptions:
      actual:
        description: Prints what is in force. A command that fails prints nothing.
        type: list
        elements: str
        required: true
      expected:
        description: Prints what should be.
        type: list
        elements: str
        required: true
  apply:
    description: Commands to run after a change, before the units; systemd's own reload is run
      where it is needed.
    type: list
    elements: dict
    default: []
    suboptions:
      command:
        description: The program and its arguments.
        type: list
        elements: str
        required: true
      only_if:
        description: A command that must end with 0 for this one to be run.
        type: list
        elements: str
  units:
    description: systemd units that must be enabled, active, and have read their files (or be off).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The unit.
        type: str
        required: true
      action:
        description: What makes it read its files again.
        type: str
        choices: [reload, restart]
        default: reload
      state:
        description: V(off) stops and disables the unit, where there is one.
        type: str
        choices: ["on", "off"]
        default: "on"
      unless_active:
        description: Leaves the unit alone while this other one is active, such as a socket in its
          place.
        type: str
      reads:
        description: Files that it reads; all of I(files) unless given.
        type: list
        elements: path
  guard:
    description: >-
      Puts the old state back unless the change is confirmed over a new connection, which the
      action plugin makes.
    type: dict
    suboptions:
      seconds:
        description: How long the NAS waits for the confirmation.
        type: int
        default: 60
      revert:
        description: >-
          Commands to run after the old files are back, each with C(command) and C(only_if) as in
          I(apply).
        type: list
        elements: dict
        default: []
        suboptions:
          command:
            description: The program and its arguments.
            type: list
            elements: str
            required: true
          only_if:
            description: A command that must end with 0 for this one to be run.
            type: list
            elements: str
      keep:
        description: Further paths that the change touches, such as the link that enables a unit.
        type: list
        elements: path
        default: []
      host:
        description: Address for the new connection; the present one unless given.
        type: str
      port:
        description: Port for the new connection; the present one unless given.
        type: int
      user:
        description: User for the new connection; the present one unless given.
        type: str
      remedy:
        description: What the message says to do when the NAS cannot be reached any more.
        type: str
      detached:
        description:
          - Has systemd run the commands of O(apply) two seconds after the answer, for a change that
            cuts the connection it comes over.
          - Whether all is as it should be is then looked at after the confirmation.
        type: bool
        default: false
attributes:
  check_mode:
    description: Compares everything and changes nothing; I(checks) and I(expect) are not run on
      new files.
    support: full
  diff_mode:
    description: Shows each file, and what units and commands would do.
    support: full
"""

EXAMPLES = r"""
- name: Limit the journal
  nas.assistant.config_set:
    name: journald
    files:
      - dest: /etc/systemd/journald.conf.d/60-nas.conf
        content: |
          [Journal]
          SystemMaxUse=200M
    units:
      - {name: systemd-journald.service, action: restart}

- name: Move the SSH daemon, and come back if that locked us out
  nas.assistant.config_set:
    name: sshd
    files:
      - dest: /etc/ssh/sshd_config.d/00-nas.conf
        content: |
          Port 2222
    checks: [[sshd, -t]]
    expect:
      - command: [sshd, -T]
        lines: [port 2222]
    units:
      - {name: ssh.service, action: reload}
    guard:
      port: 2222
      revert:
        - command: [systemctl, reload, ssh.service]
"""

RETURN = r"""
files:
  description: Paths of the files that were changed.
  type: list
  elements: str
  returned: always
done:
  description: Commands and unit actions that were run.
  type: list
  elements: str
  returned: always
recovered:
  description: Whether a change was put back first that an earlier run had left without a
    confirmation.
  type: bool
  returned: always
door:
  description: >-
    How the NAS was reached for the confirmation - C(host), C(port), C(user), and C(common_args) for
    C(ansible_ssh_common_args). Set the connection variables from it for the tasks that follow.
  type: dict
  returned: when a guarded change was confirmed
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import _guard as guard
from ansible_collections.nas.assistant.plugins.module_utils._commands import run, spoken
from ansible_collections.nas.assistant.plugins.module_utils._files import (
    FilesError,
    Found,
    Wanted,
    apply,
    diff,
    differs,
    edited,
    look,
    put_back,
    replace,
)
from ansible_collections.nas.assistant.plugins.module_utils._guard import Command, GuardError
from ansible_collections.nas.assistant.plugins.module_utils._systemd import (
    SystemdError,
    carry_out,
    loaded_at,
    newer_than,
    plan,
    plan_off,
    show,
    stamp_of,
    systemctl,
)

SYSTEMD = "/etc/systemd/system/"
SCRIPTS = "/run/nas-assistant"
LATER = 2  # seconds; the answer of a slow NAS must be out before its address changes


class Refused(Exception):
    """The new configuration is not taken; what refused it, and what that said."""


def run_command(argv: list[str]) -> tuple[int, str, str]:
    """Run a command; return its exit code and what it printed. 127: it is not there."""
    try:
        done = run(argv)
    except FileNotFoundError:
        return 127, "", f"{argv[0]} is not installed"
    return done.returncode, done.stdout, done.stderr


def demand(argv: list[str]) -> str:
    """Run a command that must succeed; return what it prints."""
    code, out, err = run_command(argv)
    if code != 0:
        raise Refused(f"{spoken(argv)}: {' '.join((err or out).split())}")
    return out


def unmet(expectations: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each thing that a program should say and does not."""
    complaints = []
    for expectation in expectations:
        argv = expectation["command"]
        said, due = by_key(demand(argv).splitlines()), by_key(expectation["lines"])
        found = [
            f"{spoken(argv)} should say {' and '.join(sorted(lines))}, and says "
            f"{' and '.join(sorted(said.get(key, ()))) or 'nothing of it'}"
            for key, lines in due.items()
            if said.get(key) != lines
        ]
        complaints += found
        if found and expectation["remedy"]:
            complaints.append(expectation["remedy"])
    return complaints


def by_key(lines: list[str]) -> dict[str, set[str]]:
    """Lines by their first word."""
    found: dict[str, set[str]] = {}
    for line in map(str.strip, lines):
        found.setdefault(line.partition(" ")[0], set()).add(line)
    return found


def unlike(pairs: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return what is printed and what should be, for each pair that does not agree."""
    found = []
    for pair in pairs:
        actual, expected = run_command(pair["actual"])[1], demand(pair["expected"])
        if actual != expected:
            found.append((actual, expected))
    return found


def unit_verbs(
    units: list[dict[str, Any]], files: list[str], written: frozenset[str] = frozenset()
) -> dict[str, list[str]]:
    """Return what each unit that is not as it should be needs.

    :param written: files that were just written; a clock that was set back meanwhile does not
        make them old.
    """
    names = [unit["name"] for unit in units]
    others = [unit["unless_active"] for unit in units if unit["unless_active"]]
    properties = show(list(dict.fromkeys(names + others)))
    needed = {}
    for unit in units:
        found, other = properties[unit["name"]], properties.get(unit["unless_active"] or "", {})
        if other.get("ActiveState") == "active":
            continue
        if unit["state"] == "off":
            verbs = plan_off(found)
        else:
            reads = unit["reads"] or files
            newer = newer_than(reads, loaded_at(found, stamp_of(unit["name"], unit["action"])))
            verbs = plan(found, newer or list(written & set(reads)), unit["action"])
        if verbs:
            needed[unit["name"]] = verbs
    return needed


class ConfigSet:
    """One run over one set."""

    def __init__(self, params: dict[str, Any], check_mode: bool) -> None:
        self.params = params
        self.check_mode = check_mode
        self.name: str = guard.checked_name(params["name"])
        self.wanted = [Wanted.of(entry) for entry in params["files"]]
        self.done: list[str] = []
        self.left: list[str] = []
        self.token = ""

    def run(self) -> dict[str, Any]:
        """Compare, and change what differs; return the module's result."""
        # Also without a guard now: the role may have had one when it was cut off.
        waits = guard.pending(self.name)
        recovered = waits and not self.check_mode and guard.revert(self.name)
        looked = [(wanted, look(wanted)) for wanted in self.wanted]
        pairs = [(edited(wanted, found), found) for wanted, found in looked]
        changes = [(wanted, found) for wanted, found in pairs if differs(wanted, found)]
        units = self.params["units"]
        verbs = unit_verbs(units, self.paths())
        # Before the files are there, the kernel cannot be compared with them.
        unlike_now = [] if changes else unlike(self.params["same"])
        changed = bool(changes or verbs or unlike_now or waits)
        if changed and not self.check_mode:
            self.change(changes)
        elif not changed and not self.check_mode:
            complaints = unmet(self.params["expect"])
            if complaints:
                raise Refused("; ".join(complaints))
        return {
            "changed": changed,
            "files": [wanted.path for wanted, _ in changes],
            "done": self.done,
            "recovered": recovered,
            "token": self.token,
            "diff": [
                *(diff(wanted, file) for wanted, file in changes),
                *({"before": actual, "after": expected} for actual, expected in unlike_now),
                *(
                    {"before": f"{unit}: as it is\n", "after": f"{unit}: {' '.join(what)}\n"}
                    for unit, what in verbs.items()
                ),
            ],
        }

    def paths(self) -> list[str]:
        """The files that units read."""
        return [wanted.path for wanted in self.wanted if not wanted.directory]

    def change(self, changes: list[tuple[Wanted, Found]]) -> None:
        """Write, check and load; put everything back when something is refused."""
        self.check_drafts(changes)
        wish = self.params["guard"]
        if wish:
            kept = [wanted.path for wanted, _ in changes if not wanted.directory] + wish["keep"]
            revert = [Command.of(entry) for entry in wish["revert"]]
            later = self.later() if wish["detached"] else ()
            self.token = guard.arm(self.name, kept, revert, wish["seconds"], later)
        try:
            self.leave(changes)
            for wanted, _ in changes:
                apply(wanted)
            for argv in self.params["checks"]:
                demand(argv)
            complaints = unmet(self.params["expect"])
            if complaints:
                raise Refused("; ".join(complaints))
            self.load(changes)
            if self.token and not guard.armed(self.name):
                raise Refused(f"it took longer than the guard's {wish['seconds']} s")
        except (Refused, SystemdError, FilesError, OSError) as error:
            reverted = bool(self.token) and guard.revert(self.name)
            left = [] if reverted else self.undo(changes)
            state = (
                f"Not put back: {'; '.join(left)}" if left else "The old state is in place again"
            )
            raise Refused(f"{error}. {state}") from error

    def leave(self, changes: list[tuple[Wanted, Found]]) -> None:
        """Switch units off whose own files are about to go: without them systemd could not."""
        gone = {wanted.path.rpartition("/")[2] for wanted, _ in changes if wanted.absent}
        units = [unit for unit in self.params["units"] if unit["name"] in gone]
        for unit, verbs in unit_verbs(units, []).items() if units else ():
            self.left.append(unit)
            carry_out(unit, verbs, "")
            self.done += [f"{verb} {unit}" for verb in verbs]

    def undo(self, changes: list[tuple[Wanted, Found]]) -> list[str]:
        """Put the files back, and have everything read them that may have read the new ones.

        Return what could not be put back, and why.
        """
        # What was off before is off again, as long as systemd knows how to stop it.
        begun = [
            unit["name"] for unit in self.params["units"] if f"start {unit['name']}" in self.done
        ]
        for unit in reversed(begun):
            enabled = f"enable {unit}" in self.done
            run_command(["systemctl", *(["disable", "--now"] if enabled else ["stop"]), unit])
        left = []
        for wanted, found in reversed(changes):
            try:
                put_back(wanted, found)
            except OSError as error:
                left.append(str(error))
        if any(wanted.path.startswith(SYSTEMD) for wanted, _ in changes):
            systemctl("daemon-reload")
        for entry in self.params["apply"] if self.done else []:
            if not entry.get("only_if") or run_command(entry["only_if"])[0] == 0:
                run_command(entry["command"])
        for unit in self.left:
            run_command(["systemctl", "enable", "--now", unit])
        read = {unit["name"]: unit["action"] for unit in self.params["units"]}
        for unit, action in read.items():
            if unit not in begun and any(step.endswith(f" {unit}") for step in self.done):
                run_command(["systemctl", action, unit])
        return left

    def check_drafts(self, changes: list[tuple[Wanted, Found]]) -> None:
        """Have each new file checked before it takes the old one's place."""
        checks = {entry["dest"]: entry.get("check") for entry in self.params["files"]}
        for wanted, _ in changes:
            argv = checks.get(wanted.path)
            if argv and wanted.content is not None:
                folder = guard.FOLDER
                os.makedirs(folder, mode=0o700, exist_ok=True)
                draft = os.path.join(folder, f".{self.name}.draft")
                try:
                    with open(draft, "w", encoding="utf-8", opener=_private) as stream:
                        stream.write(wanted.content)
                    demand([word.replace("%s", draft) for word in argv])
                finally:
                    os.unlink(draft)

    def load(self, changes: list[tuple[Wanted, Found]]) -> None:
        """Have everything read the files that are in place."""
        if any(wanted.path.startswith(SYSTEMD) for wanted, _ in changes):
            systemctl("daemon-reload")
        wish = self.params["guard"]
        detached = bool(wish and wish["detached"])
        for entry in self.params["apply"] if not detached else []:
            if entry.get("only_if") and run_command(entry["only_if"])[0] != 0:
                continue
            demand(entry["command"])
            self.done.append(spoken(entry["command"]))
        actions = {unit["name"]: unit["action"] for unit in self.params["units"]}
        written = frozenset(wanted.path for wanted, _ in changes)
        for unit, verbs in unit_verbs(self.params["units"], self.paths(), written).items():
            # Before, so that what fails on the way is undone too.
            self.done += [f"{verb} {unit}" for verb in verbs]
            carry_out(unit, verbs, stamp_of(unit, actions[unit]))
        if detached:
            self.apply_later()
            return
        if unlike(self.params["same"]):
            pairs = ", ".join(spoken(pair["actual"]) for pair in self.params["same"])
            raise Refused(f"{pairs}: not as it should be, even after everything was loaded")

    def later(self) -> tuple[str, str]:
        """The units that run the commands after the answer: the timer, and what it starts."""
        return f"nas-apply-{self.name}.timer", f"nas-apply-{self.name}.service"

    def apply_later(self) -> None:
        """Have systemd run the commands once the answer is under way."""
        commands = [Command.of(entry) for entry in self.params["apply"]]
        timer, _ = self.later()
        run_command(["systemctl", "stop", *self.later()])
        # A file, since systemd would read the lines of a long command as its own.
        script = os.path.join(SCRIPTS, f"apply-{self.name}.sh")
        text = "\n".join(["#!/bin/sh", *(command.shell() for command in commands), ""])
        replace(script, text.encode(), 0, 0, 0o700)
        demand([
            *("systemd-run", "--quiet", "--collect", "--unit", timer.removesuffix(".timer")),
            *(f"--on-active={LATER}", "--timer-property=AccuracySec=100ms", "/bin/sh", script),
        ])  # fmt: skip
        self.done += [f"{spoken(command.argv)} ({LATER} s later)" for command in commands]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


COMMAND = {
    "command": {"type": "list", "elements": "str", "required": True},
    "only_if": {"type": "list", "elements": "str"},
}
FILE = {
    "dest": {"type": "path", "required": True},
    "content": {"type": "str"},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "mode": {"type": "str"},
    "state": {
        "type": "str",
        "choices": ["present", "absent", "attributes", "directory"],
        "default": "present",
    },
    "edits": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "line": {"type": "str", "required": True},
            "becomes": {"type": "str", "required": True},
        },
    },
    "secret": {"type": "bool", "default": False},
    "check": {"type": "list", "elements": "str"},
}
GUARD = {
    "seconds": {"type": "int", "default": 60},
    "revert": {"type": "list", "elements": "dict", "default": [], "options": COMMAND},
    "keep": {"type": "list", "elements": "path", "default": []},
    "host": {"type": "str"},
    "port": {"type": "int"},
    "user": {"type": "str"},
    "remedy": {"type": "str"},
    "detached": {"type": "bool", "default": False},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "dict", "default": [], "options": FILE},
            "checks": {"type": "list", "elements": "list", "default": []},
            "expect": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "command": {"type": "list", "elements": "str", "required": True},
                    "lines": {"type": "list", "elements": "str", "required": True},
                    "remedy": {"type": "str", "default": ""},
                },
            },
            "same": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "actual": {"type": "list", "elements": "str", "required": True},
                    "expected": {"type": "list", "elements": "str", "required": True},
                },
            },
            "apply": {"type": "list", "elements": "dict", "default": [], "options": COMMAND},
            "units": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "action": {
                        "type": "str",
                        "choices": ["reload", "restart"],
                        "default": "reload",
                    },
                    "state": {"type": "str", "choices": ["on", "off"], "default": "on"},
                    "unless_active": {"type": "str"},
                    "reads": {"type": "list", "elements": "path"},
                },
            },
            "guard": {"type": "dict", "options": GUARD},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**ConfigSet(module.params, module.check_mode).run())
    except (Refused, SystemdError, FilesError, GuardError, OSError) as error:
        module.fail_json(msg=f"{module.params['name']}: {error}")


if __name__ == "__main__":
    main()
