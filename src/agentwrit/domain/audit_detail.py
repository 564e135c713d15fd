"""The `detail` of an event: one line that says what happened and to whom, for readers who see nothing else.

The rules:

- The line begins with fixed text that says what happened. After a colon follow the ids that the event has, each with
  its kind. Ids that the event does not have are left out.
- An agent's id includes its orchestration and task, so these are listed only if there is no agent.
- Text chosen by a caller may contain anything. Unless it consists of letters, digits and a few other characters, it is
  quoted, with non-printable characters escaped, and truncated if it is long. Nobody can forge a line by choosing a
  name.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from agentwrit.domain import text

MAX_LISTED: Final = 8
MAX_ID_LENGTH: Final = 512
MAX_TEXT_LENGTH: Final = 48  # of text that is not an id: enough to recognise it; the event's `data` has the whole

# The members of `data` that the line lists, in this order, and the label of each.
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
    """The labelled values from the `data` of an event, tokens first."""
    told = [name for name in data if name in _TOLD and data[name] != ""]
    if "first" in data and not str(data["first"]).startswith("evt-"):  # times of counted repeats, not event ids
        told = [name for name in told if name not in ("first", "last")]
    if len(told) > 1:
        told.sort(key=_ORDER.__getitem__)
    return [f"{_TOLD[name]} {_shown(data[name])}" for name in told]


def token(jti: str) -> str:
    """The labelled id of a token, as in `names`."""
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
    """The detail of an event. `happened`: the text; `named`: the `names` of its data; the rest: fields of the event."""
    by = "" if principal in (agent_id, f"app:{app_id}") else principal
    whole = f"{agent_id}{task_id}{orch_id}{app_id}{sid}{by}"
    if len(whole) > MAX_ID_LENGTH or _PLAIN.fullmatch(whole) is None:  # one check suffices for nearly all events
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
