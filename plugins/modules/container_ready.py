#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: container_ready
short_description: Waits until the assistant takes requests, or says why it does not
version_added: 0.1.0
description:
  - Asks the service's C(/readyz) over the Unix socket that Nginx uses.
  - Where a model of a cloud answers in the place of the NAS's own, that one is waited for too. When
    it does not come, the module fails with the reason, and the container goes on.
  - When the container stops or starts over instead, the module ends at once with the message of the
    container's last error, and stops the container so that nothing half-working is left.
  - A container that already waits between two starts is started over at once, so that it is judged
    by what is there now. So is one whose files were changed after it read them.
author:
  - The nas.assistant contributors
extends_documentation_fragment: [nas.assistant.of_the_assistant]
options:
  reads:
    description:
      - Files on the NAS that the service reads when it starts. When one was changed after the
        container started (content, name, owner or mode), the container is started over.
    type: list
    elements: path
    default: []
  timeout:
    description: Seconds to wait. Loading a large model from a slow disk takes minutes.
    type: int
    default: 600
attributes:
  check_mode:
    description: Says whether it would be started over; does not wait.
    support: full
  diff_mode:
    description: Changes nothing that could be shown.
    support: none
"""

EXAMPLES = r"""
- name: Wait until the assistant is ready
  nas.assistant.container_ready:
    container: nas-assistant
    socket: /var/lib/nas-assistant/run/gateway.sock
"""

RETURN = r"""
seconds:
  description: How long the module waited.
  type: float
  returned: success
answer:
  description: What C(/readyz) answered.
  type: dict
  returned: success
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils._docker_cli import (
    DockerError,
    run as docker,
)
from ansible_collections.nas.assistant.plugins.module_utils._gateway import ask, reason
from ansible_collections.nas.assistant.plugins.module_utils._systemd import newer_than

PAUSE = 0.5  # seconds between two questions
EX_CONFIG = 78  # the start script's exit code when starting again cannot help (sysexits.h)
RESTART_NOW = ["docker", "restart", "--time", "10"]
TAILS = (50, 10, 1)  # lines of the log
# Seconds, of all that it waits, in which a model may be neither there nor on its way: an engine
# that ended is started again after less.
DEGRADED = 30
CHANCES = 2  # restarts after another end, such as a kill, before it counts as a crash loop


def last_error(log: str) -> str:
    """Return the message of the last error in a log of JSON lines, else its last line."""
    last = ""
    for line in log.split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict):
            if entry.get("level") in ("error", "critical") and entry.get("message"):
                last = str(entry["message"])
        elif line.strip() and not last:
            last = line.strip()
    return last


def start_over(container: str, reads: list[str], check_mode: bool) -> bool:
    """Start a container over that must read its files again; return whether it did.

    One that waits between two starts may find mended what it stumbled over, and Docker may wait a
    minute. One that started before a file was changed still holds what was in it.
    """
    try:
        (found,) = json.loads(docker(["docker", "container", "inspect", container]))
    except DockerError:
        if check_mode:  # it would be made
            return False
        raise
    state = found["State"]
    stale = bool(state["Running"]) and newer_than(reads, started_at(str(state["StartedAt"])))
    if not stale and not state["Restarting"]:
        return False
    if not check_mode:
        # Requests in flight may finish, within the time that the container has for a stop.
        docker([*(["docker", "restart"] if stale else RESTART_NOW), container])
    return True


def started_at(text: str) -> float:
    """Return seconds since the epoch of a time as Docker says it (RFC 3339, nanoseconds)."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    moment = datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp()
    return moment + float(f"0.{fraction or 0}")


@dataclass(frozen=True)
class State:
    """A container at one moment: may it still come up, its restarts, when its life began."""

    alive: bool
    restarts: int
    began: str
    words: str
    refused: bool = False


def state_of(container: str) -> State:
    """Ask Docker how the container is."""
    (found,) = json.loads(docker(["docker", "container", "inspect", container]))
    state = found["State"]
    up = bool(state["Running"]) and not state["Restarting"]
    alive = up or (bool(state["Restarting"]) and state["ExitCode"] != EX_CONFIG)
    words = f"{state['Status']}, exit code {state['ExitCode']}"
    if state.get("OOMKilled"):
        words += ", killed for memory"
    refused = not alive and state["ExitCode"] == EX_CONFIG
    return State(alive, int(found["RestartCount"]), str(state["StartedAt"]), words, refused)


def give_up(container: str, since: str, reason: str, refused: bool = False) -> str:
    """Stop the container and return the message that says why.

    :param since: when the life began that failed, as Docker says it: an error of an earlier one may
        have been mended since, and a later one may not have got as far yet.
    :param refused: whether its start script refused to go on, for which it gives a reason.
    """
    docker(["docker", "stop", "--time", "10", container])
    found = logged_error(container, ["--since", since], TAILS)
    if not found and refused:
        # It has said why, but a slow machine may note its beginning after its first words. Without
        # the time, the newest lines come first.
        found = logged_error(container, [], TAILS[::-1])
    return f"{container}: {found or reason} ({reason}; the container was stopped)"


def logged_error(container: str, options: list[str], tails: Sequence[int]) -> str:
    """Return the last error in the container's log, empty where there is none.

    :param tails: so many last lines are read, one number after the other until one has an error:
        Docker reads up to the first line that a power cut damaged, and is silent about the rest.
    """
    for tail in tails:
        found = last_error(docker(["docker", "logs", "--tail", str(tail), *options, container]))
        if found:
            return found
    return ""


def wait(container: str, path: str, timeout: float) -> dict[str, object]:
    """Wait for a 200; raises DockerError with the reason when it cannot come any more."""
    started = time.monotonic()
    first = state_of(container)
    degraded = 0.0
    while True:
        status, answer = ask(path)
        waited = time.monotonic() - started
        if status == 200 and answer.get("status") == "degraded":
            degraded += 0 if answer.get("loading") else PAUSE
            if degraded > DEGRADED or waited > timeout:
                raise DockerError(
                    f"{container}: {reason(answer)} (after {waited:.0f} s a model of a cloud still "
                    f"answers in the place of the NAS's own; the container goes on)"
                )
        elif status == 200:
            return {"seconds": round(waited, 1), "answer": answer}
        state = state_of(container)
        if not state.alive:
            raise DockerError(give_up(container, state.began, state.words, state.refused))
        if state.restarts > first.restarts + CHANCES:
            ended = f"it ended {state.restarts - first.restarts} times in {waited:.0f} s"
            raise DockerError(give_up(container, first.began, ended))
        if waited > timeout:
            late = f"not ready after {timeout:.0f} s: {reason(answer)}"
            raise DockerError(give_up(container, state.began, late))
        time.sleep(PAUSE)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "container": {"type": "str", "required": True},
            "socket": {"type": "path", "required": True},
            "reads": {"type": "list", "elements": "path", "default": []},
            "timeout": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    try:
        changed = start_over(module.params["container"], module.params["reads"], module.check_mode)
        if module.check_mode:
            module.exit_json(changed=changed, seconds=0.0, answer={})
        module.exit_json(
            changed=changed,
            **wait(module.params["container"], module.params["socket"], module.params["timeout"]),
        )
    except DockerError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
