#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: sysctl_set
short_description: Sets many kernel parameters in one step, reads them back, and can put them all
  back
version_added: 0.1.0
description:
  - Writes all parameters into one file of C(/etc/sysctl.d) and into the running kernel, and reads
    each back.
  - M(ansible.posix.sysctl) does the same for one parameter a task, believes what the file says,
    and keeps no
    note of what was before. Here the file holds, as comments, the value that each parameter had.
  - What the kernel does not know or does not let be set is reported in RV(refused), and so is what
    a file that is read later gives another value, which is left to that. With O(strict), each is an
    error. A value that is none is a comment in the file, not something for the next boot.
  - Of C(vm.dirty_ratio) and C(vm.dirty_bytes) the kernel keeps one and makes the other 0, and so
    with C(vm.dirty_background_ratio) and C(vm.dirty_background_bytes). Here, the one that counted
    before is what comes back.
author:
  - The nas.assistant contributors
options:
  path:
    description: The file, in C(/etc/sysctl.d). A higher number in its name is read later, and wins.
    type: path
    required: true
  values:
    description: Parameters by name, with dots or slashes. Several numbers are one string.
    type: dict
    default: {}
  minimums:
    description: Names among O(values) that are limits. Where the NAS, or something else on it, has
      a larger one, that stays; of several numbers, each. What a file says that nobody has loaded
      yet is loaded.
    type: list
    elements: str
    default: []
  state:
    description: V(absent) removes the file and sets each parameter to what it was before. What the
      kernel does not take back is in RV(refused), and noted in the file until it does.
    type: str
    choices: [present, absent]
    default: present
  strict:
    description: Fails when the kernel lacks a parameter or does not take it, or a later file has
      another value. All is as it was before, then.
    type: bool
    default: false
attributes:
  check_mode:
    description: Compares file and kernel; whether the kernel would refuse a value is not known
      then.
    support: full
  diff_mode:
    description: Shows the file, and the kernel's values.
    support: full
"""

EXAMPLES = r"""
- name: Let no core dump hold secrets
  nas.assistant.sysctl_set:
    path: /etc/sysctl.d/95-nas.conf
    values:
      fs.suid_dumpable: 0
      net.ipv4.tcp_rmem: 4096 131072 16777216
"""

RETURN = r"""
changed_values:
  description: Parameters whose value in the kernel was changed, each with the values before and
    after.
  type: dict
  returned: always
refused:
  description: A sentence for each parameter that the kernel lacks or refuses, that another file
    decides on, or that is given up and has no value of before, since the kernel lacked it then.
  type: list
  elements: str
  returned: always
