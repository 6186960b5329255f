# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The two files of keys: the inventory's, which the service only reads, and this NAS's own."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from nas_assistant import upstream_keys
from nas_assistant.keys import ApiKey, KeysError, load
from nas_assistant.logs import log
from nas_assistant.upstream_keys import UpstreamKey

FILE = "keys.json"


@dataclass
class KeyFiles:
    """``inventory`` is the folder of the one, ``state`` the volume that the other is on;
    ``in_inventory``: the keys of the former that were loaded last.
    """

    inventory: Path
    state: Path
    in_inventory: dict[str, ApiKey] = field(default_factory=dict, init=False, repr=False)
    _seen: tuple[object, ...] = field(default=(), repr=False)
    _last_own: dict[str, ApiKey] = field(default_factory=dict, repr=False)

    @property
    def fixed(self) -> Path:
        """The inventory's file."""
        return self.inventory / FILE

    @property
    def upstreams(self) -> Path:
        """What upstreams want of the service, by the inventory."""
        return self.inventory / upstream_keys.FILE

    @property
    def own(self) -> Path:
        """The NAS's own."""
        return self.state / FILE

    def load(self) -> dict[str, ApiKey]:
        """All keys by name. Where this NAS's own cannot be read, those of before, which the log
        says; for the inventory's, raises KeysError.
        """
        self._seen = self._look()
        self.in_inventory = load(self.fixed)
        try:
            self._last_own = load(self.own)
        except KeysError as error:
            log(
                logging.ERROR,
                "keys_not_read",
                f"{error}. Restore it from a copy, or delete it",
            )
        return {**self._last_own, **self.in_inventory}

    def load_upstreams(self, names: Iterable[str]) -> dict[str, UpstreamKey]:
        """What upstreams of these names want of the service. Raises KeysError."""
        return upstream_keys.load(self.upstreams, names)

    def changed(self) -> bool:
        """Whether a file is another one since they were loaded."""
        return self._look() != self._seen

    def _look(self) -> tuple[object, ...]:
        return tuple(_identity(path) for path in (self.fixed, self.own, self.upstreams))


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    # The last one changes with owner and mode too, so that what was mended by these is read again.
    return (found.st_ino, found.st_mtime_ns, found.st_size, found.st_ctime_ns)
