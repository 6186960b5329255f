# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Sends snapshots to another Btrfs, on this machine or over SSH, and has them there only if whole.

A snapshot is received into a folder of this run's own, ``.incoming-NAME/RUN``, verified there, and
only then given its final name, by a read-only snapshot of it: the kernel does not move a read-only
subvolume to another folder, and a read-only snapshot keeps the received UUID. What a run leaves
that was interrupted lies in ``.incoming-NAME`` and is removed by the next one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any, cast

from ansible_collections.nas.assistant.plugins.module_utils import (
    _files as files,
    _replicate_plan as planning,
)
from ansible_collections.nas.assistant.plugins.module_utils._commands import spoken
from ansible_collections.nas.assistant.plugins.module_utils._lock import held
from ansible_collections.nas.assistant.plugins.module_utils._replicate_agent import (
    Agent,
    agent_script,
)
from ansible_collections.nas.assistant.plugins.module_utils._replicate_plan import (
    Entry,
    Plan,
    ReplicateError,
    Ssh,
    Transfer,
    Wish,
)
from ansible_collections.nas.assistant.plugins.module_utils._snapshots import take_over_holds

LOCKS = "/run/nas-assistant"
LOCK_PATIENCE = 300  # seconds that a second run waits for the first
CLEANER_PATIENCE = 300  # seconds until the room of what was removed is free again
BLOCK = 1 << 20  # bytes that go through at a time
SHOWN = 5  # differences that a message names

_REMEDIES = (
    (
        r"Host key verification failed",
        "the host key is not the one in ssh.known_hosts_file. Compare it with the one that "
        "`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints there, and put it in",
    ),
    (
        r"Permission denied \(|Too many authentication failures",
        "it takes no key of ssh.identity_file for ssh.user. Put the public key in that user's "
        "~/.ssh/authorized_keys there",
    ),
    (r"Could not resolve hostname", "no host has that name. Give ssh.host another, or an address"),
    (
        r"Connection refused|timed out|No route to host|Network is unreachable|Host is down",
        "nothing answers. See that it runs, and that ssh.port and its firewall are right",
    ),
    (
        r"sudo: .*(password|sudoers|not allowed)|sudo: .*terminal",
        "ssh.become needs a sudo without a password for all commands. Give that user one, or "
        "log in as root",
    ),
    (
        r"(sudo|env|python3|btrfs).?: .*(not found|No such file)",
        "what is named is not installed there. Install the packages btrfs-progs, python3 and, for "
        "ssh.become, sudo",
    ),
    (
        r"closed by|[Bb]roken pipe|[Cc]onnection reset|Timeout, server",
        "the connection broke. Run it again: what is complete stays",
    ),
)


@dataclass(frozen=True)
class Command:
    """A command, on this machine or the far one, and how it came to an end."""

    words: tuple[str, ...]
    ssh: Ssh | None = None

    @property
    def argv(self) -> list[str]:
        """What is run here."""
        return self.ssh.argv(self.words) if self.ssh else list(self.words)

    def start(self, **streams: Any) -> subprocess.Popen[bytes]:
        """Start it.

        :raises ReplicateError: there is no such program here.
        """
        argv = self.argv
        try:
            # A pipe as large as a block: each end does more between two changes of process.
            environ = {**os.environ, "LC_ALL": "C"}
            return subprocess.Popen(argv, env=environ, pipesize=BLOCK, **streams)
        except FileNotFoundError:
            package = "openssh-client" if argv[0] == "ssh" else "btrfs-progs"
            raise ReplicateError(f"{argv[0]} is not installed (package {package})") from None

    def told(self, code: int | None, stderr: str) -> str:
        """Return a sentence on how it ended, with what it said and what helps."""
        shown = spoken(["ssh", self.ssh.target, *self.words] if self.ssh else self.words)
        if code is None:
            how = "was stopped"
        elif code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        else:
            how = f"ended with {code}"
        said = " ".join(stderr.split())
        remedy = next((help for sign, help in _REMEDIES if re.search(sign, said)), "")
        known = f" ({remedy})" if self.ssh and remedy else ""
        return f"{shown} {how}" + (f": {said}" if said else "") + known


