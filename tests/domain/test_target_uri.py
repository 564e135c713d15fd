"""URLs of requests: which are the same, which are not, and whose they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain import target_uri
from agentwrit.domain.target_uri import KnownNames, has_dot_segments, normal_path, normalized, spellings, within

SAME = [
    ("https://o.test/x", "https://o.test:443/x"),
    ("https://o.test/x", "https://o.test:0443/x"),
    ("https://o.test/x", "https://o.test:/x"),
    ("http://o.test/x", "HTTP://O.Test:80/x"),
    ("wss://o.test/x", "wss://o.test:443/x"),
    ("https://o.test", "https://o.test/"),
    ("https://o.test", "https://o.test?query"),
    ("https://o.test/x", "https://o.test/x?q=1#top"),
    ("https://o.test/a%2Fb", "https://o.test/a%2fb"),
    ("https://o.test/~u", "https://o.test/%7Eu"),
    ("https://o.test/abc", "https://o.test/%61b%63"),
    ("https://o.test/a b", "https://o.test/a%20b"),
    ("https://o.test/ä", "https://o.test/%C3%A4"),
    ("https://o.test/ä", "https://o.test/%c3%a4"),
    ('https://o.test/a"<>\\^`{|}[]', "https://o.test/a%22%3C%3E%5C%5E%60%7B%7C%7D%5B%5D"),
    ("https://o.test/100%", "https://o.test/100%25"),
    ("https://o.test/%zz", "https://o.test/%25zz"),
    ("https://o.test/a/./b", "https://o.test/a/b"),
    ("https://o.test/a/%2E/b", "https://o.test/a/b"),
    ("https://o.test/a/b/..", "https://o.test/a/"),
    ("https://o.test/a/b/../../../c", "https://o.test/c"),
    ("https://o.test/a/.", "https://o.test/a/"),
    ("https://bücher.test/x", "https://xn--bcher-kva.test/x"),
    ("https://BÜCHER.test/x", "https://XN--bcher-KVA.test/x"),
    ("https://faß.test/x", "https://xn--fa-hia.test/x"),
    ("http://[::1]:8080/x", "http://[0:0:0:0:0:0:0:1]:8080/x"),
    ("http://[2001:DB8::A]/x", "http://[2001:db8:0::a]:80/x"),
]
DIFFERENT = [
    ("https://o.test/x", "http://o.test/x"),
    ("https://o.test/x", "https://o.test:444/x"),
    ("http://o.test/x", "http://o.test:0/x"),
    ("http://o.test/x", "http://o.test:443/x"),
    ("https://o.test/x", "https://o.test./x"),
    ("https://o.test/x", "https://o.test/x/"),
    ("https://o.test/x", "https://o.test/X"),
    ("https://o.test/x", "https://o.test//x"),
    ("https://o.test/x", "https://o.test/x;p"),
    ("https://o.test/a/b", "https://o.test/a%2Fb"),
    ("https://o.test/a%20b", "https://o.test/a+b"),
    ("https://o.test/a'b", "https://o.test/a%27b"),
    ("https://o.test/a?b", "https://o.test/a%3Fb"),
    ("https://fass.test/x", "https://faß.test/x"),
    ("http://127.0.0.1/x", "http://2130706433/x"),
    ("http://127.0.0.1/x", "http://127.1/x"),
    ("http://127.0.0.1/x", "http://0x7f.0.0.1/x"),
    ("http://127.0.0.1/x", "http://localhost/x"),
    ("http://127.0.0.1/x", "http://[::ffff:127.0.0.1]/x"),
]
NONE = [
    "",
    "/x",
    "o.test/x",
    "https:/x",
    "https://",
    "https:///x",
    " https://o.test/x",
    "https://o.test/x\n",
    "https://o.test/a\tb",
    "https://o\r.test/x",
    "https://user@o.test/x",
    "https://user:password@o.test/x",
    "https://o.test@evil.test/x",
    "https://o.test\\x",
    "https://o.test\\.evil.test/x",
    "https://o.test:http/x",
    "https://o.test:65536/x",
    "https://o.test:-1/x",
    "https://o.test:+1/x",
    "https://o.test:1_0/x",
    "https://o.test:٣/x",
    "https://o.test:80:80/x",
    "https://o%2Etest/x",
    "https://o test/x",
    "https://.test/x",
    "https://o..test/x",
    "https://[::1/x",
    "https://::1/x",
    "https://[::1]x/x",
    "https://[::1%25eth0]/x",
    "https://[127.0.0.1]/x",
    "https://[v1.x]/x",
    "https://" + "o" * 254 + "/x",
    "https://\ud800.test/x",
    "https://o.test/\ud800",
    "1ttps://o.test/x",
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_one_url_in_two_spellings(one: str, other: str) -> None:
    assert normalized(one) == normalized(other)
    assert normalized(normalized(one)) == normalized(one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_two_urls_that_look_alike(one: str, other: str) -> None:
    assert normalized(one) != normalized(other)


@pytest.mark.parametrize("text", NONE, ids=ascii)
def test_what_is_no_url_of_a_request(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of whatever kind
        normalized(text)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=30))
def test_the_normal_form_is_its_own_normal_form(text: str) -> None:
    path = normal_path("/" + text)
    assert normal_path(path) == path
    assert path.isascii()
    assert not has_dot_segments(path)
    assert normal_path(("/" + text).encode()) == path


@pytest.mark.parametrize("path", ["/a/./b", "/..", "/a/%2e%2E/b", "/.", "/a/.%2e"])
def test_dot_segments_are_seen_however_they_are_written(path: str) -> None:
    assert has_dot_segments(path)
    assert has_dot_segments(path.encode())
    assert not has_dot_segments("/a/.b/c./...")


# -- whose it is ------------------------------------------------------------------------------------------------------


def test_what_is_listed_is_known_and_nothing_else() -> None:
    names = KnownNames(["HTTPS://Broker.Example:443/x/", "http://broker.agentwrit.svc"])
    assert names.bases("http", ("10.0.0.7", 8080)) == ("https://broker.example/x", "http://broker.agentwrit.svc")


def test_a_loopback_address_is_also_called_localhost() -> None:
    def known(*urls: str) -> set[str]:
        return set(KnownNames(urls).bases("http", None))

    assert known("http://127.0.0.1:8080/x") == {"http://127.0.0.1:8080/x", "http://localhost:8080/x"}
    assert known("http://[0::1]") == {"http://[::1]", "http://localhost"}
    assert known("http://localhost:1") == {"http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1"}
    assert known("http://127.0.0.2:1") == {"http://127.0.0.2:1"}
    assert known("http://localhost.example:1") == {"http://localhost.example:1"}


@pytest.mark.parametrize(
    ("server", "bases"),
    [
        (("127.0.0.1", 8080), {"http://127.0.0.1:8080", "http://localhost:8080"}),
        (("127.0.0.1", 80), {"http://127.0.0.1", "http://localhost"}),
        (("::1", 8080), {"http://[::1]:8080", "http://localhost:8080"}),
        (("::ffff:127.0.0.1", 8080), {"http://127.0.0.1:8080", "http://localhost:8080"}),
        (("192.0.2.7", 8080), {"http://192.0.2.7:8080"}),
        (("::ffff:192.0.2.7", 8080), {"http://192.0.2.7:8080"}),
        (("fe80::1%eth0", 8080), {"http://[fe80::1]:8080"}),
        (("testserver", None), {"http://testserver"}),
        (("/run/agentwrit.sock", None), set()),
        (None, set()),
    ],
)
def test_where_nothing_is_listed_the_address_of_the_connection_is_known(
    server: tuple[str, int | None] | None, bases: set[str]
) -> None:
    assert set(KnownNames().bases("http", server)) == bases


def test_the_name_that_a_server_was_told_to_listen_at_is_known() -> None:
    names = KnownNames(hosts=["Broker.Internal"])
    assert set(names.bases("https", ("192.0.2.7", 8443))) == {"https://broker.internal:8443", "https://192.0.2.7:8443"}
    assert set(KnownNames(hosts=["192.0.2.7"]).bases("http", ("192.0.2.7", 1))) == {"http://192.0.2.7:1"}


def test_a_wildcard_is_known_to_those_who_come_from_the_same_machine() -> None:
    names = KnownNames(hosts=["0.0.0.0"])
    assert set(names.bases("http", ("127.0.0.1", 1))) == {
        "http://127.0.0.1:1",
        "http://localhost:1",
        "http://0.0.0.0:1",
    }
    assert set(names.bases("http", ("192.0.2.7", 1))) == {"http://192.0.2.7:1"}
    assert "http://[::]:1" in KnownNames(hosts=["::"]).bases("http", ("::1", 1))


def test_addresses_are_remembered_and_no_more_than_so_many() -> None:
    for port in range(1, 2 * target_uri.ADDRESSES_REMEMBERED):
        KnownNames().bases("http", ("192.0.2.7", port))
    assert target_uri._of_address.cache_info().currsize == target_uri.ADDRESSES_REMEMBERED


@pytest.mark.parametrize(
    ("base", "root", "path", "url"),
    [
        ("https://o.test", "", "/x", "https://o.test/x"),
        ("https://o.test/api", "", "/x", "https://o.test/api/x"),
        ("https://o.test", "/api", "/x", "https://o.test/api/x"),
        ("https://o.test", "/api", "/api/x", "https://o.test/api/x"),
        ("https://o.test/api", "/api", "/x", "https://o.test/api/x"),
        ("https://o.test/api", "/api", "/api/x", "https://o.test/api/x"),
        ("https://o.test/api", "/api", "/apis", "https://o.test/api/apis"),
        ("https://o.test/v1/api", "/api", "/x", "https://o.test/v1/api/x"),
        ("https://api", "/api", "/x", "https://api/api/x"),
    ],
)
def test_an_application_under_a_path_is_found_there(base: str, root: str, path: str, url: str) -> None:
    assert within(base, root, path) == url


@pytest.mark.parametrize(
    ("resource", "others"),
    [
        ("https://o.test", ["https://o.test/"]),
        ("https://o.test/", ["https://o.test"]),
        ("http://o.test:8080", ["http://o.test:8080/"]),
        ("https://o.test/mcp", []),
        ("https://o.test/mcp/", []),
        ("https://o.test//", []),
        ("https://o.test?x", []),
        ("https://o.test/?x=/", []),
        ("https://o.test#/", []),
        ("orders", []),
        ("urn:x/", []),
        ("", []),
    ],
)
def test_a_resource_without_a_path_has_two_spellings(resource: str, others: list[str]) -> None:
    assert spellings(resource) == (resource, *others)
