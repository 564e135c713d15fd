"""Texts that others chose: names, reasons, what was asked for elsewhere.

The rules:

- A character is printable if it shows, or is the space (U+0020): no control or format character, no other space, no
  line or paragraph separator, no surrogate, and nothing that Unicode has not assigned. All others can steer a terminal,
  turn a line around, or end it for some reader.
- What somebody may call a thing (an agent's name, an audience, a reason) is printable, or is refused.
- What somebody says of others (what was asked for at a resource server, a delegate that there is not) is not refused,
  because then whoever made them say it would leave no trace: it is kept with each such character escaped, as Python
  writes it (`\\x1b`, `\\u2028`).
- Whatever is shown is escaped likewise, wherever it comes from: a store may be older than these rules.

They are applied where texts come in, and this module is the only one that knows them.
"""

import json
from typing import Final

from agentwrit.domain.errors import InvalidRequest

CUT: Final = "…"


def check(value: str, longest: int, *, field: str, shortest: int = 1) -> str:
    """`value`, if it is printable and of a length from `shortest` to `longest`.

    Raises:
        InvalidRequest: it is not. Names `field`.
    """
    if not shortest <= len(value) <= longest or not value.isprintable():
        length = f"{shortest} to {longest}" if shortest else f"up to {longest}"
        raise InvalidRequest(f"{field} takes {length} printable characters")
    return value


def escaped(value: str, longest: int | None = None) -> str:
    """`value` on one line, with what is not printable escaped; beyond `longest` characters it is cut, and says so."""
    if value.isprintable() and (longest is None or len(value) <= longest):
        return value
    shown = "".join(map(_escape, value if longest is None else value[:longest]))
    if longest is None or (len(value) <= longest and len(shown) <= longest):
        return shown
    return shown[: longest - len(CUT)] + CUT


def to_json(value: object, *, indent: int | None = None, separators: tuple[str, str] | None = None) -> str:
    """A JSON value in which what is not printable is escaped in JSON's own way, so that it is the same to a parser.

    Without `indent` it is one line, to every reader.
    """
    written = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
    return written if written.isprintable() else "".join(map(_escape_in_json, written))


def _escape(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")


def _escape_in_json(char: str) -> str:
    if char.isprintable() or char == "\n":  # in a string it is escaped already: this is one of the indented form's
        return char
    code = ord(char)
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)  # RFC 8259 §7
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
