"""Schema versions, one SQL script each, applied in order and never edited once released.

A script beside one, `….back.sql`, undoes it: where nothing of a version is lost on programs of the one before.
"""

from importlib.resources import files
from typing import Final, NamedTuple

_WAY_BACK: Final = ".back.sql"


class Migration(NamedTuple):
    """One step of a schema: the version that it leads to, its script, and the one that undoes it if there is a way."""

    version: int
    script: str
    way_back: str | None = None


def load(engine: str) -> list[Migration]:
    """All steps for `engine` (the name of a directory here), oldest first."""
    directory = files(__name__).joinpath(engine)
    texts = {entry.name: entry.read_text(encoding="utf-8") for entry in directory.iterdir() if entry.is_file()}
    steps = [
        Migration(int(name.partition("_")[0]), text, texts.get(name.removesuffix(".sql") + _WAY_BACK))
        for name, text in texts.items()
        if name.endswith(".sql") and not name.endswith(_WAY_BACK)
    ]
    return sorted(steps, key=lambda step: step.version)
