"""Reading the documentation: what a page shows, and whether it is what happens."""

import re
from collections.abc import Sequence


def blocks(page: str, language: str = "") -> list[str]:
    """The fenced blocks in a language, in order; without one, those that name none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [block for named, block in fenced if named == language]


def looks_like(line: str, pattern: str) -> bool:
    """Whether a line is as shown: `…` stands for anything, and the width of columns does not matter."""
    parts = [re.escape(part) for part in re.sub(r"\s+", " ", pattern).strip().split("…")]
    return re.fullmatch(".*".join(parts), re.sub(r"\s+", " ", line).strip()) is not None


def check_printed(printed: Sequence[str], shown: Sequence[str], what: str) -> None:
    """Fail unless the printed lines are those that are shown; says `what` printed them."""
    assert len(printed) == len(shown), (what, printed)
    for line, pattern in zip(printed, shown, strict=True):
        assert looks_like(line, pattern), (line, pattern)
