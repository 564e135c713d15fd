"""Requests that cost a stranger little and the broker much: it serves everybody on one event loop."""

import contextlib
import ipaddress
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from agentwrit.broker.http import forms, wire
from agentwrit.broker.http.exchange import MAX_QUERY_BYTES, MAX_USUAL_BODY_BYTES, Exchange
from agentwrit.broker.http.http1 import MAX_BODY_BYTES, Scope
from agentwrit.domain import scope
from agentwrit.domain.errors import AgentWritError
from tests.support import BrokerProcess, bearer, problem, registration

ALLOWED_MS = 4.0  # of the processor; alone on a machine of today the dearest takes a half of one
FORM = {"content-type": forms.MEDIA_TYPE}
BACKSLASH = "\\"


def cost(work: Callable[[], object]) -> float:
    """Milliseconds of the processor that something takes, at its best of a few times."""

    def once() -> float:
        began = time.thread_time()
        with contextlib.suppress(AgentWritError):
            work()
        return (time.thread_time() - began) * 1000

    return min(once() for _ in range(5))


def filled(piece: str, around: str = '{"token":"%s"}') -> bytes:
    """A body as large as one may be, made of a piece."""
    room = MAX_USUAL_BODY_BYTES - len(around)
    return (around % (piece * (room // len(piece.encode())))).encode()


JSON = {
    "one string": filled("x"),
    "short escapes": filled(BACKSLASH + "n"),
    "long escapes": filled(BACKSLASH + "u0041"),
    "text that is not ASCII": filled("é"),
    "empty strings": filled('"",', '{"requested_scope":[%s""]}'),
    "short strings": filled('"a",', '{"requested_scope":[%s""]}'),
    "members": filled('"":0,', '{%s"token":"x"}'),
    "the same member": filled('"token":"",', '{%s"token":"x"}'),
    "numbers": filled("0,", '{"a":[%s0],"token":"x"}'),
    "arrays": filled("[],", '{"a":[%s0],"token":"x"}'),
    "depth": filled("[", '{"a":%s'),
    "a number": filled("9", '{"ttl":%s}'),
    "white space": filled(" ", '{"token":"x"}%s'),
}


@pytest.mark.parametrize("body", JSON.values(), ids=JSON)
@pytest.mark.parametrize("schema", [wire.Validate, wire.Register, wire.AppAuth, wire.AdminAuth, wire.Delegate])
def test_no_body_takes_long_to_read(schema: type[wire.Validate], body: bytes) -> None:
    assert len(body) > MAX_USUAL_BODY_BYTES - 100
    assert cost(lambda: wire.decode(body, schema)) < ALLOWED_MS


FORMS = {
    "escapes": filled("%41", "scope=%s"),
    "as many escapes as there may be": b"scope=" + b"%41" * forms.MAX_ESCAPES + b"x" * 100_000,
    "escapes apart": b"scope=" + b"a%C3%A9" * (forms.MAX_ESCAPES // 2),
    "escapes in many fields": b"&".join(b"k%d=" % n + b"%41" * 32 for n in range(forms.MAX_FIELDS)),
    "spaces": filled("+", "scope=%s"),
    "a text": filled("x", "scope=%s"),
    "fields": filled("a=1&", "%s"),
    "text that is not ASCII": filled("é", "scope=%s"),
}


@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS)
def test_no_form_takes_long_to_read(body: bytes) -> None:
    assert cost(lambda: forms.decode(forms.MEDIA_TYPE, body)) < ALLOWED_MS


def exchange(*headers: tuple[bytes, bytes], query: bytes = b"") -> Exchange:
    proxies = [ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("10.0.0.0/8")]
    scope = Scope(
        http_version="1.1",
        method="GET",
        scheme="http",
        path="/",
        query_string=query,
        headers=list(headers),
        client=("127.0.0.1", 1),
        server=None,
    )
    return Exchange(scope, b"", proxies)


@pytest.mark.parametrize("query", [b"%41" * 2700, b"a&" * 4000, b"a=1&" * 60, b"+" * 8000, b"after=" + b"1" * 8000])
def test_no_query_takes_long_to_read(query: bytes) -> None:
    assert len(query) <= MAX_QUERY_BYTES
    assert cost(lambda: exchange(query=query).query("after")) < ALLOWED_MS


def test_a_query_that_is_too_long_or_has_too_many_parameters_is_refused(broker: BrokerProcess) -> None:
    for query in ("after=" + "0" * MAX_QUERY_BYTES, "after=1&" * 100):
        problem(broker.http.get(f"/v1/revocations?{query}"), 400, "invalid_request")


def test_no_header_that_is_a_list_takes_long_to_read() -> None:
    listed = b"a," * 16_000
    asked = exchange((b"accept", listed), (b"if-none-match", listed))
    assert cost(lambda: (asked.accepts("text/event-stream"), asked.has_seen('"x"'))) < ALLOWED_MS
    forwarded = b"10.0.0.1," * 3600 + b"10.0.0.1"
    assert cost(lambda: exchange((b"x-forwarded-for", forwarded)).caller) < ALLOWED_MS


def test_what_is_wanted_is_found_in_lists_of_a_usual_length() -> None:
    listed = b"text/html, */*;q=0.1, Text/Event-Stream;q=0.9"
    assert exchange((b"accept", listed)).accepts("text/event-stream")
    assert exchange((b"if-none-match", b'"a", W/"b"')).has_seen('"b"')
    assert exchange((b"x-forwarded-for", b"192.0.2.7, 10.0.0.2, 10.0.0.1")).caller.address == "192.0.2.7"


def test_a_zone_in_a_forwarded_address_is_nobodys_address() -> None:
    forwarded = b"fe80::1%" + b"\x1b[2J" * 100 + b", 10.0.0.9"
    assert exchange((b"x-forwarded-for", forwarded)).caller.address == "10.0.0.9"


def test_scopes_in_a_form_are_counted_before_they_are_taken_apart(broker: BrokerProcess) -> None:
    form = {"grant_type": "client_credentials", "client_id": "a", "client_secret": "b"}
    answer = broker.http.post("/oauth2/token", data={**form, "scope": "a:b:c " * scope.MAX_SCOPES})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_scope")


UNUSUAL = [
    ("/v1/register", {}),
    ("/v1/admin/auth", {}),
    ("/v1/app/auth", {}),
    ("/oauth2/token", FORM),
    ("/oauth2/introspect", FORM),
    ("/oauth2/revoke", FORM),
]


@pytest.mark.parametrize(("path", "headers"), UNUSUAL, ids=[path for path, _ in UNUSUAL])
def test_a_body_that_makes_no_sense_for_its_size_is_refused(
    broker: BrokerProcess, path: str, headers: dict[str, str]
) -> None:
    def streamed() -> Iterator[bytes]:
        for _ in range(MAX_USUAL_BODY_BYTES // 8192 + 1):
            yield b" " * 8192

    declared = broker.http.post(path, content=b" " * (MAX_USUAL_BODY_BYTES + 1), headers=headers)
    assert (declared.status_code, broker.http.post(path, content=streamed(), headers=headers).status_code) == (413, 413)


def test_apps_and_agents_send_no_more_than_that_either(broker: BrokerProcess) -> None:
    app = broker.app()
    agent, content = app.agent()["access_token"], b" " * (MAX_USUAL_BODY_BYTES + 1)
    for path, token in (("/v1/delegate", agent), ("/v1/agents", app.token()), ("/v1/app/launch-tokens", app.token())):
        problem(broker.http.post(path, content=content, headers=bearer(token)), 413, "payload_too_large")


def test_a_token_to_validate_may_have_white_space_around_it_but_no_more_than_that(broker: BrokerProcess) -> None:
    token = broker.app().agent()["access_token"].encode()
    padded = b'\r\n\t {"token":"' + token + b'"}'
    padded += b" " * (MAX_BODY_BYTES - len(padded))
    assert broker.http.post("/v1/token/validate", content=padded).json()["valid"] is True
    long = b'{"token":"' + token + b'","more":"' + b"x" * MAX_USUAL_BODY_BYTES + b'"}'
    problem(broker.http.post("/v1/token/validate", content=long), 413, "payload_too_large")
    problem(broker.http.post("/v1/token/validate", content=padded[:-1] + b"\f"), 400, "invalid_request")


def test_a_proof_of_the_log_costs_the_broker_little(broker: BrokerProcess) -> None:
    app = broker.app()
    while broker.http.get("/v1/health").json()["audit_events_count"] % 256 < 200:
        assert app.login().status_code == 200
    process = psutil.Process(broker.pid)
    size = broker.http.get("/v1/health").json()["audit_events_count"]
    ask = f"/v1/audit/proof/consistency?old={size - 9}&new={size}"
    assert broker.http.get(ask).status_code == 200
    before, times = process.cpu_times(), 50
    for _ in range(times):
        broker.http.get(ask)
    after = process.cpu_times()
    assert (after.user + after.system - before.user - before.system) * 1000 / times < ALLOWED_MS


def test_a_registration_that_is_none_costs_the_broker_little(broker: BrokerProcess) -> None:
    """However long the nonce, nothing but a nonce is checked against the signature."""
    process = psutil.Process(broker.pid)
    body = registration("0" * 64, "00" * 70_000)
    before, times = process.cpu_times(), 30
    for _ in range(times):
        assert broker.http.post("/v1/register", json=body).status_code == 401
    after = process.cpu_times()
    assert (after.user + after.system - before.user - before.system) * 1000 / times < 2 * ALLOWED_MS
