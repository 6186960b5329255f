# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the documentation of every module says that only looks."""

from __future__ import annotations


class ModuleDocFragment:
    """Read by C(extends_documentation_fragment)."""

    DOCUMENTATION = r"""
attributes:
  check_mode:
    description: Changes nothing, and looks in check mode too.
    support: full
  diff_mode:
    description: Changes nothing that could be shown.
    support: none
"""