@dataclass(frozen=True)
class Side:
    """Where a folder is: on this machine, or behind SSH."""

    ssh: Ssh | None = None

    @property
    def place(self) -> str:
        """What a sentence adds to a folder."""
        return f" at {self.ssh.target}" if self.ssh else ""

    def call(self, *words: str, accepted: Sequence[int] = (0,)) -> None:
        """Run a command to its end.

        :raises ReplicateError: it ended with another code than the accepted ones.
        """
        command = Command(words, self.ssh)
        with tempfile.TemporaryFile() as errors:
            nothing = subprocess.DEVNULL
            code = command.start(stdin=nothing, stdout=nothing, stderr=errors).wait()
            if code not in accepted:
                raise ReplicateError(command.told(code, _text(errors)))

    def ask(self, do: str, **request: Any) -> Generator[dict[str, Any], None, None]:
        """Yield what the agent answers there.

        :raises ReplicateError: it could not be asked, or had an error.
        """
        if self.ssh is None:
            try:
                yield from Agent.asked({"do": do, **request})
            except OSError as error:
                raise ReplicateError(str(error)) from error
            return
        asked = json.dumps({"do": do, **request})
        command = Command(("python3", "-I", "-", asked), self.ssh)
        with tempfile.TemporaryFile() as script, tempfile.TemporaryFile() as errors:
            script.write(agent_script().encode())
            script.seek(0)
            process = command.start(stdin=script, stdout=subprocess.PIPE, stderr=errors)
            try:
                with cast(IO[bytes], process.stdout) as lines:
                    for line in lines:
                        # A shell's start-up files may print too; what breaks off is half a line.
                        if line.startswith(b"{") and line.endswith(b"}\n"):
                            yield json.loads(line)
                code = process.wait()
            finally:
                process.kill()
                process.wait()
            if code != 0:
                raise ReplicateError(command.told(code, _text(errors)))

    def answer(self, do: str, **request: Any) -> dict[str, Any]:
        """Return the one answer to a request."""
        found = list(self.ask(do, **request))
        if not found:
            raise ReplicateError(f"python3{self.place} ended without an answer")
        return found[-1]


def transfer(send: Command, receive: Command, patience: float) -> tuple[int, float]:
    """Have one command read what the other writes; return bytes and seconds.

    :param patience: seconds without a byte until both are ended.
    :raises ReplicateError: one failed, that one first, with what both said.
    """
    began = time.monotonic()
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as heard:
        processes: list[subprocess.Popen[bytes]] = []
        try:
            sender = send.start(stdin=nothing, stdout=pipe, stderr=said)
            processes.append(sender)
            receiver = receive.start(stdin=pipe, stdout=nothing, stderr=heard)
            processes.append(receiver)
            out, into = cast(IO[bytes], sender.stdout), cast(IO[bytes], receiver.stdin)
            moved, end = _pump(out.fileno(), into.fileno(), patience)
            if end == "refused":
                sender.kill()
            into.close()
            out.close()
            if end != "stalled":
                # What it has in hand it still writes to the disk.
                end = end if _wait(receiver, patience) and _wait(sender, patience) else "stalled"
            codes = [process.poll() for process in (sender, receiver)]
            if end == "refused":
                codes[0] = None
        finally:
            for process in processes:
                process.kill()
                _wait(process, 10)
                for stream in (process.stdin, process.stdout):
                    if stream:
                        stream.close()
        told = [send.told(codes[0], _text(said)), receive.told(codes[1], _text(heard))]
        if end == "stalled":
            raise ReplicateError(
                f"no byte went through for {patience:.0f} s, so both ends were stopped: "
                f"{told[0]}; {told[1]}. See what the disks and the network do, or give a longer "
                "timeout"
            )
        if end == "refused":
            raise ReplicateError(f"{told[1]}; at the other end, {told[0]}")
        if codes[0] != 0:
            raise ReplicateError(f"{told[0]}; at the other end, {told[1]}")
        if codes[1] != 0:
            raise ReplicateError(f"{told[1]}; at the other end, {told[0]}")
    return moved, time.monotonic() - began


