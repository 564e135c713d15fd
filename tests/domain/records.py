"""Records to begin a test from: valid ones, with what the test is about put in."""

from typing import Any

from agentwrit.domain.app import App, AppStatus
from agentwrit.domain.claims import Claims
from agentwrit.domain.delegation import DelegationRecord
from agentwrit.domain.grant import Grant, GrantKind
from agentwrit.domain.launch_token import LaunchToken

NOW = 1_800_000_000


def make_claims(**changes: Any) -> Claims:
    return Claims(
        **{
            "iss": "agentwrit",
            "sub": "spiffe://agentwrit.local/agent/o/t/0011223344556677",
            "aud": ("agentwrit",),
            "exp": NOW + 300,
            "nbf": NOW,
            "iat": NOW,
            "jti": "jti-1",
            "sid": "sid-1",
            "scope": "read:data:1",
            "client_id": "client",
            "task_id": "t",
            "orch_id": "o",
            **changes,
        }
    )


def make_hop(sid: str) -> DelegationRecord:
    return DelegationRecord(
        agent="spiffe://agentwrit.local/agent/o/t/1111111111111111",
        sid=sid,
        scope=("read:data:*",),
        delegate="spiffe://agentwrit.local/agent/o/t/2222222222222222",
        granted=("read:data:1",),
        delegated_at=NOW,
        prev="",
        kid="kid-1",
        signature="signature",
    )


def make_grant(**changes: Any) -> Grant:
    return Grant(
        **{
            "sid": "sid-1",
            "kind": GrantKind.AGENT,
            "subject": "spiffe://agentwrit.local/agent/o/t/0011223344556677",
            "app_id": "app-1",
            "client_id": "client-1",
            "scope": ("read:data:1", "write:data:2"),
            "audience": ("agentwrit",),
            "ttl": 300,
            "created_at": NOW,
            "ends_at": NOW + 86_400,
            "jti": "jti-1",
            "iat": NOW,
            "exp": NOW + 300,
            "task_id": "t",
            "orch_id": "o",
            "agent_name": "worker",
            "public_key": bytes(range(32)),
            **changes,
        }
    )


def make_app(**changes: Any) -> App:
    return App(
        **{
            "app_id": "app-1",
            "name": "orders",
            "client_id": "client-1",
            "secret_hash": b"h" * 32,
            "scopes": ("read:data:*",),
            "token_ttl": 1800,
            "status": AppStatus.ACTIVE,
            "created_at": NOW,
            "updated_at": NOW,
            **changes,
        }
    )


def make_launch_token(**changes: Any) -> LaunchToken:
    return LaunchToken(
        **{
            "token_hash": b"t" * 32,
            "app_id": "app-1",
            "client_id": "client-1",
            "agent_name": "worker",
            "allowed_scope": ("read:data:1",),
            "audience": (),
            "max_ttl": 300,
            "max_uses": 1,
            "uses": 0,
            "created_at": NOW,
            "expires_at": NOW + 30,
            **changes,
        }
    )
