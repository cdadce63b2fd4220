"""A chat without a terminal: what comes on stdin is the question, the answer goes to stdout as it is."""

import os
import sys
from collections.abc import Mapping

from albireo.chat.client import ChatClient, ChatError


def answer_piped(client: ChatClient, system: str | None, fields: Mapping[str, object]) -> int:
    """Exit code 0 for a whole answer, 1 for an error of the server's, told in one line on stderr."""
    question = sys.stdin.read().strip()
    if not question:
        return 0
    messages = [{"role": "system", "content": system}] if system else []
    ends_line = True
    try:
        for piece in client.stream([*messages, {"role": "user", "content": question}], fields):
            if piece.text:
                sys.stdout.write(piece.text)
                sys.stdout.flush()
                ends_line = piece.text.endswith("\n")
        if not ends_line:
            print(flush=True)
    except ChatError as error:
        if not ends_line:
            print(flush=True)
        print(f"albireo-run chat: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has read enough; Python must not flush into it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
