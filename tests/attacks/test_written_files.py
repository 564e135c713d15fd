"""What is written to disk: by whom it can be read, and whom it could be made to overwrite."""

import ast
import asyncio
import contextlib
import errno
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentwrit
from agentwrit import durable
from agentwrit.archive_files import NewArchive
from agentwrit.broker.clock import Clock
from agentwrit.broker.storage import sqlite_backup
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sqlite import SqliteStore
from agentwrit.cli.commands import run
from agentwrit.domain.errors import ConfigurationError
from agentwrit.durable import NewFile
from tests.support import ADMIN_SECRET, BrokerProcess

SOURCE = Path(agentwrit.__file__).parent

WRITES = {
    "durable.py sync os.open": "opens what is there, to make it durable",
    "durable.py rename replace": "the one rename of all that is written",
    "durable.py create os.open": "the one way to a new file that has its name from the beginning",
    "durable.py open_log os.open": "the one way to a file that grows",
    "durable.py NewFile.__init__ os.open": "the one way to a new file; and a pipe or device that is meant",
    "durable.py NewFile.__init__ os.fdopen": "that same one",
    "durable.py NewFile.settle replace": "a new file gets its name",
    "durable.py NewFile.settle hardlink_to": "or gets it only if nobody has it",
    "archive_files.py NewArchive.__init__ mkdir": "the directory of archives, for its owner alone",
    "broker/data_directory.py _prepare mkdir": "the data directory, for its owner alone",
    "broker/data_directory.py _prepare os.open": "its lock: an empty file, in the directory that is ours alone",
    "broker/data_directory.py _make_private chmod": "closes it to others",
    "broker/__main__.py _rename rename": "no file: the names of a store",
    "broker/http/server.py HttpServer._sweep os.open": "/dev/null",
    "broker/server.py _announce os.fdopen": "a pipe that whoever started us gave us",
    "broker/workers.py Workers._start os.fdopen": "a pipe of our own",
    "broker/counts.py new_file tempfile.TemporaryFile": "a file without a name, of a worker's counts",
    "broker/server.py _listen_at chmod": "no file: a socket, before anybody can connect",
    "broker/storage/postgres_memory.py Memory.open mkdir": "the directory of what was seen of databases, for its owner",
    "broker/storage/postgres_memory.py Memory.open os.open": "what was seen of one, in that directory",
    "broker/storage/sqlite_copy.py copy open": "the copy, which `durable` made",
    "broker/storage/sqlite_copy.py _write_log os.fdopen": "what `durable` opened",
    "broker/storage/sqlite_backup.py unpack os.fdopen": "what `durable` opened",
    "broker/storage/sqlite_backup.py unpack shutil.copyfileobj": "into that",
    "cli/commands.py _system_refused os.open": "/dev/null",
    "cli/dev.py dev tempfile.TemporaryDirectory": "for its owner alone, under a name that nobody can guess",
    "cli/dev.py _broker open": "the log of the broker, in that directory",
    "cli/dev.py _broker os.fdopen": "a pipe of our own",
    "cli/signals.py _terminal_is_ours os.open": "the terminal",
    "delivery/sinks.py FileSink._append os.fdopen": "what `durable` opened",
    "standard_streams.py complete os.open": "/dev/null",
    "standard_streams.py _nowhere open": "/dev/null",
    "integrations/celery.py _guarded replace": "no file: the signature of a function",
    "integrations/celery.py AgentWritTask.replace replace": "no file: a task",
    "integrations/celery.py _without_the_task replace": "no file: the signature of a function",
    "broker/keystore.py SigningKeys.__init__ replace": "no file: keys in memory",
    "broker/services/keys.py KeyRings.replace replace": "no file: keys in memory",
    "broker/services/keys.py KeyService._follow replace": "no file: keys in memory",
}
"""Each place in the source that opens something to write it, or gives a file its name, and why it may."""

_WRITING = re.compile("[rbt]*[wax+][rbt+]*")
_OPENING = {"write_text", "write_bytes", "touch", "mkdir", "chmod", "rename", "replace", "hardlink_to", "symlink_to"}
_MODULES = {"os", "tempfile", "shutil"}
_OF_MODULES = {
    "open", "fdopen", "rename", "replace", "link", "symlink", "mkdir", "makedirs", "mkstemp", "mkdtemp", "mkfifo",
    "NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile", "TemporaryDirectory", "copy", "copy2", "copyfile",
    "copytree", "copyfileobj", "move",
}  # fmt: skip


