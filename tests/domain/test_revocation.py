"""The revocation index, against a model that keeps everything and asks everything."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain.grant import GrantKind
from agentwrit.domain.revocation import Revocation, RevocationIndex, RevocationKind, RevocationLevel
from agentwrit.domain.revocation import names as is_named
from tests.domain.records import NOW, make_claims, make_grant, make_hop

kinds = st.sampled_from(RevocationKind)
names = st.sampled_from(["a", "b", "c"])
moments = st.integers(0, 40)
entries = st.builds(
    lambda kind, name, at, length: Revocation(kind=kind, id=name, effective_at=NOW + at, last_exp=NOW + at + length),
    kinds,
    st.one_of(names, st.just("")),
    moments,
    st.integers(1, 30),
)
steps = st.lists(st.one_of(st.lists(entries, max_size=3), moments), max_size=20)


@given(steps)
def test_the_index_answers_as_a_list_of_all_entries_would(history: list[list[Revocation] | int]) -> None:
    index, model, now = RevocationIndex(), list[Revocation](), NOW
    for step in history:
        if isinstance(step, list):
            index.add(step)
            model += [entry for entry in step if entry.id]
        else:
            now = max(now, NOW + step)
            index.forget(now)
        for kind in RevocationKind:
            for name in ("a", "b", "c", ""):
                mine = [entry for entry in model if (entry.kind, entry.id) == (kind, name)]
                # What the index forgot, no unexpired token can meet: of that it may say either.
                if not mine or max(entry.last_exp for entry in mine) > now:
                    expected = any(entry.effective_at <= now for entry in mine)
                    assert index.is_revoked(kind, name, now) == expected
        while index.forget(now, limit=1):
            pass
        # A name whose last token is over is nobody's any more: a later entry for it begins anew.
        model = [entry for entry in model if _last_exp(model, entry) > now]
        assert len(index) == len({(entry.kind, entry.id) for entry in model if _last_exp(model, entry) > now})


def test_a_token_dies_with_its_jti_its_grant_its_key_and_every_ancestors_grant() -> None:
    claims = make_claims(jti="jti-1", sid="sid-1", delegation_chain=(make_hop("root"), make_hop("middle")))
    deaths = [("jti", "jti-1"), ("sid", "sid-1"), ("kid", "kid-1"), ("sid", "root"), ("sid", "middle")]
    for kind, name in deaths:
        index = RevocationIndex()
        assert not index.is_dead("kid-1", claims, NOW)
        index.add([Revocation(kind=RevocationKind(kind), id=name, effective_at=NOW, last_exp=NOW + 300)])
        assert index.is_dead("kid-1", claims, NOW)
        assert index.is_grant_dead("kid-1", claims, NOW) == (kind != "jti")


def test_what_was_delegated_to_an_agent_dies_with_its_name_and_its_own_grant_does_not() -> None:
    index = RevocationIndex()
    own, delegated = make_claims(), make_claims(delegation_chain=(make_hop("root"),))
    index.add([Revocation(kind=RevocationKind.SUBJECT, id=own.sub, effective_at=NOW, last_exp=NOW + 300)])
    assert index.is_dead("kid-1", delegated, NOW)
    assert index.is_grant_dead("kid-1", delegated, NOW)
    assert not index.is_dead("kid-1", own, NOW)


def test_a_name_of_one_kind_is_none_of_another() -> None:
    claims = make_claims(jti="x", sid="y")
    index = RevocationIndex()
    index.add(
        Revocation(kind=kind, id=name, effective_at=0, last_exp=NOW + 300)
        for kind, name in [
            (RevocationKind.TOKEN, "y"),
            (RevocationKind.TOKEN, "k"),
            (RevocationKind.GRANT, "x"),
            (RevocationKind.GRANT, "k"),
            (RevocationKind.KEY, "x"),
            (RevocationKind.KEY, "y"),
        ]
    )
    assert not index.is_dead("k", claims, NOW)


def test_an_entry_that_takes_effect_later_is_not_yet_an_end() -> None:
    index = RevocationIndex()
    index.add([Revocation(kind=RevocationKind.GRANT, id="sid-1", effective_at=NOW + 60, last_exp=NOW + 300)])
    assert not index.is_dead("kid-1", make_claims(), NOW + 59.9)
    assert index.is_dead("kid-1", make_claims(), NOW + 60)


def test_the_empty_string_revokes_nothing() -> None:
    index = RevocationIndex()
    index.add(Revocation(kind=kind, id="", effective_at=0, last_exp=NOW + 300) for kind in RevocationKind)
    assert len(index) == 0
    assert not index.is_dead("", make_claims(jti="", sid="", delegation_chain=(make_hop(""),)), NOW)


def test_an_index_that_was_filled_and_outlived_is_empty() -> None:
    index = RevocationIndex()
    for number in range(1000):
        index.add([Revocation(kind=RevocationKind.GRANT, id=str(number % 100), effective_at=0, last_exp=number)])
    assert len(index) == 100
    index.forget(999)
    assert len(index) == 0


def test_whoever_says_the_same_again_and_again_makes_an_index_hold_no_more() -> None:
    index = RevocationIndex()
    entries = [
        Revocation(kind=RevocationKind.GRANT, id=f"sid-{number}", effective_at=1, last_exp=100) for number in range(10)
    ]
    for _ in range(50):
        index.add(entries)
    assert sum(map(len, index._by_last_exp.values())) == len(entries)
    index.forget(100)
    assert len(index) == 0


def test_an_index_that_has_been_large_gives_the_room_back() -> None:
    index = RevocationIndex()
    for number in range(50_000):
        last_exp = 10 if number else 20
        index.add([Revocation(kind=RevocationKind.GRANT, id=str(number), effective_at=0, last_exp=last_exp)])
    full = sys.getsizeof(index._entries[RevocationKind.GRANT])
    index.forget(10)
    assert index.is_revoked(RevocationKind.GRANT, "0", 10)
    assert sys.getsizeof(index._entries[RevocationKind.GRANT]) < full / 100


def _last_exp(model: list[Revocation], of: Revocation) -> int:
    """When the last of the entries for the same thing is over, those added before its end counted."""
    return max(entry.last_exp for entry in model if (entry.kind, entry.id) == (of.kind, of.id))


def test_a_token_dies_with_a_key_that_signed_a_hop_of_its_chain() -> None:
    claims = make_claims(delegation_chain=(make_hop("root"),))  # its record is by kid-1
    index = RevocationIndex()
    index.add([Revocation(kind=RevocationKind.KEY, id="kid-1", effective_at=NOW, last_exp=NOW + 300)])
    assert index.is_dead("kid-2", claims, NOW)
    assert not index.is_dead("kid-2", make_claims(), NOW)


def test_what_each_level_names() -> None:
    registration = make_grant(sid="s", jti="j", subject="a", task_id="t", app_id="p")
    delegated = make_grant(sid="d", jti="k", subject="a", task_id="u", app_id="p", chain=(make_hop("z"),))
    login = make_grant(kind=GrantKind.APP, sid="l", jti="m", subject="app:p", task_id="", app_id="p")
    meant = {
        ("token", "j"): {"s"},
        ("agent", "a"): {"s", "d"},
        ("agent", "app:p"): set(),
        ("task", "t"): {"s"},
        ("task", "u"): {"d"},
        ("task", ""): set(),
        ("chain", "a"): {"s"},
        ("grant", "d"): {"d"},
        ("app", "p"): {"s", "d", "l"},
        ("app", "P"): set(),
    }
    for (level, target), sids in meant.items():
        found = {
            grant.sid for grant in (registration, delegated, login) if is_named(RevocationLevel(level), target, grant)
        }
        assert found == sids, (level, target)
