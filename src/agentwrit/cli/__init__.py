"""The `agentwrit` command."""

import sys
from importlib.util import find_spec
from typing import Final

from agentwrit.standard_streams import complete, tell

INSTALL_HINT: Final = "the command line needs more than the SDK: pip install 'agentwrit[broker]'"

ANSWER_IS_NO: Final = 1
NOT_ASKED: Final = 2
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells say it


def main() -> None:
    """Run the command. Exits with 0; 1 where the answer is no; 2 where it could not be asked; 130 on Ctrl-C."""
    complete()
    try:
        if find_spec("click") is None or find_spec("rich") is None:
            tell(f"agentwrit: {INSTALL_HINT}")
            sys.exit(NOT_ASKED)
        from agentwrit.cli.commands import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while modules are loaded: what comes after that is caught where it runs
        code = INTERRUPTED
    sys.exit(code)
