"""The `agentwrit` command."""

import sys
from importlib.util import find_spec
from typing import Final

from agentwrit.standard_streams import complete, tell

INSTALL_HINT: Final = "the command line needs more than the SDK: pip install 'agentwrit[broker]'"

ANSWER_IS_NO: Final = 1
NOT_ASKED: Final = 2
INTERRUPTED: Final = 130  # 128 + SIGINT, as in shells


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 a negative answer, 2 no answer was obtained, 130 Ctrl-C."""
    complete()
    try:
        if find_spec("click") is None or find_spec("rich") is None:
            tell(f"agentwrit: {INSTALL_HINT}")
            sys.exit(NOT_ASKED)
        from agentwrit.cli.commands import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # during imports; `run` catches later ones
        code = INTERRUPTED
    sys.exit(code)
