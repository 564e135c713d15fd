"""What docs/audit.md shows is what happens."""

import os
import subprocess
import sys
from pathlib import Path

from tests.cli.support import CLEAN
from tests.docs.test_documentation import shown
from tests.e2e.test_archives import grow
from tests.pages import blocks, check_printed
from tests.support import ADMIN_SECRET, BrokerProcess

PAGE = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()


def test_the_page_on_the_audit_log_can_be_followed(tmp_path: Path) -> None:
    steps = shown(PAGE)
    [service] = blocks(PAGE, "python")
    assert len(steps) == 20
    with BrokerProcess(tmp_path / "agentwrit-data") as broker:
        shop = broker.app("read:data:*", "write:data:*", name="shop", audiences=["orders"])
        grow(broker, 520, shop)
        environment = {
            **CLEAN,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "AGENTWRIT_BROKER_URL": broker.url,
            "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET,
        }
        for step in steps:
            if "audit usage" in step.command:
                token = shop.agent("read:data:*", "write:data:*", audience=["orders"])["access_token"]
                program = f"{service}\nread_order({token!r}, 7), read_order({token!r}, 8)\nverifier.close()"
                subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
            done = subprocess.run(
                ["bash", "-c", step.command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, (step.command, done.stderr)
            check_printed([*done.stdout.splitlines(), *done.stderr.splitlines()], step.output, step.command)
            exports = [line.removeprefix("export ") for line in done.stdout.splitlines() if "CLIENT" in line]
            environment |= dict(line.split("=", 1) for line in exports)  # "with those variables set"
