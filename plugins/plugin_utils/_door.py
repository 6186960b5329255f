# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Connections beside the one that Ansible has: to another port, as another user, or simply new."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.connection import ConnectionBase
from ansible.plugins.loader import connection_loader

Variables = dict[str, Any]
Result = dict[str, Any]
# What keeps ssh from using a connection that is there already, also one of the user's own settings.
# One that was made just before an address goes must not be waited for without end.
UNSHARED = (
    "-o ControlMaster=no -o ControlPath=none -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
)
ATTEMPT = 10  # seconds for one attempt; a small NAS that is busy takes a few to greet
PAUSE = 1.0  # seconds between two attempts
LATE = 60.0  # seconds that a NAS may take to put an old state back
MOST_REFUSALS = 2
LOOPBACK = "127.0.0.1"
# On the NAS itself (ansible-pull) nobody comes in from outside; that SSH answers can be seen.
PROVING = ("ssh", "local")
MODULE = "nas.assistant.guard"


@dataclass(frozen=True)
class Door:
    """Where a NAS lets somebody in. ``alias``: the name under which its host key is known."""

    host: str
    port: int | None
    user: str | None
    alias: str = ""

    def __str__(self) -> str:
        where = f"{self.user}@{self.host}" if self.user else self.host
        return f"{where} port {self.port}" if self.port else where


def present_door(connection: ConnectionBase) -> Door:
    """The door that a connection goes through."""
    if not is_ssh(connection):
        return Door(str(connection._play_context.remote_addr), None, None)
    host, port, user = (connection.get_option(name) for name in ("host", "port", "remote_user"))
    return Door(str(host), int(port) if port else None, user)


def is_ssh(connection: ConnectionBase) -> bool:
    """Whether this is OpenSSH, whose doors can be moved."""
    return bool(connection._load_name.rsplit(".", 1)[-1] == "ssh")


def connect(
    action: ActionBase, door: Door, *, shared: bool, timeout: int | None = None
) -> ConnectionBase:
    """A connection through ``door``, with all else as the action's own. Nothing is sent yet.

    :param shared: whether it may use, and leave behind, a connection that later tasks share.
    """
    old = action._connection
    new = connection_loader.get(old._load_name, action._play_context)
    options = dict(old.get_options())
    if is_ssh(old):
        options |= {"host": door.host, "port": door.port, "remote_user": door.user}
        extra = [str(options.get("ssh_common_args") or "")]
        if door.alias:
            extra.append(f"-o HostKeyAlias={door.alias}")
        if not shared:
            # First come, first served: ssh takes the first value that it is given for an option.
            options["ssh_args"] = f"{UNSHARED} {options.get('ssh_args') or ''}"
            extra.insert(0, UNSHARED)
        options["ssh_common_args"] = " ".join(word for word in extra if word)
        if timeout:
            options["timeout"] = timeout
    new.set_options(direct={name: value for name, value in options.items() if value is not None})
    # A shell plugin of its own: the old one holds a temporary folder that may be another user's.
    new._shell.set_options(direct=dict(old._shell.get_options()))
    # Who comes in as the user to become does not become it, and then must not be waited for.
    same = old.become is not None and old.become.get_option("become_user") == door.user
    new.set_become_plugin(None if same else old.become)
    return new


@contextlib.contextmanager
def using(action: ActionBase, connection: ConnectionBase) -> Iterator[None]:
    """Have the action's modules run over another connection."""
    before = action._connection
    action._connection = connection
    try:
        yield
    finally:
        action._connection = before


def aliases(present: Door) -> tuple[str, str]:
    """Names under which a host key may be known: the door's own, and that of the present one."""
    if present.port and present.port != 22:
        return "", f"[{present.host}]:{present.port}"
    return "", present.host


def reason_of(error: AnsibleError) -> str:
    """The last line of what ssh said, without Ansible's own words before it."""
    text = str(error).strip().splitlines()
    return text[-1].removeprefix("Failed to connect to the host via ssh: ") if text else "no reason"


def unknown_key(error: AnsibleError) -> bool:
    """Whether ssh knows no host key under the name and port that it was given."""
    return "Host key verification failed" in str(error)


def common_args(connection: ConnectionBase, door: Door) -> str:
    """What ``ansible_ssh_common_args`` must be for tasks that go through ``door``."""
    present = str(connection.get_option("ssh_common_args") or "")
    return f"{present} -o HostKeyAlias={door.alias}".strip() if door.alias else present


def knock(host: str, port: int, timeout: float) -> str:
    """Return why no SSH daemon greets us at this address, or nothing when one does."""
    try:
        with socket.create_connection((host, port), timeout=timeout) as stream:
            stream.settimeout(timeout)
            greeting = stream.recv(4)
    except OSError as error:
        return str(error.strerror or error)
    return "" if greeting == b"SSH-" else "something else than an SSH daemon answers there"


