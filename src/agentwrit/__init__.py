"""AgentWrit: an identity, a token for one task, and a certain end for every AI agent.

    from agentwrit import AgentWritApp, validate

    with AgentWritApp(broker_url, client_id, client_secret) as app:
        with app.create_agent("orders", "order-4823", ["read:data:customer-7291"]) as agent:
            ...  # call services with headers=agent.bearer_header

Names are loaded on first use, so importing one loads only the modules that it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from agentwrit._version import __version__

if TYPE_CHECKING:
    from agentwrit.client.agent import Agent
    from agentwrit.client.app import AgentWritApp
    from agentwrit.client.async_agent import AsyncAgent
    from agentwrit.client.async_app import AsyncAgentWritApp
    from agentwrit.client.async_verifier import AsyncVerifier
    from agentwrit.client.current import acting_as, current_agent, requires
    from agentwrit.client.evidence import verify_delegation
    from agentwrit.client.validation import validate
    from agentwrit.client.verifier import Verifier
    from agentwrit.domain.scope import scope_is_subset
    from agentwrit.errors import (
        AgentWritError,
        AuthenticationError,
        AuthorizationError,
        BrokerUnavailable,
        CryptoError,
        InvalidToken,
        NoCurrentAgent,
        ProblemResponseError,
        RateLimitError,
        ScopeDenied,
        TransportError,
        Unproven,
        Unverifiable,
    )
    from agentwrit.models import (
        AgentClaims,
        DelegatedToken,
        DelegationRecord,
        HealthStatus,
        ProblemDetail,
        RegisterResult,
        ValidateResult,
    )

__all__ = [
    "Agent",
    "AgentClaims",
    "AgentWritApp",
    "AgentWritError",
    "AsyncAgent",
    "AsyncAgentWritApp",
    "AsyncVerifier",
    "AuthenticationError",
    "AuthorizationError",
    "BrokerUnavailable",
    "CryptoError",
    "DelegatedToken",
    "DelegationRecord",
    "HealthStatus",
    "InvalidToken",
    "NoCurrentAgent",
    "ProblemDetail",
    "ProblemResponseError",
    "RateLimitError",
    "RegisterResult",
    "ScopeDenied",
    "TransportError",
    "Unproven",
    "Unverifiable",
    "ValidateResult",
    "Verifier",
    "__version__",
    "acting_as",
    "current_agent",
    "requires",
    "scope_is_subset",
    "validate",
    "verify_delegation",
]

_HOMES = {
    "Agent": "agentwrit.client.agent",
    "AgentClaims": "agentwrit.models",
    "AgentWritApp": "agentwrit.client.app",
    "AgentWritError": "agentwrit.errors",
    "AsyncAgent": "agentwrit.client.async_agent",
    "AsyncAgentWritApp": "agentwrit.client.async_app",
    "AsyncVerifier": "agentwrit.client.async_verifier",
    "AuthenticationError": "agentwrit.errors",
    "AuthorizationError": "agentwrit.errors",
    "BrokerUnavailable": "agentwrit.errors",
    "CryptoError": "agentwrit.errors",
    "DelegatedToken": "agentwrit.models",
    "DelegationRecord": "agentwrit.models",
    "HealthStatus": "agentwrit.models",
    "InvalidToken": "agentwrit.errors",
    "NoCurrentAgent": "agentwrit.errors",
    "ProblemDetail": "agentwrit.models",
    "ProblemResponseError": "agentwrit.errors",
    "RateLimitError": "agentwrit.errors",
    "RegisterResult": "agentwrit.models",
    "ScopeDenied": "agentwrit.errors",
    "TransportError": "agentwrit.errors",
    "Unproven": "agentwrit.errors",
    "Unverifiable": "agentwrit.errors",
    "ValidateResult": "agentwrit.models",
    "Verifier": "agentwrit.client.verifier",
    "acting_as": "agentwrit.client.current",
    "current_agent": "agentwrit.client.current",
    "requires": "agentwrit.client.current",
    "scope_is_subset": "agentwrit.domain.scope",
    "validate": "agentwrit.client.validation",
    "verify_delegation": "agentwrit.client.evidence",
}


if not TYPE_CHECKING:  # with __getattr__ in sight, a type checker would accept any name

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
