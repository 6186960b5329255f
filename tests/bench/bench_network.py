#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How much gets through a link with delay and loss: BBR and fq, against cubic and fq_codel.

    python tests/bench/bench_network.py RESULT.json

On a virtual machine, whose kernel has netem: three network namespaces, the middle one a router that
limits to 50 Mbit/s, delays and loses, out of the sender's sight. Windows are those of the role
`kernel` for both. What counts is what arrives of one connection; both take turns. Trust the ratios.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from site_lab import Lab, blank  # noqa: E402

NAME = "benchnetwork"
ROUNDS = 3
RATE = 50  # Mbit/s
SECONDS = 10
# Milliseconds there and back, and percent of packets lost on the way there.
LINKS = {"at home": (2, 0), "Wi-Fi": (10, 1), "far away": (100, 0.1), "far and lossy": (100, 2)}
SETS = {"cubic": "fq_codel", "bbr": "fq"}
PREPARE = f"""
set -e
modprobe -a tcp_bbr sch_fq sch_netem
for each in near router far; do ip netns add $each; ip -n $each link set lo up; done
join() {{
  ip link add $2 netns $1 type veth peer name $4 netns router
  ip -n $1 address add $3.2/24 dev $2; ip -n $1 link set $2 up
  ip -n router address add $3.1/24 dev $4; ip -n router link set $4 up
  ip -n $1 route add default via $3.1
}}
join near uplink 192.0.2 to-near
join far uplink 198.51.100 to-far
ip netns exec router sysctl -q -w net.ipv4.ip_forward=1
ip netns exec near sysctl -q -w net.ipv4.tcp_wmem='4096 65536 16777216'
ip netns exec far sysctl -q -w net.ipv4.tcp_rmem='4096 131072 16777216'
cat >/root/send.py <<'END'
import socket, time
with socket.create_connection(("198.51.100.2", 5000)) as stream:
    end = time.monotonic() + {SECONDS + 2}
    try:
        while time.monotonic() < end:
            stream.sendall(bytes(65536))
    except OSError:
        pass
END
cat >/root/receive.py <<'END'
import socket, time
with socket.create_server(("198.51.100.2", 5000)) as server:
    stream, _ = server.accept()
    start, total = time.monotonic(), 0
    while time.monotonic() - start < {SECONDS}:
        total += len(stream.recv(1 << 20))
    print(total * 8 / (time.monotonic() - start) / 1e6)
END
"""
WIRE = """
set -e
tc -n router qdisc replace dev to-far root netem \
  delay {half}ms loss {loss}% rate {rate}mbit limit 500
tc -n router qdisc replace dev to-near root netem delay {half}ms limit 10000
"""
TRANSFER = """
set -e
ip netns exec near sysctl -q -w net.ipv4.tcp_congestion_control={control}
# What was learnt of the way by the one before is forgotten.
ip -n near tcp_metrics flush all
tc -n near qdisc replace dev uplink root {queue}
ip netns exec far timeout 60 python3 /root/receive.py >/root/got &
sleep 1
ip netns exec near timeout 60 python3 /root/send.py
wait
cat /root/got
"""


def measure(lab: Lab) -> dict[str, Any]:
    """Each link with both, in turns; Mbit/s."""
    host = lab.hosts[0]
    lab.on(host, PREPARE)
    found: dict[str, Any] = {}
    for link, (delay, loss) in LINKS.items():
        lab.on(host, WIRE.format(half=delay / 2, loss=loss, rate=RATE))
        speeds: dict[str, list[float]] = {control: [] for control in SETS}
        for _ in range(ROUNDS):
            for control, queue in SETS.items():
                said = lab.on(host, TRANSFER.format(control=control, queue=queue))
                speeds[control].append(float(said))
        medians = {control: round(statistics.median(each), 2) for control, each in speeds.items()}
        ratio = round(medians["bbr"] / medians["cubic"], 2)
        found[link] = {"delay_ms": delay, "loss_percent": loss, **medians, "ratio": ratio}
        print(f"{link:14} {delay:4} ms {loss:4} %  {found[link]}", flush=True)
    return found


def main() -> int:
    """Measure, print, and write the result."""
    with blank(NAME, kind="vm") as lab:
        found = measure(lab)
    Path(sys.argv[1]).write_text(f"{json.dumps(found, indent=2)}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
