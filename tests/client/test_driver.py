"""Transport: what is retried, what is not, and what a user sees of it."""

import time
import traceback

import httpx2
import pytest

from agentwrit import AgentWritApp, RateLimitError, TransportError, validate
from agentwrit.client import validation
from agentwrit.errors import AgentWritError, AuthenticationError, ProblemResponseError
from tests.client.peer import Handler, Reply, answer, break_off, hang_up, never, peer

DEAD = {"valid": False, "error": "token is invalid or expired"}


def test_an_idempotent_call_is_retried_when_the_connection_breaks() -> None:
    with peer(hang_up, break_off, answer(200, DEAD)) as broker:
        assert validate(broker.url, "x").error == DEAD["error"]
        assert len(broker.seen) == 3


def test_an_idempotent_call_is_retried_after_503_when_the_broker_says() -> None:
    with peer(answer(503, {}, retry_after="1"), answer(200, DEAD)) as broker:
        started_at = time.monotonic()
        validate(broker.url, "x")
        assert time.monotonic() - started_at >= 1
        assert len(broker.seen) == 2


@pytest.mark.alone
def test_retries_end_with_the_timeout() -> None:
    with peer(answer(503, {"error_code": "unavailable"})) as broker:
        started_at = time.monotonic()
        with pytest.raises(ProblemResponseError) as caught:
            validate(broker.url, "x", timeout=0.5)
        assert caught.value.status_code == 503
        assert time.monotonic() - started_at < 1


def test_a_retry_that_the_broker_puts_off_beyond_the_timeout_is_not_made() -> None:
    with peer(answer(503, {}, retry_after="60")) as broker:
        with pytest.raises(ProblemResponseError):
            validate(broker.url, "x", timeout=1)
        assert len(broker.seen) == 1


@pytest.mark.parametrize("failure", [hang_up, answer(503, {"error_code": "unavailable"})])
def test_a_call_that_is_not_idempotent_is_made_once(failure: object) -> None:
    assert callable(failure)
    with peer(failure) as broker, AgentWritApp(broker.url, "id", "secret") as app:
        with pytest.raises(AgentWritError):
            app.create_agent("o", "t", ["read:data:1"])
        assert [path for path, _, _ in broker.seen] == ["/v1/app/auth"]


@pytest.mark.alone
def test_a_broker_that_does_not_answer_costs_the_timeout_and_no_more() -> None:
    with peer(never) as broker:
        started_at = time.monotonic()
        with pytest.raises(TransportError, match="in time"):
            validate(broker.url, "x", timeout=0.3)
        assert time.monotonic() - started_at < 2


def test_an_unreachable_broker_is_named() -> None:
    with pytest.raises(TransportError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        validate("http://127.0.0.1:9", "x", timeout=0.3)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"\xff", b"", b'{"valid":true}'])
def test_a_peer_that_is_no_broker_is_a_transport_error(body: bytes) -> None:
    with peer(answer(200, body)) as broker, pytest.raises(TransportError, match="is this a broker"):
        validate(broker.url, "x", timeout=1)


def test_an_error_without_a_problem_document_still_has_a_problem() -> None:
    with peer(answer(418, b"short and stout")) as broker:
        with pytest.raises(ProblemResponseError) as caught:
            validate(broker.url, "x", timeout=1)
        assert caught.value.problem.status == 418
        assert caught.value.problem.error_code is None


def test_a_rate_limit_says_how_long_to_wait() -> None:
    problem = {"title": "Too Many Requests", "detail": "slowly", "error_code": "rate_limited"}
    with peer(answer(429, problem, retry_after="7")) as broker, AgentWritApp(broker.url, "id", "secret") as app:
        with pytest.raises(RateLimitError, match="slowly") as caught:
            app.create_agent("o", "t", ["read:data:1"])
        assert caught.value.retry_after == 7


def test_redirects_are_not_followed() -> None:
    with peer(answer(307, b"", location="http://127.0.0.1:9/")) as broker, AgentWritApp(broker.url, "i", "s") as app:
        with pytest.raises(ProblemResponseError):
            app.create_agent("o", "t", ["read:data:1"])
        assert len(broker.seen) == 1


def test_an_empty_token_is_invalid_without_a_call() -> None:
    assert validate("http://127.0.0.1:9", "").error == "token is invalid or expired"


def test_a_degraded_broker_is_an_answer() -> None:
    body = {"status": "degraded", "version": "1", "uptime": 3, "db_connected": False, "audit_events_count": 0}
    with peer(answer(503, body)) as broker, AgentWritApp(broker.url, "id", "secret") as app:
        assert app.health().status == "degraded"
        assert len(broker.seen) == 1


