"""Long reliability runs: ``python -m pytest -m long tests/long``."""
