"""The `agentwrit` command."""

import sys
from importlib.util import find_spec

INSTALL_HINT = "the command line needs more than the SDK: pip install 'agentwrit[broker]'"


def main() -> None:
    """Run the command. Exits with 0; 1 where the answer is no; 2 where it could not be asked; 130 on Ctrl-C."""
    if find_spec("click") is None or find_spec("rich") is None:
        print(f"agentwrit: {INSTALL_HINT}", file=sys.stderr)
        sys.exit(2)
    from agentwrit.cli.commands import run

    sys.exit(run(sys.argv[1:]))
