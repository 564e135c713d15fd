"""The README names each extra and its module."""

import importlib
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ROWS = re.findall(r"^\| (`[^|]+`) \| (`(?:integrations|testing)[^|]*`) \|", README, re.MULTILINE)


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_each_extra_is_in_the_readme() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    of_users = set(extras) - {"cli", "broker", "postgres"}
    assert {extra for extras_named, _ in ROWS for extra in named(extras_named)} == of_users


def test_each_module_in_the_readme_is_there() -> None:
    for _, modules in ROWS:
        for module in named(modules):
            assert importlib.import_module(f"agentwrit.{module}").__doc__
