# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Leaves figures where node-exporter's textfile collector reads them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A gauge: its name, what it means, and its values by labels."""

    name: str
    help: str
    samples: Iterable[tuple[Mapping[str, str], float]]


def text(metrics: Iterable[Metric]) -> str:
    """Return metrics in Prometheus' text format."""
    lines = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} gauge"]
        for labels, value in metric.samples:
            inner = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
            lines.append(f"{metric.name}{f'{{{inner}}}' if inner else ''} {value:.15g}")
    return "".join(f"{line}\n" for line in lines)


def write(folder: str, name: str, metrics: Iterable[Metric]) -> None:
    """Replace a file of metrics. Where nobody reads metrics, there is no folder for them.

    :param name: of the file, without its ending.
    """
    target = os.path.join(folder, f"{name}.prom")
    # The collector reads what ends with .prom, and must see no half of it.
    draft = f"{target}.draft"
    with contextlib.suppress(FileNotFoundError):
        with open(draft, "w", encoding="utf-8") as stream:
            stream.write(text(metrics))
        os.replace(draft, target)


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
