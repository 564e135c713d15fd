"""Clients of brokers, who do at random what they please, and write down what they asked and were told."""

import json
import random
import threading
import time
from base64 import urlsafe_b64decode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import httpx2

from tests.history.checker import Kind, Operation, Told
from tests.support import PLAIN, TestApp, bearer, registration

CLIENTS: Final = 6
LAUNCH_TOKENS_AHEAD: Final = 3
MOST_ASKED_ABOUT: Final = 100
PATIENCE_SECONDS: Final = 0.02  # of a client who was told nothing
UNDECIDED: Final = (429, 502, 503, 504)  # 502 and 504 come from a proxy


class Shared:
    """What clients know of each other: tokens to be asked for, and launch tokens to be raced for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.tokens: dict[str, str] = {}  # by the sid of their grant
        self.released: dict[str, str] = {}  # on purpose, by the sid of their grant
        self.launch_tokens: list[str] = []
        self.history: list[Operation] = []


class Client:
    """One of them, on a thread of its own. Each asks any of the brokers, at their URLs."""

    def __init__(self, urls: Sequence[str], app: TestApp, shared: Shared, seed: str) -> None:
        self._app_token = app.token()
        self._shared = shared
        self._random = random.Random(seed)
        self._told = Told.YES  # last
        self._http = [httpx2.Client(base_url=url, timeout=15, trust_env=False, verify=PLAIN) for url in urls]

    def live(self, until: threading.Event) -> None:
        """Go on until told to stop."""
        while not until.is_set():
            choice = self._random.random()
            if choice < 0.25:
                self._register()
            elif choice < 0.45:
                self._release()
            else:
                self._validate()
            if self._told is Told.NOTHING:
                until.wait(PATIENCE_SECONDS)
        self.close()

    def close(self) -> None:
        for http in self._http:
            http.close()

    def ask_about_all(self) -> None:
        """Ask each broker about each of the newest tokens, and of those that were released on purpose."""
        with self._shared.lock:
            newest = list(self._shared.tokens.items())[-MOST_ASKED_ABOUT:]
            known = {**self._shared.released, **dict(newest)}
        for number, http in enumerate(self._http):
            for sid, token in known.items():
                self._ask_whether_valid(number, http, sid, token)

    def _register(self) -> None:
        number, http = self._any_broker()
        launch_token = self._launch_token(http)
        if launch_token is None:
            return
        try:
            nonce = str(http.get("/v1/challenge").json()["nonce"])
        except (httpx2.TransportError, KeyError, ValueError):  # a proxy says in HTML that nobody is there
            return
        asked_at = time.monotonic()
        answer = self._ask(http, "/v1/register", registration(launch_token, nonce), {})
        told, made = _told(answer, yes=200, no=(401,)), ""
        if told is not Told.NOTHING:
            with self._shared.lock, suppress(ValueError):
                self._shared.launch_tokens.remove(launch_token)
        if told is Told.YES and answer is not None:
            token = str(answer.json()["access_token"])
            made = sid_of(token)
            with self._shared.lock:
                self._shared.tokens[made] = token
        self._note(Kind.REGISTER, launch_token, told, asked_at, number, made)

    def release_on_purpose(self, sid: str, token: str) -> bool:
        """Release this token at any broker, go on asking about it, and say whether it was done."""
        with self._shared.lock:
            self._shared.released[sid] = token
        return self._release_one(*self._any_broker(), sid, token) is Told.YES

    def ask_elsewhere(self, agents: int = 8) -> None:
        """Register some agents, release each at the first broker, and ask the others about it at once."""
        with self._shared.lock:
            known = set(self._shared.tokens)
        while len(new := self._shared.tokens.keys() - known) < agents:
            self._register()
        for sid in new:
            token = self._shared.tokens[sid]
            self._release_one(0, self._http[0], sid, token)
            for number, http in enumerate(self._http[1:], 1):
                self._ask_whether_valid(number, http, sid, token)

    def _release_one(self, number: int, http: httpx2.Client, sid: str, token: str) -> Told:
        asked_at = time.monotonic()
        answer = self._ask(http, "/v1/token/release", None, bearer(token))
        self._note(Kind.RELEASE, sid, told := _told(answer, yes=204, no=(401, 403)), asked_at, number)
        return told

    def _release(self) -> None:
        sid, token = self._any_token()
        if token:
            self._release_one(*self._any_broker(), sid, token)

    def _validate(self) -> None:
        number, http = self._any_broker()
        sid, token = self._any_token()
        if token:
            self._ask_whether_valid(number, http, sid, token)

    def _ask_whether_valid(self, number: int, http: httpx2.Client, sid: str, token: str) -> None:
        asked_at = time.monotonic()
        answer = self._ask(http, "/v1/token/validate", {"token": token}, {})
        told = _told(answer, yes=200, no=(200,))
        if told is Told.YES and answer is not None:
            told = Told.YES if answer.json()["valid"] else Told.NO
        self._note(Kind.VALIDATE, sid, told, asked_at, number)

    def _launch_token(self, http: httpx2.Client) -> str | None:
        """One that others may be using at this moment, or a new one."""
        with self._shared.lock:
            if len(self._shared.launch_tokens) >= LAUNCH_TOKENS_AHEAD:
                return self._random.choice(self._shared.launch_tokens)
        body = {"agent_name": "a", "allowed_scope": ["read:data:1"]}
        answer = self._ask(http, "/v1/app/launch-tokens", body, bearer(self._app_token))
        if answer is None or answer.status_code != 201:
            return None
        made = str(answer.json()["launch_token"])
        with self._shared.lock:
            self._shared.launch_tokens.append(made)
        return made

    def _any_broker(self) -> tuple[int, httpx2.Client]:
        number = self._random.randrange(len(self._http))
        return number, self._http[number]

    def _any_token(self) -> tuple[str, str]:
        """One of the newest, so that several ask for the same."""
        with self._shared.lock:
            newest = list(self._shared.tokens.items())[-8:]
        return self._random.choice(newest) if newest else ("", "")

    def _ask(
        self, http: httpx2.Client, path: str, body: Mapping[str, object] | None, headers: dict[str, str]
    ) -> httpx2.Response | None:
        try:
            return http.post(path, json=body, headers=headers)
        except httpx2.TransportError:
            return None

    def _note(self, kind: Kind, subject: str, told: Told, asked_at: float, broker: int, made: str = "") -> None:
        operation = Operation(kind, subject, told, asked_at, time.monotonic(), made, broker)
        self._told = told
        with self._shared.lock:
            self._shared.history.append(operation)


def _told(answer: httpx2.Response | None, *, yes: int, no: Sequence[int]) -> Told:
    if answer is None or answer.status_code in UNDECIDED:
        return Told.NOTHING
    assert answer.status_code in (yes, *no), answer.text
    return Told.YES if answer.status_code == yes else Told.NO


def sid_of(token: str) -> str:
    return str(json.loads(urlsafe_b64decode(token.split(".")[1] + "=="))["sid"])
