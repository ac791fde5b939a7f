"""Many generated inputs: ``FUZZ_INPUTS`` of them, ``FUZZ_SEED`` for others; findings are kept in ``FUZZ_FINDINGS``."""

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.forked import start_ranks
from tests.long import options
from tests.long.generated import FINDING, RUN_ONCE, cases, fuzz, prepare

pytestmark = pytest.mark.long
INPUTS = int(os.environ.get("FUZZ_INPUTS", "1000"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
SHARES = {"options": 0.4, "command": 0.1, "config": 0.1, "checkpoint": 0.1, "expression": 0.3}
RANKS = max(1, INPUTS // 200)  # two of them take as long as fifty inputs
ALONE = ("--trainer.accelerator", "--trainer.strategy", "--trainer.max_time", "--ckpt_path")


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
            print(findings[-1], flush=True)
    print(kind, dict(outcomes))
    assert sum(outcomes.values()) == number
    assert findings == []


def test_two_ranks_take_or_refuse_every_input_together(tmp_path):
    """With one line of errors, or each its own; and none stays behind."""
    findings = []
    for number in range(RANKS):
        rng = random.Random(f"{SEED} ranks {number}")
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "own_parts.py").write_text(options.OWN_PARTS)
        words = options.words(rng, dict.fromkeys(options.CHOICES))
        words = [word for word in words if not word.startswith(ALONE)]
        ranks = start_ranks(directory, 2, ["fit", *RUN_ONCE, "--data.test_problems=10", *words], HOME=str(directory))
        try:
            printed = "".join(rank.communicate(timeout=90)[0] for rank in ranks)
        except TimeoutError as error:
            for rank in ranks:
                rank.kill()
            printed = f"Traceback: hung: {error}"
        lines = [line for line in printed.splitlines() if line.startswith("error: ")]
        codes = [rank.returncode for rank in ranks]
        if "Traceback" in printed or (any(codes) and not lines) or not set(codes) <= {0, 1, 2}:
            findings.append(f"{words}: {codes}, {printed[-300:]}")
    print("two ranks", RANKS)
    assert findings == []
