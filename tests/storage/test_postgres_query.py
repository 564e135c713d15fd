"""A connection that asks one question at a time (`postgres_query`), on either kind of event loop."""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg
import pytest
import uvloop

from agentwrit.broker.storage import postgres_link
from agentwrit.broker.storage.postgres_query import QueryConnection
from tests import postgres

Asked = Callable[[QueryConnection], Coroutine[Any, Any, Any]]

PID = b"SELECT pg_backend_pid()"


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def asked(request: pytest.FixtureRequest, database_url: str) -> Callable[[Asked], Any]:
    """Runs something with a connection."""

    async def run(work: Asked) -> Any:
        connection = await QueryConnection.connect(database_url)
        try:
            return await work(connection)
        finally:
            await connection.close()

    def in_a_loop(work: Asked) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(run(work))

    return in_a_loop


def test_rows_come_as_the_driver_gives_them(asked: Callable[[Asked], Any]) -> None:
    async def work(connection: QueryConnection) -> object:
        sql = (
            b"SELECT $1::bigint + n, 'a' || n, decode('00ff', 'hex'), NULL, 1.5::float8 FROM generate_series(1, 2) AS n"
        )
        return [await connection.query(sql, value) for value in (b"1", b"10")]

    rest = (b"\x00\xff", None, 1.5)
    assert asked(work) == [[(2, "a1", *rest), (3, "a2", *rest)], [(11, "a1", *rest), (12, "a2", *rest)]]


def test_more_rows_than_one_reading_of_the_socket_holds_are_all_there(asked: Callable[[Asked], Any]) -> None:
    async def work(connection: QueryConnection) -> object:
        return await connection.query(b"SELECT n, repeat('x', 1000) FROM generate_series(1, 5000) AS n")

    rows = asked(work)
    assert [number for number, _ in rows] == list(range(1, 5001))


def test_a_question_larger_than_the_socket_takes_at_once_arrives(asked: Callable[[Asked], Any]) -> None:
    async def work(connection: QueryConnection) -> object:
        return await connection.query(b"SELECT length($1::text)", b"x" * 30_000_000)

    assert asked(work) == [(30_000_000,)]


def test_what_the_server_refuses_is_raised_and_the_next_question_is_answered(asked: Callable[[Asked], Any]) -> None:
    async def work(connection: QueryConnection) -> object:
        with pytest.raises(psycopg.errors.UndefinedTable):
            await connection.query(b"SELECT 1 FROM nothing_of_this_name")
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.query(b"SELECT 1 / $1::int", b"0")
        return await connection.query(b"SELECT 1 / $1::int", b"1")

    assert asked(work) == [(1,)]


def test_a_connection_that_is_cut_while_it_waits_fails_at_once(
    asked: Callable[[Asked], Any], database_url: str
) -> None:
    async def work(connection: QueryConnection) -> None:
        [[pid]] = await connection.query(PID)
        waiting = asyncio.ensure_future(connection.query(b"SELECT pg_sleep(60)"))
        await asyncio.to_thread(postgres.ask, database_url, f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(psycopg.OperationalError):
            await asyncio.wait_for(waiting, 10)

    asked(work)


def test_a_connection_that_was_cut_while_idle_fails_when_it_is_used(
    asked: Callable[[Asked], Any], database_url: str
) -> None:
    async def work(connection: QueryConnection) -> None:
        [[pid]] = await connection.query(PID)
        await asyncio.to_thread(postgres.ask, database_url, f"SELECT pg_terminate_backend({pid})")
        for _ in range(2):
            with pytest.raises(psycopg.OperationalError):
                await asyncio.wait_for(connection.query(PID), 10)

    asked(work)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_server_that_says_why_and_is_gone_at_once_leaves_nobody_waiting(
    new_loop: Callable[[], asyncio.AbstractEventLoop], database_url: str
) -> None:
    async def claim() -> None:
        driver = await postgres_link.connect_async(database_url)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with socket.create_connection(listener.getsockname()) as own:
                own.setblocking(False)
                os.dup2(own.fileno(), driver.pgconn.socket)
            server, _ = listener.accept()
        connection = QueryConnection(driver)
        try:
            waiting = asyncio.ensure_future(connection.query(PID))
            await asyncio.sleep(0)
            assert PID in server.recv(4096)
            reason = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"
            server.sendall(b"E" + (4 + len(reason)).to_bytes(4, "big") + reason)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            server.close()  # which resets the connection
            with pytest.raises(psycopg.OperationalError):
                await asyncio.wait_for(waiting, 10)
        finally:
            await connection.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(claim())


def test_what_is_broken_off_fails_whatever_the_server_does(asked: Callable[[Asked], Any]) -> None:
    async def work(connection: QueryConnection) -> None:
        waiting = asyncio.ensure_future(connection.query(b"SELECT pg_sleep(60)"))
        await asyncio.sleep(0)
        connection.break_off()
        with pytest.raises(psycopg.OperationalError):
            await asyncio.wait_for(waiting, 10)
        connection.break_off()

    asked(work)


def test_closing_a_lost_connection_leaves_whoever_has_its_number_by_now_alone(
    asked: Callable[[Asked], Any], database_url: str
) -> None:
    async def work(connection: QueryConnection) -> None:
        [[pid]] = await connection.query(PID)
        number = connection._socket
        await asyncio.to_thread(postgres.ask, database_url, f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(psycopg.OperationalError):
            await asyncio.wait_for(connection.query(PID), 10)
        ends = [end for _ in range(8) for end in socket.socketpair()]
        assert number in [end.fileno() for end in ends]
        streams = [await asyncio.open_connection(sock=end) for end in ends]
        await connection.close()
        for _, writer in streams:
            writer.close()

    asked(work)
