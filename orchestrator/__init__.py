"""Write down how a network is split over devices; prove it, run it, simulate it, compare it."""

__version__ = "0.1.0"
