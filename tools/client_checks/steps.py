"""How a check tells what it did: one line of JSON a step on stdout. Runs in a client's venv, so the standard library
only."""

import argparse
import json
import sys
import traceback
from collections.abc import Callable

MAX_RESULT_CHARS = 90


class Check:
    """Arguments of a check, and its steps. A step that raises is told, and the next one goes on."""

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--base-url", required=True, help="without /v1")
        parser.add_argument("--model", required=True)
        parser.add_argument("--tokenizer", required=True, help="folder with the model's tokenizer")
        arguments = parser.parse_args()
        self.base_url: str = arguments.base_url.rstrip("/")
        self.model: str = arguments.model
        self.tokenizer: str = arguments.tokenizer
        self._num_failed = 0

    def step(self, what: str, work: Callable[[], object]) -> None:
        """Does `work`; what it returns is what it printed. An AssertionError or any other exception is a failure."""
        try:
            result, passed = _line(work()), True
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1].line
            result, passed = _line(f"{type(error).__name__}: {str(error) or where}", 300), False
            self._num_failed += 1
        print(json.dumps({"what": what, "passed": passed, "result": result}), flush=True)

    def end(self) -> None:
        """Exits with 1 when a step failed."""
        sys.exit(1 if self._num_failed else 0)


def _line(result: object, max_chars: int = MAX_RESULT_CHARS) -> str:
    text = " ".join(str(result).split())
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."
