"""``python -m orchestrator.run --plan PLAN``: the main job, also as a Ray job's entry point."""

from __future__ import annotations

from orchestrator.cli import call

if __name__ == "__main__":
    from orchestrator.cli.run import command

    call(command, None, prog_name="python -m orchestrator.run")
