"""Flags of `serve --ray` and `args` of Ray Serve's config files become a deployment. Ray is not needed for it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from albireo.cli import serve_parser
from albireo.cluster.options import argv_of, plan_command, plan_config
from albireo.errors import StartupError


def test_flags_of_the_front_stay_with_the_proxies_and_all_others_go_to_each_engine() -> None:
    argv = "/m --ray --port 8123 --host=0.0.0.0 -tp 2 --served-model-name a b --ray-address auto --max-num-seqs 8"
    plan = plan_command(argv.split())
    assert plan.http_options == {"host": "0.0.0.0", "port": 8123, "root_path": ""}
    flags, _ = plan.on("cpu")
    engine = serve_parser().parse_args([*flags, "--uds", "x"])
    assert (engine.model_flag, engine.tensor_parallel_size, engine.max_num_seqs) == ("/m", 2, 8)
    assert engine.served_model_name == ["a", "b"]
    assert not engine.ray
    assert (engine.host, engine.port, engine.ray_address) == ("127.0.0.1", 8000, None)


def test_an_engine_s_gpus_are_one_bundle_which_one_node_has() -> None:
    plan = plan_command(["/m", "--ray", "-tp", "4", "--replicas", "2"])
    flags, options = plan.on("cuda")
    assert options["placement_group_bundles"] == [{"CPU": 8.0, "GPU": 8.0}]
    assert options["placement_group_strategy"] == "STRICT_PACK"
    assert options["ray_actor_options"] == {"num_cpus": 8, "num_gpus": 8}
    assert serve_parser().parse_args(list(flags)).device == "cuda"


def test_an_engine_on_cpus_has_the_cores_that_it_was_placed_by() -> None:
    flags, options = plan_command(["--ray", "-tp", "2"]).on("cpu")
    assert options["placement_group_bundles"] == [{"CPU": 2.0}]
    assert serve_parser().parse_args(list(flags)).cpu_threads == 2
    flags, options = plan_command(["--ray", "--cpu-threads", "6"]).on("cpu")
    assert options["placement_group_bundles"] == [{"CPU": 6.0}]
    assert serve_parser().parse_args(list(flags)).cpu_threads == 6


def test_ray_lets_through_as_many_requests_as_the_engine_takes_so_that_the_engine_says_429() -> None:
    argv = ["--ray", "--max-num-seqs", "16", "--max-num-waiting", "100", "--replicas", "2"]
    assert plan_command(argv).deployment["max_ongoing_requests"] > 2 * 16 + 100


def test_without_a_maximum_the_number_of_replicas_is_fixed() -> None:
    deployment = plan_command(["--ray", "--ray-min-replicas", "3"]).deployment
    assert deployment["num_replicas"] == 3
    assert "autoscaling_config" not in deployment


def test_with_a_maximum_replicas_follow_the_queues() -> None:
    deployment = plan_command(["--ray", "--ray-max-replicas", "4", "--max-num-seqs", "64"]).deployment
    scaling = deployment["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["target_ongoing_requests"]) == (1, 4, 48)
    assert "num_replicas" not in deployment
    argv = "--ray --ray-max-replicas 4 --ray-target-ongoing-requests 5 --ray-upscale-delay 0 --ray-downscale-delay 7"
    scaling = plan_command(argv.split()).deployment["autoscaling_config"]
    assert (scaling["target_ongoing_requests"], scaling["upscale_delay_s"], scaling["downscale_delay_s"]) == (5, 0, 7)


def test_ray_kills_no_replica_before_its_streams_have_had_their_time() -> None:
    plan = plan_command(["--ray", "--shutdown-timeout", "300"])
    assert plan.deployment["graceful_shutdown_timeout_s"] > plan.shutdown_timeout_s == 300


def test_files_are_named_by_their_whole_path_and_the_model_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_command(["models/a", "--ray", "--tokenizer", "t", "--chat-template", "{{x}}", "--env-file", "/etc/e"])
    engine = serve_parser().parse_args(list(plan.engine_flags))
    assert engine.model_flag == str(tmp_path / "models" / "a")
    assert engine.tokenizer == str(tmp_path / "t")
    assert (engine.chat_template, engine.env_file) == ("{{x}}", "/etc/e")
    assert engine.served_model_name == ["models/a"]
    assert plan.model_name == "models/a"


def test_certificates_are_the_proxies() -> None:
    plan = plan_command(["--ray", "--ssl-certfile", "/c.pem", "--ssl-keyfile", "/k.pem"])
    assert (plan.http_options["ssl_certfile"], plan.http_options["ssl_keyfile"]) == ("/c.pem", "/k.pem")
    assert "/c.pem" not in plan.engine_flags


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--ray --uds /x", "--uds"),
        ("--ray --port 0", "--port 0"),
        ("--ray --ray-min-replicas 3 --ray-max-replicas 2", "--ray-max-replicas 2 must be at least"),
        ("--ray --ray-target-ongoing-requests 3", "--ray-target-ongoing-requests is for autoscaling"),
        ("--ray --ray-upscale-delay 3", "--ray-upscale-delay is for autoscaling"),
    ],
)
def test_what_makes_no_sense_on_ray_is_refused_by_its_name(argv: str, words: str) -> None:
    with pytest.raises(StartupError, match=words) as caught:
        plan_command(argv.split())
    assert caught.value.exit_code == 2


def test_arguments_of_a_config_file_are_flags_by_name() -> None:
    arguments: dict[str, Any] = {
        "model": "/m", "tensor-parallel-size": 2, "enforce_eager": True, "enable_prefix_caching": False,
        "served_model_name": ["a", "b"], "api_key": ["k", "-l"], "ray_max_replicas": 3, "disable_web_page": False,
        "kv_cache_bytes": "4G", "swap_space": 0.5,
    }  # fmt: skip
    args = serve_parser().parse_args(argv_of(arguments))
    assert (args.model_flag, args.tensor_parallel_size, args.enforce_eager) == ("/m", 2, True)
    assert (args.enable_prefix_caching, args.disable_web_page) == (False, False)
    assert (args.served_model_name, args.api_key) == (["a", "b"], ["k", "-l"])
    assert (args.kv_cache_bytes, args.swap_space) == (4 * 2**30, 0.5)
    assert plan_config(arguments).max_replicas == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"modell": "/m"}, "'modell' is no flag"),
        ({"modell": False}, "'modell' is no flag"),
        ({"model": "m"}, "'m' must be a whole path"),
        ({"port": 8000}, "port is not an engine's: see http_options"),
        ({"ssl-certfile": "/c"}, "ssl_certfile is not an engine's"),
        ({"ray_address": "auto"}, "ray_address is not an engine's"),
        ({"max_num_seqs": 0}, "--max-num-seqs: 0 is out of range"),
        ({"dtype": "float8"}, "--dtype: invalid choice"),
        ({"uds": "/x"}, "--uds"),
    ],
)
def test_a_config_file_s_mistakes_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(StartupError, match=words):
        plan_config(arguments)


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.modules['ray'] = None; from albireo.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60, check=False)


def test_without_ray_one_line_says_what_to_install() -> None:
    done = run("serve", "--ray")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'albireo[ray]'" in done.stderr


def test_flags_of_ray_need_ray() -> None:
    done = run("serve", "--ray-max-replicas", "2")
    assert done.returncode == 2
    assert done.stderr == "albireo: --ray-max-replicas needs --ray\n"


def test_commands_that_start_a_server_of_their_own_do_not_start_it_on_ray() -> None:
    done = run("bench", "latency", "--", "--ray")
    assert done.returncode == 2
    assert "--ray is for albireo-run serve alone" in done.stderr
