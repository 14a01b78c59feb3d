"""``python -m benchmarks [--quick]``: every benchmark in turn, each with its table."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import benchmarks


def main(arguments: list[str]) -> None:
    """Run every module of this package that has a ``main``."""
    names = sorted(found.name for found in pkgutil.iter_modules(benchmarks.__path__))
    for name in names:
        if name != "__main__":
            module = importlib.import_module(f"benchmarks.{name}")
            if hasattr(module, "main"):
                module.main(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
