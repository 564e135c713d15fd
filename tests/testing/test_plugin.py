"""The pytest plugin, as it is found in the project of a user."""

import subprocess
import sys
from pathlib import Path

from tests.cli.support import CLEAN

PROJECT = """
import pytest
from agentwrit import ScopeDenied, current_agent, requires, validate

@requires("read:customers:{number}")
def read(number):
    return number

@pytest.fixture
def agentwrit_ceiling():
    return ["read:customers:*"]

@pytest.fixture
def agentwrit_scope():
    return ["read:customers:7"]

def test_the_agent_of_the_test_is_the_current_one(agent):
    assert current_agent() is agent
    assert read(7) == 7
    with pytest.raises(ScopeDenied):
        read(8)

def test_expiry(broker, agent):
    assert validate(broker.url, agent.access_token).valid
    broker.advance(agent.expires_in)
    assert not validate(broker.url, agent.access_token).valid

def test_the_clock_of_the_test_before_is_not_ours(broker, agent):
    assert validate(broker.url, agent.access_token).valid

def test_revocation(broker, agent):
    assert broker.revoke("task", agent.task_id) == 1
    assert not validate(broker.url, agent.access_token).valid

async def use(app):
    async with app.agent_for(task_id="t", scope=["read:customers:1"]) as agent:
        assert (await app.validate(agent.access_token)).valid

def test_on_an_event_loop(async_app):
    import asyncio
    asyncio.run(use(async_app))
"""

IS_LIGHT = """
import sys

def test_nothing_of_it_is_loaded_before_it_is_used():
    assert not {"uvicorn", "starlette", "httpx2", "nacl", "msgspec", "cryptography"} & set(sys.modules)
"""

OURS_COME_FIRST = """
import pytest

@pytest.fixture
def app():
    return "of the project"

def test_the_fixture_of_the_project_is_taken(app):
    assert app == "of the project"
"""


def run(directory: Path, tests: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_project.py").write_text(tests)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:hypothesispytest",
            "-W",
            "error",
            *arguments,
        ],
        cwd=directory,
        env={**CLEAN, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_project_uses_the_fixtures_without_setting_anything_up(tmp_path: Path) -> None:
    done = run(tmp_path, PROJECT)
    assert "5 passed" in done.stdout, done.stdout


def test_the_plugin_loads_nothing_until_it_is_used(tmp_path: Path) -> None:
    # It alone: what others' plugins load is not ours to say.
    done = run(tmp_path, IS_LIGHT, "-p", "agentwrit.pytest_plugin", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert "1 passed" in done.stdout, done.stdout


def test_a_fixture_of_the_projects_own_comes_first(tmp_path: Path) -> None:
    done = run(tmp_path, OURS_COME_FIRST)
    assert "1 passed" in done.stdout, done.stdout
