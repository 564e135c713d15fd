"""Tools that show the variables of every frame of a traceback show no secret of the SDK's, whatever went wrong."""

import asyncio
import io
import pickle
import pprint
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.traceback import Traceback
from starlette.exceptions import HTTPException
from starlette.requests import Request

from agentwrit import (
    Agent,
    AgentWritApp,
    AgentWritError,
    AsyncAgentWritApp,
    AsyncVerifier,
    Verifier,
    validate,
)
from agentwrit.client.audit_log import AuditLog
from agentwrit.client.exchange import HttpRequest
from agentwrit.client.operator import OperatorClient
from agentwrit.client.secrecy import Secret, discreet
from agentwrit.delivery.sinks import HttpSink
from agentwrit.integrations import fastmcp as for_fastmcp
from agentwrit.integrations import mcp as for_mcp
from agentwrit.integrations.fastapi import AgentWrit as FastApiGuard
from agentwrit.integrations.starlette import Guard
from tests.client.peer import Handler, Reply, answer, break_off, hang_up, never, peer
from tests.support import BrokerProcess, TestApp

SCOPE = ["read:data:1"]
NOWHERE = "http://127.0.0.1:9"


def junk(handler: Handler) -> None:
    handler.wfile.write(b"junk\r\n\r\n")
    hang_up(handler)


