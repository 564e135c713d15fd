"""The operators on the wire, for each other."""

from collections.abc import Sequence

from agentwrit.broker.http import wire
from agentwrit.broker.http.exchange import Answer, Exchange, json_answer
from agentwrit.broker.http.routing import Resource
from agentwrit.broker.services.authentication import Authenticator, Principal
from agentwrit.broker.services.operator_accounts import NewOperatorSecret, OperatorAccounts
from agentwrit.domain import operator
from agentwrit.domain.grant import GrantKind


class OperatorAccountRoutes:
    """Routes under /v1/admin/operators."""

    def __init__(self, accounts: OperatorAccounts, authenticator: Authenticator) -> None:
        self._accounts = accounts
        self._authenticator = authenticator

    def resources(self) -> Sequence[Resource]:
        return [
            Resource("/v1/admin/operators", {"POST": self.add, "GET": self.list}),
            Resource("/v1/admin/operators/{name}", {"DELETE": self.remove}),
            Resource("/v1/admin/operators/{name}/secret", {"POST": self.rotate_secret}),
        ]

    async def add(self, exchange: Exchange) -> Answer:
        principal = await self._operator(exchange)
        request = await exchange.body(wire.AddOperator)
        added = await self._accounts.add(exchange.caller, principal, request.name, request.secret)
        return json_answer(_shown(added), status=201)

    async def list(self, exchange: Exchange) -> Answer:
        await self._operator(exchange)
        return json_answer({"operators": [wire.operator(each) for each in await self._accounts.list()]})

    async def rotate_secret(self, exchange: Exchange) -> Answer:
        principal = await self._operator(exchange)
        request = await exchange.optional_body(wire.RotateOperatorSecret)
        name = exchange.path_params["name"]
        return json_answer(_shown(await self._accounts.rotate(exchange.caller, principal, name, request.secret)))

    async def remove(self, exchange: Exchange) -> Answer:
        principal = await self._operator(exchange)
        removed = await self._accounts.remove(exchange.caller, principal, exchange.path_params["name"])
        return json_answer(wire.operator(removed))

    async def _operator(self, exchange: Exchange) -> Principal:
        required = {GrantKind.OPERATOR: operator.LAUNCH_TOKENS_SCOPE}
        return await self._authenticator.require(exchange.caller, exchange.bearer(), required)


def _shown(new: NewOperatorSecret) -> dict[str, object]:
    shown = wire.operator(new.operator)
    return shown if new.secret is None else {**shown, "secret": new.secret}
