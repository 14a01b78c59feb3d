"""Writes a calibrated cluster file that a person can read: figures first, tables behind."""

from __future__ import annotations

import json

from orchestrator.simulate.calibration import Calibration
from orchestrator.simulate.cluster import GIB, Cluster


def cluster_yaml(cluster: Cluster, source: str) -> str:
    """The file of a calibrated cluster of equal devices; loads back to an equal one.

    Args:
        source: where all its figures are from, such as the command and the date.
    """
    calibration, (device, _) = cluster.calibration, cluster.kinds[0]
    assert calibration is not None
    efficiency = ", ".join(f"{k}: {v:.4g}" for k, v in device.efficiency.items())
    flops = ", ".join(f"{k}: {v / 1e12:.5g}" for k, v in device.flops.items())
    lines = [
        "# yaml-language-server: $schema=cluster.schema.json",
        f"# {cluster.summary}",
        "schema_version: 1",
        f"name: {cluster.name}",
        f"summary: {_quoted(cluster.summary)}",
        f"source: {_quoted(source)}",
        f"nodes: {cluster.nodes}",
        f"devices_per_node: {cluster.devices_per_node}",
        "device:",
        f"  name: {_quoted(device.name)}",
        f"  memory_GiB: {device.memory_bytes / GIB:.4g}",
        f"  memory_GBps: {device.memory_bandwidth / 1e9:.4g}",
        f"  tflops: {{{flops}}}",
        f"  efficiency: {{{efficiency}}}",
        "network:",
    ]
    for level in cluster.network:
        lines.append(
            f"  - {{name: {level.name}, size: {level.size}, GBps: {level.bandwidth / 1e9:.4g}, "
            f"latency_us: {level.latency * 1e6:.4g}, topology: {level.topology}}}"
        )
    return "\n".join([*lines, *_tables(calibration)]) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text)  # JSON's strings are YAML's


def _tables(c: Calibration) -> list[str]:
    versions = ", ".join(f'{name}: "{version}"' for name, version in c.versions.items())
    lines = [
        "calibration:",
        f"  date: {c.date}",
        f"  hardware: {_quoted(c.hardware)}",
        f"  model: {_quoted(c.model)}",
        f"  versions: {{{versions}}}",
        f"  threads: {c.threads}",
        f"  neighbours: {c.neighbours}   # ranks that disturb each other; 0: those of a node",
        f"  compute_slowdown: {c.compute_slowdown:.4g}   # lost under a transfer",
        f"  transfer_stretch: {c.transfer_stretch:.4g}   # times as long under computation",
        f"  post_s: {c.post_s:.4g}   # of a rank's computation, for each transfer it posts; mean",
        f"  jitter: {c.jitter:.4g}   # of a rank's computation about others'",
        f"  load_s: {{{', '.join(f'{k}: {v:.4g}' for k, v in c.load_s.items())}}}",
        "  # Medians. seconds: while all ranks of the machine do it; alone: the others rest;",
        "  # spread: half the distance between the quartiles, over the median.",
        "  layers:",
    ]
    for row in sorted(c.layers, key=lambda r: (r.kind, r.shape, r.direction, r.batch)):
        lines.append(
            f'    - {{kind: {row.kind}, shape: "{row.shape}", dtype: {row.dtype}, '
            f"batch: {row.batch}, pass: {row.direction}, seconds: {row.seconds:.5g}, "
            f"alone: {row.alone:.5g}, spread: {row.spread:.2g}}}"
        )
    for name, rows in (("optimizer", c.optimizer), ("copies", c.copies)):
        lines.append(f"  {name}:")
        lines += [
            f"    - {{bytes: {r.bytes}, seconds: {r.seconds:.5g}, alone: {r.alone:.5g}, "
            f"spread: {r.spread:.2g}}}"
            for r in rows
        ]
    if c.links:
        lines.append("  links:   # means, while both ends compute")
    lines += [
        f"    - {{level: {r.level}, bytes: {r.bytes}, seconds: {r.seconds:.5g}, "
        f"spread: {r.spread:.2g}}}"
        for r in c.links
    ]
    if c.collectives:
        lines.append("  collectives:")
    lines += [
        f"    - {{kind: {r.kind}, ranks: {r.ranks}, bytes: {r.bytes}, seconds: {r.seconds:.5g}, "
        f"spread: {r.spread:.2g}}}"
        for r in c.collectives
    ]
    return lines
