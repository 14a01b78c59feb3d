"""Prints the JSON Schema: ``python -m orchestrator.plan > partitions/plan.schema.json``."""

import json

from orchestrator.plan import json_schema

print(json.dumps(json_schema(), indent=2))
