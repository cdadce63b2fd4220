"""argv of `albireo-run chat`: its flags, and the conversation behind them.

Only the standard library is imported at the top, since `--help` must answer at once.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from albireo.server_url import url_problem

if TYPE_CHECKING:
    from albireo.chat.client import ChatClient

EXIT_OK, EXIT_FAILED, EXIT_BAD_ARGUMENTS, EXIT_NO_SERVER = 0, 1, 2, 3


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `chat`."""
    parser.description = (
        "Talks to a running server (--base-url), or starts one of MODEL for as long as the chat lasts; flags of "
        "`albireo-run serve` for that one go behind `--`."
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="checkpoint folder to serve (default: the bundled demo model)"
    )
    server = parser.add_argument_group("a running server")
    server.add_argument(
        "--base-url", metavar="URL",
        help="e.g. http://127.0.0.1:8000, or http+unix:PATH of a Unix socket; any OpenAI-compatible server",
    )  # fmt: skip
    server.add_argument("--api-key", metavar="KEY", help="default: ALBIREO_API_KEY of the environment")
    server.add_argument("--model", dest="model_name", metavar="NAME", help="default: the first of its /v1/models")
    server.add_argument("--insecure", action="store_true", help="do not verify the server's certificate")
    talk = parser.add_argument_group("conversation")
    talk.add_argument("--system", metavar="TEXT", help="the system message")
    talk.add_argument("--temperature", type=float, help="not sent by default, nor the next: the server decides")
    talk.add_argument("--top-p", type=float)
    talk.add_argument("--max-tokens", type=int, help="most tokens of an answer")
    talk.add_argument("--seed", type=int)


def run_chat(args: argparse.Namespace, serve_flags: Sequence[str]) -> int:
    """Talks until the end of the input and returns the exit code: 0, 1 for a piped question without an answer, 2 for
    flags that make no sense, 3 for a server that cannot be reached or started."""
    from albireo.chat.client import ChatError
    from albireo.chat.piped import answer_piped
    from albireo.chat.session import Session
    from albireo.chat.terminal import Terminal
    from albireo.engine_process import EngineProcessError

    problem = _contradiction(args, serve_flags)
    if problem is not None:
        print(f"albireo-run chat: {problem}", file=sys.stderr)
        return EXIT_BAD_ARGUMENTS
    fields = {name: getattr(args, name) for name in ("temperature", "top_p", "max_tokens", "seed")}
    fields = {name: value for name, value in fields.items() if value is not None}
    try:
        with _client(args, serve_flags) as client:
            if not sys.stdin.isatty():
                return answer_piped(client, args.system, fields)
            Session(client, Terminal(), args.system, fields).run()
    except (ChatError, EngineProcessError) as error:
        print(f"albireo-run chat: {error}", file=sys.stderr)
        return EXIT_NO_SERVER
    except KeyboardInterrupt:
        print("albireo-run chat: interrupted", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def _contradiction(args: argparse.Namespace, serve_flags: Sequence[str]) -> str | None:
    if args.base_url is None:
        if args.model_name is not None:
            return "--model names a model of the server at --base-url; to serve a folder, name it without --model"
        if args.api_key is not None:
            return "--api-key is for the server at --base-url: the key of one that is started here goes behind `--`"
        return None
    if args.model is not None:
        return f"{args.model} would be served by a server of its own: leave it out, or leave out --base-url"
    if serve_flags:
        return "flags behind `--` are for a server that is started here: leave them out, or leave out --base-url"
    problem = url_problem(args.base_url)
    return problem and f"--base-url {problem}"


@contextmanager
def _client(args: argparse.Namespace, serve_flags: Sequence[str]) -> "Iterator[ChatClient]":
    """A client that knows its model. Raises ChatError, EngineProcessError."""
    from albireo.chat.client import ChatClient
    from albireo.config import environment_api_keys
    from albireo.engine_process import EngineProcess
    from albireo.serve_flags import server_api_key

    if args.base_url is not None:
        api_key = args.api_key or next(iter(environment_api_keys()), None)
        yield ChatClient(args.base_url, api_key, args.model_name, args.insecure)
        return
    arguments = [*([args.model] if args.model else []), "--disable-uvicorn-access-log", *serve_flags]
    with EngineProcess(arguments, shows_start=True) as engine:
        # nothing to verify: it was given its certificate a moment ago, on this machine
        yield ChatClient(engine.url, server_api_key(serve_flags), engine.model_name, insecure=True)
