"""The event loop and a thread in turns."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from agentwrit.broker.storage.alternation import Alternation, Steps


def claimed(claim: Callable[[Alternation, ThreadPoolExecutor], Awaitable[None]]) -> None:
    async def run() -> None:
        with ThreadPoolExecutor(1) as thread:
            async with asyncio.timeout(10):
                await claim(Alternation(thread), thread)

    asyncio.run(run())


async def run(alternation: Alternation, steps: Steps) -> None:
    alternation.start(steps)
    await alternation.over()


def test_steps_are_the_event_loops_and_what_they_yield_is_the_threads() -> None:
    seen: list[tuple[str, bool]] = []

    async def claim(alternation: Alternation, thread: ThreadPoolExecutor) -> None:
        loops = threading.get_ident()

        def note(name: str) -> None:
            seen.append((name, threading.get_ident() == loops))

        def steps() -> Steps:
            for number in range(3):
                note(f"step {number}")
                yield partial(note, f"part {number}")
            note("end")

        await run(alternation, steps())

    claimed(claim)
    names = [name for number in range(3) for name in (f"step {number}", f"part {number}")]
    assert seen == [(name, name.startswith("step")) for name in names] + [("end", True)]


def test_what_fails_on_the_thread_fails_where_it_was_yielded() -> None:
    caught: list[str] = []

    def fail() -> None:
        raise OSError("the disk")

    async def claim(alternation: Alternation, thread: ThreadPoolExecutor) -> None:
        def steps() -> Steps:
            try:
                yield fail
            except OSError as error:
                caught.append(str(error))
            yield partial(caught.append, "and on")

        await run(alternation, steps())

    claimed(claim)
    assert caught == ["the disk", "and on"]


def test_a_step_that_fails_ends_them_all_is_told_and_others_can_follow() -> None:
    told: list[object] = []
    done: list[int] = []

    async def claim(alternation: Alternation, thread: ThreadPoolExecutor) -> None:
        defect = LookupError("a defect")

        def failing() -> Steps:
            yield list
            raise defect

        def steps() -> Steps:
            yield partial(done.append, 1)

        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        await run(alternation, failing())
        assert told == [defect]
        assert not alternation.is_running
        await run(alternation, steps())

    claimed(claim)
    assert done == [1]
    assert len(told) == 1


def test_catching_up_takes_the_next_step_once_and_only_when_the_thread_is_done() -> None:
    async def claim(alternation: Alternation, thread: ThreadPoolExecutor) -> None:
        taken: list[int] = []
        go_on = threading.Event()

        def steps() -> Steps:
            for number in range(3):
                taken.append(number)
                yield partial(go_on.wait, 10)

        alternation.catch_up()
        alternation.start(steps())
        alternation.catch_up()
        assert taken == [0]
        go_on.set()
        thread.submit(list).result()  # the part before it is done, and the event loop was not asked
        alternation.catch_up()
        assert taken == [0, 1]
        await alternation.over()
        assert taken == [0, 1, 2]
        alternation.catch_up()

    claimed(claim)
