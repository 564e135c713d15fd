"""Load by wrk, a compiled generator: many connections that ask as fast as they are answered."""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Each request sends the next body; one that a broker accepts only once must not be sent again.
_SCRIPT = """
local bodies = {}
for line in io.lines(%(bodies)s) do bodies[#bodies + 1] = line end
local sent = 0
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
for name, value in pairs(%(headers)s) do wrk.headers[name] = value end
request = function()
  sent = sent + 1
  if sent > #bodies and not %(again)s then io.stderr:write("no bodies left\\n"); os.exit(3) end
  return wrk.format(nil, nil, nil, bodies[(sent - 1) %% #bodies + 1])
end
done = function(summary, latency)
  io.write(string.format("\\n=> %%d %%d %%d %%d %%d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), summary.errors.status + summary.errors.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """What came of it. `rate`: answers in a second; `p50`, `p99`: seconds from a request to its answer."""

    rate: float
    p50: float
    p99: float


class Generator:
    """Prepared requests to one URL. `is_repeatable`: they may be sent more than once."""

    def __init__(
        self, url: str, bodies: Sequence[str], *, headers: Mapping[str, str] | None = None, is_repeatable: bool = True
    ) -> None:
        if shutil.which("wrk") is None:
            raise SystemExit("benchmarks: wrk is needed: install it, for example with `apt-get install wrk`")
        self._url = url
        self._bodies = bodies
        self._headers = headers or {}
        self._is_repeatable = is_repeatable

    def run(self, *, seconds: int, connections: int) -> Load:
        """Ask for so long.

        Raises:
            RuntimeError: an answer was an error.
        """
        with tempfile.TemporaryDirectory() as directory:
            command = self.command(Path(directory), seconds=seconds, connections=connections)
            finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise RuntimeError(f"wrk failed: {finished.stderr.strip()}")
        return parse(finished.stdout)

    def command(self, directory: Path, *, seconds: int, connections: int) -> list[str]:
        """How to ask for so long, with files in `directory`."""
        bodies, script = directory / "bodies", directory / "ask.lua"
        bodies.write_text("".join(f"{body}\n" for body in self._bodies))
        fields = ", ".join(f"[{json.dumps(name)}] = {json.dumps(value)}" for name, value in self._headers.items())
        script.write_text(
            _SCRIPT
            % {
                "bodies": json.dumps(str(bodies)),
                "headers": f"{{{fields}}}",
                "again": "true" if self._is_repeatable else "false",
            }
        )
        return ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), self._url]


def parse(printed: str) -> Load:
    """What wrk found.

    Raises:
        RuntimeError: an answer was an error.
    """
    found = re.search(r"^=> (\d+) (\d+) (\d+) (\d+) (\d+)$", printed, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"wrk said nothing of what it found: {printed}")
    requests, microseconds, p50, p99, errors = map(int, found.groups())
    if errors or not requests:
        raise RuntimeError(f"{errors} of {requests} answers were errors")
    return Load(rate=requests / microseconds * 1e6, p50=p50 / 1e6, p99=p99 / 1e6)
