"""Do the queries of vLLM's example dashboards have answers here, with their prefix replaced?

    python tools/dashboard_check.py --seconds 60

starts a server on the bundled demo model (or takes --base-url), a Prometheus that scrapes it every second, and clients
of all kinds for so long; then asks every query of `dashboard_queries` and prints it with its answer. Needs the program
`prometheus` (Debian's package of that name). Exit code 1 when a query has no answer, or none that is a number.
"""

import argparse
import json
import math
import random
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dashboard_queries import Panel, all_panels, filled
from peer_server import PeerServer

SERVE = f"{sys.executable} -m albireo.cli serve --port {{port}} --disable-uvicorn-access-log"
PROMETHEUS = (
    "prometheus --config.file={config} --storage.tsdb.path={folder}/data --web.listen-address=127.0.0.1:{port} "
    "--log.level=error"
)
NUM_CLIENTS = 6
RATE_INTERVAL = "30s"
VARIABLES = ("label_values(model_name)", "label_values(albireo:generation_tokens_total, model_name)",
             "label_values(albireo:request_success_total, model_name)")  # fmt: skip


class Load:
    """Clients that ask for completions of many sizes, one after the other; some leave early."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(NUM_CLIENTS)]

    def run(self, seconds: float) -> None:
        for thread in self._threads:
            thread.start()
        time.sleep(seconds)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        chance = random.Random(number)
        while not self._stop.is_set():
            body = {
                "prompt": "The function returns a list of the items. " * chance.randint(1, 20),
                "max_tokens": chance.randint(1, 80), "n": chance.choice([1, 1, 1, 3]),
                "stop": chance.choice([None, "."]), "stream": True, "seed": chance.randint(0, 99),
            }  # fmt: skip
            request = urllib.request.Request(
                f"{self._base_url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                if chance.random() < 0.9:
                    response.read()
            time.sleep(chance.random() * 0.2)


class Prometheus:
    """A Prometheus that scrapes one server, and its query API."""

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, path: str, **parameters: str) -> Any:  # noqa: ANN401 - as JSON comes
        """`data` of the answer. Raises RuntimeError with Prometheus's words for a query that it refuses."""
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["error"]) from None

    def values(self, query: str) -> list[float]:
        """One per series."""
        return [float(series["value"][1]) for series in self.ask("query", query=query)["result"]]


@contextmanager
def prometheus(base_url: str, folder: Path) -> Iterator[Prometheus]:
    """Started, ready and scraping; stopped at the end."""
    config = folder / "prometheus.yml"
    target = urllib.parse.urlparse(base_url).netloc
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: albireo, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    server = PeerServer("prometheus", PROMETHEUS.format(config=config, folder=folder, port="{port}"), None, "")
    try:
        server.start(folder, "/-/ready", 60)
        yield Prometheus(server.url)
    finally:
        server.stop()


def answer_of(values: list[float]) -> str:
    """`412.5`, or `9 series, 0 to 41` for several."""
    if not values:
        return "no series"
    shown = [f"{value:.4g}" for value in values]
    return shown[0] if len(values) == 1 else f"{len(values)} series, {min(values):.4g} to {max(values):.4g}"


def is_answer(values: list[float]) -> bool:
    return bool(values) and not any(math.isnan(value) for value in values)


def ask_all(server: Prometheus, model: str, range_: str) -> Iterator[tuple[Panel, str, bool]]:
    """Every panel's query, its answer, and whether it is one."""
    for panel in all_panels():
        try:
            values = server.values(filled(panel.query, model, RATE_INTERVAL, range_))
        except RuntimeError as error:
            yield panel, f"refused: {error}", False
            continue
        yield panel, answer_of(values), is_answer(values)


def variables(server: Prometheus) -> Iterator[tuple[str, str, bool]]:
    """The dashboards' drop-down lists, as Grafana asks for them."""
    for variable in VARIABLES:
        metric = variable.removeprefix("label_values(").rstrip(")").rpartition(",")[0]
        match = {"match[]": metric} if metric else {}
        names = server.ask("label/model_name/values", **match)
        yield variable, ", ".join(names), bool(names)


@contextmanager
def served(base_url: str | None, folder: Path) -> Iterator[str]:
    """The server that was named, or one that is started here."""
    if base_url:
        yield base_url
        return
    server = PeerServer("albireo", SERVE, None, "")
    try:
        server.start(folder, "/health", 300)
        yield server.url
    finally:
        server.stop()


def report(server: Prometheus, model: str, seconds: int) -> tuple[list[str], int]:
    """Lines of Markdown, and how many queries have no answer."""
    lines, num_empty = ["| dashboard | panel | query | answer |", "|---|---|---|---|"], 0
    for panel, answer, is_good in ask_all(server, model, f"{seconds}s"):
        num_empty += not is_good
        shown = answer if is_good else f"**{answer}**"
        lines.append(f"| {panel.dashboard} | {panel.title} | `{panel.query}` | {shown} |")
    for variable, answer, is_good in variables(server):
        num_empty += not is_good
        lines.append(f"| variables | | `{variable}` | {answer or '**none**'} |")
    return lines, num_empty


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", help="of a running server, without /v1")
    parser.add_argument("--seconds", type=int, default=60, help="how long the load goes on")
    arguments = parser.parse_args()
    if shutil.which("prometheus") is None:
        parser.error("there is no program `prometheus`: apt-get install prometheus")
    with tempfile.TemporaryDirectory() as name, served(arguments.base_url, Path(name)) as base_url:
        with urllib.request.urlopen(f"{base_url}/v1/models") as response:
            model = json.load(response)["data"][0]["id"]
        with prometheus(base_url, Path(name)) as server:
            load = Load(base_url)
            load.run(arguments.seconds)
            try:
                lines, num_empty = report(server, model, arguments.seconds)
            finally:
                load.stop()
    print("\n".join(lines))
    print(f"\n{len(lines) - 2} queries, {num_empty} without an answer", file=sys.stderr)
    return 1 if num_empty else 0


if __name__ == "__main__":
    sys.exit(main())