def written(call: ast.Call) -> str | None:
    """What a call writes with, if it may write."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    of = function.value if isinstance(function, ast.Attribute) else None
    if isinstance(of, ast.Name) and of.id in _MODULES:
        return f"{of.id}.{name}" if name in _OF_MODULES else None
    if name in ("open", "open_file"):
        at = 0 if of is not None and name == "open" else 1
        modes = [each for each in call.args[at:] if isinstance(each, ast.Constant)]
        modes += [each.value for each in call.keywords if each.arg == "mode" and isinstance(each.value, ast.Constant)]
        return name if any(_WRITING.fullmatch(str(mode.value)) for mode in modes) else None
    is_texts = name == "replace" and len(call.args) + len(call.keywords) != 1
    is_ours = getattr(of, "attr", getattr(of, "id", "")) in ("structs", "durable")
    return name if of is not None and name in _OPENING and not is_texts and not is_ours else None


def writes() -> Iterator[str]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield from _writes(ast.parse(path.read_text(encoding="utf-8")), path.relative_to(SOURCE).as_posix(), "")


def _writes(node: ast.AST, file: str, within: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        inner = within
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = f"{within}.{child.name}" if within else child.name
        if isinstance(child, ast.Call) and (what := written(child)) is not None:
            yield f"{file} {within} {what}"
        yield from _writes(child, file, inner)


def test_nothing_is_written_but_where_the_list_says_why() -> None:
    assert set(writes()) == WRITES.keys()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(autouse=True)
def _careless() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory that everybody can write to."""
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(0o1777)
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    path.chmod(0o644)
    return path


def test_a_file_is_its_owners_alone_whoever_could_read_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write(path, b"one")
    assert (mode(path), path.read_bytes()) == (0o600, b"one")
    path.chmod(0o666)
    durable.write(path, b"two")
    assert (mode(path), path.read_bytes()) == (0o600, b"two")
    log = tmp_path / "log"
    os.close(durable.open_log(log))
    assert mode(log) == 0o600
    assert sorted(at.name for at in tmp_path.iterdir()) == ["file", "log"]


def test_while_it_is_written_it_has_a_name_that_nobody_can_have_taken(shared: Path, victim: Path) -> None:
    path = shared / "file"
    names = set()
    for _ in range(20):
        with NewFile(path) as new:
            names.add(new.place.name)
            assert mode(new.place) == 0o600
            new.write(b"half")
    assert len(names) == 20
    assert list(shared.iterdir()) == []
    for name in (*names, "file.new", "file.tmp", "file.partial"):
        (shared / name).symlink_to(victim)
    durable.write(path, b"whole")
    assert (path.read_bytes(), victim.read_text()) == (b"whole", "precious")


@pytest.mark.parametrize("permissions", [0o1777, 0o777, 0o775, 0o757])
def test_a_link_that_somebody_else_can_have_put_there_is_not_followed(
    shared: Path, victim: Path, permissions: int
) -> None:
    shared.chmod(permissions)
    (shared / "file").symlink_to(victim)
    (shared / "dangling").symlink_to(victim.with_name("none"))
    (victim.parent / "own").symlink_to(shared / "file")
    for path in (shared / "file", shared / "dangling", victim.parent / "own"):
        for way in (lambda at: durable.write(at, b"x"), durable.open_log):
            with pytest.raises(OSError, match="link, in a directory that others can write to") as refusal:
                way(path)
            assert refusal.value.errno == errno.ELOOP
    assert victim.read_text() == "precious"
    assert not victim.with_name("none").exists()


def test_a_link_of_ours_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("middle")
    (tmp_path / "middle").symlink_to(Path("there") / "file")
    tmp_path.chmod(0o755)
    durable.write(tmp_path / "link", b"one")
    durable.write(tmp_path / "link", b"two")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"two"
    assert [at.name for at in (tmp_path / "there").iterdir()] == ["file"]
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="Too many"):
        durable.write(tmp_path / "round", b"x")


def test_another_name_of_the_same_file_keeps_what_it_holds(shared: Path, victim: Path) -> None:
    (shared / "file").hardlink_to(victim)
    durable.write(shared / "file", b"x")
    assert victim.read_text() == "precious"


def test_a_name_that_must_be_new_is_not_taken_from_anybody(tmp_path: Path, victim: Path) -> None:
    tmp_path.chmod(0o755)
    link, dangling = tmp_path / "link", tmp_path / "dangling"
    link.symlink_to(victim)
    dangling.symlink_to(tmp_path / "none")
    for path in (victim, link):
        with pytest.raises(FileExistsError):
            durable.write(path, b"x", replacing=False)
    with NewFile(dangling, replacing=False) as new:
        (tmp_path / "none").write_text("somebody was quicker")
        with pytest.raises(FileExistsError):
            new.settle()
    assert victim.read_text() == "precious"
    assert (tmp_path / "none").read_text() == "somebody was quicker"
    assert not [at for at in tmp_path.iterdir() if at.name.endswith(durable.UNFINISHED)]


