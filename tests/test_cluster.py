"""cluster.yaml is one that Ray's launcher accepts, and a submitted job runs the quickstart recipe."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from datas3_ray.runtime import WORKER_SETTINGS

ROOT = Path(__file__).resolve().parents[1]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_cluster_yaml_starts_ray_as_a_laptop_does(commands: str) -> None:
    start = " ".join(yaml.safe_load((ROOT / "cluster.yaml").read_text())[commands]).split()
    for key, value in WORKER_SETTINGS.items():
        assert f"{key}={value}" in start


def test_the_launcher_accepts_cluster_yaml() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu_worker"]["min_workers"] == 0
    assert any("pip install" in command and "constraints.txt" in command for command in config["setup_commands"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head(tmp_path_factory) -> Iterator[dict[str, str]]:
    """A head with its dashboard and token authentication, ended by process id."""
    folder = tmp_path_factory.mktemp("head")
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    # Ray's socket paths must be short, so this folder is not below pytest's own.
    sockets = tempfile.mkdtemp(prefix="d3head")
    dashboard = free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [*RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", f"--port={free_port()}"]
    command += [
        f"--ray-client-server-port={free_port()}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
    ]
    # The suite's own Ray session holds the default ports of a node's agents.
    for agent in ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export"):
        command.append(f"--{agent}-port={free_port()}")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--temp-dir={sockets}"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 120
        while not answers(dashboard):
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the dashboard did not come up"
            time.sleep(0.5)
        yield {**environment, "RAY_API_SERVER_ADDRESS": address}
    finally:
        # Its own processes only, by id: the head ends what it started, and what is left after that is killed.
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        for left in psutil.wait_procs(children, timeout=10)[1]:
            left.kill()
        process.wait(timeout=30)
        shutil.rmtree(sockets, ignore_errors=True)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ray(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RAY, *words], env=environment, capture_output=True, text=True, timeout=400, cwd=ROOT)


def test_a_submitted_job_runs_the_quickstart_recipe_and_can_be_stopped(head, tmp_path) -> None:
    bare = {key: value for key, value in head.items() if not key.startswith("RAY_AUTH")}
    refused = ray({**bare, "RAY_AUTH_MODE": "disabled"}, "job", "list")
    assert refused.returncode != 0, "the jobs interface answered without a token"

    work = tmp_path / "work"
    work.mkdir()
    command = ["datas3", "run", "pipelines/quickstart.yaml", "--set", f"folder={tmp_path / 'run'}"]
    command += ["--set", "steps.world.synthetic.images=600", "--set", "steps.probe.sweep.set={epochs: 3}"]
    submit = ["job", "submit", "--submission-id", "quickstart", "--working-dir", str(work), "--", *command]
    done = ray(head, *submit)
    deadline = time.monotonic() + 90
    # The dashboard answers some seconds before the node's agent, which runs the jobs, has reported to it.
    while "No available agent" in done.stderr and time.monotonic() < deadline:
        time.sleep(2)
        done = ray(head, *submit)
    logs = ray(head, "job", "logs", "quickstart")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + logs.stdout[-3000:]
    assert "succeeded" in ray(head, "job", "status", "quickstart").stdout
    assert "600 rows" in logs.stdout
    assert "page written" in logs.stdout
    page = next((tmp_path / "run" / "output").glob("*.html")).read_text()
    assert "expert" in page

    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    submitted = ray(head, "job", "submit", "--submission-id", "long", "--no-wait", "--", *sleeper)
    assert submitted.returncode == 0, submitted.stderr[-1000:]
    assert ray(head, "job", "stop", "long").returncode == 0
    assert "stopped" in ray(head, "job", "status", "long").stdout
