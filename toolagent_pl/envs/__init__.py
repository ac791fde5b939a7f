"""Environments, a folder each: the calculator, and the tutorial's rules on the same problems."""
