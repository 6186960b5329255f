#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: backup_device
short_description: Refuse a disk for copies that the data are on too
version_added: 0.1.0
description:
  - Looks which disks a device stands on in the end, and which ones folders do, through partitions,
    encryption, RAID, volume groups and pools. Fails where one is the same.
  - For before anything is written to the device. C(nas-backup) looks again at each run.
author:
  - The nas.assistant contributors
extends_documentation_fragment: [nas.assistant.looks_only]
options:
  devices:
    description: Devices for copies, by the name of the copy.
    type: dict
    required: true
  sources:
    description: Folders that are copied. One that is not there is left out.
    type: list
    elements: path
    required: true
"""

EXAMPLES = r"""
- name: Refuse a partition of the disk that the documents are on
  nas.assistant.backup_device:
    devices: {usb: /dev/disk/by-id/usb-EXAMPLE}
    sources: [/srv/tank/documents]
"""

RETURN = r"""
disks:
  description: The disks that each device stands on, such as V(sdb), by the name of the copy.
  type: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import (
    _backup as backup,
    _block as block,
)
from ansible_collections.nas.assistant.plugins.module_utils._backup_plan import Source
from ansible_collections.nas.assistant.plugins.module_utils._restic import BackupError
from ansible_collections.nas.assistant.plugins.module_utils._zfs import ZfsError


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "devices": {"type": "dict", "required": True},
            "sources": {"type": "list", "elements": "path", "required": True},
        },
        supports_check_mode=True,
    )
    devices = {name: str(device) for name, device in module.params["devices"].items()}
    sources = [Source(path) for path in module.params["sources"]]
    try:
        for name, device in devices.items():
            backup.demand_apart(name, [device], sources)
            for text in backup.unknown(name, sources):
                module.warn(text)
        disks = {name: sorted(block.disks(device)) for name, device in devices.items()}
    except (BackupError, ZfsError, OSError) as error:
        module.fail_json(msg=f"{error}. Nothing was written to it")
    module.exit_json(changed=False, disks=disks)


if __name__ == "__main__":
    main()
