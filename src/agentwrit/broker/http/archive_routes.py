"""The archives of the audit log on the wire, for the operator: which there are, and that one was written."""

from collections.abc import Mapping, Sequence

from agentwrit.archive_files import Checked
from agentwrit.broker.http import wire
from agentwrit.broker.http.exchange import Answer, Exchange, json_answer
from agentwrit.broker.http.routing import Resource
from agentwrit.broker.services.archives import ArchiveService
from agentwrit.broker.services.authentication import Authenticator, Principal
from agentwrit.domain import audit, operator, timestamps
from agentwrit.domain.audit_archive import Archive
from agentwrit.domain.errors import InvalidRequest
from agentwrit.domain.grant import GrantKind


class ArchiveRoutes:
    """The route /v1/audit/archives."""

    def __init__(self, archives: ArchiveService, authenticator: Authenticator) -> None:
        self._archives = archives
        self._authenticator = authenticator

    def resources(self) -> Sequence[Resource]:
        return [Resource("/v1/audit/archives", {"GET": self.list, "POST": self.record})]

    async def list(self, exchange: Exchange) -> Answer:
        await self._operator(exchange)
        pruned, archives = await self._archives.known()
        removed = audit.event_id(pruned) if pruned else None
        return json_answer({"archives": [_shown(archive) for archive in archives], "removed": removed})

    async def record(self, exchange: Exchange) -> Answer:
        principal = await self._operator(exchange)
        told = await exchange.body(wire.RecordArchive)
        first, last = _place("first", told.first), _place("last", told.last)
        archived = Checked(first, last, told.root, told.file, told.sha256)
        sid = principal.claims.sid
        archive = await self._archives.record(exchange.caller, archived, principal=principal.name, sid=sid)
        return json_answer(_shown(archive), status=201)

    async def _operator(self, exchange: Exchange) -> Principal:
        required = {GrantKind.OPERATOR: operator.AUDIT_SCOPE}
        return await self._authenticator.require(exchange.caller, exchange.bearer(), required)


def _shown(archive: Archive) -> Mapping[str, object]:
    return {
        "first": audit.event_id(archive.first),
        "last": audit.event_id(archive.last),
        "root": archive.root,
        "file": archive.file,
        "sha256": archive.sha256,
        "archived_at": timestamps.rfc3339(archive.archived_at),
        "event": audit.event_id(archive.event),
    }


def _place(field: str, text: str) -> int:
    try:
        return audit.parse_event_id(text)
    except ValueError:
        raise InvalidRequest(f"{field} is not an event id", hint="for example evt-000001") from None
