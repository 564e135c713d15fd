"""Scope templates: `read:data:customer-{customer_id}`, filled with the arguments of a call or the fields of a request.

The rules:

- Placeholders are allowed only in the identifier. Action and resource are fixed.
- A value consists of characters of a scope other than `:` and `*`. Anything else is refused. A value therefore cannot
  request a scope that the template's author did not intend, and never a wildcard.
- A member of an enumeration stands for its value.
- A filled template is a required scope. Whether a token covers it is decided by `agentwrit.domain.scope`.
"""

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from itertools import zip_longest
from typing import Final

from agentwrit.domain import scope
from agentwrit.domain.errors import InvalidRequest

_HOLE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_VALUE = re.compile(r"[!#-)+-9;-\[\]-~]+")  # RFC 6749 §3.3, without ":" and "*"

_FILLER: Final = "x"


class UnfitValue(ValueError):
    """A value that is not allowed in a scope."""


class ScopeTemplate:
    """A scope, possibly with placeholders. `holes`: the names of the placeholders."""

    def __init__(self, text: str) -> None:
        """Parse a template.

        Raises:
            ValueError: the filled template would not be a scope, or a placeholder is outside the identifier.
        """
        self.text = text
        self.holes = tuple(_HOLE.findall(text))
        self._filled = re.compile(_VALUE.pattern.join(map(re.escape, _HOLE.sub("\n", text).split("\n"))))
        fixed, _, _ = text.partition("{")
        rest = _HOLE.sub(_FILLER, text)
        try:
            scope.parse(rest)
        except InvalidRequest as error:
            raise ValueError(f"{text!r} is no template of a scope: {error.detail}") from None
        if "{" in rest or "}" in rest or (self.holes and fixed.count(":") < 2):
            raise ValueError(f"{text!r} is no template of a scope: {{name}} may only stand in its identifier")

    def fill(self, values: Mapping[str, object]) -> str:
        """The scope for these values.

        Raises:
            KeyError: a placeholder has no value.
            UnfitValue: a value is not allowed in a scope, or the scope would be too long.
        """

        def value(hole: re.Match[str]) -> str:
            return _in_a_scope(hole[1], values[hole[1]])

        filled = _HOLE.sub(value, self.text)
        if len(filled) > scope.MAX_SCOPE_LENGTH:
            raise UnfitValue("the scope would be too long")
        return filled

    def reach(self, values: Mapping[str, object], held: Iterable[str]) -> list[str]:
        """Those of these scopes that cover what is needed for some value of each hole that has none yet.

        Raises:
            UnfitValue: a value cannot stand in a scope.
        """
        everything = self.everything
        holes = [_in_a_scope(name, values[name]) if name in values else None for name in self.holes]
        known = [_VALUE.pattern if value is None else re.escape(value) for value in holes]
        between = map(re.escape, _HOLE.sub("\n", self.text).split("\n"))
        filled = re.compile("".join(part for pair in zip_longest(between, known, fillvalue="") for part in pair))
        return [each for each in held if each == everything or filled.fullmatch(each) is not None]

    @property
    def everything(self) -> str:
        """What covers each scope that it can be filled to."""
        action, resource, _ = self.text.split(":", 2)
        return f"{action}:{resource}:{scope.WILDCARD}"

    def is_within_reach(self, held: Iterable[str]) -> bool:
        """Whether one of the scopes in `held` covers the template for at least some values."""
        everything = self.everything
        return any(each == everything or self._filled.fullmatch(each) is not None for each in held)

    def __repr__(self) -> str:
        return f"ScopeTemplate({self.text!r})"


def _in_a_scope(name: str, value: object) -> str:
    text = str(value.value if isinstance(value, Enum) else value)
    if _VALUE.fullmatch(text) is None:
        raise UnfitValue(f"{name} cannot stand in a scope")
    return text
