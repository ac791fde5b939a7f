"""The yardstick for language models, against a small server that speaks their protocol."""

import contextlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks import text_eval
from toolagent_pl.envs.calculator.env import CalculatorEnv
from toolagent_pl.envs.calculator.expression import text_of
from toolagent_pl.interop.text import reference_calls, text_calculator
from toolagent_pl.training.stream import FixedProblems, Sample

KINDS = ("right", "wrong", "words", "unknown tool", "no choices", "no JSON", "refused", "hanging", "dripping")
COUNTED = {"right": 2, "wrong": 2, "malformed": 6, "late": 4, "failed": 4}
TIMEOUT = 4.0  # far more than a reply takes on a busy machine


class Server(BaseHTTPRequestHandler):
    """A language model whose replies are of each kind in turn, by the problem."""

    protocol_version = "HTTP/1.1"
    kinds: dict[str, str] = {}
    released = threading.Event()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        assert [tool["function"]["name"] for tool in body["tools"]][:2] == ["multiply", "add"]
        expression = body["messages"][0]["content"].split("Expression: ")[1].split("\n")[0]
        kind = self.kinds.setdefault(expression, KINDS[len(self.kinds) % len(KINDS)])
        if kind == "hanging":
            self.released.wait(20)
        if kind == "refused":
            return self.send_error(429)
        episode = text_calculator()()
        episode.reset(expression=expression)
        done = sum(message["role"] == "tool" for message in body["messages"])
        name = {"wrong": "answer", "unknown tool": "divide"}.get(kind, reference_calls(episode)[done])
        calls = [{"id": str(done), "type": "function", "function": {"name": name, "arguments": "{}"}}]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        if kind == "words":
            message = {"role": "assistant", "content": "It is 7."}
        reply = {"error": "?"} if kind == "no choices" else {"choices": [{"message": message}]}
        text = b"<html>" if kind == "no JSON" else json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        for byte in text:
            if kind == "dripping" and not self.released.is_set():
                time.sleep(0.1)
            self.wfile.write(bytes([byte]))
        return None

    def log_message(self, *_):
        """Nothing: pytest would print it."""

    def handle(self):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # of a client that waits no longer
            super().handle()


@pytest.fixture
def url():
    Server.kinds, Server.released = {}, threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        Server.released.set()
        server.shutdown()


def test_each_kind_of_reply_is_counted_as_what_it_is(url, tmp_path, capsys):
    output = tmp_path / "found.json"
    words = ["--policy", url, "--model=tiny", "--stages", "E4", f"--timeout={TIMEOUT}", "--at_a_time=18"]
    assert text_eval.main([*words, "--problems=18", f"--output={output}"]) == 0
    found = json.loads(output.read_text())["results"]["tiny"]
    assert found["outcomes"] == COUNTED
    assert found["by_operators"] == [{"operators": 4, "problems": 18, "right": 2}]
    assert sum(row["right"] for row in found["by_memory"]) == 2
    assert output.with_suffix(".png").stat().st_size > 1000
    assert "11.1%" in capsys.readouterr().out


def test_a_server_that_is_not_there_fails():
    environment = text_calculator(["E1"], held_out=True)
    policy = text_eval.ChatPolicy("http://127.0.0.1:9/v1", "tiny", TIMEOUT)
    results = text_eval.evaluate(environment, policy, text_eval.held_out(environment, 2))
    assert Counter(result.outcome for result in results) == {"failed": 2}


def test_the_problems_are_those_that_test_tries():
    problems = text_eval.held_out(text_calculator(["E1", "E5"], held_out=True), 50)
    env = CalculatorEnv(["E1", "E5", "E8"])
    batches = list(FixedProblems(env, 2, Sample.TEST, per_stage=50, batch_size=50))
    for some, batch in ((problems[:50], batches[0]), (problems[50:], batches[1])):
        assert [problem.expression for problem in some] == [text_of(x, env.vocabulary) for x in batch.prompt.tolist()]
        assert [problem.memory for problem in some] == batch.memory_needed.tolist()


def test_the_shipped_agent_and_the_reference_plan_solve_what_a_random_policy_does_not(tmp_path):
    output = tmp_path / "found.json"
    words = ["--policy", "shipped", "scripted", "random", "--stages", "E1", "E3", "--problems=100"]
    assert text_eval.main([*words, f"--output={output}"]) == 0
    right = {name: of["outcomes"]["right"] for name, of in json.loads(output.read_text())["results"].items()}
    assert right["shipped"] == right["scripted"] == 200
    assert 0 < right["random"] < 40
