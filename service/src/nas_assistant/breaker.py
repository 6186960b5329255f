# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A circuit breaker: who failed several times in a row is left alone for a while. No input, no
output, no clock.
"""

from __future__ import annotations

_FAILURES = 3
_FIRST_PAUSE = 30.0
_LONGEST_PAUSE = 300.0


class Breaker:
    """Counts failures in a row; after a pause, one more is enough for the next, longer one."""

    def __init__(self) -> None:
        self.failures = 0
        self._pause = _FIRST_PAUSE

    def succeeded(self) -> None:
        """Forget what was."""
        self.__init__()  # type: ignore[misc]

    def failed(self) -> float:
        """Count a failure; return the seconds to wait before the next try, 0 for none."""
        self.failures += 1
        if self.failures < _FAILURES:
            return 0.0
        pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_PAUSE)
        return pause
