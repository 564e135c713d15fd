"""Events in the Common Event Format (ArcSight CEF, version 0): one line each."""

import json
from collections.abc import Mapping
from typing import Any, Final

from agentwrit._version import __version__
from agentwrit.domain import timestamps
from agentwrit.domain.audit import Outcome

_SEVERITY: Final = {Outcome.SUCCESS: 3, Outcome.DENIED: 6}
_CUSTOM: Final = {1: "app_id", 2: "task_id", 3: "sid", 4: "request_id", 5: "trace_id", 6: "hash"}


def line(record: Mapping[str, Any]) -> str:
    """An event, as the broker shows it, in CEF. It has no line break, whatever it holds."""
    kind = str(record["event_type"])
    severity = _SEVERITY.get(record["outcome"], 5)
    header = ("AgentWrit", "broker", __version__, kind, kind.replace("_", " "), str(severity))
    fields: dict[str, object] = {
        "rt": round(timestamps.parse_rfc3339(record["timestamp"]) * 1000),
        "externalId": record["id"],
        "cat": kind,
        "outcome": record["outcome"],
        "msg": record["detail"],
        "suser": record["principal"],
        "duser": record["agent_id"],
        "src": record["client_address"],
        "request": record["resource"],
    }
    for number, name in _CUSTOM.items():
        if record[name]:
            fields |= {f"cs{number}Label": name, f"cs{number}": record[name]}
    if record["data"]:
        data = json.dumps(record["data"], ensure_ascii=False)
        fields |= {"flexString1Label": "data", "flexString1": data}
    extension = " ".join(f"{name}={_value(str(value))}" for name, value in fields.items() if value != "")
    return "CEF:0|" + "|".join(map(_header, header)) + "|" + extension


def _header(text: str) -> str:
    return _one_line(text.replace("\\", "\\\\").replace("|", "\\|"), " ")


def _value(text: str) -> str:
    return _one_line(text.replace("\\", "\\\\").replace("=", "\\="), "\\n")


def _one_line(text: str, instead: str) -> str:
    return instead.join(text.splitlines())
