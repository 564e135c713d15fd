"""What was needed once is given back."""

import ctypes
import subprocess
import sys

import pytest

HOLES = """
import psutil
from agentwrit.broker import memory

process = psutil.Process()
many = [bytes(2000) for _ in range(30_000)]
last, full = many[-1], process.memory_info().rss
many.clear()
memory.give_back()
print(full - process.memory_info().rss)
"""


PASSWORDS = """
import asyncio
import psutil
from agentwrit.broker import memory
from agentwrit.broker.passwords import PasswordChecker, hash_password

memory.give_back_large_blocks()
process = psutil.Process()

async def check():
    checker = PasswordChecker()
    known = hash_password("one")
    before = process.memory_info().rss
    for _ in range(5):
        await checker.matches(known, "another", "192.0.2.0/24")
    print(process.memory_info().rss - before)

asyncio.run(check())
"""

has_glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library gives back by itself"
)


@has_glibc
def test_checking_passwords_leaves_no_memory_behind() -> None:
    done = subprocess.run([sys.executable, "-c", PASSWORDS], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 4_000_000


@has_glibc
def test_memory_below_what_is_in_use_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) > 50_000_000
