"""Pyright (basedpyright), strict, accepts a user's program. Mypy reads the same program, strict, with the project."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent / "user_program.py"


def test_pyright_accepts_a_users_program_and_sees_the_mistakes_in_it(tmp_path: Path) -> None:
    program = tmp_path / PROGRAM.name
    program.write_text(PROGRAM.read_text())
    settings = {
        "typeCheckingMode": "strict",
        "enableTypeIgnoreComments": True,
        "reportUnnecessaryTypeIgnoreComment": "error",
        "include": [program.name],
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [str(Path(sys.executable).parent / "basedpyright"), "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
