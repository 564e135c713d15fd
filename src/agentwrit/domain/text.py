"""Text from outside: names, reasons, requested resources.

The rules:

- A character is printable if it is visible or is the space (U+0020). Control and format characters, other spaces, line
  and paragraph separators, surrogates and unassigned code points are not printable: they can control a terminal,
  reverse a line, or end a line for some readers.
- A name that a caller chooses (an agent's name, an audience, a reason) must be printable, or is refused.
- A statement about others (a resource requested at a resource server, a delegate that does not exist) is not refused,
  because an attacker could then leave no trace. It is stored with each non-printable character escaped as in Python
  (`\\x1b`, `\\u2028`).
- Text is also escaped when it is displayed, whatever its source: a store may be older than these rules.

The rules are applied where text enters, and are defined only in this module.
"""

import json
from typing import Final

from agentwrit.domain.errors import InvalidRequest

CUT: Final = "…"


def check(value: str, longest: int, *, field: str, shortest: int = 1) -> str:
    """Return `value` if it is printable and has `shortest` to `longest` characters.

    Raises:
        InvalidRequest: it is not. The error names `field`.
    """
    if not shortest <= len(value) <= longest or not value.isprintable():
        length = f"{shortest} to {longest}" if shortest else f"up to {longest}"
        raise InvalidRequest(f"{field} takes {length} printable characters")
    return value


def escaped(value: str, longest: int | None = None) -> str:
    """`value` on one line, non-printable characters escaped, cut to `longest` characters with an ellipsis."""
    if value.isprintable() and (longest is None or len(value) <= longest):
        return value
    shown = "".join(map(_escape, value if longest is None else value[:longest]))
    if longest is None or (len(value) <= longest and len(shown) <= longest):
        return shown
    return shown[: longest - len(CUT)] + CUT


def to_json(value: object, *, indent: int | None = None, separators: tuple[str, str] | None = None) -> str:
    """Encode JSON with non-printable characters as JSON escapes, which parse to the same value.

    Without `indent` the result is one line for every reader.
    """
    written = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
    return written if written.isprintable() else "".join(map(_escape_in_json, written))


def _escape(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")


def _escape_in_json(char: str) -> str:
    if char.isprintable() or char == "\n":  # a line feed from indentation: inside strings it is escaped already
        return char
    code = ord(char)
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)  # RFC 8259 §7
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
