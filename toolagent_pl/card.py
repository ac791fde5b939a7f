"""Model cards: what an agent is, how it was trained, and how often it is right, from what is known of its run."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

HEADER = "library_name: toolagent_pl\npipeline_tag: reinforcement-learning\ntags: [arithmetic, planning, tool-use]\n"
USE = """\
```python
from toolagent_pl import Solver

solver = Solver.from_pretrained("this folder, or its name on the Hub")
print(solver.solve("2*(3+4)").plan)
```
"""


def model_card(description: Mapping[str, Any], weights: int) -> str:
    """A model card in Markdown, with the header that the Hugging Face Hub reads.

    Args:
        description: Of the agent, as in ``config.json``.
        weights: How many numbers it has learned.
    """
    agent, env = (str(description[part]["class_path"]).rpartition(".")[2] for part in ("agent", "env"))
    tools, trained = (", ".join(map(str, description[part])) for part in ("tools", "trained_stages"))
    rights = f"license: {str(description['license']).lower()}\n" if description.get("license") else ""
    command, seed = description.get("command"), description.get("seed")
    parts = [
        f"---\n{rights}{HEADER}---\n\n# {agent} for {env}\n",
        f"An agent of {weights:,} weights that works arithmetic expressions out by calling tools ({tools}, a memory, "
        "and the answer). It learned that by reinforcement, from whether its answers were right. The tools "
        "calculate; the agent decides which one to call next, and never sees a number of the calculation.\n",
        f"## Use\n\n{USE}",
        f"## Training\n\nStages: {trained} (E*n*: expressions of *n* operators, every tree equally likely)."
        + (f" Command: `{command}`" + (f", seed {seed}." if seed is not None else ".") if command else "")
        + "\n",
    ]
    if rows := list(_rows(description)):
        parts.append(
            "## Results\n\nProblems that the greedy agent answers correctly: all there are where all can be tried, "
            "else a sample of those that training never drew. The shape of an expression's tree is written as in "
            "`((..).)` for `(a+b)*c`.\n\n"
            "| stage | right | of | share | worst shape of tree | |\n|---|---|---|---|---|---|\n"
            + "\n".join(rows)
            + "\n"
        )
    parts.append(
        "## Limits\n\nWhole numbers that fit into 64 bits, and the tools above: no names, no signs. Expressions "
        "that are longer than those of training are right less often.\n"
    )
    return "\n".join(parts)


def _rows(description: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the table of results; what is no pair of numbers is left out."""
    figures = description.get("figures")
    for stage, figure in figures.items() if isinstance(figures, dict) else ():
        if counts := _counts(figure):
            note = "" if stage in description["trained_stages"] else "never trained on"
            right, tried = counts
            yield f"| {stage} | {right:,} | {tried:,} | {_percent(right, tried)} | {_worst(figure)} | {note} |"


def _worst(figure: Mapping[str, Any]) -> str:
    """The worst shape of tree, where it is known; or that there is none with a mistake."""
    worst, shapes = figure.get("worst"), figure.get("shapes")
    shape = worst.get("shape") if isinstance(worst, dict) else None
    if not (counts := _counts(worst)) or not isinstance(shapes, int) or not re.fullmatch(r"[(.)]+", str(shape)):
        return ""
    right, tried = counts
    if right < tried:
        return f"`{shape}`: {_percent(right, tried)} of {tried:,}"
    return f"all of {shapes} right, {tried:,} or more of each" if shapes > 1 else ""


def _counts(figure: Any) -> tuple[int, int] | None:
    """How many are right and how many were tried, if that is what it says."""
    right, tried = (figure.get(name) for name in ("right", "tried")) if isinstance(figure, dict) else (None, None)
    return (right, tried) if isinstance(right, int) and isinstance(tried, int) and 0 <= right <= tried > 0 else None


def _percent(right: int, tried: int) -> str:
    return f"{right * 10_000 // tried / 100:.2f}%"  # rounded down: 100% means all of them