def test_the_user_agent_names_the_sdk_or_what_was_asked_for() -> None:
    with peer(answer(200, DEAD)) as broker:
        validate(broker.url, "x")
        with AgentWritApp(broker.url, "id", "secret", user_agent="shop/2") as app:
            app.validate("x")
        agents = [headers["user-agent"] for _, _, headers in broker.seen]
        assert agents[0].startswith("agentwrit-python/")
        assert agents[1] == "shop/2"


def test_an_app_token_that_the_broker_has_forgotten_is_replaced_once() -> None:
    login = answer(200, {"access_token": "t", "expires_in": 600})
    refused = answer(401, {"title": "Unauthorized", "detail": "no", "error_code": "unauthorized"})
    with peer(login, refused, login, refused) as broker, AgentWritApp(broker.url, "id", "secret") as app:
        with pytest.raises(AuthenticationError):
            app.create_agent("o", "t", ["read:data:1"])
        expected = ["/v1/app/auth", "/v1/agents", "/v1/app/auth", "/v1/agents"]
        assert [path for path, _, _ in broker.seen] == expected


def test_a_503_is_told_rather_than_the_silence_after_it() -> None:
    full = answer(503, {"title": "Service Unavailable", "detail": "full"})
    with peer(full, never) as broker, pytest.raises(ProblemResponseError, match="full"):
        validate(broker.url, "x", timeout=0.5)


def test_a_retry_after_of_nothing_does_not_make_a_busy_loop() -> None:
    with peer(answer(503, {}, retry_after="0")) as broker:
        with pytest.raises(ProblemResponseError):
            validate(broker.url, "x", timeout=0.5)
        assert len(broker.seen) < 50


def test_bytes_that_are_not_http_are_not_repeated_in_the_error() -> None:
    def speak_otherwise(handler: Handler) -> None:
        handler.wfile.write(b"token-of-someone-else\r\n\r\n")
        hang_up(handler)

    with peer(speak_otherwise) as broker, AgentWritApp(broker.url, "id", "secret") as app:
        with pytest.raises(TransportError) as caught:
            app.create_agent("o", "t", ["read:data:1"])
        assert "someone-else" not in str(caught.value)


@pytest.mark.parametrize("reply", [hang_up, answer(401, {}), answer(200, b"[]")])
def test_no_variable_of_a_traceback_holds_the_secret(reply: Reply) -> None:
    with peer(reply) as broker:
        app = AgentWritApp(broker.url, "id", "the" + "-secret-itself")
        with pytest.raises(AgentWritError) as caught:
            app.create_agent("o", "t", ["read:data:1"])
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        assert "the-secret-itself" not in "".join(shown.format())
        assert not isinstance(caught.value.__context__, httpx2.HTTPError)  # it would hold the request


def test_a_closed_app_opens_new_connections() -> None:
    with peer(answer(200, DEAD)) as broker:
        app = AgentWritApp(broker.url, "id", "secret")
        for _ in range(2):
            app.validate("x")
            app.close()
            app.close()


def test_a_client_of_ones_own_is_left_open_and_missed_when_it_is_closed() -> None:
    with peer(answer(200, DEAD)) as broker, httpx2.Client() as client:
        with AgentWritApp(broker.url, "id", "secret", http_client=client) as app:
            app.validate("x")
        assert not client.is_closed
        client.close()
        with pytest.raises(AgentWritError, match="http_client of this app is closed"):
            app.validate("x")


def test_spellings_of_one_url_share_their_connections() -> None:
    with peer(answer(200, DEAD)) as broker:
        for url in (broker.url, broker.url + "/"):
            validate(url, "x")
        assert len({headers["x-peer-port"] for _, _, headers in broker.seen}) == 1


def test_connections_to_only_so_many_brokers_are_kept() -> None:
    made = [
        validation._Settings(f"https://broker-{number}.example", None, None)
        for number in range(validation.MAX_BROKERS + 5)
    ]
    for settings in made:
        validation._driver(settings)
    assert list(validation._drivers) == made[5:]


def test_a_user_name_in_the_url_is_refused_and_not_shown() -> None:
    with pytest.raises(AgentWritError, match="user name") as caught:
        AgentWritApp("https://bob:hunter2@broker", "id", "secret")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "broker",
        "ftp://broker",
        "http://",
        "http://broker?x=1",
        "http://[::1",
        "http://broker:99999",
        "http://broker:0",
        "http://broker:x",
        " http://broker",
        "http://broker\n",
    ],
)
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(AgentWritError, match="is not the URL of a broker"):
        AgentWritApp(url, "id", "secret")
