"""Prints the JSON Schema: ``python -m orchestrator.simulate > cluster/cluster.schema.json``."""

import json

from orchestrator.simulate.cluster_schema import json_schema

print(json.dumps(json_schema(), indent=2))
