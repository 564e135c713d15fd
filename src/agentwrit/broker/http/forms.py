"""Bodies that are forms (application/x-www-form-urlencoded, RFC 6749 Appendix B), read strictly."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final
from urllib.parse import parse_qsl

from agentwrit.domain.errors import InvalidRequest

MEDIA_TYPE: Final = "application/x-www-form-urlencoded"
MAX_FIELDS: Final = 64
MAX_ESCAPES: Final = 2048  # each takes a quarter of a microsecond to undo

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class Form:
    """The fields of a form. One without a value counts as left out (RFC 6749 §3.1)."""

    def __init__(self, fields: Mapping[str, Sequence[str]]) -> None:
        self._fields = fields

    def get(self, name: str) -> str | None:
        """A field, if it is there."""
        values = self._fields.get(name)
        return values[0] if values else None

    def required(self, name: str) -> str:
        """A field.

        Raises:
            InvalidRequest: it is not there. Names it.
        """
        value = self.get(name)
        if value is None:
            raise InvalidRequest(f"{name} is required and must not be empty")
        return value

    def all(self, name: str) -> Sequence[str]:
        """A field that may be repeated."""
        return self._fields.get(name, ())


def decode(content_type: str, body: bytes, *, repeatable: Collection[str] = ()) -> Form:
    """Read a form.

    Raises:
        InvalidRequest: it is none, or a field is there more than once that is not `repeatable` (RFC 6749 §3.2).
    """
    if content_type.partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise InvalidRequest(f"the body is not {MEDIA_TYPE}")
    fields: dict[str, list[str]] = {}
    for name, value in _pairs(body):
        if name in fields and name not in repeatable:
            raise InvalidRequest("the body has a field more than once")
        fields.setdefault(name, []).append(value)
    return Form({name: [value for value in values if value] for name, values in fields.items()})


def query(text: bytes) -> list[tuple[str, str]]:
    """The parameters of a query (https://url.spec.whatwg.org, §5.1), whatever they are.

    Raises:
        InvalidRequest: they are too many.
    """
    try:
        return parse_qsl(text.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise InvalidRequest(f"a query has at most {MAX_FIELDS} parameters") from None


def _pairs(body: bytes) -> list[tuple[str, str]]:
    if not body:
        return []
    if body.count(b"%") > MAX_ESCAPES:
        raise InvalidRequest(f"a form has at most {MAX_ESCAPES} characters that are escaped")
    try:
        text = body.decode("ascii")
        if _BAD_ESCAPE.search(text) is not None:
            raise InvalidRequest("the body has a % that escapes nothing")
        return parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError:  # of which UnicodeDecodeError is one
        raise InvalidRequest("the body is not a form of UTF-8 text") from None