def half_a_token(handler: Handler) -> None:
    """What was promised to be an answer breaks off in the middle of a token."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n" + b'{"access_token":"NEW-TOKEN-')
    hang_up(handler)


def in_chunks_that_break_off(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1a\r\n" + b'{"access_token":"NEW-TOKEN-')
    handler.wfile.write(b"\r\nzz\r\n")
    hang_up(handler)


REPLIES: dict[str, Reply] = {
    "500": answer(500, {}),
    "401": answer(401, {}),
    "403": answer(403, {}),
    "a list": answer(200, []),
    "no lifetime": answer(200, {"access_token": "NEW-TOKEN-1", "agent_id": "spiffe://x", "valid": True}),
    "a lifetime that is none": answer(
        200, {"access_token": "NEW-TOKEN-1", "expires_in": "x", "launch_token": "NEW-TOKEN-"}
    ),
    "no token that can be shown": answer(200, {"access_token": "NEW-TOKEN- 1", "expires_in": 5}),
    "a token of nobody": answer(200, {"valid": True, "claims": {"sub": 5}}),
    "junk": junk,
    "nothing": hang_up,
    "a part": break_off,
    "half a token": half_a_token,
    "half a token in chunks": in_chunks_that_break_off,
}


@dataclass
class Secrets:
    """What must not be shown, by name; and whoever may show it: the frames of this file, which hold it openly."""

    texts: dict[str, str] = field(default_factory=dict, repr=False)

    def keep(self, name: str, text: str) -> str:
        self.texts[name] = text
        parts = text.split(".")
        if len(parts) == 3:
            self.texts[f"payload of {name}"], self.texts[f"signature of {name}"] = parts[1:]
        return text

    def shown_in(self, text: str) -> set[str]:
        return {name for name, secret in self.texts.items() if secret in text} | (
            {"what the broker sent"} if "NEW-TOKEN-" in text else set()
        )

    def of(self, error: BaseException) -> set[str]:
        """What an error shows, with all that it came from."""
        shown: set[str] = set()
        waiting: list[BaseException | None] = [error]
        while waiting:
            each = waiting.pop()
            if each is None:
                continue
            told = traceback.TracebackException.from_exception(each, capture_locals=True)
            frames = [frame for frame in told.stack if frame.filename != __file__]
            shown |= self.shown_in("".join(told.format_exception_only()) + repr(each) + repr(vars(each)))
            for frame in frames:
                shown |= {f"{each}, in {frame.name} of {frame.filename}" for each in self.shown_in(f"{frame.locals}")}
            waiting += [each.__cause__, each.__context__]
            waiting += each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        return shown


@pytest.fixture
def kept() -> Secrets:
    return Secrets()


@pytest.fixture
def registered(broker: BrokerProcess, kept: Secrets) -> TestApp:
    made = broker.app()
    kept.keep("the client secret", made.client_secret)
    return made


@pytest.fixture
def app(registered: TestApp) -> Iterator[AgentWritApp]:
    with AgentWritApp(registered.broker.url, registered.client_id, registered.client_secret) as made:
        yield made


def failures(*calls: Callable[[], object]) -> Iterator[BaseException]:
    for call in calls:
        try:
            call()
        except BaseException as error:
            yield error


def calls_at(url: str, registered: TestApp, agent: Agent, proof: str, **way: Any) -> list[Callable[[], object]]:
    """All that can be asked of a broker, asked of another one, by the agent too."""
    app = AgentWritApp(url, registered.client_id, registered.client_secret, timeout=0.15, **way)
    agent._driver = app._driver
    token = agent.access_token

    def verify() -> None:
        with Verifier(url, timeout=0.15, **way) as verifier:
            verifier.verify(token)

    return [
        lambda: app.create_agent("o", "t", SCOPE, bound=agent.is_bound),
        lambda: app.validate(token, proof=proof, htm="GET", htu="https://x/"),
        lambda: validate(url, token, timeout=0.15),
        lambda: agent.delegate("spiffe://y", SCOPE),
        agent.renew,
        agent.release,
        verify,
        lambda: app.take_over(token[:-90]),
        lambda: agent.accept(token),
    ]


@pytest.mark.parametrize("kind", REPLIES)
def test_no_failed_call_shows_a_secret(app: AgentWritApp, registered: TestApp, kept: Secrets, kind: str) -> None:
    errors: list[BaseException] = []
    with peer(REPLIES[kind]) as elsewhere, httpx2.Client() as client:
        for bound, way in ((False, {}), (True, {"http_client": client})):
            agent = app.create_agent("o", "t", SCOPE, bound=bound)
            kept.keep(f"the token, bound: {bound}", agent.access_token)
            proof = kept.keep(f"the proof, bound: {bound}", agent.proof("GET", "https://x/"))
            errors += failures(*calls_at(elsewhere.url, registered, agent, proof, **way))
    assert len(errors) >= 12
    assert not set().union(*map(kept.of, errors))


@pytest.mark.parametrize("kind", REPLIES)
def test_no_failed_call_on_a_loop_shows_a_secret(registered: TestApp, kept: Secrets, kind: str) -> None:
    async def at(url: str, way: dict[str, Any]) -> set[str]:
        arguments = (registered.client_id, registered.client_secret)
        shown: set[str] = set()
        async with (
            AsyncAgentWritApp(registered.broker.url, *arguments) as good,
            AsyncAgentWritApp(url, *arguments, timeout=0.15, **way) as bad,
            AsyncVerifier(url, timeout=0.15, **way) as verifier,
        ):
            agent = await good.create_agent("o", "t", SCOPE)
            token = kept.keep("the token", agent.access_token)
            agent._driver = bad._driver
            calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
                lambda: bad.create_agent("o", "t", SCOPE),
                lambda: bad.validate(token),
                lambda: agent.delegate("spiffe://y", SCOPE),
                agent.renew,
                agent.release,
                lambda: verifier.verify(token),
            ]
            for call in calls:
                try:
                    await call()
                except BaseException as error:
                    shown |= kept.of(error)
        return shown

    async def main() -> set[str]:
        with peer(REPLIES[kind]) as elsewhere:
            async with httpx2.AsyncClient() as client:
                return await at(elsewhere.url, {}) | await at(elsewhere.url, {"http_client": client})

    assert not asyncio.run(main())


def test_no_cancelled_call_shows_a_secret(registered: TestApp, kept: Secrets) -> None:
    async def main() -> set[str]:
        shown: set[str] = set()
        asked = threading.Event()

        def say_nothing(handler: Handler) -> None:
            asked.set()
            never(handler)

        with peer(answer(200, {"access_token": "NEW-TOKEN-1", "expires_in": 60}), say_nothing) as silent:
            async with httpx2.AsyncClient() as client:
                ways: list[dict[str, Any]] = [{}, {"http_client": client}]
                for way in ways:
                    app = AsyncAgentWritApp(silent.url, "id", registered.client_secret, **way)
                    for call in (app.create_agent("o", "t", SCOPE), app.validate("NEW-TOKEN-1")):
                        asked.clear()
                        task = asyncio.create_task(call)
                        assert await asyncio.to_thread(asked.wait, 30)
                        task.cancel()
                        try:
                            await task
                        except asyncio.CancelledError as error:
                            shown |= kept.of(error)
                    await app.aclose()
        return shown

    assert not asyncio.run(main())


class Interrupting:
    """A key that is asked to sign, and at that moment somebody presses Ctrl-C."""

    def __init__(self, error: type[BaseException]) -> None:
        self._key = Ed25519PrivateKey.generate()
        self._error = error
        self.is_armed = False

    def sign(self, data: bytes, /) -> bytes:
        if self.is_armed:
            raise self._error("in the middle of it")
        return self._key.sign(data)

    def public_key(self) -> Any:
        return self._key.public_key()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, AgentWritError])
def test_no_interrupted_call_shows_a_secret(app: AgentWritApp, kept: Secrets, error: type[BaseException]) -> None:
    key = Interrupting(error)
    agent = app.create_agent("o", "t", SCOPE, private_key=key, bound=True)
    token = kept.keep("the token", agent.access_token)
    login = app._driver._login
    assert login is not None
    kept.keep("the app's token", login._kept.token.reveal())
    key.is_armed = True
    raised = list(
        failures(
            lambda: app.create_agent("o", "t", SCOPE, private_key=key, bound=True),
            agent.renew,
            agent.release,
            lambda: agent.delegate("spiffe://y", SCOPE),
            lambda: agent.headers("GET", "https://x/"),
            lambda: agent.proof("GET", "https://x/"),
            lambda: httpx2.get(NOWHERE, auth=agent.auth),
        )
    )
    assert [type(each) for each in raised] == [error] * 7
    assert not set().union(*map(kept.of, raised))
    key.is_armed = False
    assert app.validate(token, proof=agent.proof("GET", "https://x/"), htm="GET", htu="https://x/").valid


def test_no_argument_that_is_wrong_shows_the_secret_beside_it(registered: TestApp, kept: Secrets) -> None:
    secret = registered.client_secret
    raised = list(
        failures(
            lambda: AgentWritApp("no url", "id", secret),
            lambda: AsyncAgentWritApp("no url", "id", secret),
            lambda: OperatorClient("no url", secret),
            lambda: AuditLog("no url", secret),
            lambda: Verifier("no url", client_id="id", client_secret=secret),
            lambda: AsyncVerifier(registered.broker.url, client_secret=secret),
            lambda: Guard("no url", client_id="id", client_secret=secret),
            lambda: Guard(registered.broker.url, report=True, client_secret=secret),
            lambda: FastApiGuard("no url", client_id="id", client_secret=secret),
            lambda: validate("no url", secret),
            lambda: OperatorClient(NOWHERE, secret, timeout=0.2).rotate_operator("x", secret=secret),
            lambda: OperatorClient(NOWHERE, secret, timeout=0.2).add_operator("x", secret=secret),
            lambda: AuditLog(NOWHERE, secret, timeout=0.2).checkpoint(),
        )
    )
    assert len(raised) == 13
    assert not set().union(*map(kept.of, raised))


def test_no_check_that_fails_shows_the_token(app: AgentWritApp, registered: TestApp, kept: Secrets) -> None:
    agent = app.create_agent("o", "t", SCOPE)
    bound = app.create_agent("o", "t", SCOPE, bound=True)
    token, needs_proof = kept.keep("the token", agent.access_token), kept.keep("the bound one", bound.access_token)
    proof = kept.keep("the proof", bound.proof("GET", "https://x/"))
    with Verifier(registered.broker.url) as verifier, Verifier(registered.broker.url, audience="elsewhere") as other:
        verifier.verify(token)
        agent.release()
        raised = list(
            failures(
                lambda: other.verify(token),
                lambda: verifier.verify(token[:-4] + "AAAA"),
                lambda: verifier.verify(needs_proof, scope="read:data:2", proof=proof, htm="GET", htu="https://x/"),
                lambda: verifier.verify(needs_proof),
                lambda: verifier.verify(needs_proof, proof=proof, htm="POST", htu="https://x/"),
            )
        )
    assert len(raised) == 5
    assert not set().union(*map(kept.of, raised))


def test_no_request_that_a_guard_refuses_shows_its_token(app: AgentWritApp, kept: Secrets) -> None:
    token = kept.keep("the token", app.create_agent("o", "t", SCOPE).access_token)
    needs_proof = kept.keep("the bound one", app.create_agent("o", "t", SCOPE, bound=True).access_token)

    async def main() -> set[str]:
        shown: set[str] = set()
        for guard in (Guard(app.broker_url), Guard(app.broker_url, audience="elsewhere")):
            for values in (
                [f"Bearer {needs_proof}"],
                [f"DPoP {needs_proof}"],
                [f"DPoP {token}"],
                [f"Bearer {token}"] * 2,
            ):
                headers = [(b"authorization", each.encode()) for each in values]
                scope = {"type": "http", "method": "GET", "scheme": "http", "path": "/", "server": ("x", 80)}
                with pytest.raises(HTTPException) as caught:
                    await guard.check(Request({**scope, "query_string": b"", "headers": headers}), [])
                shown |= kept.of(caught.value)
            await guard.aclose()
        return shown

    assert not asyncio.run(main())


def test_no_server_of_mcp_that_cannot_check_a_token_shows_it(app: AgentWritApp, kept: Secrets) -> None:
    token = kept.keep("the token", app.create_agent("o", "t", SCOPE).access_token)

    async def main() -> set[str]:
        of_sdk = for_mcp.AgentWrit(NOWHERE, resource="http://127.0.0.1:8000/mcp", timeout=0.2)
        of_fastmcp = for_fastmcp.AgentWrit(NOWHERE, resource="http://127.0.0.1:8000/mcp", timeout=0.2)
        shown: set[str] = set()
        for guard, verify in ((of_sdk, of_sdk.verify_token), (of_fastmcp, of_fastmcp.token_verifier.verify_token)):
            with pytest.raises(Exception, match="cannot be reached") as caught:
                await verify(token)
            shown |= kept.of(caught.value)
            await guard.aclose()
        return shown

    assert not asyncio.run(main())


def test_what_tools_make_of_a_traceback_shows_no_secret(registered: TestApp, kept: Secrets) -> None:
    """rich, with the variables of all frames: those of this file hold nothing here."""
    try:
        AgentWritApp(NOWHERE, "id", registered.client_secret, timeout=0.2).create_agent("o", "t", SCOPE)
    except AgentWritError as error:
        del registered
        written = io.StringIO()
        console = Console(width=200, file=written)
        console.print(Traceback.from_exception(type(error), error, error.__traceback__, show_locals=True))
        shown = written.getvalue()
    assert "create_agent" in shown
    assert not kept.shown_in(shown)


def test_nothing_that_is_kept_shows_its_secret(app: AgentWritApp, kept: Secrets) -> None:
    agent = app.create_agent("o", "t", SCOPE, bound=True)
    token = kept.keep("the token", agent.access_token)
    request = HttpRequest("POST", "/", json={"token": Secret(token)}, bearer=Secret(token))
    things = [
        app,
        agent,
        agent._life,
        agent._life.token,
        app._driver,
        request,
        app._driver.headers(request),
        Secret(token),
    ]
    for thing in things:
        assert not kept.shown_in(f"{thing!r} {thing} {pprint.pformat(thing)}")
    for thing in (app, agent, agent._life.key, Secret(token), Secret(token.encode())):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(thing)


# -- what is left as it is --------------------------------------------------------------------------------------------


def test_a_traceback_keeps_its_lines_and_the_callers_variables() -> None:
    @discreet
    def outer(token: str) -> None:
        inner(token * 2)

    def inner(token: str) -> None:
        raise ValueError("why")

    def calling() -> None:
        mine = "of the caller"  # noqa: F841  # looked for below
        outer("-".join(["of", "the", "callee"]))

    def handling() -> None:
        before = "of the error before"  # noqa: F841  # likewise
        raise KeyError

    def both() -> None:
        try:
            handling()
        except KeyError:
            calling()

    with pytest.raises(ValueError, match="why") as caught:
        both()
    text = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "in inner" in text
    assert "in outer" in text
    assert "of the caller" in text
    assert "of the error before" in text
    assert "of-the-callee" not in text.replace('"-".join(["of", "the", "callee"])', "")


def test_none_of_a_group_of_errors_shows_a_variable() -> None:
    def fail(token: str) -> None:
        raise ValueError("why")

    @discreet
    async def all_of(*tokens: str) -> None:
        async with asyncio.TaskGroup() as tasks:
            for token in tokens:
                tasks.create_task(asyncio.to_thread(fail, token * 2))

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(all_of("-".join(["of", "a", "task"])))
    told = traceback.TracebackException.from_exception(caught.value.exceptions[0], capture_locals=True)
    assert "in fail" in "".join(told.format())
    assert not [frame.name for frame in told.stack if "of-a-task" in f"{frame.locals}"]


@pytest.mark.parametrize("wrong", ["Bearer {}\u00e9", "Bearer {}\r\nx: y", "Bearer {}\n", " {}", ""])
def test_an_authorization_that_no_header_takes_is_refused_and_not_shown(kept: Secrets, wrong: str) -> None:
    authorization = wrong.format(kept.keep("the authorization", "-".join(["secret", "of", "the", "siem"])))

    def encode(event: object) -> bytes:
        return b"{}"

    [error] = failures(
        lambda: HttpSink("https://127.0.0.1:9", encode, is_json=True, authorization=authorization, tls=None)
    )
    assert isinstance(error, AgentWritError)
    assert not kept.of(error)


def test_a_discreet_function_is_called_like_any_other() -> None:
    @discreet
    def add(one: int, *, two: int = 2) -> int:
        """Add."""
        return one + two

    @discreet
    async def add_later(one: int) -> int:
        return one + 1

    assert (add(1), add(1, two=1), add.__doc__, asyncio.run(add_later(1))) == (3, 2, "Add.", 2)
