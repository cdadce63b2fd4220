"""Runs a request's generations and writes their output to the client, streamed or whole.

The response begins with the first output, so that a request which the engine refuses still gets its own status.
Whatever happens to the client or to us, no generation is left behind in the engine.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from starlette.types import Receive, Scope, Send

from albireo.errors import RequestError
from albireo.frontend.formats import Format
from albireo.frontend.generation import Generation
from albireo.frontend.http_protocol import PieceWriter, connection_dropper, piece_writer
from albireo.frontend.json_response import send_json
from albireo.frontend.output import ClientGoneError, Output, Writer
from albireo.frontend.replicas import Replicas

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

MAX_INLINE_SCORED_TOKENS = 200
"""Most tokens whose log-probabilities are written on the event loop; at 20 alternatives each these take some 5 ms."""

Start = Callable[[Output], list[Generation]]
"""Makes a request's generations and submits them."""


async def respond(
    scope: Scope, receive: Receive, send: Send, engine: Replicas, start: Start, format_: Format, streams: bool
) -> None:
    """One response from start to end. Raises RequestError when nothing has been sent yet."""
    output = Output(streams, connection_dropper(scope))
    generations: list[Generation] = []
    watcher = asyncio.create_task(_watch(receive, output))
    engine.num_responses += 1
    try:
        generations = start(output)
        if streams:
            await _stream(send, output, generations, format_, piece_writer(scope))
        else:
            await _whole(send, output, generations, format_)
    except ClientGoneError:
        pass
    finally:
        engine.num_responses -= 1
        watcher.cancel()
        output.client_left()
        engine.abort(generations)


async def _watch(receive: Receive, output: Output) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    output.client_left()


async def _stream(
    send: Send, output: Output, generations: Sequence[Generation], format_: Format, direct: PieceWriter | None
) -> None:
    """`direct`: the way past this task for what comes between the begin and the end."""
    num_open = len(generations)
    started = False
    while num_open:
        ready = await output.next()
        error = _first_error(ready)
        if error is None:
            pieces = [format_.chunk(generation) for generation in ready]
            num_open -= sum(generation.ended for generation in ready)
            if not num_open:
                pieces.append(format_.end(generations))
        elif started:
            num_open = 0
            pieces = [format_.error(error)]
        else:
            raise error
        if not started:
            started = True
            await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        await send({"type": "http.response.body", "body": b"".join(pieces), "more_body": num_open > 0})
        if direct is not None and num_open and output.writer is None:
            output.writer = _chunk_writer(direct, format_)


def _chunk_writer(direct: PieceWriter, format_: Format) -> Writer:
    def write_chunks(generations: Iterable[Generation]) -> bool:
        if not direct.takes_more:
            return False
        if body := b"".join(map(format_.chunk, generations)):  # an empty piece would end the response
            direct.write(body)
        return True

    return write_chunks


async def _whole(send: Send, output: Output, generations: Sequence[Generation], format_: Format) -> None:
    num_open = len(generations)
    while num_open:
        ready = await output.next()
        if (error := _first_error(ready)) is not None:
            raise error
        num_open -= len(ready)
    await send_json(send, 200, await _body(format_, generations))


async def _body(format_: Format, generations: Sequence[Generation]) -> bytes:
    """On a thread where log-probabilities make it long."""
    num_scored = sum(each.num_prompt_tokens + each.num_tokens for each in generations if each.scores is not None)
    if num_scored <= MAX_INLINE_SCORED_TOKENS:
        return format_.body(generations)
    return await asyncio.to_thread(format_.body, generations)


def _first_error(generations: Sequence[Generation]) -> RequestError | None:
    return next((generation.error for generation in generations if generation.error is not None), None)