def _pump(source: int, sink: int, patience: float) -> tuple[int, str]:
    """Move bytes from pipe to pipe inside the kernel; return how many, and why no more.

    ``ended``: there are no more. ``refused``: nobody reads them any more. ``stalled``: none came,
    or none was taken, for so many seconds.
    """
    readable, writable = select.poll(), select.poll()
    readable.register(source, select.POLLIN)
    readable.register(sink, 0)  # tells when nobody reads any more
    writable.register(sink, select.POLLOUT)
    moved, since = 0, time.monotonic()
    while True:
        for ready in (readable, writable):
            left = patience - (time.monotonic() - since)
            if left <= 0 or not (found := dict(ready.poll(left * 1000))):
                return moved, "stalled"
            if found.get(sink, 0) & (select.POLLERR | select.POLLHUP):
                return moved, "refused"
        try:
            count = os.splice(source, sink, BLOCK, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            continue
        except BrokenPipeError:
            return moved, "refused"
        if count == 0:
            return moved, "ended"
        moved, since = moved + count, time.monotonic()


def _wait(process: subprocess.Popen[bytes], patience: float) -> bool:
    """Wait for an end; return whether it came."""
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        return False
    return True


def _text(stream: IO[bytes]) -> str:
    """Return the end of what was written to a file."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 4096))
    return stream.read().decode(errors="replace")


@dataclass
class Outcome:
    """What was done, or in check mode would be."""

    sent: list[dict[str, Any]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    hold_changed: bool = False

    @property
    def changed(self) -> bool:
        """Whether anything is, or would be, other than it was."""
        return bool(self.sent or self.deleted or self.hold_changed)


class Replication:
    """One run, from what is to what should be; ``outcome`` grows with what is done."""

    def __init__(self, wish: Wish) -> None:
        self.wish, self.outcome = wish, Outcome()
        self.near, self.far = Side(), Side(wish.ssh)
        self.run = secrets.token_hex(4)
        self.source: list[Entry] = []
        self.complete: list[Entry] = []
        self.hold_before = ""

    def foretell(self) -> None:
        """Find out what would be done.

        :raises ReplicateError: it could not be done.
        """
        plan, incoming = self._look()
        for each in plan.transfers:
            self._sent(each, None, None)
            copy = replace(each.snapshot, received_uuid=each.snapshot.identity)
            self.complete.append(copy)
        self.outcome.deleted = [*incoming, *plan.remainders, *plan.deletions]
        self._hold(check=True)

    def carry_out(self) -> None:
        """Do it.

        :raises ReplicateError: something failed; what is complete stays.
        """
        with _alone(self.wish):
            if self.wish.holds == planning.HOLDS:
                take_over_holds()
            plan, incoming = self._look()
            for each in [*incoming, *plan.remainders]:
                self._remove(each, wait=True)
            if incoming or plan.transfers:
                self._replicate_all(plan.transfers)
            if self.wish.content:
                new = {each.snapshot.name for each in plan.transfers}
                for snapshot in plan.wanted:
                    if snapshot.name not in new:
                        self._compare(snapshot, snapshot.name, snapshot.name)
            self._hold()
            for name in plan.deletions:
                self._remove(name)
                self.complete = [entry for entry in self.complete if entry.name != name]
                self._present()

    def _at(self, name: str) -> str:
        """Return the path of what is at the destination."""
        return os.path.join(self.wish.destination, name)

    def _look(self) -> tuple[Plan, list[str]]:
        """Return the plan, and the subvolumes that an earlier run left in its own folder."""
        wish = self.wish
        _must_have_files(wish.ssh)
        near = self.near.answer("look", folder=wish.source, name=wish.name)
        _must_be_ready(near, "source", wish.source, Side())
        far = self.far.answer("look", folder=wish.destination, name=wish.name)
        _must_be_ready(far, "destination", wish.destination, self.far)
        self._must_be_apart(near["filesystem"], far["filesystem"])
        if not far["writable"]:
            raise ReplicateError(
                f"destination={wish.destination}{self.far.place} is read-only. Mount it writable; "
                "Btrfs itself makes it read-only after an error, which dmesg tells"
            )
        entries = [Entry(**each) for each in near["entries"]]
        there = [Entry(**each) for each in far["entries"]]
        plan = planning.plan(wish.name, entries, there, every=wish.every, keep_last=wish.keep_last)
        self.hold_before = _read(wish.hold_file)
        self.source = planning.snapshots(wish.name, entries)
        self.complete = planning.replicas(wish.name, there)
        self._present()
        self.outcome.before = self.outcome.present
        left = [each["path"] for each in far["incoming"]]
        return plan, [
            path for path in left if planning.is_stamped(wish.name, os.path.basename(path))
        ]

    def _must_be_apart(self, near: str, far: str) -> None:
        """A copy on the same disks is lost with them."""
        wish = self.wish
        if near == far:
            raise ReplicateError(
                f"destination={wish.destination}{self.far.place} is on the filesystem of the "
                f"source ({near}). Give a folder on another disk"
            )
        shared = set() if wish.ssh else _disks(near) & _disks(far)
        if shared:
            raise ReplicateError(
                f"destination={wish.destination} is on the same disk as the source "
                f"({', '.join(sorted(shared))}). Give a folder on another one"
            )

    def _replicate_all(self, transfers: Sequence[Transfer]) -> None:
        place = {"folder": self.wish.destination, "name": self.wish.name}
        self.far.answer("prepare", **place, inner=self.run)
        used = [entry for each in transfers for entry in (each.snapshot, each.parent) if entry]
        # To verify takes long, and nothing in use must be removed here until it is done.
        self._hold(used)
        try:
            for each in transfers:
                self._replicate(each)
        finally:
            self._hold()
        self.far.answer("tidy", **place)

    def _replicate(self, wanted: Transfer) -> None:
        """Send a snapshot, verify it, and give it its name."""
        wish, name = self.wish, wanted.snapshot.name
        below = os.path.join(f".incoming-{wish.name}", self.run)
        folder, inside = self._at(below), os.path.join(below, name)
        parent = ["-p", os.path.join(wish.source, wanted.parent.name)] if wanted.parent else []
        send = ("btrfs", "-q", "send", *parent, "--", os.path.join(wish.source, name))
        receive = ("btrfs", "-q", "receive", "--", folder)
        try:
            count, seconds = transfer(
                Command(send), Command(receive, wish.ssh), float(wish.timeout)
            )
            self._must_be_replica(wanted.snapshot, folder)
            # Without its parent, which may be what is damaged, the next one is sent in full.
            self._compare(wanted.snapshot, inside, wanted.parent.name if wanted.parent else "")
            self.far.call(
                "btrfs", "subvolume", "snapshot", "-r", "--", self._at(inside), self._at(name)
            )
            replica = self._must_be_replica(wanted.snapshot, wish.destination)
        except ReplicateError as error:
            left = self._give_up(inside, folder, name)
            raise ReplicateError(f"{name} was not replicated: {error}{left}") from error
        self.complete = planning.replicas(wish.name, [*self.complete, replica])
        self._present()
        self._sent(wanted, count, seconds)
        self._remove(inside, told=False)

    def _must_be_replica(self, snapshot: Entry, folder: str) -> Entry:
        found = self.far.answer("subvolume", folder=folder, name=snapshot.name)
        replica = Entry(**found) if found else Entry(snapshot.name, subvolume=False)
        if not replica.complete or replica.received_uuid != snapshot.identity:
            raise ReplicateError(
                f"what arrived is no whole replica: read-only {replica.read_only}, received UUID "
                f"{replica.received_uuid or 'none'} instead of {snapshot.identity}"
            )
        return replica

    def _compare(self, snapshot: Entry, inside: str, suspect: str) -> None:
        """Compare a snapshot with what is to be, or is, its replica.

        :param suspect: the replica to be removed if they differ, if any.
        :raises ReplicateError: they differ; says where.
        """
        tree, replica = os.path.join(self.wish.source, snapshot.name), self._at(inside)
        if not self.wish.content:
            near, far = (
                side.answer("size", tree=path)
                for side, path in ((self.near, tree), (self.far, replica))
            )
            found = [] if near == far else [f"{_counted(far)} instead of {_counted(near)}"]
        else:
            ours = self.near.ask("content", tree=tree)
            theirs = self.far.ask("content", tree=replica)
            with contextlib.closing(ours), contextlib.closing(theirs):
                found = list(itertools.islice(planning.differences(ours, theirs), SHOWN + 1))
        if found:
            more = ", and more" if len(found) > SHOWN else ""
            remove = f"; remove {self._at(suspect)}" if suspect else ""
            raise ReplicateError(
                f"{replica}{self.far.place} is not the same as {tree}: "
                f"{'; '.join(found[:SHOWN])}{more}. Look for a failing disk (btrfs scrub) and for "
                f"what changes replicas{remove}, and run it again"
            )

    def _give_up(self, inside: str, folder: str, name: str) -> str:
        """Remove what was received in vain; return what to say where that is not possible."""
        try:
            if self.far.answer("subvolume", folder=folder, name=name):
                self._remove(inside, wait=True, told=False)
            self.far.answer("tidy", folder=self.wish.destination, name=self.wish.name)
        except ReplicateError as error:
            return f". The next run removes what is left of it ({error})"
        return ""

    def _remove(self, name: str, *, wait: bool = False, told: bool = True) -> None:
        """Remove a subvolume at the destination.

        :param wait: until its room is free.
        """
        folder, last = os.path.split(self._at(name))
        found = self.far.answer("subvolume", folder=folder, name=last) if wait else {}
        self.far.call("btrfs", "subvolume", "delete", "--commit-after", "--", self._at(name))
        if told:
            self.outcome.deleted.append(name)
        if wait:
            words = ("timeout", str(CLEANER_PATIENCE), "btrfs", "subvolume", "sync", "--")
            # Should it take longer, the next send may find too little room, and says so.
            self.far.call(*words, self.wish.destination, str(found["id"]), accepted=(0, 124))

    def _hold(self, also: Iterable[Entry] = (), check: bool = False) -> None:
        """Keep the next parent, and others, from being removed here; ``check``: only say it."""
        wanted = planning.held(self.source, self.complete)
        self.outcome.held = [entry.uuid for entry in wanted]
        uuids = dict.fromkeys(entry.uuid for entry in (*wanted, *also))
        # While the sides have nothing in common, what was held for another disk stays so.
        text = "".join(f"{each}\n" for each in uuids) or self.hold_before
        self.outcome.hold_changed = text != self.hold_before
        path = self.wish.hold_file
        if check or text == _read(path):
            return
        if text:
            files.replace(path, text.encode("ascii"), os.geteuid(), os.getegid(), 0o644)
        else:
            os.unlink(path)
        descriptor = os.open(self.wish.holds, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _present(self) -> None:
        self.outcome.present = [entry.name for entry in self.complete]

    def _sent(self, wanted: Transfer, count: int | None, seconds: float | None) -> None:
        parent = wanted.parent.name if wanted.parent else None
        took = None if seconds is None else round(seconds, 3)
        line = {"name": wanted.snapshot.name, "parent": parent, "bytes": count, "seconds": took}
        self.outcome.sent.append(line)


def _read(path: str) -> str:
    """Return a file's text; empty where there is none."""
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def _must_have_files(ssh: Ssh | None) -> None:
    """ssh only says that it was let in nowhere."""
    for key in ("identity_file", "known_hosts_file") if ssh else ():
        path = str(getattr(ssh, key))
        if path and not os.path.isfile(path):
            raise ReplicateError(f"ssh.{key}={path}: there is no such file on this machine")


def _must_be_ready(found: Mapping[str, Any], key: str, folder: str, side: Side) -> None:
    """See that a folder is one that can be read from, or received into."""
    at = f"{key}={folder}{side.place}"
    if not found["root"]:
        remedy = "ssh.become: true, or log in as root" if side.ssh else "become: true for the task"
        raise ReplicateError(f"{at} needs root: give {remedy}")
    if not found["btrfs"]:
        raise ReplicateError(f"{at}: btrfs is not installed there. Install the package btrfs-progs")
    if not found["folder"]:
        raise ReplicateError(f"{at}: there is no such folder. Make it, or mount its disk")
    if not found["filesystem"]:
        raise ReplicateError(f"{at} is not on a Btrfs. Mount its disk, or give another folder")


def _disks(filesystem: str) -> set[str]:
    """Return the disks that a mounted Btrfs stands on, below partitions, RAID and encryption."""
    folder = f"/sys/fs/btrfs/{filesystem}/devices"
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return set(itertools.chain.from_iterable(_below(name) for name in names))


def _below(device: str) -> Iterator[str]:
    path = os.path.realpath(f"/sys/class/block/{device}")
    slaves = os.path.join(path, "slaves")
    under = os.listdir(slaves) if os.path.isdir(slaves) else []
    if os.path.exists(os.path.join(path, "partition")):
        under = [os.path.basename(os.path.dirname(path))]
    if not under:
        yield device
    for each in under:
        yield from _below(each)


def _counted(size: Mapping[str, Any]) -> str:
    return f"{size['entries']} entries of {size['bytes']} bytes"


@contextlib.contextmanager
def _alone(wish: Wish) -> Iterator[None]:
    """Wait until no other run sends from the same folder to the same.

    :raises ReplicateError: it took too long.
    """
    digest = planning.digest(os.path.realpath(wish.source), wish.goal)
    path = os.path.join(LOCKS, f"replicate-{digest}.lock")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(path, LOCK_PATIENCE))
        except TimeoutError:
            raise ReplicateError(
                f"another run has been sending from {wish.source} to {wish.goal} for "
                f"{LOCK_PATIENCE} s. Wait for its end, or see with `fuser {path}` what it does"
            ) from None
        yield
