"""Asking a broker whether a token is valid, for services that receive tokens."""

import os
import threading
from collections import OrderedDict
from typing import Any, Final, NamedTuple

from agentwrit.client import steps
from agentwrit.client.driver import Driver
from agentwrit.client.policy import CALL_SECONDS, check_broker_url
from agentwrit.client.secrecy import Secret, discreet
from agentwrit.models import ValidateResult

MAX_BROKERS: Final = 64


class _Settings(NamedTuple):
    """Where a broker is, and how to connect to it. Connections are kept for each combination."""

    url: str
    verify: Any
    cert: Any


_drivers: OrderedDict[_Settings, Driver] = OrderedDict()
_lock = threading.Lock()


@discreet
def validate(
    broker_url: str,
    token: str,
    *,
    timeout: float = CALL_SECONDS,
    proof: str | None = None,
    htm: str | None = None,
    htu: str | None = None,
    verify: Any = None,
    cert: Any = None,
) -> ValidateResult:
    """Ask the broker whether `token` is valid now, and what it says. An invalid token is a result, not an error.

        result = validate("https://broker.example", token)
        if result.valid and scope_is_subset(["read:data:customer-7291"], result.claims.scope):
            ...

    Connections to each broker are kept between calls. `timeout`: seconds for the whole call. `proof`, `htm` and `htu`
    are as for `AgentWritApp.validate`: a bound token is not valid without them. `verify` and `cert` are as for
    `AgentWritApp`.

    Raises:
        TransportError: the broker was not reached in time.
        AgentWritError: `broker_url` is not a valid URL, or a certificate cannot be loaded.
    """
    driver = _driver(_Settings(check_broker_url(broker_url), verify, tuple(cert) if isinstance(cert, list) else cert))
    return driver.run(steps.validate(Secret(token), steps.ShownProof(proof, htm, htu)), timeout=timeout)


def _driver(settings: _Settings) -> Driver:
    """The driver for a broker. Beyond the limit, the least recently used one is dropped, and its connections close."""
    with _lock:
        driver = _drivers.pop(settings, None)
        if driver is None:
            driver = Driver(settings.url, timeout=CALL_SECONDS, verify=settings.verify, cert=settings.cert)
        _drivers[settings] = driver
        if len(_drivers) > MAX_BROKERS:
            _drivers.popitem(last=False)
    return driver


def _renew_lock() -> None:
    """Replace the lock after a fork: a thread of the parent may have held it. Drivers handle their connections."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
