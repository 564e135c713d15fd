"""Every HTTP library that agents' tokens are shown by, asked the same way."""

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import httpx
import httpx2
import requests

from tests.support import PLAIN

Get = Callable[..., tuple[int, bytes]]


def get_httpx2(auth_for: Callable[[Any], Any], url: str, **body: Any) -> tuple[int, bytes]:
    with httpx2.Client(auth=auth_for("httpx2"), verify=PLAIN) as client:
        response = client.post(url, **body)
        return response.status_code, response.content


def get_httpx(auth_for: Callable[[Any], Any], url: str, **body: Any) -> tuple[int, bytes]:
    with httpx.Client(auth=auth_for("httpx")) as client:
        response = client.post(url, **body)
        return response.status_code, response.content


def get_requests(auth_for: Callable[[Any], Any], url: str, **body: Any) -> tuple[int, bytes]:
    with requests.Session() as session:
        response = session.post(url, auth=auth_for("requests"), timeout=10, data=body.get("content"))
        return response.status_code, response.content


async def async_httpx2(auth_for: Callable[[Any], Any], url: str, **body: Any) -> tuple[int, bytes]:
    async with httpx2.AsyncClient(auth=auth_for("httpx2"), verify=PLAIN) as client:
        response = await client.post(url, **body)
        return response.status_code, response.content


async def async_httpx(auth_for: Callable[[Any], Any], url: str, **body: Any) -> tuple[int, bytes]:
    async with httpx.AsyncClient(auth=auth_for("httpx")) as client:
        response = await client.post(url, **body)
        return response.status_code, response.content


async def async_aiohttp(auth_for: Callable[[Any], Any], url: str, **body: Any) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession(middlewares=[auth_for("aiohttp")]) as session,
        session.post(url, data=body.get("content")) as response,
    ):
        return response.status, await response.read()


ASYNC = [async_httpx2, async_httpx, async_aiohttp]
BLOCKING = [get_httpx2, get_httpx, get_requests]


def on_loop(get: Any) -> Get:
    def run(*arguments: Any, **options: Any) -> tuple[int, bytes]:
        result: tuple[int, bytes] = asyncio.run(get(*arguments, **options))
        return result

    run.__name__ = get.__name__
    return run


ALL: list[Get] = [*BLOCKING, *map(on_loop, ASYNC)]
