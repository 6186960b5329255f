# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Finds the port and the user by which a NAS lets Ansible in, all on the controller."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.nas.assistant.plugins.plugin_utils._door import (
    Door,
    aliases,
    common_args,
    connect,
    is_ssh,
    knock,
    present_door,
    reason_of,
    unknown_key,
)

Variables = dict[str, Any]
Result = dict[str, Any]


def candidates(
    wanted: list[Variables], present: Door, moved: Sequence[Variables] = ()
) -> list[Door]:
    """Return the doors to try, in order: as they should be or last were, as the inventory says.

    :param wanted: ``host``, ``port``, ``user`` of each, each of them optional.
    :param moved: likewise, of doors that are tried after that.
    """

    def made(wishes: Sequence[Variables]) -> list[Door]:
        return [
            Door(
                str(wish.get("host") or present.host),
                int(wish["port"]) if wish.get("port") else present.port,
                str(wish["user"]) if wish.get("user") else present.user,
            )
            for wish in wishes
        ]

    return list(dict.fromkeys([*made(wanted), present, *made(moved)]))


def remembered(path: str) -> list[Variables]:
    """Return the door that was open last, none when nothing usable was written down.

    ``alias``: the name under which its host key was known, empty where it was its own.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            door = json.load(stream)
        found = {name: door[name] for name in ("host", "port", "user")}
        return [{**found, "alias": str(door.get("alias") or "")}]
    except (OSError, ValueError, KeyError, TypeError):
        return []


# An account that is there and may not administer yet is a door that a run left half-made.
PROBE = '[ "$(id -u)" = 0 ] || sudo -n true || exit 1; echo "$SSH_CONNECTION"'
# The inventory's own door may need a password for sudo, which Ansible then knows.
PLAIN_PROBE = 'echo "$SSH_CONNECTION"'


def ssh_settings(executable: str, door: Door, options: list[str]) -> dict[str, str]:
    """Return what ssh's configuration says of this host, by lower-case keyword.

    :param options: the words that Ansible gives ssh.
    """
    argv = [executable, "-G", *options, door.host]
    if door.port:
        argv[1:1] = ["-p", str(door.port)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return dict(line.partition(" ")[::2] for line in done.stdout.splitlines())


class ActionModule(ActionBase):
    """See the module's documentation."""

    TRANSFERS_FILES = False
    # The two ends of the connection, as the NAS sees them: ours, and its own.
    _seen_as = ""
    _reached_at = ""

    def run(self, tmp: str | None = None, task_vars: Variables | None = None) -> Result:
        """Try one door after the other; return the first that opens."""
        result: Result = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "doors": {"type": "list", "elements": "dict", "required": True},
                "remembered": {"type": "path", "default": ""},
                "addresses": {"type": "list", "elements": "str", "default": []},
                "timeout": {"type": "int", "default": 8},
            }
        )
        present = present_door(self._connection)
        if not is_ssh(self._connection):
            return result | {"changed": False, "moved": False}
        started = time.monotonic()
        tried = []
        last = remembered(arguments["remembered"])
        names = list(dict.fromkeys([*aliases(present), *(door["alias"] for door in last)]))
        # At another address anybody whose key is known may answer, as another NAS of the fleet; it
        # is this one if it has the key that this one is known by.
        own = {present.host, *(str(door["host"]) for door in last)}
        doors = arguments["doors"] or [{}]
        moved = [{**door, "host": host} for host in arguments["addresses"] for door in doors]
        for door in candidates([*arguments["doors"], *last], present, moved):
            known = names if door.host in own else [name for name in names if name]
            opened, reason = self._try(door, present, known, arguments["timeout"])
            if opened:
                settings = self._settings(opened)
                return result | {
                    "changed": False,
                    "moved": opened != present,
                    "host": opened.host,
                    "port": opened.port or int(settings.get("port", 22)),
                    "user": opened.user or settings.get("user", ""),
                    "seen_as": self._seen_as,
                    "reached_at": self._reached_at,
                    "common_args": common_args(self._connection, opened),
                    "inventory": {"host": present.host, "port": present.port, "user": present.user},
                    "seconds": round(time.monotonic() - started, 2),
                }
            tried.append(f"{door}: {reason}")
        raise AnsibleConnectionFailure(
            f"{present.host} lets nobody in. Tried were {'; '.join(tried)}. Is it on, is the "
            "address right, and is your key among those that it knows? If its port or account was "
            "changed elsewhere, say so in the inventory (ansible_port, ansible_user)."
        )

    def _try(
        self, door: Door, present: Door, names: list[str], timeout: int
    ) -> tuple[Door | None, str]:
        """Return the door that opened, perhaps with an alias for its key, or why it did not.

        :param names: under which the host key may be known; the door's own name is an empty text.
        """
        settings = self._settings(door)
        if not {"proxyjump", "proxycommand"} & set(settings):
            # Quicker than ssh, and a port that is closed costs no attempt to log in.
            port = door.port or int(settings.get("port", 22))
            reason = knock(settings.get("hostname", door.host), port, timeout)
            if reason:
                return None, reason
        for alias in names:
            attempt = Door(door.host, door.port, door.user, alias)
            # Ansible keeps connections by host, port and user. One that is open there may be to
            # another NAS; only a handshake of its own shows whether this one has the key.
            connection = connect(self, attempt, shared=not alias, timeout=timeout)
            try:
                probe = PLAIN_PROBE if door == present else PROBE
                code, out, err = connection.exec_command(
                    f"sh -c {shlex.quote(probe)}", sudoable=False
                )
            except AnsibleConnectionFailure as error:
                if unknown_key(error) and alias != names[-1]:
                    continue
                return None, reason_of(error)
            if code == 0:
                ends = out.decode(errors="replace").split()
                if len(ends) == 4:
                    self._seen_as, self._reached_at = ends[0], ends[2]
                return attempt, ""
            return (
                None,
                f"it lets us in, but not administer: {err.decode(errors='replace').strip()}",
            )
        raise AnsibleActionFail("unreachable")

    def _settings(self, door: Door) -> dict[str, str]:
        names = ("ssh_args", "ssh_common_args", "ssh_extra_args")
        given = " ".join(str(self._connection.get_option(name) or "") for name in names)
        return ssh_settings(self._connection.get_option("ssh_executable"), door, shlex.split(given))
