"""An answer of megabytes is made where nobody waits for it."""

import asyncio
import threading

import msgspec

from agentwrit.broker.http.exchange import large_json_answer


def test_a_large_answer_is_made_away_from_the_event_loop() -> None:
    makers: list[int] = []

    def content() -> dict[str, object]:
        makers.append(threading.get_ident())
        return {"parts": [msgspec.Raw(b'{"a":1}'), msgspec.Raw(b'{"b":2}')], "total": 2}

    async def main() -> None:
        answer = await large_json_answer(content)
        assert msgspec.json.decode(answer.body) == {"parts": [{"a": 1}, {"b": 2}], "total": 2}
        assert makers != [threading.get_ident()]

    asyncio.run(main())
