# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Under any load, the container is never killed for memory: here under the control groups of the
machine that the lab runs on, in tests/vm under those of Debian.
"""

from __future__ import annotations

from collections.abc import Callable

import httpx
from testinfra.host import Host
from under_load import check_nothing_is_killed

SECONDS = 60


def test_nothing_is_killed_under_load(
    host: Host, client: httpx.Client, wait_ready: Callable[[], float]
) -> None:
    check_nothing_is_killed(host.check_output, client, SECONDS)
    wait_ready()
