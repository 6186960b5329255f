# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The inference service of nas.assistant: a supervisor, its engine processes, and the gateway in
front of them.
"""

__version__ = "0.1.0"
