"""Exported graphs solve expressions, without PyTorch: solve_onnx.py DIRECTORY [EXPRESSION ...], or lines of input."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime

directory, *texts = sys.argv[1:]
facts = json.loads(Path(directory, "graphs.json").read_text())
prefill, decode = (onnxruntime.InferenceSession(f"{directory}/{name}.onnx") for name in ("prefill", "decode"))
tools = {tool["symbol"]: tool for tool in facts["operators"]}
token, depth = {name: i for i, name in enumerate(facts["tokens"])}, facts["env"]["memory_depth"]
compute = {"MUL": lambda a, b: a * b, "ADD": lambda a, b: a + b, "SUB": lambda a, b: a - b}


def parse(words, least=0):
    """Tokens, with no brackets but those that are needed, and how tightly they bind."""
    word = words.pop(0)
    (left, binds), _ = (parse(words), words.pop(0)) if word == "(" else (([int(c) for c in str(int(word))], 99), None)
    while words and words[0] in tools and (level := tools[words[0]]["precedence"]) > least:
        operator, (right, right_binds) = tools[words.pop(0)]["token"], parse(words, level)
        left = left if binds >= level else [token["("], *left, token[")"]]
        right = right if right_binds > level else [token["("], *right, token[")"]]
        left, binds = [*left, operator, *right], level
    return left, binds


def solve(text):
    """Plan and answer. The tape and all registers hold numbers and where they stand; the agent hears only where."""
    prompt = [*parse(words := re.findall(r"\d+|\S", text))[0], token["CTX"]]
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    if words or len(numbers) < 2:
        raise ValueError
    ends = [i for i, t in enumerate(prompt) if t <= 9 < prompt[i + 1]]
    tape, acc, memory, left, plan, last, applied = [*zip(numbers, ends, strict=True)], [], [], [], [], -1, True
    told = {"stage": 0, "prompt": prompt, "prompt_length": len(prompt), "length": len(numbers)}
    told |= {"operands": [*numbers, 0][: max(2, len(numbers))], "positions": [*ends, -1][: max(2, len(ends))]}
    cache = prefill.run(None, {x.name: np.array([told[x.name]]) for x in prefill.get_inputs()})
    while plan[-1:] != ["ANS"] and len(plan) < 3 * len(numbers):
        flags = np.array([[acc != [], left != [], memory != [], applied]], dtype=np.float32)
        positions = np.array([[x[0][1] if x else -1 for x in (tape, acc, memory, left)]])
        heard = zip(decode.get_inputs(), [np.array([last]), flags, positions, *cache], strict=True)
        logits, *cache = decode.run(None, {x.name: value for x, value in heard})
        last = int(logits.argmax())
        plan.append(called := facts["actions"][last])
        able = {"STO": not left and (acc or tape) and len(memory) < depth, "RCL": not left and memory}
        applied = bool(able.get(called, called in compute and (left or len(tape) + len(acc) > 1)))
        if applied and called == "STO":
            memory.insert(0, (acc or tape).pop(0))
        elif applied and called == "RCL":
            (left if acc else acc).append(memory.pop(0))
        elif applied:
            (a, _), (b, place) = (left or acc or tape).pop(0), (acc or tape).pop(0)
            acc.append((compute[called](a, b), place))
    return plan, acc[0][0] if acc and plan[-1] == "ANS" else None


try:
    for text in texts or sys.stdin.read().splitlines():
        print(text, "=", *solve(text), flush=True)
except (ValueError, IndexError):
    sys.exit(f"error: got {text!r}, expected an expression of whole numbers, {' '.join(tools)}, and brackets")
