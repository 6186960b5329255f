#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: service_probe
short_description: Asks the assistant real questions and says how it answers
version_added: 0.1.0
description:
  - Asks the model that is the default some short questions over the service's own Unix socket, and
    measures how long the first token takes. Asks other models one question each, if told to.
    Counts how the requests of others ended, since the service began or for a while from then on.
  - Needs no key of the owner, since the service makes one for the time that this takes. What it
    asks stays on the NAS, so that the cloud does not answer for a model that cannot; unless the
    default model is in the cloud itself.
  - The answer says what went wrong; the module itself does not fail for it.
author:
  - The nas.assistant contributors
extends_documentation_fragment: [nas.assistant.of_the_assistant]
options:
  requests:
    description: Number of questions that are measured; one more warms up.
    type: int
    default: 5
  tokens:
    description: Tokens of each answer at most.
    type: int
    default: 16
  models:
    description: >-
      Models beside the default one, by name, that are asked one question of their kind each. One
      that the service does not offer, since it has no room for it, is left out.
    type: list
    elements: str
    default: []
  settle:
    description: >-
      Seconds to wait at most until nothing is being answered any more, before anything is asked.
    type: int
    default: 0
  watch:
    description: Seconds for which the requests of others are counted; 0 for all since it began.
    type: int
    default: 0
attributes:
  check_mode:
    description: Asks nothing in check mode.
    support: full
  diff_mode:
    description: Changes nothing that could be shown.
    support: none
"""

EXAMPLES = r"""
- name: See how it answers
  nas.assistant.service_probe:
    container: nas-assistant
    socket: /var/lib/nas-assistant/run/gateway.sock
  register: probe
"""

RETURN = r"""
first_token_ms:
  description: Median of the time to the first token in milliseconds, 0 where no answer came.
  type: float
  returned: success, not in check mode
errors:
  description: What went wrong, one entry for each question.
  type: list
  elements: str
  returned: success, not in check mode
answered:
  description: Those of O(models) that answered.
  type: list
  elements: str
  returned: success, not in check mode
missing:
  description: Those of O(models) that the service does not offer.
  type: list
  elements: str
  returned: success, not in check mode
ended:
  description: Requests of others that ended, or had no room.
  type: int
  returned: success, not in check mode
failed_requests:
  description: Those of them that had no room, or ended with a status of 500 or more.
  type: int
  returned: success, not in check mode
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import _probe as probe
from ansible_collections.nas.assistant.plugins.module_utils._docker_cli import DockerError


def look(params: dict[str, Any]) -> dict[str, Any]:
    """Return what the module says."""
    path = params["socket"]
    outcome, models, served, failed = probe.Outcome(), probe.Models(), 0, 0
    try:
        # The cloud would answer for a model that does not, where it may.
        for where in (["--local-only"], []):
            with probe.admin_key(params["container"], *where) as secret:
                probe.until_known(path, secret)
                if where:
                    probe.until_idle(path, secret, params["settle"])
                    # First, so that the default one is loaded again where it had to make room.
                    models = probe.each(path, secret, params["models"], params["tokens"])
                outcome = probe.questions(path, secret, params["requests"], params["tokens"])
                if not outcome.stayed:
                    served, failed = watch(params["container"], path, secret, params["watch"])
                    break
    except DockerError as error:
        outcome.errors.append(str(error))
    return {
        "first_token_ms": outcome.median_ms,
        "errors": outcome.errors + models.errors,
        "answered": models.answered,
        "missing": models.missing,
        "ended": served,
        "failed_requests": failed,
    }


def watch(container: str, path: str, secret: str, seconds: int) -> tuple[int, int]:
    """Return how many requests of others ended in so many seconds (0: since the service began), and
    how many of them failed.

    :raises DockerError: the container began anew meanwhile, or does not say.
    """
    life, before = probe.life(container), (0, 0)
    if seconds:
        before = probe.counted(path, secret)
        time.sleep(seconds)
    after = probe.counted(path, secret)
    if probe.life(container) != life:
        raise DockerError(f"{container} ended and was started again while it was watched")
    return after[0] - before[0], after[1] - before[1]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "container": {"type": "str", "required": True},
            "socket": {"type": "path", "required": True},
            "requests": {"type": "int", "default": 5},
            "tokens": {"type": "int", "default": 16},
            "models": {"type": "list", "elements": "str", "default": []},
            "settle": {"type": "int", "default": 0},
            "watch": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(skipped=True, msg="in check mode nothing is asked")
    module.exit_json(**look(module.params))


if __name__ == "__main__":
    main()
