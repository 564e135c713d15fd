"""The names of grants and tokens."""

import re

from agentwrit.broker.services.issuing import new_name
from tests.domain.records import NOW


def test_what_is_made_in_a_later_second_has_a_higher_name() -> None:
    assert max(new_name(NOW) for _ in range(100)) < min(new_name(NOW + 1) for _ in range(100))


def test_128_bits_of_every_name_are_random() -> None:
    names = [new_name(NOW) for _ in range(2000)]
    assert all(re.fullmatch(r"[0-9a-f]{40}", name) for name in names)
    drawn = [int(name[-32:], 16) for name in names]
    ones = [sum(number >> bit & 1 for number in drawn) for bit in range(128)]
    assert all(700 < count < 1300 for count in ones)  # each bit falls both ways: 13 standard deviations around 1000
    assert len(set(drawn)) == len(drawn)
