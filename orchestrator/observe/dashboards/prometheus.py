"""What Prometheus reads: where the runs list their ranks, and the rules.

Recording rules and alerts are files of ``dashboards/prometheus/`` as they stand there; the
configuration is written, since only the user knows where the runs are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from orchestrator.observe.dashboards.address import checked_url
from orchestrator.plan.shipped import shipped

# Of a run with `--metrics-port 9464`, and of a simulation beside it with `--metrics-port 9465`.
DISCOVERY_URLS = ("http://127.0.0.1:9464/targets", "http://127.0.0.1:9465/targets")
RULES = ("rules.yml", "alerts.yml")
CONFIGURATION = """\
# Written by `orchestrator dashboards prometheus`; `promtool check config` checks it.
global:
  scrape_interval: 5s
  evaluation_interval: 5s

rule_files:  # beside this file
  - rules.yml   # where the time of a step goes
  - alerts.yml

scrape_configs:
  - job_name: orchestrator
    http_sd_configs:  # where runs and simulations with these --metrics-port list their ranks
{discoveries}
    # A run that takes over the port of one that ended is read as that one for a moment. So what it
    # tells goes by its own name: `instance` is made from the labels of each series.
    metric_relabel_configs:
      - source_labels: [run, rank]
        regex: "(.+);(.+)"
        replacement: "$1/rank $2"
        target_label: instance
      - source_labels: [run, rank]
        regex: "(.+);"
        replacement: "$1/driver"
        target_label: instance
"""


def configuration(discovery_urls: Sequence[str] = DISCOVERY_URLS) -> str:
    """``prometheus.yml``.

    Raises:
        InputError: an url is none.
    """
    urls = [checked_url(url, "--discovery-url", DISCOVERY_URLS[0]) for url in discovery_urls]
    discoveries = "\n".join(
        f"      - url: {json.dumps(url)}\n        refresh_interval: 5s" for url in urls
    )
    return CONFIGURATION.format(discoveries=discoveries)


def prometheus_files(discovery_urls: Sequence[str] = DISCOVERY_URLS) -> dict[str, str]:
    """``prometheus.yml`` and the rules it names, as text by file name."""
    folder = shipped("dashboards") / "prometheus"
    rules = {name: (folder / name).read_text(encoding="utf-8") for name in RULES}
    return {"prometheus.yml": configuration(discovery_urls), **rules}
