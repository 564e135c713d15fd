"""The tree of commands. Errors become one line and an exit code here, and nowhere else."""

import os
import sys
from collections.abc import Sequence

import click

from agentwrit._version import __version__
from agentwrit.cli import (
    ANSWER_IS_NO,
    INTERRUPTED,
    NOT_ASKED,
    agents,
    apps,
    archive,
    audit,
    broker,
    deliver,
    dev,
    keys,
    operators,
    revocation,
    scopes,
    tokens,
    usage,
)
from agentwrit.cli.audit import NotGenuine
from agentwrit.cli.output import say
from agentwrit.client.secrecy import discreet
from agentwrit.errors import AgentWritError, ProblemResponseError
from agentwrit.standard_streams import tell


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="agentwrit")
def agentwrit() -> None:
    """Identity, task-scoped credentials and a certain end for AI agents."""


agentwrit.add_command(broker.serve)
agentwrit.add_command(broker.init)
agentwrit.add_command(broker.store)
agentwrit.add_command(broker.backup)
agentwrit.add_command(broker.restore)
agentwrit.add_command(apps.app)
agentwrit.add_command(agents.agents)
agentwrit.add_command(agents.delegations)
agentwrit.add_command(revocation.revoke)
agentwrit.add_command(keys.keys)
agentwrit.add_command(operators.operator)
audit.audit.add_command(usage.usage)
agentwrit.add_command(audit.audit)
audit.audit.add_command(archive.archive)
audit.audit.add_command(deliver.deliver)
agentwrit.add_command(tokens.token)
agentwrit.add_command(scopes.scope)
agentwrit.add_command(dev.dev)


@discreet
def run(arguments: Sequence[str]) -> int:
    """Run a command line. Returns its exit code."""
    try:
        code = agentwrit.main(list(arguments), prog_name="agentwrit", standalone_mode=False)
        sys.stdout.flush()  # so that a full disk is still reported as an error
    except click.exceptions.NoArgsIsHelpError as error:
        tell(error.format_message())
        return NOT_ASKED
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "agentwrit"
        return _fail(f"{error.format_message()} (try `{command} --help`)", NOT_ASKED)
    except click.ClickException as error:
        code = ANSWER_IS_NO if isinstance(error, NotGenuine) else NOT_ASKED
        return _fail(error.format_message(), code)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except ProblemResponseError as error:
        return _fail(str(error), ANSWER_IS_NO if error.status_code in (404, 409) else NOT_ASKED)
    except AgentWritError as error:
        return _fail(str(error), NOT_ASKED)
    except (UnicodeEncodeError, RecursionError) as error:
        return _fail(_unfit(error), NOT_ASKED)
    except OSError as error:
        return _system_refused(error)
    return code if isinstance(code, int) else 0


def _unfit(error: UnicodeEncodeError | RecursionError) -> str:
    """A message that does not quote the error's own text, which may contain a secret."""
    if isinstance(error, RecursionError):
        return "what was answered is nested too deeply to be shown: is this a broker?"
    return f"something that was given or is to be shown is not valid {error.encoding} text"


def _fail(line: str, code: int) -> int:
    say(line)
    return code


def _system_refused(error: OSError) -> int:
    # Writing the buffered rest must not fail again, with a traceback, when the interpreter exits.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    if isinstance(error, BrokenPipeError):
        return ANSWER_IS_NO  # the reader of the pipe has closed it
    about = f"{error.filename}: " if error.filename is not None else ""
    return _fail(f"{about}{error.strerror or error}", NOT_ASKED)