"""

import contextlib
import errno
import glob
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils._files import replace

PROC = "/proc/sys"
# Where systemd-sysctl looks, the first one first: of one name, that file counts.
FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d")
# No pattern such as net.ipv4.conf.*.rp_filter: of what that means at boot, nothing is known now.
NAME = re.compile(r"[a-zA-Z0-9_@-]+([./][a-zA-Z0-9_:@-]+)+")
BEFORE = "# before: "
HELD = "# in force: "
REFUSED = "# refused: "
HEAD = "# Written by nas.assistant.sysctl_set; the values before are what absent puts back.\n"
# Of each pair the kernel keeps one: https://docs.kernel.org/admin-guide/sysctl/vm.html
PAIRS = (
    ("vm.dirty_ratio", "vm.dirty_bytes"),
    ("vm.dirty_background_ratio", "vm.dirty_background_bytes"),
)
PARTNER = {one: other for pair in PAIRS for one, other in (pair, pair[::-1])}


class SysctlError(Exception):
    """The parameters cannot be set; one sentence with the name, the value and the remedy."""


@dataclass
class Kernel:
    """What was read of the kernel, and what it refused."""

    values: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """Why the kernel does not have a value. ``invalid``: it is none, here as anywhere."""

    reason: str
    invalid: bool = False


@dataclass(frozen=True)
class Set:
    """What the file says: the values, what was there before it was first written, what the kernel
    has of ours where it does not have the file's, as after a run that was cut off, and values that
    are none, which are not for the next boot."""

    values: dict[str, str]
    before: dict[str, str]
    held: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Set:
        """From the file's text; empty where there is none."""
        found = cls({}, {})
        into = {BEFORE: found.before, HELD: found.held, REFUSED: found.refused}
        for line in text.splitlines():
            mark = next((each for each in into if line.startswith(each)), "-")
            name, equals, value = line.removeprefix(mark).partition(" = ")
            if equals:
                into.get(mark, found.values)[name] = value
        return found

    def of(self, name: str) -> tuple[str | None, str | None]:
        """What the kernel has of a parameter where nobody else has set it since."""
        return self.values.get(name), self.held.get(name)

    def unnoted(self, kernel: Mapping[str, str]) -> list[str]:
        """The parameters that the kernel has from the file, and nobody knows what was before: it
        lacked them when the file was written, as without a module that was loaded since."""
        names = (name for name in self.values if not noted_name(name, self.before))
        return [name for name in names if name in kernel and kernel[name] in self.of(name)]

    def replaced(self, noted: str) -> str:
        """The parameter of ours that took the place of one that is noted: itself or its partner."""
        ours = noted in self.values or noted in self.held
        return noted if ours else PARTNER.get(noted, noted)

    def render(self) -> str:
        """Return the file's text: each parameter, below it what was before; then the notes of those
        that are no longer in it."""
        lines, before, held = [], dict(self.before), dict(self.held)
        for name in sorted(self.values):
            # A minus: one that this kernel lacks is passed over at boot.
            lines.append(f"-{name} = {self.values[name]}")
            noted = noted_name(name, before)
            if noted:
                lines.append(f"{BEFORE}{noted} = {before.pop(noted)}")
            if name in held:
                lines.append(f"{HELD}{name} = {held.pop(name)}")
        for mark, notes in ((BEFORE, before), (HELD, held), (REFUSED, self.refused)):
            lines += [f"{mark}{name} = {notes[name]}" for name in sorted(notes)]
        return HEAD + "\n".join(lines) + "\n"


def proc_path(name: str, root: str = PROC) -> str:
    """Return the file of a parameter. With a slash in its name, dots stand for themselves."""
    return os.path.join(root, name if "/" in name else name.replace(".", "/"))


def normal(value: object) -> str:
    """Return a value as the kernel prints it: numbers by one blank, no end of line."""
    if isinstance(value, bool):
        return str(int(value))
    return " ".join(str(value).split())


def noted_name(name: str, before: Collection[str]) -> str:
    """Return the name under which is noted what a parameter replaced: its own or its partner's;
    empty where nothing is noted."""
    return next((each for each in pair_of(name) if each in before), "")


def pair_of(name: str) -> tuple[str, ...]:
    """Return a parameter and, if it has one, its partner."""
    return (name, PARTNER[name]) if name in PARTNER else (name,)


def at_least(wanted: str, base: str) -> str:
    """Return, number by number, the larger one; what is no numbers, as it is wanted."""
    pairs = list(zip(wanted.split(), base.split(), strict=False))
    numbers = all(word.isdigit() for pair in pairs for word in pair)
    if not numbers or len(wanted.split()) != len(base.split()):
        return wanted
    return " ".join(max(pair, key=int) for pair in pairs)


