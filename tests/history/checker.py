"""Whether a history of what clients asked and were told can be that of one broker that does one thing after the other.

Each operation has the time at which it was asked and the time at which it was answered. The rules:

- *Revocation is linearizable.* A token is alive, and from some moment on it is dead. That moment is after somebody
  asked for its release, and not after the first answer that says or shows that it is dead; and nobody who asked after
  it was told that the token is valid.
- *Single use is exactly once.* Of all uses of a launch token one is accepted at most; and none is refused before
  another one was asked for that was accepted, or whose answer never came.
- *The log is complete.* What was acknowledged has its event, exactly once; what was refused has none; and where one
  operation was answered before another was asked, so are their events ordered.

An operation without an answer, or with a 429 or 503, may have been done or not: it is held against nobody.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What was asked."""

    REGISTER = "register"
    """`subject`: a launch token, `made`: the sid of the agent's grant."""
    RELEASE = "release"
    """`subject`: a sid."""
    VALIDATE = "validate"
    """`subject`: a sid."""


class Told(StrEnum):
    """What was answered."""

    YES = "yes"
    NO = "no"
    NOTHING = "nothing"


class Operation(NamedTuple):
    """Times are in seconds, of one clock."""

    kind: Kind
    subject: str
    told: Told
    asked_at: float
    answered_at: float
    made: str = ""
    broker: int = 0


class Logged(NamedTuple):
    """An event of the audit log."""

    event_type: str
    sid: str


class Violation(Exception):
    """The history cannot be that of one broker. Says why."""


EVENTS: Mapping[Kind, str] = {Kind.REGISTER: "agent_registered", Kind.RELEASE: "token_released"}


def check(history: Sequence[Operation], log: Sequence[Logged]) -> None:
    """Check a history, and the log that it left.

    Raises:
        Violation: the first rule that does not hold.
    """
    for subject, operations in _by_subject(history, {Kind.RELEASE, Kind.VALIDATE}):
        check_revocation(subject, operations)
    for subject, operations in _by_subject(history, {Kind.REGISTER}):
        check_single_use(subject, operations)
    check_log(history, log)


def check_nobody_revived(history: Sequence[Operation]) -> None:
    """Check what holds even where commits were lost, and all that had been granted has ended for it: who was dead once
    stays dead, and what was used once is used up.

    Raises:
        Violation: somebody was revived.
    """
    for sid, operations in _by_subject(history, {Kind.RELEASE, Kind.VALIDATE}):
        check_stays_dead(sid, operations)
    for launch_token, operations in _by_subject(history, {Kind.REGISTER}):
        accepted = [operation for operation in operations if operation.told is Told.YES]
        if len(accepted) > 1:
            raise Violation(f"{launch_token} was used {len(accepted)} times: {accepted}")


def check_revocation(sid: str, operations: Sequence[Operation]) -> None:
    """Check that there is a moment at which the token can have died.

    Raises:
        Violation: there is none.
    """
    died_by = _died_by(operations)
    if not died_by:
        return
    latest = min(died_by, key=lambda operation: operation.answered_at)
    causes = [operation for operation in operations if operation.kind is Kind.RELEASE and operation.told is not Told.NO]
    cause = min(causes, key=lambda operation: operation.asked_at, default=None)
    if cause is None or cause.asked_at >= latest.answered_at:
        raise Violation(f"{sid} was dead before anybody released it: {latest}")
    check_stays_dead(sid, operations)


def check_stays_dead(sid: str, operations: Sequence[Operation]) -> None:
    """Check that nobody who asked after somebody was told that it is dead was told that it is valid.

    Raises:
        Violation: somebody was.
    """
    latest = min(_died_by(operations), key=lambda operation: operation.answered_at, default=None)
    if latest is None:
        return
    for operation in operations:
        is_alive = operation.kind is Kind.VALIDATE and operation.told is Told.YES
        if is_alive and operation.asked_at >= latest.answered_at:
            raise Violation(f"{sid} was valid after it was dead: {operation} was asked after {latest}")


def _died_by(operations: Sequence[Operation]) -> Sequence[Operation]:
    """What says or shows that a token is dead."""
    return [
        operation
        for operation in operations
        if (operation.kind is Kind.VALIDATE and operation.told is Told.NO)
        or (operation.kind is Kind.RELEASE and operation.told is not Told.NOTHING)
    ]


def check_single_use(launch_token: str, operations: Sequence[Operation]) -> None:
    """Check that a launch token was used once.

    Raises:
        Violation: it was used twice, or refused for no reason.
    """
    accepted = [operation for operation in operations if operation.told is Told.YES]
    if len(accepted) > 1:
        raise Violation(f"{launch_token} was used {len(accepted)} times: {accepted}")
    uses = [operation for operation in operations if operation.told is not Told.NO]
    for refused in operations:
        if refused.told is Told.NO and not any(use.asked_at < refused.answered_at for use in uses):
            raise Violation(f"{launch_token} was refused before anybody had used it: {refused}")


def check_log(history: Sequence[Operation], log: Sequence[Logged]) -> None:
    """Check that the log has what was done, and nothing else.

    Raises:
        Violation: an event is missing, is there twice, tells of what was refused, or is out of order.
    """
    places: dict[Logged, int] = {}
    for place, event in enumerate(log):
        if event in places:
            raise Violation(f"{event} is in the log twice")
        places[event] = place
    done: list[tuple[Operation, int]] = []
    for operation in history:
        event_type = EVENTS.get(operation.kind)
        if event_type is not None and operation.told is Told.YES:
            event = Logged(event_type, operation.made or operation.subject)
            if event not in places:
                raise Violation(f"{operation} was acknowledged, and is not in the log")
            done.append((operation, places[event]))
    _check_causes(history, log)
    _check_order(done)


def _check_causes(history: Sequence[Operation], log: Sequence[Logged]) -> None:
    """Releases in the log were asked for; of registrations those without an answer have no name."""
    asked = {operation.subject for operation in history if operation.kind is Kind.RELEASE}
    made = {operation.made for operation in history if operation.kind is Kind.REGISTER}
    unanswered = sum(operation.kind is Kind.REGISTER and operation.told is Told.NOTHING for operation in history)
    for event in log:
        if event.event_type == EVENTS[Kind.RELEASE] and event.sid not in asked:
            raise Violation(f"{event} is in the log, and nobody asked for it")
        if event.event_type == EVENTS[Kind.REGISTER] and event.sid not in made:
            unanswered -= 1
            if unanswered < 0:
                raise Violation(f"{event} is in the log, and nobody asked for it")


def _check_order(done: Sequence[tuple[Operation, int]]) -> None:
    """In the order of the log, nothing was answered before something ahead of it was asked."""
    newest_asked: Operation | None = None
    for operation, _ in sorted(done, key=lambda item: item[1]):
        if newest_asked is not None and operation.answered_at < newest_asked.asked_at:
            raise Violation(f"{operation} is in the log behind {newest_asked}, which was asked later")
        if newest_asked is None or operation.asked_at > newest_asked.asked_at:
            newest_asked = operation


def _by_subject(history: Iterable[Operation], kinds: set[Kind]) -> Iterator[tuple[str, Sequence[Operation]]]:
    found: dict[str, list[Operation]] = {}
    for operation in history:
        if operation.kind in kinds:
            found.setdefault(operation.subject, []).append(operation)
    yield from found.items()
