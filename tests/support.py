"""A real broker process, and a client that speaks the protocol by hand: it shares no code with the SDK."""

import base64
import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import psutil
from nacl.signing import SigningKey

ADMIN_SECRET = "an-operators-secret-for-tests"
STOP_TIMEOUT = 20
EVENTS_AT_ONCE = 1000  # as many as a broker shows

PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of brokers without TLS: one that trusts all authorities of the machine reads them first, for 30 ms."""

SOAK = int(os.environ.get("AGENTWRIT_SOAK", "1"))
"""How many times as often races and crashes are repeated: 50 in `make soak`."""


class BrokerProcess:
    """`python -m agentwrit.broker serve` over a data directory. Can be stopped, killed and started again.

    `settings` are its environment; `module` is what runs in place of `agentwrit.broker`.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        wrapper: Sequence[str] = (),
        verify: ssl.SSLContext = PLAIN,
        arguments: Sequence[str] = (),
        module: str = "agentwrit.broker",
        **settings: str,
    ) -> None:
        self.data_dir = data_dir
        self._wrapper = wrapper
        self._verify = verify
        self._arguments = arguments
        self._module = module
        self.log = data_dir.with_suffix(".log")
        self.settings = settings
        self.http = httpx2.Client(verify=PLAIN)
        self.start()

    def start(self) -> None:
        self.http.close()
        read_end, write_end = os.pipe()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AGENTWRIT_")},
            "AGENTWRIT_DATA_DIR": str(self.data_dir),
            "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET,
            "AGENTWRIT_PORT": "0",
            "AGENTWRIT_LOG_FORMAT": "json",
            **self.settings,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self._wrapper,
                    sys.executable,
                    "-m",
                    self._module,
                    "serve",
                    "--ready-fd",
                    str(write_end),
                    *self._arguments,
                ],
                env=environment,
                pass_fds=[write_end],
                stderr=log,
            )
        os.close(write_end)
        with os.fdopen(read_end) as ready:
            line = ready.readline()
        assert line, f"the broker did not start: {self.log.read_text()[-2000:]}"
        announced = json.loads(line)
        self.url: str = announced["url"]
        self.pid: int = announced["pid"]
        self.http = httpx2.Client(base_url=self.url, timeout=30, trust_env=False, verify=self._verify)

    def logged(self) -> str:
        """The log, with all that came of the requests until now: lines are written beside them."""
        answer = httpx2.get(f"{self.url}/what-is-logged-last", verify=self._verify, trust_env=False)
        last = answer.headers["x-request-id"]
        deadline = time.monotonic() + 30
        while f'"{last}"' not in (text := self.log.read_text()):
            assert time.monotonic() < deadline, text[-2000:]
            time.sleep(0.01)
        return text

    def stop(self) -> int:
        """SIGTERM, and wait. Returns the exit code."""
        self.http.close()
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT)

    def kill(self) -> None:
        """kill -9, and wait."""
        self.http.close()
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(STOP_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.stop()
        self.http.close()

    # -- the protocol, by hand ----------------------------------------------------------------------------------------

    @property
    def resident(self) -> int:
        """The memory that its process holds, in bytes."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def admin(self) -> dict[str, str]:
        """The header of the operator's token."""
        answer = self.http.post("/v1/admin/auth", json={"secret": ADMIN_SECRET})
        assert answer.status_code == 200, answer.text
        return bearer(answer.json()["access_token"])

    def app(self, *scopes: str, **fields: Any) -> "TestApp":
        """A registered app with this ceiling."""
        name = f"app-{secrets.token_hex(4)}"
        body = {"name": name, "scopes": list(scopes or ("read:data:*", "write:data:*")), **fields}
        answer = self.http.post("/v1/admin/apps", json=body, headers=self.admin())
        assert answer.status_code == 201, answer.text
        return TestApp(self, name, answer.json())

    def validate(self, token: str) -> dict[str, Any]:
        answer = self.http.post("/v1/token/validate", json={"token": token})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def is_valid(self, token: str) -> bool:
        return bool(self.validate(token)["valid"])

    def renew(self, token: str) -> httpx2.Response:
        return self.http.post("/v1/token/renew", headers=bearer(token))

    def release(self, token: str) -> httpx2.Response:
        return self.http.post("/v1/token/release", headers=bearer(token))

    def delegate(self, token: str, delegate_to: str, *scopes: str, **fields: Any) -> httpx2.Response:
        body = {"delegate_to": delegate_to, "scope": list(scopes or ("read:data:1",)), **fields}
        return self.http.post("/v1/delegate", json=body, headers=bearer(token))

    def revoke(self, level: str, target: str, **fields: str) -> int:
        """Revoke as the operator. Returns the count."""
        body = {"level": level, "target": target, **fields}
        answer = self.http.post("/v1/revoke", json=body, headers=self.admin())
        assert answer.status_code == 200, answer.text
        return int(answer.json()["count"])

    def nonce(self) -> str:
        return str(self.http.get("/v1/challenge").json()["nonce"])

    def events(self, **filters: str | int) -> list[dict[str, Any]]:
        """All of these events, however many pages they are: brokers are shared by many tests."""
        found: list[dict[str, Any]] = []
        while True:
            after = {"after": found[-1]["id"]} if found else {}
            parameters = {"limit": EVENTS_AT_ONCE, **filters, **after}
            answer = self.http.get("/v1/audit/events", params=parameters, headers=self.admin())
            assert answer.status_code == 200, answer.text
            page = answer.json()["events"]
            found += page
            if "limit" in filters or len(page) < EVENTS_AT_ONCE:
                return found


class TestApp:
    """An app, as its own code would act."""

    __test__ = False

    def __init__(self, broker: BrokerProcess, name: str, registered: dict[str, Any]) -> None:
        self.broker = broker
        self.name = name
        self.app_id: str = registered["app_id"]
        self.client_id: str = registered["client_id"]
        self.client_secret: str = registered["client_secret"]

    def login(self, secret: str | None = None) -> httpx2.Response:
        body = {"client_id": self.client_id, "client_secret": secret or self.client_secret}
        return self.broker.http.post("/v1/app/auth", json=body)

    def token(self) -> str:
        answer = self.login()
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def launch_token(self, *scopes: str, **fields: Any) -> str:
        body = {"agent_name": "tester", "allowed_scope": list(scopes or ("read:data:1",)), **fields}
        answer = self.broker.http.post("/v1/app/launch-tokens", json=body, headers=bearer(self.token()))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["launch_token"])

    def agent(self, *scopes: str, task_id: str = "task-1", **policy: Any) -> dict[str, Any]:
        """A registered agent: agent_id, access_token, expires_in."""
        scopes = scopes or ("read:data:1",)
        body = registration(self.launch_token(*scopes, **policy), self.broker.nonce(), *scopes, task_id=task_id)
        answer = self.broker.http.post("/v1/register", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


def registration(
    launch_token: str, nonce: str, *scopes: str, key: SigningKey | None = None, task_id: str = "task-1"
) -> dict[str, Any]:
    """The body of a registration, signed."""
    key = key or SigningKey.generate()
    return {
        "launch_token": launch_token,
        "nonce": nonce,
        "public_key": base64.b64encode(bytes(key.verify_key)).decode(),
        "signature": base64.b64encode(key.sign(bytes.fromhex(nonce)).signature).decode(),
        "orch_id": "orchestrator",
        "task_id": task_id,
        "requested_scope": list(scopes or ("read:data:1",)),
    }


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def problem(answer: httpx2.Response, status: int, error_code: str) -> dict[str, Any]:
    """The problem document of a refusal, checked for its form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = dict(answer.json())
    assert body["error_code"] == error_code, body
    assert body["type"] == f"urn:agentwrit:error:{error_code}"
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    return body
