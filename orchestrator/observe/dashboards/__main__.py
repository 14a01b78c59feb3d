"""Writes the shipped files anew: ``python -m orchestrator.observe.dashboards``."""

from orchestrator.observe.dashboards import build, written
from orchestrator.observe.dashboards.prometheus import configuration
from orchestrator.plan.shipped import shipped

folder = shipped("dashboards")
for name, dashboard in build().items():
    (folder / name).write_text(written(dashboard), encoding="utf-8")
(folder / "prometheus" / "prometheus.yml").write_text(configuration(), encoding="utf-8")