def plan(
    wanted: Mapping[str, str],
    minimums: Collection[str],
    old: Set,
    kernel: Mapping[str, str],
    earlier: Mapping[str, tuple[str, str]],
) -> Set:
    """Return what the file should say.

    :param minimums: names that are left out where the kernel has as much without this file.
    :param old: what the file says now.
    :param kernel: the values in force, also of the partners.
    :param earlier: what files say that are read before it, as ``others`` gives it.
    """
    values: dict[str, str] = {}
    before: dict[str, str] = {}
    unnoted = old.unnoted(kernel)
    for name, value in wanted.items():
        noted = noted_name(name, old.before)
        if name in minimums and name in kernel:
            # What is not from this file is somebody else's, and may have been raised since.
            ours = name in old.before and kernel[name] in old.of(name)
            base = old.before[name] if ours else "" if name in unnoted else kernel[name]
            # Such a file would be overruled at the next boot.
            said = earlier.get(proc_path(name, ""), (base, ""))[0]
            base = at_least(base, said) if base else said
            value = at_least(value, base)
            if value == base:
                continue
        values[name] = value
        if noted:
            before[noted] = old.before[noted]
        elif name in kernel and name not in unnoted:
            partner = PARTNER.get(name, "")
            counts = partner if kernel[name] == "0" and kernel.get(partner, "0") != "0" else name
            before[counts] = kernel[counts]
    return Set(values, before)


def returning(
    old: Set, new: Set, kernel: Mapping[str, str], elsewhere: Mapping[str, tuple[str, str]]
) -> dict[str, str]:
    """Return the values that go back to what they were, since the file no longer has them. One that
    is no longer as the file says is somebody else's by now.

    :param elsewhere: what other files say, which comes before what was noted.
    """
    kept = {noted_name(name, old.before) for name in new.values}
    found = {}
    for noted, value in old.before.items():
        name = old.replaced(noted)
        if noted not in kept and name in kernel and kernel[name] in old.of(name):
            # A file may have the other one of a pair by now.
            counts = next((each for each in pair_of(noted) if proc_path(each, "") in elsewhere), "")
            found[counts or noted] = elsewhere[proc_path(counts, "")][0] if counts else value
    for name in old.unnoted(kernel):
        if name not in new.values and proc_path(name, "") in elsewhere:
            found[name] = elsewhere[proc_path(name, "")][0]
    return found


def unloaded(
    minimums: Iterable[str],
    new: Set,
    kernel: Mapping[str, str],
    earlier: Mapping[str, tuple[str, str]],
) -> dict[str, str]:
    """Return the limits that a file has raised which nobody has loaded yet. They are not in the new
    file, since that one says enough, and have no note, since it is what comes back anyway."""
    found = {}
    for name in minimums:
        place = proc_path(name, "")
        if name in kernel and name not in new.values and place in earlier:
            value = at_least(kernel[name], earlier[place][0])
            if value != kernel[name]:
                found[name] = value
    return found


def parse_file(text: str) -> dict[str, str]:
    """Return the values of a file in ``sysctl.d``, by the parameter's path below ``/proc/sys``."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("-").partition("=")
        name = name.strip()
        if equals and not name.startswith(("#", ";")):
            # The first separator decides what the others mean.
            dotted = name.replace("/", ".").index(".") if re.search("[./]", name) else 0
            if name[dotted] == ".":
                name = name.translate(str.maketrans("./", "/."))
            found[name] = normal(value)
    return found


def others(
    path: str, folders: Sequence[str] = FOLDERS
) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
    """Return what files say that are read before and after ``path``: the value and the file, by the
    parameter's path below ``/proc/sys``."""
    files: dict[str, str] = {}
    for folder in folders:
        for file in glob.glob(os.path.join(folder, "*.conf")):
            files.setdefault(os.path.basename(file), file)
    before: dict[str, tuple[str, str]] = {}
    after: dict[str, tuple[str, str]] = {}
    for name, file in sorted(files.items()):
        if name != os.path.basename(path) and os.path.isfile(file):
            into = after if name > os.path.basename(path) else before
            with open(file, encoding="utf-8", errors="replace") as stream:
                for parameter, value in parse_file(stream.read()).items():
                    into[parameter] = (value, file)
    return before, after


