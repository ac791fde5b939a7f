"""Benchmarks: throughput beside other implementations, scaling, and time to solve all problems."""
