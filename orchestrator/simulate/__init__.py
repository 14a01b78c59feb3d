"""The clock of a program that nobody runs: clusters, memory, costs. Neither torch nor ray."""
