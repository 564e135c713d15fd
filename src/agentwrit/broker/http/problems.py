"""Refusals as the wire shows them: RFC 9457 problem details, and the one table of their status codes."""

from http import HTTPStatus
from typing import Final

import msgspec

from agentwrit.domain import errors, jwk
from agentwrit.domain.errors import Refusal

MEDIA_TYPE: Final = "application/problem+json"

_ALGORITHMS: Final = f'algs="{" ".join(jwk.proof_algorithms())}"'

STATUS: Final[dict[str, HTTPStatus]] = {
    errors.InvalidRequest.error_code: HTTPStatus.BAD_REQUEST,
    errors.InvalidTTL.error_code: HTTPStatus.BAD_REQUEST,
    errors.Unauthorized.error_code: HTTPStatus.UNAUTHORIZED,
    errors.InsufficientScope.error_code: HTTPStatus.FORBIDDEN,
    errors.ScopeViolation.error_code: HTTPStatus.FORBIDDEN,
    errors.NotFound.error_code: HTTPStatus.NOT_FOUND,
    errors.MethodNotAllowed.error_code: HTTPStatus.METHOD_NOT_ALLOWED,
    errors.Conflict.error_code: HTTPStatus.CONFLICT,
    errors.PayloadTooLarge.error_code: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.RateLimited.error_code: HTTPStatus.TOO_MANY_REQUESTS,
    errors.InternalError.error_code: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.Unavailable.error_code: HTTPStatus.SERVICE_UNAVAILABLE,
}


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of an error. `instance` is the path that was asked for."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error_code: str
    request_id: str
    hint: str | None = None


def body(refusal: Refusal, *, path: str, request_id: str) -> bytes:
    """The problem document of a refusal."""
    status = STATUS[refusal.error_code]
    return msgspec.json.encode(
        Problem(
            type=f"urn:agentwrit:error:{refusal.error_code}",
            title=status.phrase,
            status=status.value,
            detail=refusal.detail,
            instance=path,
            error_code=refusal.error_code,
            request_id=request_id,
            hint=refusal.hint,
        )
    )


def headers(refusal: Refusal) -> dict[str, str]:
    """The header fields that a refusal is answered with, besides those of every answer."""
    match refusal:
        case errors.ProofNonceNeeded():
            challenge = f'DPoP error="use_dpop_nonce", {_ALGORITHMS}'  # RFC 9449 §8, §7.1
            return {"www-authenticate": challenge, "dpop-nonce": refusal.nonce}
        case errors.ProofNeeded():
            return {"www-authenticate": f'DPoP error="{refusal.code}", {_ALGORITHMS}'}  # RFC 9449 §7.1
        case errors.Unauthorized() | errors.TokenRevoked():
            return {"www-authenticate": 'Bearer error="invalid_token"'}  # RFC 6750 §3
        case errors.InsufficientScope():
            scope = f', scope="{refusal.required}"' if refusal.required else ""
            return {"www-authenticate": f'Bearer error="insufficient_scope"{scope}'}
        case errors.MethodNotAllowed():
            return {"allow": ", ".join(sorted(refusal.allowed))}  # RFC 9110 §15.5.6
        case errors.RateLimited() | errors.Unavailable():
            return {"retry-after": str(refusal.retry_after)}
        case _:
            return {}
