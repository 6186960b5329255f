# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The one exception of the lab. Its text says what was found and what to do about it."""


class LabError(Exception):
    """Becomes one line on standard error and exit code 1."""
