# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the documentation of modules says that ask the assistant."""

from __future__ import annotations


class ModuleDocFragment:
    """Read by C(extends_documentation_fragment)."""

    DOCUMENTATION = r"""
options:
  container:
    description: Name of the assistant's container.
    type: str
    required: true
  socket:
    description: The service's Unix socket on the NAS.
    type: path
    required: true
"""
