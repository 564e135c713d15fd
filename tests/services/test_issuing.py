"""The names of grants and tokens."""

import re

from agentwrit.broker.services.issuing import new_jti, new_sid
from tests.domain.records import NOW


def test_the_grants_of_a_later_second_have_higher_names() -> None:
    assert max(new_sid(NOW) for _ in range(100)) < min(new_sid(NOW + 1) for _ in range(100))


def test_128_bits_of_every_name_are_random() -> None:
    sids, jtis = [new_sid(NOW) for _ in range(1000)], [new_jti() for _ in range(1000)]
    assert all(re.fullmatch(r"[0-9a-f]{40}", sid) for sid in sids)
    assert all(re.fullmatch(r"[0-9a-f]{32}", jti) for jti in jtis)
    drawn = [int(name[-32:], 16) for name in sids + jtis]
    ones = [sum(number >> bit & 1 for number in drawn) for bit in range(128)]
    assert all(700 < count < 1300 for count in ones)  # each bit falls both ways: 13 standard deviations around 1000
    assert len(set(drawn)) == len(drawn)
