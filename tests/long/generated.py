"""Generated options, configurations, checkpoints and expressions: each has to be taken, or refused in one line.

Everything else is a finding: an exception, a hang, a crash, foreign code that ran, an option without its effect.
Case ``i`` of a kind is a function of the seed and ``i``.
"""

import contextlib
import copy
import functools
import importlib
import io
import json
import multiprocessing
import os
import pickle
import random
import signal
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from lightning.pytorch import Trainer

from tests.long import options
from tests.long.options import LEFT_OUT
from toolagent_pl import Problems
from toolagent_pl.__main__ import OWN_COMMANDS
from toolagent_pl.cli import ToolAgentCLI
from toolagent_pl.cli import main as run_command

SENTINEL = "sentinel"  # a file that foreign code would leave behind
CASES_OF_A_WORKER = 500  # then it is replaced by a fresh one
FINDING = "FINDING"
SECONDS = float(os.environ.get("FUZZ_SECONDS", "10"))  # after which a command that is still at work is taken
CONFIGS = Path(__file__).parents[2] / "configs"
# The smallest run with everything in it.
RUN = ["--trainer.accelerator=cpu", "--data.stages=[E1,T0]", "--data.unseen=[]", "--data.batch_size=8"]
RUN += ["--data.batches_per_epoch=2", "--data.val_problems=10", "--samples.per_stage=1", "--model.algorithm=A2C"]
RUN += ["--curriculum.stages=null", "--curriculum.ent_targets=null", "--curriculum.every_n_epochs=1"]


RUN_ONCE = [*RUN, "--trainer.max_epochs=1"]
LIGHTNING = ("fit", "validate", "test", "predict")


class Case(NamedTuple):
    """One input: the content of a file, JSON for words and expressions; and the command that it is for."""

    kind: str
    number: int
    content: bytes
    command: str = "fit"


class Verdict(NamedTuple):
    """What came of a case: taken, refused, failed in one line while working, or a finding, and why."""

    outcome: str
    detail: str


Judge = Callable[[Case], Verdict]


class Sources(NamedTuple):
    """What the cases are made from."""

    configs: list[bytes]
    checkpoint: bytes
    options: dict[str, Any]  # all that ``fit`` has, and what they are by default


class _Enough(BaseException):
    """It has run for some time without an error."""


class _Built(BaseException):
    """Everything was built, and the work would begin."""


def cases(kind: str, seed: int, numbers: Sequence[int], sources: Sources) -> Iterator[Case]:
    """The cases of a kind with these numbers."""
    checkpoint = torch.load(io.BytesIO(sources.checkpoint), weights_only=True)
    for number in numbers:
        rng = random.Random(f"{seed} {kind} {number}")
        if kind == "config":
            yield Case(kind, number, _config(rng, sources.configs))
        elif kind == "checkpoint":
            command = rng.choice(["validate", "validate", "test", "predict", "fit", "fit"])
            yield Case(kind, number, _checkpoint(rng, sources.checkpoint, checkpoint), command)
        elif kind == "options":
            command = rng.choice(["fit", "fit", "fit", "validate", "test", "predict"])
            yield Case(kind, number, json.dumps(options.words(rng, sources.options)).encode(), command)
        elif kind == "command":
            command, *words = options.own_words(rng, RUN)
            yield Case(kind, number, json.dumps(words).encode(), command)
        else:
            yield Case(kind, number, json.dumps(_expressions(rng)).encode())


def _bytes(rng: random.Random, content: bytes) -> bytes:
    """A few edits anywhere."""
    edited = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(edited) + 1)
        length = rng.choice([1, 1, 4, 40])
        edit = rng.randrange(6)
        if edit == 0 and at < len(edited):
            edited[at] ^= 1 << rng.randrange(8)
        elif edit == 1:
            edited[at : at + length] = b""
        elif edit == 2:
            edited[at:at] = rng.randbytes(length)
        elif edit == 3:
            other = rng.randrange(len(edited) + 1)
            edited[at:at] = edited[other : other + length]
        elif edit == 4:
            edited[at:at] = rng.choice([b"[", b"{", b"}", b"]", b": ", b"- ", b"&a ", b"*a", b"!!", b"\t", b"\n", b"'"])
        elif rng.random() < 0.3:
            del edited[at:]
    return bytes(edited)


class _Foreign:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, (SENTINEL, "w")

    def __deepcopy__(self, memo: object) -> "_Foreign":
        """Itself: only whoever reads the file is to run it."""
        return self


