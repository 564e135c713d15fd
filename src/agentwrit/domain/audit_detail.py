"""The `detail` of an event: one line that says what happened, and to whom, to readers who are shown nothing else.

The rules:

- It begins with what happened, in words of ours. Behind a colon stand the ids that the event has, each with what it is.
  An id that it does not have is left out.
- An agent's id holds its orchestration and its task, so these stand for themselves only where there is no agent.
- What a caller chose may hold anything: unless it is made of letters, digits and a few marks, it stands in quotation
  marks, with what is not printable escaped, and is cut where it is long. So nobody words a line by choosing a name.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from agentwrit.domain import text

MAX_LISTED: Final = 8
MAX_ID_LENGTH: Final = 512
MAX_TEXT_LENGTH: Final = 48  # of what is no id: its beginning says whose it is, and the data of the event has the rest

# What the data of an event names, in the order in which it is told, and as what.
_TOLD: Final = {
    "jti": "token",
    "name": "name",
    "agent_name": "name",
    "kid": "key",
    "purpose": "for",
    "previous_kid": "in place of key",
    "level": "level",
    "target": "target",
    "limit": "limit",
    "presented_jti": "token",
    "delegate": "delegate",
    "delegated_sid": "delegated grant",
    "parent_sid": "from grant",
    "scope_required": "needed",
    "scope_exceeding": "beyond it",
    "audience_exceeding": "beyond it",
    "ending": "ending",
    "backup_last": "event",
    "feed_epoch": "feed epoch",
    "first": "from",
    "last": "to",
    "grants_ended": "grants ended",
}

_ORDER: Final = {name: place for place, name in enumerate(_TOLD)}

_PLAIN: Final = re.compile(r"[A-Za-z0-9._:/*@+-]*")


def names(data: Mapping[str, str | int | list[str]]) -> list[str]:
    """What the data of an event names, a token before all else."""
    told = [name for name in data if name in _TOLD and data[name] != ""]
    if "first" in data and not str(data["first"]).startswith("evt-"):  # times of what was counted: no ids
        told = [name for name in told if name not in ("first", "last")]
    if len(told) > 1:
        told.sort(key=_ORDER.__getitem__)
    return [f"{_TOLD[name]} {_shown(data[name])}" for name in told]


def token(jti: str) -> str:
    """A token, as `names` has it."""
    return f"{_TOLD['jti']} {_shown(jti)}"


def line(
    happened: str,
    named: Sequence[str],
    *,
    principal: str,
    app_id: str,
    agent_id: str,
    task_id: str,
    orch_id: str,
    sid: str,
) -> str:
    """The detail of an event. `happened`: its words; `named`: the `names` of its data; the others are its fields."""
    by = "" if principal in (agent_id, f"app:{app_id}") else principal
    whole = f"{agent_id}{task_id}{orch_id}{app_id}{sid}{by}"
    if len(whole) > MAX_ID_LENGTH or _PLAIN.fullmatch(whole) is None:  # as a rule they are looked at together
        ids = (agent_id, task_id, orch_id, app_id, sid, by)
        agent_id, task_id, orch_id, app_id, sid, by = (each and _shown(each) for each in ids)
    parts = list(named)
    if agent_id:
        parts.append(f"agent {agent_id}")
    else:
        if task_id:
            parts.append(f"task {task_id}")
        if orch_id:
            parts.append(f"orchestration {orch_id}")
    if app_id:
        parts.append(f"app {app_id}")
    if sid:
        parts.append(f"grant {sid}" if agent_id else f"login {sid}")
    if by:
        parts.append(f"by {by}")
    return f"{happened}: {', '.join(parts)}" if parts else happened


def _shown(value: str | int | list[str]) -> str:
    if isinstance(value, list):
        more = f" and {len(value) - MAX_LISTED} more" if len(value) > MAX_LISTED else ""
        return " ".join(map(_shown, value[:MAX_LISTED])) + more
    if isinstance(value, int) or (_PLAIN.fullmatch(value) and len(value) <= MAX_ID_LENGTH):
        return str(value)
    return text.to_json(text.escaped(value, MAX_TEXT_LENGTH))
