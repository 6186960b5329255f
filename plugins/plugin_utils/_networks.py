# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Who may come, as owners write it: ``lan``, ``any``, and networks."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

from ansible.errors import AnsibleFilterError


def networks(sources: Sequence[Any], lan: list[str], where: str) -> dict[str, list[str] | None]:
    """Return networks as ``v4`` and ``v6``, with none inside another; ``None`` stands for all.

    :param where: how a message names the value.
    :raises AnsibleFilterError: one is neither a word nor a network.
    """
    words = [word for source in sources for word in (lan if source == "lan" else [source])]
    if "any" in words:
        return {"v4": None, "v6": None}
    found: dict[str, list[str] | None] = {"v4": [], "v6": []}
    try:
        given: list[Any] = [ipaddress.ip_network(str(word)) for word in words]
    except ValueError as error:
        raise AnsibleFilterError(
            f"{where}: {error}; sources are lan, any, or networks such as 192.0.2.0/24"
        ) from None
    for version in (4, 6):
        # One network inside another says nothing more, and nft refuses them side by side.
        mine = [network for network in given if network.version == version]
        found[f"v{version}"] = [str(network) for network in ipaddress.collapse_addresses(mine)]
    return found