SHELL = {"class_path": "os.system", "init_args": {"command": f"touch {SENTINEL}"}}
CLASSES = ["os.system", "subprocess.Popen", "builtins.eval", "builtins.open", "nowhere.Nothing", "nothing", "a.b"]
CLASSES += ["toolagent_pl.agents.Agent", "toolagent_pl.agents.BlindAgent", "toolagent_pl.TutorialEnv", "torch"]
CLASSES += ["torch.nn.GRU", "torch.optim.SGD", "lightning.pytorch.Trainer", "lightning.pytorch.callbacks.Timer"]


def _value(rng: random.Random) -> Any:
    """Something that hardly ever fits."""
    simple: list[Any] = [None, True, False, 0, -1, 1, 2, 7, 0.5, -0.0, 10**30, -(10**30), 2**31, 2**63, 1e308, 5e-324]
    simple += [float("nan"), float("inf"), -float("inf"), "", " ", "nan", "null", "x" * 5000, "\x1b[31m", "é\u202e"]
    simple += ["T0", "MUL", "last", "best", "../..", "/", ".", "${x}", "%s", "{}", "[", "*a", "cpu", "tpu", "ddp", "16"]
    choice = rng.randrange(7)
    if choice == 0:
        return {"class_path": rng.choice(CLASSES), "init_args": {rng.choice("abcd"): rng.choice(simple)}}
    if choice == 1:
        return rng.choice([SHELL, [SHELL], {"a": SHELL}, rng.choice(CLASSES), {"class_path": rng.choice(CLASSES)}])
    if choice == 2:
        return [rng.choice(simple) for _ in range(rng.choice([0, 1, 3, 50]))]
    if choice == 3:
        return {rng.choice(["a", "d", "class_path", "init_args", 3, None, ""]): rng.choice(simple)}
    return rng.choice(simple)


def _nodes(tree: Any) -> list[tuple[Any, Any]]:
    """Each container with each of its keys."""
    found, pending = [], [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, dict | list):
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            found += [(node, key) for key in keys]
            pending += [node[key] for key in keys]
    return found


