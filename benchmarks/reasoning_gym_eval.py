"""How well a trained agent does on problems that others wrote: reasoning-gym's ``basic_arithmetic`` and ``chain_sum``.

Run ``python -m benchmarks.reasoning_gym_eval last.ckpt`` (needs ``pip install -e '.[bench]'``). Each problem is read
from the text of its question. Those within the agent's language (whole numbers, ``+ - *``, brackets) are solved, all
others count as not answered; what is answered is scored by reasoning-gym itself. Each set is tried as it is; that with
division, which the language has not, also without; and so with negative numbers, -3, written as (0-3).
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.environment import arguments_of, started, write_json
from toolagent_pl import Problems, Solver
from toolagent_pl.envs.calculator.expression import ExpressionError

PLAIN = {"allow_negation": False, "operators": ("+", "-", "*")}
SIGNED = "no division, (0-3) for -3"
SETS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("basic_arithmetic", "as it is", {}),
    ("basic_arithmetic", "no division", PLAIN),
    ("basic_arithmetic", SIGNED, PLAIN),
    ("chain_sum", "as it is", {}),
)
TERMS = {"min_terms": 2, "max_terms": 6}


def expression_of(question: str, signed: bool = False) -> str | None:
    """The expression that a question asks for, if it is within the agent's language, or ``signed`` and so written."""
    found = re.search(r"[-+*/()\d\s]*\d[-+*/()\d\s]*", question)
    if found is None:
        return None
    text = found[0].strip()
    if signed:
        text = re.sub(r"(^|[-+*/(]) *-(\d+)", r"\1(0-\2)", text)
    try:
        Problems.from_expressions([text])
    except ExpressionError:
        return None
    return text


def evaluate(
    solver: Any, name: str, options: dict[str, Any], size: int, seed: int, signed: bool = False
) -> dict[str, Any]:
    """Solve ``size`` problems of a data set with these options of reasoning-gym, and have them scored."""
    import reasoning_gym

    entries = list(dataset := reasoning_gym.create_dataset(name, size=size, seed=seed, **options))
    expressions = [expression_of(entry["question"], signed) for entry in entries]
    within = [i for i, text in enumerate(expressions) if text is not None]
    answers: dict[int, int | None] = {}
    if within:
        solutions = solver.solve([str(expressions[i]) for i in within])
        answers = {i: solution.answer for i, solution in zip(within, solutions, strict=True)}
    scores = [dataset.score_answer(None if a is None else str(a), entries[i]) for i, a in answers.items()]
    return {
        "problems": size,
        "within_the_language": len(within),
        "answered": sum(answer is not None for answer in answers.values()),
        "right": sum(score == 1 for score in scores),
        "score": sum(scores) / max(1, len(scores)),
        "score_of_all": sum(scores) / size,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Solve, print, and write; returns the exit status."""
    options = _parser().parse_args(arguments)
    console, facts = started()
    solver = Solver.from_checkpoint(options.checkpoint)
    rows = []
    for name, variant, given in SETS:
        for digits in (1, options.digits):
            sizes = {**TERMS, "min_digits": 1, "max_digits": digits}
            result = evaluate(solver, name, {**sizes, **given}, options.problems, options.seed, variant == SIGNED)
            rows.append({"set": name, "variant": variant, "digits": digits, **result})
    table = Table("data set", "", "digits", box=box.SIMPLE_HEAD, title="reasoning-gym", title_justify="left")
    for column in ("problems", "within the language", "answered", "right", "score of those within", "score of all"):
        table.add_column(column, justify="right")
    for row in rows:
        counts = [f"{row[key]:,}" for key in ("problems", "within_the_language", "answered", "right")]
        digits = "1" if row["digits"] == 1 else f"1 to {row['digits']}"
        table.add_row(row["set"], row["variant"], digits, *counts, f"{row['score']:.4f}", f"{row['score_of_all']:.4f}")
    console.print(table)
    settings = {"checkpoint": str(options.checkpoint), "seed": options.seed, **TERMS}
    write_json(console, options.output, {**facts, "settings": settings, "results": rows})
    return 0


def _parser() -> Any:
    parser = arguments_of(__doc__, "reasoning_gym.json")
    parser.add_argument("checkpoint", type=Path, help="of the agent, beside the config.yaml of its run")
    parser.add_argument("--problems", type=int, default=2000, help="of each set")
    parser.add_argument("--digits", type=int, default=3, help="most digits of a number, where there are several")
    parser.add_argument("--seed", type=int, default=0, help="other problems")
    return parser


if __name__ == "__main__":
    sys.exit(main())
