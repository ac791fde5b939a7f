"""Many generated inputs: ``FUZZ_INPUTS`` of them, ``FUZZ_SEED`` for others; findings are kept in ``FUZZ_FINDINGS``."""

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.long.generated import FINDING, cases, fuzz, prepare

pytestmark = pytest.mark.long
INPUTS = int(os.environ.get("FUZZ_INPUTS", "1000"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
SHARES = {"options": 0.4, "config": 0.1, "checkpoint": 0.1, "expression": 0.4}


@pytest.mark.parametrize("kind", SHARES)
def test_every_input_is_taken_or_refused_in_one_line(tmp_path, kind):
    kept = Path(os.environ.get("FUZZ_FINDINGS", tmp_path / "findings"))
    number = max(1, round(INPUTS * SHARES[kind]))
    outcomes, findings = Counter(), []
    todo = cases(kind, SEED, range(number), prepare(tmp_path))
    for case, verdict in fuzz(todo, patience=30):
        outcomes[verdict.outcome] += 1
        if verdict.outcome == FINDING:
            kept.mkdir(parents=True, exist_ok=True)
            file = kept / f"{kind}-{SEED}-{case.number}"
            file.write_bytes(case.content)
            findings.append(f"{file} ({case.command}): {verdict.detail}")
    print(kind, dict(outcomes))
    assert sum(outcomes.values()) == number
    assert findings == []