def _tree(rng: random.Random, tree: Any, value: Callable[[random.Random], Any]) -> Any:
    """A few values replaced, taken away, renamed, added or swapped."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        nodes = _nodes(tree)
        if not nodes:
            return tree
        # As many edits near the root as far from it: there are few, but they decide more.
        node, key = nodes[min(rng.randrange(len(nodes)), rng.randrange(len(nodes)))]
        edit = rng.randrange(6)
        if edit < 3:
            node[key] = copy.deepcopy(value(rng))  # else later edits would change the constants it is made of
        elif edit == 3:
            del node[key]
        elif edit == 4 and isinstance(node, dict):
            new = ["class_path", "init_args", "dict_kwargs", f"{key}s", "x.y", "config", "ckpt_path"]
            node[rng.choice(new)] = copy.deepcopy(value(rng))
        else:
            other, other_key = rng.choice(nodes)
            node[key], other[other_key] = copy.deepcopy(other[other_key]), copy.deepcopy(node[key])
    return tree


def _config(rng: random.Random, sources: Sequence[bytes]) -> bytes:
    source = rng.choice(sources)
    choice = rng.randrange(10)
    if choice < 3:
        return _bytes(rng, source)
    if choice < 9:
        tree = _tree(rng, yaml.safe_load(source), _value)
        return yaml.dump(tree, allow_unicode=True, default_flow_style=rng.choice([True, False])).encode()
    count = rng.choice([10, 40, 1000, 30_000])
    document = rng.choice(
        [
            b"[" * count, b"{a: " * count, b"- " * count, b"? " * count, b"a: &a [*a]", b"&a {model: *a}", b"", b"\x00",
            b"&a [" + b"x," * 50 + b"]\n", b"model: &a {agent: {b: *a}}", b"<<: [{data: 1}, 3]", b"--- 1\n--- 2",
            b"!!python/object/apply:os.system ['touch " + SENTINEL.encode() + b"']", b"%YAML 9.9\n---\na: 1", b"- 1",
            b"seed_everything: !!python/object/new:subprocess.Popen [[touch, " + SENTINEL.encode() + b"]]",
            b"seed_everything: !!binary aGVsbG8=", b"seed_everything: !!int x", b"seed_everything: !!set {a}", b"null",
            b"seed_everything: " + b"9" * count, b"seed_everything: 0x" + b"f" * count, b"seed_everything: 1:1:1", b"x",
            b"seed_everything: 0b2", b"seed_everything: .nan", b"model: !!omap [a: 1]",
            source.decode().encode("utf-16"),
            b"a0: &a0 [x,x]\n" + b"".join(b"a%d: &a%d [*a%d,*a%d,*a%d]\n" % (i + 1, i + 1, i, i, i) for i in range(40)),
            rng.randbytes(count),
        ]
    )  # fmt: skip
    return _bytes(rng, document) if rng.random() < 0.3 else document


def _state(rng: random.Random) -> Any:
    """What could stand in a checkpoint."""
    tensors = [torch.zeros(0), torch.zeros(3), torch.tensor(1), torch.full((4, 4), float("nan"))]
    tensors += [torch.zeros(1).expand(10**6), torch.zeros(2, 2).to_sparse(), torch.zeros(3, dtype=torch.complex64)]
    tensors += [torch.zeros(3, device="meta")]
    return rng.choice(tensors) if rng.random() < 0.4 else rng.choice([_value(rng), (1, 2), {1, 2}, b"x", 2**40, 10**9])


def _checkpoint(rng: random.Random, source: bytes, checkpoint: dict[str, Any]) -> bytes:
    choice = rng.randrange(20)
    if choice < 3:
        return _bytes(rng, source)
    if choice == 3:
        return source[: rng.randrange(len(source))]
    if choice < 7:  # files of the archive, with checksums that are right
        target = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(source)) as archive, zipfile.ZipFile(target, "w") as changed:
            names = archive.namelist()
            pickled = next(name for name in names if name.endswith(".pkl"))
            chosen = {pickled} if choice < 6 else set(rng.sample(names, 2))
            for name in names:
                content = archive.read(name)
                if name in chosen:
                    edit = rng.randrange(5 if choice == 6 else 2)
                    pieces = [_bytes(rng, content), pickle.dumps(_Foreign()), b"", content[: len(content) // 2]]
                    if edit == 4:
                        continue
                    content = pieces[edit if rng.random() < 0.9 or choice == 6 else 1]
                changed.writestr(name, content, rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED]))
        return target.getvalue()
    if choice == 7:
        other = [b"", b"PK", b"PK\x05\x06" + bytes(18), b"\x89PNG", pickle.dumps(checkpoint), pickle.dumps(_Foreign())]
        old = io.BytesIO()
        torch.save(rng.choice([checkpoint, _Foreign()]), old, _use_new_zipfile_serialization=False)
        return rng.choice([*other, rng.randbytes(1000), old.getvalue()])
    saved = io.BytesIO()
    tree = rng.choice([_state(rng), {}, checkpoint["state_dict"], [checkpoint]]) if choice == 8 else checkpoint
    if choice == 9:
        tree = {**checkpoint, rng.choice([*checkpoint, "new"]): _Foreign()}
    with contextlib.suppress(Exception):  # a tree that cannot even be saved, for example of meta tensors
        torch.save(_tree(rng, tree, _state) if choice > 8 else tree, saved)
        return saved.getvalue()
    return source


def _expression(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.3:
        return str(rng.choice([rng.randrange(10), rng.randrange(10**4), 10 ** rng.randrange(25), 2**63 - 1, 2**63]))
    left, right = _expression(rng, depth - 1), _expression(rng, depth - 1)
    text = f"{left}{rng.choice('*+-')}{right}"
    return f"({text})" if rng.random() < 0.5 else text


def _expressions(rng: random.Random) -> list[str]:
    choice = rng.randrange(6)
    count = rng.choice([1, 90, 201, 5000, 100_000])
    if choice == 0:
        return ["".join(chr(rng.choice([rng.randrange(128), rng.randrange(0xD7FF)])) for _ in range(rng.randrange(20)))]
    if choice == 1:
        return ["".join(rng.choice("0123456789*+-() abz._\n\t'\"#:=,[]{}") for _ in range(rng.randrange(40)))]
    if choice == 2:
        digits = "٣३৩３²½Ⅷ𝟗\u200b\ufeff\x00\ud800"
        text = _expression(rng, 2)
        at = rng.randrange(len(text) + 1)
        return [text[:at] + rng.choice(digits) + text[at:]]
    if choice == 3:
        deep = ["(" * count + "1" + ")" * count, "1-(" * count + "1" + ")" * count, "(" * count, "1-(" * count]
        return [rng.choice([*deep, "1+" * count + "1", "-" * count + "1", "9" * count])]
    texts = [_expression(rng, rng.randrange(6)) for _ in range(rng.choice([1, 1, 3]))]
    if choice == 4:
        at = rng.randrange(len(texts[0]) + 1)
        texts[0] = texts[0][:at] + rng.choice("()*+-0a ") + texts[0][at + rng.randrange(2) :]
    return texts


def judge(case: Case) -> Verdict:
    """Try a case in the working directory, where it may leave what it likes."""
    try:
        judges = {"expression": _judge_expressions, "options": _judge_options, "command": _judge_options}
        verdict = judges.get(case.kind, _judge_command)(case)
    except BaseException as error:
        frame = error.__traceback__
        while frame and frame.tb_next:
            frame = frame.tb_next
        place = f"{frame.tb_frame.f_code.co_filename.rpartition('/')[2]}:{frame.tb_lineno}" if frame else "?"
        verdict = Verdict(FINDING, f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:200]}")
    if os.path.exists(SENTINEL):
        os.remove(SENTINEL)
        return Verdict(FINDING, "foreign code was run")
    return verdict


def _judge_expressions(case: Case) -> Verdict:
    try:
        Problems.from_expressions(json.loads(case.content))
    except ValueError as error:
        if "\n" in str(error) or not str(error).startswith("expression ") or len(str(error)) > 1000:
            raise RuntimeError(f"no clear line: {str(error)[:100]!r}") from error
        return Verdict("refused", str(error))
    return Verdict("taken", "")


def _judge_command(case: Case) -> Verdict:
    path = f"{case.kind}.{'yaml' if case.kind == 'config' else 'ckpt'}"
    Path(path).write_bytes(case.content)
    if case.kind == "config":
        arguments = ["fit", f"--config={path}"]
    else:
        arguments = [case.command, *RUN, "--trainer.max_epochs=2", f"--ckpt_path={path}"]
    with _until_built() if case.kind == "config" else contextlib.nullcontext():
        return _run(arguments)


@functools.cache
def _trained() -> Path:
    """A checkpoint of this process, for commands that need one."""
    directory = Path(tempfile.mkdtemp(dir=Path.cwd()))
    prepare(directory, with_options=False)
    return directory / "lightning_logs/version_0/checkpoints/last.ckpt"


def _enough(*_: object) -> None:
    raise _Enough


def _judge_options(case: Case) -> Verdict:
    """Run a command with generated options, in a directory of its own, for some seconds."""
    given = json.loads(case.content)
    here, home = Path.cwd(), os.environ.get("HOME", "/")
    checkpoint = _trained() if case.command != "fit" else None
    with tempfile.TemporaryDirectory(dir=here, ignore_cleanup_errors=True) as directory:
        os.chdir(directory)
        os.environ["HOME"] = directory
        Path("options.yaml").write_text("[1, 2")
        Path("own_parts.py").write_text(options.OWN_PARTS)
        sys.path.insert(0, directory)
        sys.modules.pop("own_parts", None)
        words = [case.command, *(RUN_ONCE if case.kind == "options" else []), *given]
        if checkpoint and case.command in LIGHTNING and not any(word.startswith("--ckpt_path") for word in given):
            words.append(f"--ckpt_path={checkpoint}")
        before = signal.signal(signal.SIGALRM, _enough)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            verdict = _run(words)
            signal.setitimer(signal.ITIMER_REAL, 0)
            named, missing = dict(word[2:].split("=", 1) for word in given if "=" in word), None
            if case.command == "fit" and verdict.outcome == "taken":
                missing = options.without_effect(named, Path(directory))
            elif case.command == "predict" and verdict.outcome == "taken" and "ckpt_path" not in named:
                assert checkpoint is not None
                missing = options.not_predicted(named, checkpoint)
            if missing:
                raise RuntimeError(f"no effect: {missing}")
            return verdict
        except _Enough:
            return Verdict("taken", f"at work after {SECONDS:g} s")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            os.environ["HOME"] = home
            sys.path.remove(directory)
            os.chdir(here)


def _run(arguments: list[str]) -> Verdict:
    """What comes of a command."""
    printed = io.StringIO()
    status: Any = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if arguments[0] in OWN_COMMANDS:
                sys.exit(importlib.import_module(f"toolagent_pl.commands.{arguments[0]}").main(arguments[1:]))
            run_command(arguments)
        except SystemExit as stopped:
            status = stopped.code
        except _Built:
            pass
    if status in (0, None):
        return Verdict("taken", "")
    text = str(status) if isinstance(status, str) else printed.getvalue()
    errors = [line for line in text.splitlines() if "error" in line.lower() or "Traceback" in line]
    if len(errors) != 1 or not errors[0].startswith("error: ") or len(errors[0]) > 1100:
        raise RuntimeError(f"no clear line: {text[-200:]!r}")
    return Verdict("refused" if status == 2 else "failed in one line", errors[0])


@contextlib.contextmanager
def _until_built() -> Iterator[None]:
    """Have runs end where the work would begin."""
    fit = Trainer.fit

    @functools.wraps(fit)  # LightningCLI looks at its arguments
    def stop(*_: Any, **__: Any) -> None:
        raise _Built

    Trainer.fit = stop  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer.fit = fit  # type: ignore[method-assign]


def prepare(directory: Path, with_options: bool = True) -> Sources:
    """Train for a moment, for a checkpoint to start from.

    Args:
        with_options: List the options, too.
    """
    here = Path.cwd()
    os.chdir(directory)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run_command(["fit", *RUN, "--trainer.max_epochs=1"])
    finally:
        os.chdir(here)
    checkpoint = (directory / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt").read_bytes()
    extra = b"optimizer: {class_path: SGD, init_args: {lr: 0.1}}\ntrainer: {callbacks: [{class_path: Timer}]}\n"
    names = ("stages.yaml", "tutorial.yaml", "expressions.yaml")
    configs = [(CONFIGS / name).read_bytes() for name in names if (CONFIGS / name).exists()]
    return Sources([*configs, extra], checkpoint, _all_options() if with_options else {})


def _all_options() -> dict[str, Any]:
    """All options that ``fit`` has, those of the classes of the default run among them, and what they are there."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_command(["fit", "--print_config"])

    def items(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in tree.items() if isinstance(tree, dict) else ():
            if key not in ("class_path", "init_args"):
                yield f"{path}{key}", value
            yield from items(value, path if key == "init_args" else f"{path}{key}.")

    found = dict(items(yaml.safe_load(printed.getvalue())))
    groups = {name.partition(".")[0] for name in found if "." in name}
    return {name: value for name, value in found.items() if name not in groups and name not in LEFT_OUT}


def _work(pipe: Connection, judge: Judge) -> None:
    """A worker: judges what comes, in a directory of its own."""
    torch.set_num_threads(1)
    ToolAgentCLI.after_fit = lambda _: None  # type: ignore[method-assign]  # the test of all problems takes its time
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        while (case := pipe.recv()) is not None:
            pipe.send(judge(case))


class _Worker:
    """A child process that judges."""

    def __init__(self, judge: Judge) -> None:
        self.pipe, other = multiprocessing.Pipe()
        # A fork of this process would crash or hang if OpenMP has threads here; the server never computes anything.
        forkserver = multiprocessing.get_context("forkserver")
        forkserver.set_forkserver_preload(["tests.long.generated"])
        self.process = forkserver.Process(target=_work, args=(other, judge))
        self.process.start()
        other.close()
        self.left = CASES_OF_A_WORKER

    def judge(self, case: Case, patience: float) -> Verdict:
        """What comes of a case, a hang or a crash included; after such, nothing is left of this worker."""
        self.pipe.send(case)
        self.left -= 1
        if not self.pipe.poll(patience):
            self.left = 0
            return Verdict(FINDING, f"hung for {patience:g} s")
        try:
            verdict: Verdict = self.pipe.recv()
        except EOFError:
            self.left = 0
            self.process.join()
            return Verdict(FINDING, f"the process crashed with status {self.process.exitcode}")
        return verdict


def fuzz(todo: Iterator[Case], patience: float, judge: Judge = judge) -> Iterator[tuple[Case, Verdict]]:
    """Judge all cases in a child process.

    Args:
        todo: The cases.
        patience: Seconds until a case counts as hung.
        judge: A function that a child process can import.
    """
    worker = None
    try:
        for case in todo:
            worker = worker or _Worker(judge)
            yield case, worker.judge(case, patience)
            if not worker.left:
                worker.process.kill()
                worker = None
    finally:
        if worker:
            worker.process.kill()
