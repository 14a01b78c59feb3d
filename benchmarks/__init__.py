"""Each benchmark is a module with a ``main(arguments)``; ``python -m benchmarks`` runs all."""
