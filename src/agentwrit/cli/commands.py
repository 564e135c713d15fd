"""The tree of commands, and the one place where errors become a line and an exit code."""

import sys
from collections.abc import Sequence

import click

from agentwrit._version import __version__
from agentwrit.cli import apps, broker, dev, tokens
from agentwrit.errors import AgentWritError, ProblemResponseError

ANSWER_IS_NO = 1
NOT_ASKED = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells say it


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="agentwrit")
def agentwrit() -> None:
    """Identity, task-scoped credentials and a certain end for AI agents."""


agentwrit.add_command(broker.serve)
agentwrit.add_command(broker.init)
agentwrit.add_command(apps.app)
agentwrit.add_command(tokens.token)
agentwrit.add_command(dev.dev)


def run(arguments: Sequence[str]) -> int:
    """Run a command line. Returns its exit code."""
    try:
        code = agentwrit.main(list(arguments), prog_name="agentwrit", standalone_mode=False)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "agentwrit"
        return _say(f"{error.format_message()} (try `{command} --help`)", NOT_ASKED)
    except click.ClickException as error:
        return _say(error.format_message(), NOT_ASKED)
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted", INTERRUPTED)
    except ProblemResponseError as error:
        return _say(str(error), ANSWER_IS_NO if error.status_code in (404, 409) else NOT_ASKED)
    except AgentWritError as error:
        return _say(str(error), NOT_ASKED)
    return code if isinstance(code, int) else 0


def _say(line: str, code: int) -> int:
    print(f"agentwrit: {line}", file=sys.stderr)
    return code
