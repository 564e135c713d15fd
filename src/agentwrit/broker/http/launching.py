"""Launch tokens on the wire, the same for apps and the operator."""

from agentwrit.broker.http import wire
from agentwrit.broker.http.exchange import Answer, json_answer
from agentwrit.broker.services.authentication import Principal
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.launch_tokens import LaunchPolicy, LaunchTokenService
from agentwrit.domain import timestamps


async def launch_token_answer(
    service: LaunchTokenService, caller: Caller, principal: Principal, request: wire.CreateLaunchToken
) -> Answer:
    """Issue a launch token to whoever was found to be allowed one."""
    new = await service.issue(
        caller,
        principal,
        LaunchPolicy(
            agent_name=request.agent_name,
            allowed_scope=request.allowed_scope,
            max_ttl=request.max_ttl,
            single_use=request.single_use,
            max_uses=request.max_uses,
            ttl=request.ttl,
            audience=request.audience,
            is_bound=request.bound,
        ),
    )
    policy: dict[str, object] = {"allowed_scope": new.record.allowed_scope, "max_ttl": new.record.max_ttl}
    if new.record.is_bound:  # said, so that who asked for it sees that it was understood
        policy["bound"] = True
    return json_answer(
        {
            "launch_token": new.secret,
            "expires_at": timestamps.rfc3339(new.record.expires_at),
            "policy": policy,
        },
        status=201,
    )
