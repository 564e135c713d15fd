"""Scopes with holes: `read:data:customer-{customer_id}`, filled from what a call or a request is about.

The rules:

- A hole stands in the identifier. Action and resource are fixed.
- What fills a hole is data: characters of a scope, and neither `:` nor `*`. Anything else fills none. So no value can
  ask for another scope than the template's author meant, and least of all for everything.
- What is filled is a scope that is needed. Whether somebody holds it is another question (`agentwrit.domain.scope`).
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
    """A value that cannot stand in a scope."""


class ScopeTemplate:
    """One scope, perhaps with holes. `holes`: their names."""

    def __init__(self, text: str) -> None:
        """Read a template.

        Raises:
            ValueError: filled, it would be no scope; or it has a hole elsewhere than in the identifier.
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
            KeyError: there is no value for a hole.
            UnfitValue: a value cannot stand in a scope.
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
        """Whether there are values for which one of these scopes covers what is needed."""
        action, resource, _ = self.text.split(":", 2)
        everything = f"{action}:{resource}:{scope.WILDCARD}"
        return any(each == everything or self._filled.fullmatch(each) is not None for each in held)

    def __repr__(self) -> str:
        return f"ScopeTemplate({self.text!r})"