def denied(error: AnsibleError) -> bool:
    """Whether an SSH daemon answered and let nobody in: a failure that it may count against us."""
    return any(word in str(error) for word in ("Permission denied", "Too many authentication"))


def through(
    action: ActionBase,
    door: Door,
    arguments: Variables,
    task_vars: Variables,
    *,
    module: str = MODULE,
    timeout: int = ATTEMPT,
) -> tuple[Result, Door]:
    """Run a module over a new connection through ``door``; return its result, and the door with
    the alias that it took.

    A NAS whose port or address moved has the host key that it had: where the new name is not known,
    the key is looked up under the old one.

    :raises AnsibleError: nobody answers, or lets us in, or lets us administer.
    """
    for alias in aliases(present_door(action._connection)):
        attempt = Door(door.host, door.port, door.user, alias)
        connection = connect(action, attempt, shared=False, timeout=timeout)
        try:
            with using(action, connection):
                answer: Result = action._execute_module(
                    module_name=module, module_args=arguments, task_vars=task_vars
                )
            return answer, attempt
        except AnsibleConnectionFailure as error:
            if alias or not unknown_key(error):
                raise
    raise AssertionError("unreachable")


def confirm(
    action: ActionBase, task_vars: Variables, name: str, token: str, wish: Variables
) -> Result:
    """Confirm a change over a new connection; without one, wait until the NAS has undone it.

    :param wish: ``seconds``, ``host``, ``port``, ``user``, ``remedy`` of the task.
    :returns: ``door``, how tasks get in from here on; or what makes the task fail.
    """
    old = present_door(action._connection)
    new = Door(
        str(wish.get("host") or old.host),
        int(wish["port"]) if wish.get("port") else old.port,
        wish.get("user") or old.user,
    )
    seconds = int(wish.get("seconds") or 60)
    began = time.monotonic()
    kind = action._connection._load_name.rsplit(".", 1)[-1]
    if kind not in PROVING:
        undone = _wait_for_the_old_state(action, task_vars, name, old, began + seconds)
        return {
            "failed": True,
            "msg": f"{name}: a connection of the kind {kind} proves nothing, use ssh; {undone}",
        }
    # What is left is the NAS's own time: a confirmation that comes too late is worth nothing.
    reason, refusals = "no attempt was made", 0
    while time.monotonic() - began < seconds * 0.7:
        if kind == "local" and new.port:
            reason = knock(LOOPBACK, new.port, ATTEMPT)
            # It may listen at its own address only.
            if reason and knock(new.host, new.port, ATTEMPT):
                time.sleep(PAUSE)
                continue
        try:
            arguments = {"name": name, "state": "confirmed", "token": token}
            answer, opened = through(action, new, arguments, task_vars)
        except AnsibleError as error:
            reason = reason_of(error)
            # Asking on would have the NAS ban this address, and then undoing helps nobody.
            refusals += denied(error)
            if refusals == MOST_REFUSALS:
                break
            time.sleep(PAUSE)
            continue
        if answer.get("again"):
            reason = "the NAS did not come to the end of the change"
            time.sleep(PAUSE)
            continue
        if not answer.get("failed"):
            args = common_args(action._connection, opened) if is_ssh(action._connection) else ""
            if opened != old:
                _forget(action)
            return {
                "door": {
                    "host": opened.host,
                    "port": opened.port,
                    "user": opened.user,
                    "common_args": args,
                }
            }
        reason = str(answer.get("msg") or "the confirmation failed")
        break
    undone = _wait_for_the_old_state(action, task_vars, name, old, began + seconds)
    _forget(action)
    remedy = f" {wish['remedy']}" if wish.get("remedy") else ""
    return {
        "failed": True,
        "msg": (
            f"{name}: after the change no new connection to {new} could be made ({reason}), "
            f"{undone}.{remedy}"
        ),
    }


def _wait_for_the_old_state(
    action: ActionBase, task_vars: Variables, name: str, door: Door, due: float
) -> str:
    """Ask by the old door until it opens; return what became of the old state.

    :param due: when the NAS puts it back by itself, on the monotonic clock.
    """
    reason = ""
    while time.monotonic() < due + LATE:
        try:
            arguments = {"name": name, "state": "reverted"}
            answer, _ = through(action, door, arguments, task_vars)
        except AnsibleError as error:
            reason = reason_of(error)
            wait = max(due + PAUSE - time.monotonic(), 5 * PAUSE) if denied(error) else PAUSE
            time.sleep(wait)
            continue
        if answer.get("failed"):
            return f"and putting the old state back failed: {answer.get('msg')}"
        return f"so the old state was put back, and {door} answers again"
    return f"and {door} does not answer either ({reason}): look at the NAS's own console"


def _forget(action: ActionBase) -> None:
    """Drop the connection that tasks have shared so far; it may lead nowhere by now."""
    with contextlib.suppress(Exception):
        action._connection.reset()