def left(
    wanted: Mapping[str, str], minimums: Collection[str], later: Mapping[str, tuple[str, str]]
) -> dict[str, str]:
    """Return the parameters that files decide on which are read later, each with a sentence; not
    those of ``minimums`` of which they say enough."""
    found = {}
    for name, value in wanted.items():
        other, file = later.get(proc_path(name, ""), (value, ""))
        partner = PARTNER.get(name, "")
        if partner and not file:
            other, file = later.get(proc_path(partner, ""), (value, ""))
            other = f"{partner} = {other}"
        enough = name in minimums and at_least(value, other) == other
        if file and other != value and not enough:
            found[name] = f"{name}: left to {file}, which is read later and says {other}"
    return found


def read(names: list[str], root: str = PROC) -> Kernel:
    """Read the parameters from the kernel."""
    kernel = Kernel()
    for name in names:
        try:
            with open(proc_path(name, root), encoding="ascii") as stream:
                kernel.values[name] = normal(stream.read())
        except FileNotFoundError:
            kernel.refused[name] = f"{name}: this kernel has no such parameter"
        except OSError as error:
            kernel.refused[name] = f"{name}: cannot be read ({error.strerror})"
    return kernel


def write(name: str, value: str, root: str = PROC) -> Refusal | None:
    """Set a parameter and read it back; return why that did not work."""
    path = proc_path(name, root)
    try:
        with open(path, "w", encoding="ascii") as stream:
            stream.write(value)
        with open(path, encoding="ascii") as stream:
            found = normal(stream.read())
    except OSError as error:
        invalid = error.errno in (errno.EINVAL, errno.ERANGE)
        return Refusal(f"{name} = {value}: the kernel refuses it ({error.strerror})", invalid)
    made = f"{name} = {value}: the kernel made it {found}"
    return None if found == value else Refusal(made)


def checked(values: Mapping[str, object]) -> dict[str, str]:
    """Return the values as the kernel prints them.

    :raises SysctlError: a name is none, or two of them are the same or exclude each other.
    """
    odd = [name for name in values if not NAME.fullmatch(name) or ".." in name]
    if odd:
        raise SysctlError(
            f"values: {', '.join(odd)} is no parameter's name, such as net.core.rmem_max"
        )
    for one, other in PAIRS:
        if one in values and other in values:
            raise SysctlError(
                f"values: of {one}={values[one]} and {other}={values[other]} the kernel keeps one. "
                "Leave the other out"
            )
    places: dict[str, str] = {}
    for name in values:
        twin = places.setdefault(proc_path(name), name)
        if twin != name:
            raise SysctlError(f"values: {name} is {twin} by another name: use that alone")
    return {name: normal(value) for name, value in values.items()}


