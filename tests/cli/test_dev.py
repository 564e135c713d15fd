"""`agentwrit dev`: a broker for a command, and never a broker left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.cli.support import AGENTWRIT, CLEAN, one_line, run, terminal
from tests.support import STOP_TIMEOUT, BrokerProcess


def test_dev_gives_the_command_a_broker_and_passes_its_exit_code_on(tmp_path: Path) -> None:
    program = (
        "import os, sys; from agentwrit import AgentWritApp;"
        "app = AgentWritApp.from_env(); assert os.environ['AGENTWRIT_ADMIN_SECRET'];"
        "print(app.health().status, app.create_agent('o', 't', ['write:data:9']).expires_in); sys.exit(7)"
    )
    of_the_user = {"AGENTWRIT_ISSUER": "of-another-broker", "TMPDIR": str(tmp_path)}
    done = run("dev", "--", sys.executable, "-c", program, **of_the_user)
    assert (done.returncode, done.stdout, done.stderr) == (7, "ok 300\n", "")
    assert list(tmp_path.iterdir()) == []


def test_dev_says_when_the_command_is_not_there() -> None:
    one_line(run("dev", "--", "no-such-command"), 127, "command not found")


def test_dev_says_when_its_broker_cannot_start(broker: BrokerProcess) -> None:
    port = broker.url.rpartition(":")[2]
    one_line(run("dev", "--port", port, "--", "true"), 2, port)


def test_what_follows_the_command_is_the_commands_own() -> None:
    program = "import sys; print(sys.argv[1:])"
    done = run("dev", sys.executable, "-c", program, "--port", "http", "--help", "-x")
    assert (done.returncode, done.stdout) == (0, "['--port', 'http', '--help', '-x']\n")
    one_line(run("dev", "--prot", "1", "--", "true"), 2, "--prot")


def test_more_scopes_can_be_asked_for() -> None:
    program = (
        "from agentwrit import AgentWritApp;"
        "print(AgentWritApp.from_env().create_agent('o', 't', ['send:mail:7', 'read:data:1']).scope)"
    )
    done = run("dev", "--scope", "send:mail:*", "--", sys.executable, "-c", program)
    assert done.stdout == "['send:mail:7', 'read:data:1']\n", done.stderr
    one_line(run("dev", "--scope", "mail", "--", "true"), 2, "action:resource:identifier")


@pytest.mark.parametrize(("given", "direct"), [("", "127.0.0.1"), ("example.org", "example.org,127.0.0.1"), ("*", "*")])
def test_a_proxy_does_not_stand_between_the_command_and_its_broker(given: str, direct: str) -> None:
    program = (
        "import os; from agentwrit import AgentWritApp;"
        "print(AgentWritApp.from_env().health().status, os.environ['no_proxy'])"
    )
    nobody = "http://127.0.0.1:9"
    done = run("dev", "--", sys.executable, "-c", program, http_proxy=nobody, ALL_PROXY=nobody, no_proxy=given)
    assert done.stdout == f"ok {direct}\n", done.stderr


def test_without_a_proxy_the_commands_environment_names_none() -> None:
    program = "import os; print([name for name in os.environ if name.lower().endswith('_proxy')])"
    done = run("dev", "--", sys.executable, "-c", program)
    assert done.stdout == "[]\n", done.stderr


WAITING = "import sys; print('ready', flush=True); sys.stdin.read()"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGHUP, 129),
        (signal.SIGINT, 130),
        (signal.SIGQUIT, 131),
        (signal.SIGTERM, 143),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
    ids=["hup", "int", "quit", "term", "kill"],
)
def test_dev_leaves_no_broker_behind_however_it_ends(tmp_path: Path, number: int, code: int) -> None:
    program = f"import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); {WAITING}"
    process = subprocess.Popen(
        [AGENTWRIT, "dev", "--", sys.executable, "-c", program],
        env={**CLEAN, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # away from the terminal of whoever runs the tests: its keys are not what is sent
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"ready\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 3  # the broker, the process for its endings, and the command
    process.send_signal(number)
    assert process.wait(STOP_TIMEOUT) == code
    process.stdin.close()  # a command whose dev was killed reads its end here
    gone, alive = psutil.wait_procs(children, STOP_TIMEOUT)
    assert (len(gone), alive) == (3, [])
    process.stdout.close()
    if number != signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []


def test_a_signal_while_the_broker_starts_leaves_nothing(tmp_path: Path) -> None:
    # The broker's interpreter tells us by a pipe that it is on its way.
    (tmp_path / "temporary").mkdir()
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'agentwrit.broker' in sys.orig_argv:\n"
        f"    with open({str(tmp_path / 'pipe')!r}, 'w') as pipe: pipe.write(str(os.getpid()))\n"
    )
    os.mkfifo(tmp_path / "pipe")
    process = subprocess.Popen(
        [AGENTWRIT, "dev", "--", sys.executable, "-c", WAITING],
        env={**CLEAN, "TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(tmp_path)},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    broker = int((tmp_path / "pipe").read_text())
    process.terminate()
    _, told = process.communicate(timeout=STOP_TIMEOUT)
    assert (process.returncode, told) == (143, b"")
    assert not psutil.pid_exists(broker)
    assert list((tmp_path / "temporary").iterdir()) == []


# Counts what it is sent; SIGTERM, which comes last, ends it with 40 and that number.
COUNTING = """
import signal, sys
awaited = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
print("ready", flush=True)
seen = 0
while signal.sigwait(awaited) == signal.SIGINT:
    seen += 1
    print("seen", seen, flush=True)
sys.exit(40 + seen)
"""


def test_each_ctrl_c_reaches_the_command_once_and_does_not_end_dev_before_it() -> None:
    with terminal(["dev", "--", sys.executable, "-c", COUNTING]) as session:
        session.wait_for("ready")
        for count in (1, 2):
            session.type("\x03")
            session.wait_for(f"seen {count}")
        session.process.terminate()
        assert session.finish() == 42


def test_interrupts_from_elsewhere_are_passed_on_each_time() -> None:
    process = subprocess.Popen(
        [AGENTWRIT, "dev", "--", sys.executable, "-c", COUNTING],
        env=CLEAN,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    for count in (1, 2, 3):
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"seen %d\n" % count
    process.terminate()
    assert process.wait(STOP_TIMEOUT) == 43
    process.stdout.close()


def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    program = f"import signal; assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN; {WAITING}"
    process = subprocess.Popen(
        ["nohup", AGENTWRIT, "dev", "--", sys.executable, "-c", program],
        env=CLEAN,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=STOP_TIMEOUT)  # the end of its input is what ends the command
    assert process.returncode == 0
