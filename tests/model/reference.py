"""What apps, grants and tokens mean, plainly said. Whoever is refused gets an HTTP status; times are whole seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

LIFETIME, RETRY_WINDOW, MAX_HOPS, LOGIN_TTL = 1000, 30, 5, 1800
Scope = tuple[str, ...]


def covers(held: Scope, asked: Scope) -> bool:
    return all(any(a == h or (h.endswith(":*") and a.startswith(h[:-1])) for h in held) for a in asked)


@dataclass(eq=False)
class App:
    ceiling: Scope  # empty: deregistered


@dataclass(eq=False)
class LaunchToken:
    app: App
    scope: Scope
    max_ttl: int
    expires_at: int
    uses_left: int


@dataclass(eq=False, repr=False)
class Token:
    grant: Grant
    issued_at: int
    expires_at: int


@dataclass(eq=False, repr=False)
class Grant:
    app: App
    scope: Scope
    ttl: int
    ends_at: int
    task: str = ""  # only agents have one
    parent: Grant | None = None
    delegate: Grant | None = None  # the registration of the agent that it was delegated to
    is_ended: bool = False
    tokens: list[Token] = field(default_factory=list)

    def is_dead(self) -> bool:
        return self.is_ended or any(above is not None and above.is_dead() for above in (self.parent, self.delegate))

    def lineage(self) -> list[Grant]:
        return [*(self.parent.lineage() if self.parent else []), self]


class World:
    def __init__(self, now: int) -> None:
        self.now, self.grants = now, list[Grant]()

    def is_valid(self, token: Token) -> bool:
        return token is token.grant.tokens[-1] and not token.grant.is_dead() and self.now < token.expires_at

    def live(self) -> list[Grant]:
        return [grant for grant in self.grants if self.is_valid(grant.tokens[-1])]

    def issue(self, grant: Grant) -> Token:
        self.grants += [] if grant.tokens else [grant]
        grant.tokens.append(Token(grant, self.now, min(self.now + grant.ttl, grant.ends_at)))
        return grant.tokens[-1]

    def end(self, *named: Grant) -> int:  # how many live tokens that killed
        before = self.live()
        for grant in set(named).intersection(before):
            grant.is_ended = True
        return len(before) - len(self.live())

    def register(self, launch: LaunchToken, scope: Scope, task: str) -> Token | int:
        if not launch.uses_left or self.now >= launch.expires_at or not launch.app.ceiling:
            return 401
        if not covers(launch.scope, scope) or not covers(launch.app.ceiling, scope):
            return 403
        launch.uses_left -= 1
        return self.issue(Grant(launch.app, scope, launch.max_ttl, self.now + LIFETIME, task))

    def delegate(self, token: Token, to: Grant, scope: Scope, ttl: int) -> Token | int:
        grant = token.grant
        if not self.is_valid(token) or not grant.task:
            return 401 if self.now >= token.expires_at else 403
        if to.app is not grant.app or not to.task or to not in self.live():
            return 404
        within = all(covers(held, scope) for held in (grant.scope, grant.app.ceiling))
        if len(grant.lineage()) > MAX_HOPS or not within:
            return 403
        ttl = min(ttl, token.expires_at - self.now)
        return self.issue(Grant(grant.app, scope, ttl, self.now + ttl, grant.task, grant, to))

    def renew(self, token: Token) -> Token | int:
        grant, current = token.grant, token.grant.tokens[-1]
        if self.now >= token.expires_at or grant.is_dead() or not grant.task:
            return 401
        if token is current:
            return self.issue(grant) if covers(grant.app.ceiling, grant.scope) else 401
        if token is grant.tokens[-2] and self.now - current.issued_at <= RETRY_WINDOW:
            return current
        self.end(grant)
        return 401

    def release(self, token: Token) -> int:
        is_over = self.now >= token.expires_at
        return 401 if is_over else 204 if self.end(token.grant) else 403

    def set_ceiling(self, app: App, ceiling: Scope, keep: bool) -> int:  # how many grants that ended
        app.ceiling = ceiling
        held = [grant for grant in self.grants if grant.app is app and not keep]
        return self.end(*(g for g in held if not ceiling or (g.task and not covers(ceiling, g.scope))))

    def revoke(self, level: str, token: Token) -> int:  # what the token is, belongs to or came from
        of, agents = token.grant, [grant for grant in self.grants if grant.task]
        named = {
            "token": [grant for grant in self.grants if grant.tokens[-1] is token],
            "grant": [of],
            "app": [grant for grant in self.grants if grant.app is of.app],
            "task": [grant for grant in agents if grant.task == of.task],
            "agent": [grant for grant in agents if (grant.delegate or grant) is (of.delegate or of)],
            "chain": [grant for grant in agents if grant is (of.delegate or of)],
        }
        return self.end(*named[level])