def test_what_fails_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write(path, b"before")
    with contextlib.suppress(ZeroDivisionError), NewFile(path) as new:
        new.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"before"
    assert [at.name for at in tmp_path.iterdir()] == ["file"]


def test_what_is_no_file_is_written_only_by_whoever_means_to_and_is_not_replaced(shared: Path) -> None:
    pipe = shared / "pipe"
    os.mkfifo(pipe)
    for way in (lambda at: durable.write(at, b"x"), durable.open_log):
        with pytest.raises(OSError, match="it is no file"):
            way(pipe)
        with pytest.raises(OSError, match=r"no file|directory"):
            way(shared)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    with NewFile(pipe, or_device=True) as new:
        new.write(b"through it")
        new.settle()
    reader.join(10)
    assert read == [b"through it"]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_a_pipe_that_somebody_else_put_there_learns_nothing(shared: Path) -> None:
    pipe = shared / "pipe"
    os.mkfifo(pipe)
    if os.getuid() == 0:
        os.chown(pipe, 65534, 65534)
        with pytest.raises(OSError, match="somebody else's"):
            NewFile(pipe, or_device=True)


def test_standard_output_by_its_name_is_no_file_to_be_replaced(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from agentwrit.durable import NewFile\n"
        "for name in ('/dev/stdout', '/dev/null', '/proc/self/fd/1'):\n"
        "    with NewFile(pathlib.Path(name), or_device=True) as new: new.write(b'x'); new.settle()\n"
    )
    before = Path("/dev/stdout").lstat().st_ino, Path("/dev/null").lstat().st_ino
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", script], stdout=out, check=True, timeout=60)
    assert (Path("/dev/stdout").lstat().st_ino, Path("/dev/null").lstat().st_ino) == before
    assert (tmp_path / "out").read_bytes() == b"x" or (tmp_path / "out").read_bytes() == b"xx"


def test_everything_that_commands_write_is_its_owners_alone_and_follows_no_link_of_anothers(
    tmp_path: Path, shared: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = {
        "export": ("audit", "export", "--output", "FILE"),
        "proof": ("audit", "prove", "evt-000003", "--output", "FILE"),
        "witness": ("audit", "witness", "FILE"),
        "cursor": ("audit", "deliver", "--to", f"file:{tmp_path}/log", "--cursor", "FILE", "--once"),
        "log": ("audit", "deliver", "--to", "file:FILE", "--cursor", f"{tmp_path}/own", "--once"),
    }
    with BrokerProcess(tmp_path / "data") as broker:
        broker.app()
        broker.http.post("/v1/audit/checkpoint", headers=broker.admin())
        monkeypatch.setenv("AGENTWRIT_BROKER_URL", broker.url)
        monkeypatch.setenv("AGENTWRIT_ADMIN_SECRET", ADMIN_SECRET)
        for name, command in commands.items():
            path = shared / name
            arguments = [argument.replace("FILE", str(path)) for argument in command]
            for way in ("", ".new", ".tmp", ".partial"):
                (shared / f"{name}{way}").symlink_to(victim)
            assert run(arguments) == 2, name
            path.unlink()
            assert run(arguments) == 0, name
            assert mode(path) == 0o600
    with NewArchive(tmp_path / "archives", 1, 256) as archive:
        archive.write([b"an event"])
        archive.seal()
    assert victim.read_text() == "precious"
    files = [at for at in tmp_path.rglob("*") if not at.is_symlink() and at not in (shared, victim, broker.log)]
    assert {mode(at) for at in files if at.is_file()} == {0o600}
    assert {mode(at) for at in files if at.is_dir()} == {0o700}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_backup_follows_no_link_of_anothers(tmp_path: Path, shared: Path, victim: Path, overwrite: bool) -> None:
    sealer = Sealer(b"s" * 32)
    asyncio.run(SqliteStore(tmp_path / "agentwrit.db", Clock(), sealer).close())
    (shared / "backup").symlink_to(victim)
    with pytest.raises(ConfigurationError, match=r"is there already|others can write to"):
        sqlite_backup.back_up(tmp_path / "agentwrit.db", shared / "backup", sealer, overwrite=overwrite)
    assert victim.read_text() == "precious"
    assert [at.name for at in shared.iterdir()] == ["backup"]
