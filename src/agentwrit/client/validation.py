"""Asking a broker whether a token holds, for whoever receives tokens."""

import os
import threading
from collections import OrderedDict
from typing import Final

from agentwrit.client import steps
from agentwrit.client.driver import Driver
from agentwrit.client.policy import check_broker_url
from agentwrit.models import ValidateResult

MAX_BROKERS: Final = 64

_drivers: OrderedDict[str, Driver] = OrderedDict()
_lock = threading.Lock()


def validate(
    broker_url: str,
    token: str,
    *,
    timeout: float = 10.0,
    proof: str | None = None,
    htm: str | None = None,
    htu: str | None = None,
) -> ValidateResult:
    """Whether `token` holds, and what it says, as the broker sees it now.

    A bad token is an answer, not an error. Connections to each broker are kept between calls. `timeout`: seconds, in
    all. `proof`, `htm` and `htu` are as for `AgentWritApp.validate`: a bound token does not hold without.

    Raises:
        TransportError: the broker was not reached in time.
        AgentWritError: `broker_url` is no URL.
    """
    return _driver(broker_url).run(steps.validate(token, steps.ShownProof(proof, htm, htu)), timeout=timeout)


def _driver(broker_url: str) -> Driver:
    """The driver for a broker. The one that was used longest ago makes room, and its connections end with it."""
    url = check_broker_url(broker_url)
    with _lock:
        driver = _drivers.pop(url, None) or Driver(url, timeout=10.0)
        _drivers[url] = driver
        if len(_drivers) > MAX_BROKERS:
            _drivers.popitem(last=False)
    return driver


def _renew_lock() -> None:
    """After a fork: another thread of the parent may have held it. The drivers see to their connections."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
