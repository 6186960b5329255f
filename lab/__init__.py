# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A NAS for the tests.

Systemd containers that are reached over SSH. Standard library only, see README.md.
"""
