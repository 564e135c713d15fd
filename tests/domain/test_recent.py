"""What is remembered by keys of others' making."""

from agentwrit.recent import LONGEST_KEY, SHORT_KEY, Recent


def test_the_oldest_make_room_for_the_newest() -> None:
    recent: Recent[str, int] = Recent(32)
    for number in range(100):
        recent.put(f"key-{number}", number)
    assert len(recent) == 32
    assert recent.get("key-67") is None
    assert recent.get("key-68") == 68


def test_long_keys_have_fewer_places_and_take_none_from_the_others() -> None:
    recent: Recent[str, int] = Recent(32)
    recent.put("short", 1)
    for number in range(100):
        recent.put(f"{number:03}" + "x" * SHORT_KEY, number)
    assert len(recent) == 1 + 2
    assert recent.get("short") == 1


def test_longer_keys_are_not_remembered_at_all() -> None:
    recent: Recent[bytes, int] = Recent(32)
    recent.put(b"x" * LONGEST_KEY, 1)
    recent.put(b"y" * (LONGEST_KEY + 1), 2)
    assert recent.get(b"x" * LONGEST_KEY) == 1
    assert recent.get(b"y" * (LONGEST_KEY + 1)) is None
    assert len(recent) == 1


def test_what_is_dropped_is_forgotten() -> None:
    recent: Recent[str, int] = Recent(32)
    for key in ("x", "x" * 5000):
        recent.put(key, 1)
        recent.drop(key)
        recent.drop(key)
        assert recent.get(key) is None
