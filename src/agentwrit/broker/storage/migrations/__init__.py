"""Schema versions, one SQL script each, applied in order and never edited once released."""

from importlib.resources import files
from typing import NamedTuple


class Migration(NamedTuple):
    """One step of a schema: the version that it leads to, and its script."""

    version: int
    script: str


def load(engine: str) -> list[Migration]:
    """All steps for `engine` (the name of a directory here), oldest first."""
    scripts = [entry for entry in files(__name__).joinpath(engine).iterdir() if entry.name.endswith(".sql")]
    steps = [Migration(int(entry.name.partition("_")[0]), entry.read_text(encoding="utf-8")) for entry in scripts]
    return sorted(steps)
