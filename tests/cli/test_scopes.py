"""`agentwrit scope check`, and the completion of commands."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.cli.scopes import _reason
from agentwrit.domain.scope import parse, scope_is_subset
from tests.cli.support import one_line, run

PARTS = st.sampled_from(["read", "write", "7", "*"])
SCOPES = st.tuples(st.sampled_from(["read", "write"]), st.sampled_from(["data", "queue"]), PARTS).map(":".join)


def test_what_is_covered_is_said_to_be() -> None:
    done = run("scope", "check", "read:data:7", "read:data:8", "--against", "read:data:*")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["read:data:7", "covered", "read:data:8", "covered"]


@pytest.mark.parametrize(
    ("requested", "why"),
    [
        ("read:data:8", "8 is not 7 or 9"),
        ("read:data:*", "everything is more than 7 or 9"),
        ("read:queue:7", "read is for data, not queue"),
        ("pay:data:7", "nothing allows pay"),
    ],
)
def test_what_is_not_covered_is_explained(requested: str, why: str) -> None:
    done = run("scope", "check", requested, "--against", "read:data:7", "--against", "read:data:9")
    assert (done.returncode, done.stderr) == (1, "")
    assert f"not covered: {why}" in done.stdout


def test_scripts_get_json() -> None:
    done = run("scope", "check", "read:data:7", "pay:data:7", "--against", "read:data:*", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "covered": False,
        "scopes": {"read:data:7": None, "pay:data:7": "not covered: nothing allows pay"},
    }


def test_what_is_no_scope_is_not_asked_about() -> None:
    one_line(run("scope", "check", "read", "--against", "read:data:*"), 2, "'read'", "action:resource:identifier")
    one_line(run("scope", "check", "read:data:7", "--against", "*"), 2, "'*'")
    one_line(run("scope", "check", "read:data:7"), 2, "--against")


@given(requested=SCOPES, held=st.lists(SCOPES, min_size=1, max_size=3))
def test_it_says_no_exactly_where_the_broker_does(requested: str, held: list[str]) -> None:
    is_covered = _reason(parse(requested), [parse(each) for each in held]) is None
    assert is_covered == scope_is_subset([requested], held)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_the_commands(shell: str) -> None:
    script = run(_AGENTWRIT_COMPLETE=f"{shell}_source")
    assert (script.returncode, script.stderr) == (0, "")
    assert "_AGENTWRIT_COMPLETE" in script.stdout


def test_completion_knows_commands_and_options() -> None:
    done = run(_AGENTWRIT_COMPLETE="bash_complete", COMP_WORDS="agentwrit sc", COMP_CWORD="1")
    assert done.stdout.split() == ["plain,scope"]
    done = run(_AGENTWRIT_COMPLETE="bash_complete", COMP_WORDS="agentwrit scope check --ag", COMP_CWORD="3")
    assert done.stdout.split() == ["plain,--against"]
