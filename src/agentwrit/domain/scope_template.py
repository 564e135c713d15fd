"""Scope templates: `read:data:customer-{customer_id}`, filled with the arguments of a call or the fields of a request.

The rules:

- Placeholders are allowed only in the identifier. Action and resource are fixed.
- A value consists of characters of a scope other than `:` and `*`. Anything else is refused. A value therefore cannot
  request a scope that the template's author did not intend, and never a wildcard.
- A filled template is a required scope. Whether a token covers it is decided by `agentwrit.domain.scope`.
"""

import re
from collections.abc import Iterable, Mapping
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
            text = str(values[hole[1]])
            if _VALUE.fullmatch(text) is None:
                raise UnfitValue(f"{hole[1]} cannot stand in a scope")
            return text

        filled = _HOLE.sub(value, self.text)
        if len(filled) > scope.MAX_SCOPE_LENGTH:
            raise UnfitValue("the scope would be too long")
        return filled

    def is_within_reach(self, held: Iterable[str]) -> bool:
        """Whether one of the scopes in `held` covers the template for at least some values."""
        action, resource, _ = self.text.split(":", 2)
        everything = f"{action}:{resource}:{scope.WILDCARD}"
        return any(each == everything or self._filled.fullmatch(each) is not None for each in held)

    def __repr__(self) -> str:
        return f"ScopeTemplate({self.text!r})"
