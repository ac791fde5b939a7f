"""The OpenEnv server, by a real client over the loopback interface."""

import asyncio
import contextlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("openenv")
from openenv.core.generic_client import GenericEnvClient

from tests.interop.test_text import plans
from toolagent_pl.interop.text import text_calculator

STAGES = ["E1", "E3", "E5"]


@contextlib.contextmanager
def server(*options):
    """A server in a process of its own: the process, and its URL."""
    command = [sys.executable, "-m", "toolagent_pl.interop.openenv", "--port=0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if found := re.search(r"running on (http://\S+)", line):
                    break
            yield process, found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()


@pytest.fixture(scope="module")
def url():
    with server("--stages", *STAGES, "--held_out", "--feedback=spans", "--max_sessions=64") as (_, url):
        yield url


async def session(url, environment, seeds, rng):
    """Play episodes beside a local environment; what is said must be the same. Returns the count of messages."""
    local, messages = environment(), 0
    async with GenericEnvClient(base_url=url, message_timeout_s=300, connect_timeout_s=300) as client:
        for seed in seeds:
            result = await client.reset(seed=seed, episode_id=f"episode {seed}")
            assert (result.observation["text"], result.done) == (local.reset(number=seed), False)
            for name in plans(environment, local, rng):
                result = await client.step({"tool": name})
                assert result.observation["text"] == getattr(local, name)()
                assert (result.reward, result.done) == (local.reward, local.done)
                messages += 1
                if result.done:
                    break
            state = await client.state()
            assert (state["episode_id"], state["seed"]) == (f"episode {seed}", seed)
            assert (state["step_count"], state["expression"]) == (local._calculator.steps, local._expression)
            messages += 2
    return messages


@pytest.mark.parametrize(("sessions", "episodes"), [(8, 200), pytest.param(64, 10_000, marks=pytest.mark.long)])
def test_sessions_at_once_are_each_their_own_and_say_what_the_text_environment_says(url, sessions, episodes):
    async def play():
        seeds = [range(i, episodes, sessions) for i in range(sessions)]
        return await asyncio.gather(*(session(url, environment, own, random.Random(i)) for i, own in enumerate(seeds)))

    environment, start = text_calculator(STAGES, held_out=True, feedback="spans"), time.perf_counter()
    messages = sum(asyncio.run(play()))
    seconds = time.perf_counter() - start
    print(f"{sessions} sessions, {episodes} episodes, {messages} messages, {messages / seconds:.0f} a second")
    assert messages > 4 * episodes


def test_what_is_wrong_is_answered_with_an_error_and_harms_nothing(url):
    async def play():
        async with GenericEnvClient(base_url=url) as client:
            await client.reset(expression="1+2")
            for action, message in [
                ({"tool": "divide"}, "tool: got 'divide', expected multiply, add, subtract"),
                ({"call": "add"}, "Invalid message"),
                ({"tool": 3}, "Invalid message"),
            ]:
                with pytest.raises(RuntimeError, match=message):
                    await client.step(action)
            for arguments, message in [
                ({"seed": -1}, "seed: got -1, expected a whole number"),
                ({"seed": "x"}, "seed: got 'x', expected a whole number"),
                ({"sead": 1}, "unexpected keyword argument 'sead'"),
                ({"seed": 1, "stage": "E9"}, "stage: got 'E9', expected E1, E3, E5"),
                ({"expression": "1+"}, "ends where an operand should be"),
            ]:
                with pytest.raises(RuntimeError, match=message):
                    await client.reset(**arguments)
            assert (await client.state())["expression"] == "1+2"
            await client.step({"tool": "add"})
            result = await client.step({"tool": "answer"})
            assert (result.observation["text"], result.reward, result.done) == ("Answered 3: right.", 1.0, True)
            with pytest.raises(RuntimeError, match="The episode is over"):
                await client.step({"tool": "add"})
            first = await client.reset()
            again = await client.reset(seed=(await client.state())["seed"])
            assert first.observation == again.observation

    asyncio.run(play())


def test_a_session_too_many_is_refused_and_sigterm_ends_it_cleanly():
    with server("--max_sessions=1") as (process, url):

        async def play():
            async with GenericEnvClient(base_url=url) as client:
                await client.reset(seed=1)
                with pytest.raises(RuntimeError, match="CAPACITY_REACHED"):
                    async with GenericEnvClient(base_url=url) as other:
                        await other.reset(seed=1)
                process.send_signal(signal.SIGTERM)
                return await asyncio.to_thread(process.wait, 20)

        assert asyncio.run(play()) == 0
        assert "Finished server process" in process.stderr.read()
