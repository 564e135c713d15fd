"""docs/deployment.md says what the files say."""

import re
import subprocess
from pathlib import Path

import yaml

from agentwrit.broker.config import load, unknown_variables
from tests.pages import blocks

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/deployment.md").read_text()


def test_the_secrets_file_is_one_that_a_broker_reads(tmp_path: Path) -> None:
    [content] = blocks(PAGE, "toml")
    file = tmp_path / "agentwrit.toml"
    file.write_text(content)
    config = load({}, file)
    assert config.admin_secret
    assert config.master_key
    assert config.database_url


def test_its_commands_are_bash_and_name_files_that_are_there() -> None:
    for script in blocks(PAGE, "sh"):
        done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        for named in re.findall(r"(?:deploy/|compose\.)[\w./]+", script):
            assert (ROOT / named).exists(), named


def test_its_settings_are_settings() -> None:
    assert unknown_variables(dict.fromkeys(re.findall(r"AGENTWRIT_[A-Z_]+", PAGE), "")) == []


def test_the_times_to_drain_are_those_of_the_files() -> None:
    compose = yaml.safe_load((ROOT / "compose.cluster.yaml").read_text())
    settings = yaml.safe_load((ROOT / "deploy/kubernetes/settings.yaml").read_text())["data"]
    drains = (
        compose["services"]["broker-1"]["environment"]["AGENTWRIT_DRAIN_SECONDS"],
        settings["AGENTWRIT_DRAIN_SECONDS"],
    )
    assert re.search(r"and (\d+) in\s+compose.cluster.yaml", PAGE)
    assert re.findall(r"and (\d+) (?:in\s+compose|there)", PAGE) == list(drains)
