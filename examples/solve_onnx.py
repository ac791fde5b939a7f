"""Solve expressions with exported graphs, without PyTorch: solve_onnx.py DIRECTORY [EXPRESSION ...], or lines of input."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime

directory, *texts = sys.argv[1:]
facts = json.loads(Path(directory, "graphs.json").read_text())
prefill, decode = (onnxruntime.InferenceSession(f"{directory}/{name}.onnx") for name in ("prefill", "decode"))
heard_names = [x.name for x in decode.get_inputs()]
token, tools = (
    {name: i for i, name in enumerate(facts["tokens"])},
    {tool["symbol"]: tool for tool in facts["operators"]},
)
compute = {"MUL": lambda a, b: a * b, "ADD": lambda a, b: a + b, "SUB": lambda a, b: a - b}


def parse(words, least=0):
    """Tokens, with no brackets but those that are needed, and how tightly they bind."""
    if (word := words.pop(0)) == "(":
        (left, binds), _ = parse(words), words.pop(0)
    else:
        left, binds = [int(digit) for digit in str(int(word))], 99
    while words and words[0] in tools and (level := tools[words[0]]["precedence"]) > least:
        operator, (right, right_binds) = tools[words.pop(0)]["token"], parse(words, level)
        left = left if binds >= level else [token["("], *left, token[")"]]
        right = right if right_binds > level else [token["("], *right, token[")"]]
        left, binds = [*left, operator, *right], level
    return left, binds


def solve(text):
    """The plan, and the answer. Tape and registers hold numbers with their places; the agent hears of the places only."""
    prompt = [*parse(re.findall(r"\d+|\S", text))[0], token["CTX"]]
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    ends = [i for i, t in enumerate(prompt) if t <= 9 < prompt[i + 1]]
    tape, acc, memory, left, plan, called, applied = [*zip(numbers, ends, strict=True)], [], [], [], [], "CTX", True
    short = facts["env"]["least_operands"] - len(numbers)  # the graphs want a tape of some length
    told = {"stage": 0, "prompt": prompt, "prompt_length": len(prompt), "length": len(numbers)}
    told |= {"operands": numbers + [0] * short, "places": ends + [-1] * short}
    cache = prefill.run(None, {x.name: np.array([told[x.name]]) for x in prefill.get_inputs()})
    while called != "ANS" and len(plan) < 3 * len(numbers):
        flags = np.array([[acc != [], left != [], memory != [], applied]], dtype=np.float32)
        places = np.array([[x[0][1] if x else -1 for x in (tape, acc, memory, left)]])
        heard = [np.array([token[called]]), flags, places, *cache]
        logits, *cache = decode.run(None, dict(zip(heard_names, heard, strict=True)))
        called, applied = facts["tokens"][facts["actions"][logits.argmax()]], True
        plan.append(called)
        if called in compute and (left or len(tape) + len(acc) > 1):
            a, b = (left or acc or tape).pop(0), (acc or tape).pop(0)
            acc.append((compute[called](a[0], b[0]), b[1]))
        elif called == "STO" and not left and (acc or tape) and len(memory) < facts["env"]["memory_depth"]:
            memory.insert(0, (acc or tape).pop(0))
        elif called == "RCL" and not left and memory:
            (left if acc else acc).append(memory.pop(0))
        else:
            applied = called == "ANS"
    return plan, acc[0][0] if acc and called == "ANS" else None


for text in texts or sys.stdin.read().splitlines():
    plan, answer = solve(text)
    print(f"{text} = {answer}: {' '.join(plan)}")
