"""A scanner for tokens, and every error that the SDK raises.

First it judges a box of tokens, good and bad: a bad one is an answer, the same for every kind, and never an exception.
Then it provokes each class of error, and shows what programs tell them apart by.

    agentwrit dev -- python examples/audit_scanner.py
"""

import base64
import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from agentwrit import (
    AgentWritApp,
    AgentWritError,
    AuthenticationError,
    AuthorizationError,
    CryptoError,
    ProblemResponseError,
    RateLimitError,
    TransportError,
    validate,
)

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


def scan(app: AgentWritApp) -> bool:
    """Judge every kind of token. Returns whether only the good one was accepted, and all others got one answer."""
    shortlived = app.create_agent("audit-scanner", "expired", ["read:data:report"], max_ttl=1)
    with app.create_agent("audit-scanner", "released", ["read:data:report"]) as released:
        pass
    with app.create_agent("audit-scanner", "valid", ["read:data:report"]) as agent:
        head, payload, signature = agent.access_token.split(".")
        time.sleep(shortlived.expires_in)  # now its time is over
        bad = {
            "expired": shortlived.access_token,
            "released": released.access_token,
            "empty": "",
            "not a JWT": "open sesame",
            "alg none": f"{encode({'alg': 'none', 'typ': 'at+jwt'})}.{payload}.",
            "another scope": f"{head}.{with_scope(payload, 'read:data:*')}.{signature}",
            "another's signature": f"{head}.{payload}.{released.access_token.split('.')[2]}",
            "oversized": agent.access_token + "A" * 100_000,
            "not ASCII": agent.access_token + "é",
        }
        good = validate(app.broker_url, agent.access_token)
        print(f"[{'VALID' if good.valid else 'WARNING: rejected!'}] an agent's own, scope {agent.scope}")
        answers = set()  # None stands for no objection
        for kind, token in bad.items():
            result = validate(app.broker_url, token)
            print(f"[{'WARNING: accepted!' if result.valid else 'INVALID'}] {kind}")
            answers.add(result.error)
    print(f"{len(bad)} bad tokens, {len(answers)} answer: {', '.join(map(str, answers))}")
    print()
    return good.valid and len(answers) == 1 and None not in answers


def encode(part: dict[str, Any]) -> str:
    """A part of a JWT: JSON in base64url, without padding."""
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def with_scope(payload: str, scope: str) -> str:
    """A token's payload with a scope that the broker never signed."""
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return encode({**claims, "scope": scope})


def provoke(app: AgentWritApp) -> bool:
    """Provoke each class of error. Returns whether each was just that."""
    report = ["read:data:report"]
    key: Any = "no private key"
    with (
        app.create_agent("audit-scanner", "errors", report) as agent,
        AgentWritApp(app.broker_url, app.client_id, "wrong") as impostor,
        AgentWritApp(NOBODY, app.client_id, "wrong") as lost,
    ):
        nobody = agent.agent_id[:-16] + "0" * 16
        ended = app.create_agent("audit-scanner", "ended", report)
        ended.release()

        def be_wrong_too_often() -> None:
            for _ in range(10):  # three in a row are let through, then ten a minute
                with contextlib.suppress(AuthenticationError):
                    impostor.create_agent("audit-scanner", "impostor", report)

        return all(
            [
                is_raised(AuthenticationError, lambda: impostor.create_agent("audit-scanner", "impostor", report)),
                is_raised(RateLimitError, be_wrong_too_often),
                is_raised(AuthorizationError, lambda: app.create_agent("audit-scanner", "over", ["launch:missile:1"])),
                is_raised(ProblemResponseError, lambda: app.create_agent("audit-scanner", "bad", ["read"])),
                is_raised(ProblemResponseError, lambda: agent.delegate(nobody, report)),
                is_raised(TransportError, lambda: lost.create_agent("audit-scanner", "lost", report)),
                is_raised(CryptoError, lambda: app.create_agent("audit-scanner", "key", report, private_key=key)),
                is_raised(AgentWritError, ended.renew),
            ]
        )


def is_raised(expected: type[AgentWritError], call: Callable[[], object]) -> bool:
    """Make a call that has to fail, and show how it does."""
    try:
        call()
    except AgentWritError as error:
        print(f"{type(error).__name__}: {error}")
        if isinstance(error, ProblemResponseError):
            print(f"  {error.status_code} {error.problem.error_code}")
        if isinstance(error, RateLimitError):
            print(f"  retry after {error.retry_after} seconds")
        return type(error) is expected
    print(f"WARNING: {expected.__name__} was not raised!")
    return False


def main() -> int:
    try:
        with AgentWritApp.from_env() as app:
            return 0 if all([scan(app), provoke(app)]) else 1
    except AgentWritError as error:
        print(f"audit_scanner: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
