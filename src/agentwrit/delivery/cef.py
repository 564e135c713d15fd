"""Events in the Common Event Format (ArcSight CEF, version 0), one line per event."""

from collections.abc import Mapping
from typing import Any, Final

from agentwrit._version import __version__
from agentwrit.domain import timestamps
from agentwrit.domain.audit import Outcome
from agentwrit.domain.text import escaped, to_json

_SEVERITY: Final = {Outcome.SUCCESS: 3, Outcome.DENIED: 6}
_CUSTOM: Final = {1: "app_id", 2: "task_id", 3: "sid", 4: "request_id", 5: "trace_id", 6: "hash"}


def line(record: Mapping[str, Any]) -> str:
    """An event, as the broker shows it, in CEF. The result never contains a line break."""
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
        data = to_json(record["data"])
        fields |= {"flexString1Label": "data", "flexString1": data}
    if "cut" in record:
        fields |= {"flexString2Label": "cut", "flexString2": record["cut"]}
    extension = " ".join(f"{name}={_value(str(value))}" for name, value in fields.items() if value != "")
    return "CEF:0|" + "|".join(map(_header, header)) + "|" + extension


def _header(text: str) -> str:
    return _written(text, "|", " ")


def _value(text: str) -> str:
    return _written(text, "=", "\\n")


def _written(text: str, special: str, line_end: str) -> str:
    """Escape text for a place where the character `special` is special. Line breaks become `line_end`."""
    lines = (escaped(line).replace("\\", "\\\\").replace(special, f"\\{special}") for line in text.splitlines())
    return line_end.join(lines)