def run(module: AnsibleModule) -> dict[str, object]:
    """Bring file and kernel to the wanted state; return the module's result."""
    path: str = module.params["path"]
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
    except FileNotFoundError:
        text = ""
    old = Set.parse(text)
    absent = module.params["state"] == "absent"
    wanted = {} if absent else checked(module.params["values"])
    minimums = set(module.params["minimums"])
    names = {*wanted, *old.before, *old.values}
    kernel = read(sorted({*names, *(PARTNER[name] for name in names if name in PARTNER)}))
    refused = {name: why for name, why in kernel.refused.items() if name in wanted}
    earlier, later = others(path)
    decided = left(wanted, minimums, later)
    refused.update(decided)
    if module.params["strict"] and refused:
        raise SysctlError(f"{'; '.join(refused.values())}. No parameter was changed")
    wanted = {name: value for name, value in wanted.items() if name not in decided}
    new = plan(wanted, minimums, old, kernel.values, earlier)
    back = returning(old, new, kernel.values, {**earlier, **later})
    limits = minimums & set(wanted)
    target = {**unloaded(limits, new, kernel.values, earlier), **new.values, **back}
    differ = {
        name: value for name, value in target.items() if kernel.values.get(name, value) != value
    }
    # By what is written, which may be the partner of what is noted.
    notes = {name: noted_name(name, old.before) for name in back if name in differ}
    undone = {name: kernel.values[old.replaced(noted)] for name, noted in notes.items() if noted}
    # What the kernel has of ours, until it takes what is wanted: a run may end in between.
    held = {
        name: kernel.values[name]
        for name in differ
        if name in new.values and kernel.values[name] in old.of(name)
    }
    bad = [name for name, value in new.values.items() if old.refused.get(name) == value]

    def text_of(held: Mapping[str, str], bad: Collection[str], undone: Mapping[str, str]) -> str:
        """The file: without the values that are none, with the notes of what is not back yet."""
        values = {name: value for name, value in new.values.items() if name not in bad}
        unset = {noted_name(name, new.before) for name in bad if name not in held}
        before = {name: value for name, value in new.before.items() if name not in unset}
        before |= {notes[name]: old.before[notes[name]] for name in undone}
        holding = {**held, **{old.replaced(notes[name]): each for name, each in undone.items()}}
        made = Set(values, before, holding, {name: new.values[name] for name in bad})
        return "" if absent and not undone else made.render()

    changes: dict[str, list[str]] = {}
    on_the_way = text_of(held, bad, undone)
    # Where that is there already, the kernel refused it before.
    text_new = on_the_way if on_the_way == text else text_of({}, bad, {})
    if not module.check_mode:
        # The file first: it is what remembers the values before.
        if on_the_way != text and not absent:
            replace(path, on_the_way.encode(), 0, 0, 0o644)
        bad = []
        for name, value in differ.items():
            refusal = write(name, value)
            made = read([name]).values.get(name, "") if refusal else value
            if refusal:
                refused[name] = refusal.reason
                bad += [name] if refusal.invalid and name in new.values else []
            if made != kernel.values[name]:
                changes[name] = [kernel.values[name], made]
            if refusal and name in new.values and name in changes:
                held[name] = made
        if module.params["strict"] and refused:
            _undo(path, text, differ, kernel.values)
            raise SysctlError(f"{'; '.join(refused.values())}. All is as it was before")
        held = {name: value for name, value in held.items() if name in refused}
        undone = {name: value for name, value in undone.items() if name in refused}
        text_new = text_of(held, bad, undone)
        if text_new and text_new != (text if absent else on_the_way):
            replace(path, text_new.encode(), 0, 0, 0o644)
        elif text and not text_new:
            os.unlink(path)
    else:
        # Whether the kernel takes it shows only when tried, save where nothing can be written.
        changes = {
            name: [kernel.values[name], value]
            for name, value in differ.items()
            if name not in bad and os.access(proc_path(name), os.W_OK)
        }
    for name in old.unnoted(kernel.values):
        if name not in target:
            refused[name] = (
                f"{name}: stays {kernel.values[name]} until the next boot: the kernel had none "
                "when it was set, so what it was before is not known"
            )
    shown = [{"before_header": path, "after_header": path, "before": text, "after": text_new}]
    for name, (was, now) in sorted(changes.items()):
        shown.append({"before": f"{name} = {was}\n", "after": f"{name} = {now}\n"})
    return {
        "changed": text_new != text or bool(changes),
        "changed_values": changes,
        "refused": sorted(refused.values()),
        "diff": shown,
    }


def _undo(path: str, text: str, tried: Iterable[str], before: Mapping[str, str]) -> None:
    """Put file and kernel back, also where the kernel made another value of what it was given."""
    for name in tried:
        partner = PARTNER.get(name, "")
        # Of two that exclude each other, the kernel takes no 0: it shows that the other counts.
        back = partner if before[name] == "0" and partner in before else name
        write(back, before[back])
    if text:
        replace(path, text.encode(), 0, 0, 0o644)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "values": {"type": "dict", "default": {}},
            "minimums": {"type": "list", "elements": "str", "default": []},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "strict": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except (SysctlError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
