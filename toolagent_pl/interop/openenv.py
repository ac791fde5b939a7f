"""The calculator as an OpenEnv server, with a session for each WebSocket, and a problem for each seed.

``python -m toolagent_pl.interop.openenv --stages E1 E2`` starts one; ``create_app`` makes one for a server of your own.
"""

import argparse
import secrets
import signal
import sys
from collections.abc import Sequence
from typing import Any, get_args

try:
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse
    from openenv.core.env_server import http_server
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, EnvironmentMetadata, Observation, State
    from pydantic import Field
except ImportError:
    missing = "toolagent_pl.interop.openenv: needs OpenEnv, pip install 'toolagent_pl[openenv]'"
    raise (SystemExit if __name__ == "__main__" else ImportError)(missing) from None

from toolagent_pl import __version__
from toolagent_pl.envs.calculator.env import Feedback
from toolagent_pl.interop.text import MAX_NUMBER, TextCalculator, check_whole, prompt, text_calculator

GRACE = 5  # seconds that open sessions have when the server is stopped


class ToolCall(Action):
    """A call of a tool; none of them takes arguments."""

    tool: str = Field(description="Name of the tool, such as multiply, store or answer")


class Report(Observation):
    """What the tools say; ``reward`` is 1 once the problem is solved, ``done`` whether the episode has ended."""

    text: str = Field(description="After a reset the problem, else the report of the tool")


class CalculatorState(State):
    """Which episode a session is in."""

    expression: str | None = Field(default=None, description="The problem")
    stage: str | None = Field(default=None, description="Name of its stage")
    seed: int | None = Field(default=None, description="The seed that brings it back; none for an expression given")


class OpenEnvCalculator(Environment[ToolCall, Report, CalculatorState]):
    """One session, which speaks what ``text`` says."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, text: type[TextCalculator]) -> None:
        super().__init__()
        self._text, self._state = text(), CalculatorState()

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        stage: str | None = None,
        expression: str | None = None,
    ) -> Report:
        """Begin an episode.

        Args:
            seed: Number of the problem, the same wherever it is asked for; without it any.
            episode_id: Handed back by ``state``.
            stage: Name of its stage; drawn by the number without it.
            expression: A problem of your own, in place of a seed.

        Raises:
            ValueError: If there is no such problem; the session stays as it is.
        """
        check_whole(seed=seed)
        drawn = secrets.randbelow(MAX_NUMBER + 1) if seed is None else seed
        number, text = None if expression is not None else drawn, self._text
        said = text.reset(number=number, stage=stage, expression=expression)
        problem = {"expression": text._expression, "stage": text._stage, "seed": number}
        self._state = CalculatorState(episode_id=episode_id, **problem)
        return Report(text=said)

    def step(self, action: ToolCall, timeout_s: float | None = None) -> Report:
        """Call a tool; if there is none, or the episode is over, a ValueError says so, and the session goes on."""
        text = self._text
        if action.tool not in text._tools:
            raise ValueError(f"tool: got {action.tool!r}, expected {', '.join(text._tools)}")
        said = text._call(text._tools[action.tool])
        self._state.step_count += 1
        return Report(text=said, reward=text.reward, done=text.done)

    # A call takes microseconds: to hand it to a thread, as is done without these, takes longer.
    async def reset_async(self, **arguments: Any) -> Report:
        """See ``reset``; an argument that it does not know is refused, where OpenEnv would drop it."""
        return self.reset(**arguments)

    async def step_async(self, action: ToolCall, timeout_s: float | None = None) -> Report:
        """See ``step``."""
        return self.step(action)

    @property
    def state(self) -> CalculatorState:
        """Which episode this is."""
        return self._state

    def get_metadata(self) -> EnvironmentMetadata:
        """Name, version, and the rules as a model should be told them."""
        return EnvironmentMetadata(name="toolagent_pl", description=prompt(type(self._text)), version=__version__)


def create_app(text: type[TextCalculator] | None = None, max_sessions: int = 64) -> FastAPI:
    """The server, for uvicorn or any other.

    Args:
        text: A class made by ``text_calculator``; the one of its defaults without it.
        max_sessions: Most sessions at a time; a further one is refused.
    """
    environment = text or text_calculator()
    options = {"env_name": "toolagent_pl", "max_concurrent_envs": max_sessions, "state_cls": CalculatorState}
    app = http_server.create_app(lambda: OpenEnvCalculator(environment), ToolCall, Report, **options)

    @app.exception_handler(ValueError)
    async def refuse(_: Any, error: ValueError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=400)

    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    with_defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser("python -m toolagent_pl.interop.openenv", formatter_class=with_defaults)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from elsewhere")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    parser.add_argument("--max_sessions", type=int, default=64, help="most sessions at a time")
    parser.add_argument("--stages", nargs="+", default=["E1", "E2", "E3"], help="that problems are drawn from")
    parser.add_argument("--feedback", choices=get_args(Feedback), default="flags", help="what the tools report")
    parser.add_argument("--held_out", action="store_true", help="problems of the tenth that is held out")
    options = parser.parse_args(arguments)
    try:
        text = text_calculator(options.stages, held_out=options.held_out, feedback=options.feedback)
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again once all is closed
    app = create_app(text, options.max_sessions)
    uvicorn.run(app, host=options.host, port=options.port, timeout_graceful_shutdown=GRACE)


if __name__ == "__main__":
    main()
