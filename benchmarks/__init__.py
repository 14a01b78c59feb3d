"""Benchmarks: each is a module with a ``main(arguments)``; ``python -m benchmarks`` runs them all."""
