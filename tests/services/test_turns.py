"""Turns at the store: who looks around in it at the same time, and who waits for whom."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from agentwrit.broker.services.turns import AT_ONCE, FEED_AT_ONCE, MAX_WAITING, OTHERS_AT_ONCE, WAITING, Asker, Turns
from agentwrit.broker.storage import postgres_readers, sqlite
from agentwrit.domain.errors import Unavailable

OPERATOR = Asker("admin", is_operator=True)


class Questions:
    """Questions that are under way until they are answered."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.under_way: list[Asker] = []
        self.begun: list[Asker] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._answers: dict[Asker, asyncio.Event] = {}

    async def come(self, *askers: Asker) -> None:
        self.tasks += [asyncio.create_task(self._ask(asker)) for asker in askers]
        await self._settle()

    async def answer(self, asker: Asker) -> None:
        self._answers.pop(asker).set()
        await self._settle()

    async def _ask(self, asker: Asker) -> None:
        async with self.turns.turn(asker):
            self.under_way.append(asker)
            self.begun.append(asker)
            try:
                await self._answers.setdefault(asker, asyncio.Event()).wait()
            finally:
                self.under_way.remove(asker)

    async def _settle(self) -> None:
        for _ in range(10):  # each of which lets all run that can
            await asyncio.sleep(0)

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def asking(work: Callable[[Questions], Awaitable[None]]) -> None:
    async def main() -> None:
        questions = Questions()
        try:
            await work(questions)
        finally:
            await questions.end()
        assert not questions.turns._under_way
        assert (questions.turns._others, questions.turns._waiting, len(questions.turns._queues)) == (0, 0, 0)

    asyncio.run(main())


def others(count: int) -> list[Asker]:
    return [Asker(f"app {number}") for number in range(count)]


def test_there_is_a_thread_left_for_all_else() -> None:
    assert min(sqlite.READERS, postgres_readers.READERS) > AT_ONCE + FEED_AT_ONCE
    assert AT_ONCE > OTHERS_AT_ONCE


def test_operators_have_a_turn_at_once_however_many_others_ask() -> None:
    async def work(questions: Questions) -> None:
        await questions.come(*others(50))
        assert len(questions.under_way) == OTHERS_AT_ONCE
        await questions.come(OPERATOR, OPERATOR)
        assert questions.under_way.count(OPERATOR) == AT_ONCE - OTHERS_AT_ONCE
        await questions.answer(OPERATOR)
        assert questions.under_way.count(OPERATOR) == AT_ONCE - OTHERS_AT_ONCE
        assert len(questions.under_way) == AT_ONCE

    asking(work)


def test_who_asks_a_great_deal_waits_for_themselves_and_nobody_for_them() -> None:
    async def work(questions: Questions) -> None:
        greedy, modest, late = others(3)
        await questions.come(*[greedy] * 10, modest, late)
        assert questions.under_way == [greedy, modest]
        await questions.answer(modest)
        assert questions.under_way == [greedy, late]
        await questions.answer(greedy)
        assert questions.begun.count(greedy) == 2

    asking(work)


def test_only_so_many_wait_for_one_asker_and_in_all() -> None:
    async def work(questions: Questions) -> None:
        greedy, other, *modest = others(MAX_WAITING)
        await questions.come(greedy, other, *[greedy] * WAITING)
        with pytest.raises(Unavailable) as refused:
            await questions.turns.turn(greedy).__aenter__()
        assert refused.value.cause == "busy"
        await questions.come(*modest[: MAX_WAITING - WAITING])
        assert questions.turns._waiting == MAX_WAITING
        await questions.come(OPERATOR, OPERATOR, Asker("late"))  # for whom the greediest has one less
        assert questions.turns._waiting == MAX_WAITING
        assert [task.done() for task in questions.tasks].index(True) == WAITING + 1
        while questions.turns._waiting == MAX_WAITING and len(questions.turns._queues[greedy]) > 1:
            await questions.come(Asker(f"later {len(questions.tasks)}"))
        with pytest.raises(Unavailable):
            await questions.turns.turn(Asker("last")).__aenter__()

    asking(work)


def test_the_turn_of_one_who_is_gone_is_the_next_ones() -> None:
    async def work(questions: Questions) -> None:
        first, second, third, fourth, fifth = others(5)
        await questions.come(first, second, third, fourth, fifth)
        questions.tasks[0].cancel()  # whose turn it is
        questions.tasks[2].cancel()  # who would be next
        await questions.come()
        assert questions.under_way == [second, fourth]
        questions.tasks[1].cancel()
        await asyncio.sleep(0)  # it has become the fifth one's, who does not know yet
        questions.tasks[4].cancel()
        await questions.come(third)
        assert questions.under_way == [fourth, third]

    asking(work)
