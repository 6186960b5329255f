# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""`python3 -m lab <command>`."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # said here, since the imports below would fail less kindly
    sys.exit(
        f"lab: Python {sys.version_info[0]}.{sys.version_info[1]} found, 3.11 or newer is needed. "
        "Name another interpreter: make demo PYTHON=python3.11"
    )

from lab import cli

sys.exit(cli.main(sys.argv[1:]))
