"""What the machine works on: a broker whose time is the test's, and what was got from it."""

import base64
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from argon2 import PasswordHasher

from tests.model.reference import LIFETIME, App, Token
from tests.support import ADMIN_SECRET, BrokerProcess, TestApp

START: Final = 1_900_000_000
ROOT: Final = Path(__file__).parents[2]


class MovableBroker(BrokerProcess):
    """A broker whose time stands still until it is moved. `mutant` is the bug that is planted in it, if any."""

    def __init__(self, directory: Path, mutant: str = "") -> None:
        self._clock = directory / "clock"
        self._clock.touch()
        self.now = START
        self.move_to(START)
        super().__init__(
            directory / "data",
            module="tests.model.movable",
            PYTHONPATH=str(ROOT),
            CLOCK_FILE=str(self._clock),
            AGENTWRIT_MAX_LIFETIME=str(LIFETIME),
            # As cheap as argon2id can be: the operator logs in often here.
            AGENTWRIT_ADMIN_SECRET=PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(ADMIN_SECRET),
            MUTANT=mutant,
        )

    def move_to(self, now: int) -> None:
        self.now = now
        os.utime(self._clock, (now, now))


class Disagreement(AssertionError):
    """The broker is not as the reference says. `token` is the one that shows it, `step` what was done before."""

    def __init__(self, message: str, step: str, token: Token | None = None) -> None:
        super().__init__(f"after {step}: {message}")
        self.step = step
        self.token = token


class Revived(Disagreement):
    """A token is valid that is dead."""


class Killed(Disagreement):
    """A token is not valid that is alive."""


class Outlived(Disagreement):
    """A token was issued that lives longer than it may."""


@dataclass(eq=False)
class Owner:
    """Someone who launches agents: an app, or without `registered` the operator."""

    app: App
    registered: TestApp | None
    login: Token | None = None


@dataclass(eq=False)
class Issued:
    """A token as the broker gave it."""

    text: str
    claims: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        payload = self.text.split(".")[1]
        self.claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        self.claims["scope"] = self.claims["scope"].split(" ")
