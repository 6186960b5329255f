# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The systemd timer that renews a port mapping or a pinhole without anybody's help."""

from __future__ import annotations

from collections.abc import Sequence

UNITS = "/etc/systemd/system"
STATE = "nas-assistant-upnp"
HEAD = "# Written by nas.assistant.upnp_port_mapping; its state absent removes it.\n"

# Quiet when it works; when it fails, what upnpc says of that, without its banner.
_COMPLAIN = 'echo "$said" | grep -E "No |failed|refused" || echo "$said"'
RENEW = f'said=$("$@" 2>&1) && exit; code=$?; {_COMPLAIN}; exit "$code"'
# upnpc 2.2.4 ends with 0 when the router refuses, so what counts is the line with the pinhole's
# number. A router that restarted gives another, so the line is kept for who removes the pinhole.
RENEW_PINHOLE = (
    'file=$1; shift; said=$("$@" 2>&1); '
    'if line=$(echo "$said" | grep "Pinhole ID = "); '
    'then echo "$line" > "$file.new" && mv "$file.new" "$file"; '
    f"else {_COMPLAIN}; exit 1; fi"
)

_SANDBOX = """\
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
CapabilityBoundingSet=
"""


def name(ipv6: bool, protocol: str, port: int) -> str:
    """Return what the units and the files of a mapping are called, without ending."""
    return f"nas-upnp-{'ipv6' if ipv6 else 'ipv4'}-{protocol}-{port}"


def quote(argument: str) -> str:
    """Return an argument as ExecStart takes it: nothing in it is a specifier or a variable."""
    text = argument.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("%", "%%").replace("$", "$$") + '"'


def interval(lease: int) -> int:
    """Return the seconds between two renewals.

    A little less than half the lease: when one fails, the next still comes before the end.
    """
    return (lease or 3600) // 2 - 30


def service(title: str, argv: Sequence[str], pinhole_file: str = "") -> str:
    """Return the service that renews once.

    :param title: what is renewed, such as ``tcp port 443``.
    :param argv: the command of upnpc.
    :param pinhole_file: where the line is kept that tells the pinhole's number; with IPv6 only.
    """
    script = [RENEW_PINHOLE, "nas-upnp", pinhole_file] if pinhole_file else [RENEW, "nas-upnp"]
    line = " ".join(quote(word) for word in ["/bin/sh", "-c", *script, *argv])
    # The file of the pinhole outlives the service, and root reads it: no passing user may own it.
    user = f"StateDirectory={STATE}" if pinhole_file else "DynamicUser=yes"
    return (
        f"{HEAD}[Unit]\n"
        f"Description=Renew {title} in the router\n"
        "Wants=network-online.target\nAfter=network-online.target\n\n"
        f"[Service]\nType=oneshot\nExecStart={line}\n{user}\n"
        # Only what the script says when it fails, and not that it was started and has ended.
        "SyslogLevel=err\nLogLevelMax=notice\n"
        # To be stopped by state absent in the middle is no failure.
        f"SuccessExitStatus=SIGTERM\nTimeoutStartSec=180\n{_SANDBOX}"
    )


def timer(title: str, lease: int) -> str:
    """Return the timer: soon after the boot or after it was started, then again and again."""
    # After a power cut the NAS may be there before the router.
    boot = "".join(f"OnBootSec={seconds}\n" for seconds in (30, 180, 480))
    return (
        f"{HEAD}[Unit]\nDescription=Renew {title} in the router before its lease ends\n\n"
        f"[Timer]\n{boot}OnUnitActiveSec={interval(lease)}\n"
        "RandomizedDelaySec=10\nAccuracySec=5\n\n"
        "[Install]\nWantedBy=timers.target\n"
    )
