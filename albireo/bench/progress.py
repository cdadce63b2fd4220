"""How far a run is, on a terminal only: a bar on stderr that is drawn twice a second, since drawing takes the client's
time."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_INTERVAL_S = 0.5


@contextlib.asynccontextmanager
async def progress_bar(title: str, total: int, noun: str = "requests") -> AsyncIterator[Callable[[], None]]:
    """Gives a function to call whenever one of `total` is done."""
    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"{title} {total} {noun}", file=sys.stderr, flush=True)
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn())
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1

    async def draw() -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            progress.update(task, completed=done, refresh=True)

    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task(title, total=total)
        progress.refresh()
        drawing = asyncio.create_task(draw())
        try:
            yield advance
        finally:
            drawing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await drawing
