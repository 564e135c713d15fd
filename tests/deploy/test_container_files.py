"""The container files, checked without an engine; what they run is run."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

from agentwrit._version import __version__
from agentwrit.broker.config import load
from tests.support import BrokerProcess

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
INSTRUCTIONS = [line.split(maxsplit=1) for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]


def values(instruction: str) -> list[str]:
    return [" ".join(rest) for name, *rest in INSTRUCTIONS if name == instruction]


def test_what_is_copied_exists_and_is_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for arguments in values("COPY"):
        if arguments.startswith("--from"):
            continue
        for source in arguments.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source


def test_the_broker_runs_as_nobody_special() -> None:
    [user] = values("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    [account] = [line for line in values("RUN") if "useradd" in line]
    assert f"--uid {user.partition(':')[0]}" in account
    assert "--mode 0700" in account


def test_the_broker_is_the_containers_process_and_hears_its_stop_signal() -> None:
    # In the exec form: a shell in between would keep SIGTERM to itself.
    assert values("ENTRYPOINT") == ['["agentwrit"]']
    assert values("CMD") == ['["serve"]']
    assert values("STOPSIGNAL") == ["SIGTERM"]


def test_no_registry_is_named() -> None:
    for image in values("FROM"):
        assert re.fullmatch(r"[a-z]+:[0-9.]+-slim( AS build)?", image)
    for name in ("Dockerfile", "compose.yaml"):
        assert "://" not in re.sub("AGENTWRIT_PUBLIC_URL: .*", "", (ROOT / name).read_text())
        assert "--index" not in (ROOT / name).read_text()
    services = yaml.safe_load((ROOT / "compose.cluster.yaml").read_text())["services"].values()
    assert all(re.fullmatch(r"[a-z]+:[0-9.]+", service["image"]) for service in services)


def test_dependencies_are_installed_by_hash() -> None:
    installs = [line for line in values("RUN") if "pip install" in line]
    assert any("--require-hashes" in line and "requirements/broker.txt" in line for line in installs)
    assert all("--no-deps" in line for line in installs)  # a lock leaves nothing to resolve


def test_lock_files_hold_hashes_and_no_hosts() -> None:
    for lock in (ROOT / "requirements").glob("*.txt"):
        text = lock.read_text()
        assert "://" not in text, lock
        for requirement in re.split(r"\n(?=\S)", text.strip()):
            assert re.match(r"[a-z0-9-]+==\S+", requirement), requirement
            assert "--hash=sha256:" in requirement, requirement


def test_the_health_check_knows_well_from_unwell(tmp_path: Path) -> None:
    [check] = values("HEALTHCHECK")
    command = re.search(r'CMD \["python", "(.*)"\]', check)
    assert command is not None
    arguments = command[1].split('", "')
    with BrokerProcess(tmp_path / "data") as broker:
        settings = {"AGENTWRIT_HOST": "0.0.0.0", "AGENTWRIT_PORT": broker.url.rpartition(":")[2]}
        assert subprocess.run([sys.executable, *arguments], env=settings, timeout=30).returncode == 0
        broker.stop()
        assert subprocess.run([sys.executable, *arguments], env=settings, timeout=30).returncode == 1


def test_the_compose_file_is_closed_by_default() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    broker = compose["services"]["broker"]
    assert broker["image"] == f"agentwrit:{__version__}"
    assert broker["ports"] == ["127.0.0.1:8080:8080"]
    assert broker["read_only"] is True
    assert broker["cap_drop"] == ["ALL"]
    assert broker["security_opt"] == ["no-new-privileges:true"]
    assert broker["environment"]["AGENTWRIT_ADMIN_SECRET"].startswith("${AGENTWRIT_ADMIN_SECRET:?")
    urls = broker["environment"]["AGENTWRIT_PUBLIC_URL"].removeprefix("${AGENTWRIT_PUBLIC_URL:-").removesuffix("}")
    assert load({"AGENTWRIT_PUBLIC_URL": urls}).told_url == "http://127.0.0.1:8080"  # as the port is published
    assert broker["volumes"] == ["data:/data"]
    assert "data" in compose["volumes"]
    assert values("VOLUME") == ["/data"]
