"""The composition root: creates the parts of a broker and connects them."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from agentwrit.broker import logs
from agentwrit.broker.clock import Clock
from agentwrit.broker.config import UNIX, Config
from agentwrit.broker.data_directory import (
    DATABASE_FILE,
)
from agentwrit.broker.http.access_routes import AccessRoutes
from agentwrit.broker.http.agent_routes import AgentRoutes
from agentwrit.broker.http.app_logins import AppLogins
from agentwrit.broker.http.app_routes import AppRoutes
from agentwrit.broker.http.archive_routes import ArchiveRoutes
from agentwrit.broker.http.audit_routes import AuditRoutes
from agentwrit.broker.http.checkpoint_routes import CheckpointRoutes
from agentwrit.broker.http.edge import Edge
from agentwrit.broker.http.feed_routes import FeedRoutes
from agentwrit.broker.http.key_routes import KeyRoutes
from agentwrit.broker.http.metadata_routes import MetadataRoutes
from agentwrit.broker.http.oauth_routes import OAuthRoutes
from agentwrit.broker.http.operator_account_routes import OperatorAccountRoutes
from agentwrit.broker.http.operator_routes import OperatorRoutes
from agentwrit.broker.http.routing import Resource, Router
from agentwrit.broker.http.service_routes import ServiceRoutes
from agentwrit.broker.http.token_routes import TokenRoutes
from agentwrit.broker.keystore import KEY_BYTES, KeyWrap, MasterKey
from agentwrit.broker.master_keys import ROW_MAC
from agentwrit.broker.metrics import Metrics
from agentwrit.broker.passwords import PasswordChecker
from agentwrit.broker.services.accesses import AccessService
from agentwrit.broker.services.agents import AgentService
from agentwrit.broker.services.agreement import Agreement
from agentwrit.broker.services.apps import AppService
from agentwrit.broker.services.archives import ArchiveService
from agentwrit.broker.services.audit import AuditService
from agentwrit.broker.services.authentication import Authenticator
from agentwrit.broker.services.background import Background, Work
from agentwrit.broker.services.checkpoints import Checkpoints
from agentwrit.broker.services.client_credentials import ClientCredentialsService
from agentwrit.broker.services.clients import ClientService
from agentwrit.broker.services.delegation import DelegationService
from agentwrit.broker.services.denials import DenialLog
from agentwrit.broker.services.endings import Elsewhere, Endings
from agentwrit.broker.services.feed import RevocationFeed
from agentwrit.broker.services.housekeeping import Housekeeping
from agentwrit.broker.services.issuing import TokenIssuer
from agentwrit.broker.services.keys import KeyRings, KeyService
from agentwrit.broker.services.launch_tokens import LaunchTokenService
from agentwrit.broker.services.limits import LimitedApps
from agentwrit.broker.services.liveness import Liveness
from agentwrit.broker.services.log_budget import LogBudget
from agentwrit.broker.services.operator_accounts import OperatorAccounts
from agentwrit.broker.services.operators import OperatorService, set_secret
from agentwrit.broker.services.possession import Possession
from agentwrit.broker.services.registration import RegistrationService
from agentwrit.broker.services.retention import Retention
from agentwrit.broker.services.revocation import RevocationService
from agentwrit.broker.services.timekeeping import WHOSE, Timekeeping
from agentwrit.broker.services.token_exchange import TokenExchangeService
from agentwrit.broker.services.token_revocation import TokenRevocationService
from agentwrit.broker.services.tokens import TokenService
from agentwrit.broker.services.turns import Turns
from agentwrit.broker.storage.base import Store
from agentwrit.broker.storage.memory import MemoryStore
from agentwrit.broker.stores import open_store
from agentwrit.domain import checkpoint
from agentwrit.domain.ending import Ending
from agentwrit.domain.errors import ConfigurationError
from agentwrit.domain.target_uri import KnownNames

NO_OPERATOR: Final = "no operator's secret is set: make one with `agentwrit init`, or set AGENTWRIT_ADMIN_SECRET"

EndingElsewhere = Callable[[Store, bytes, Path, str], Awaitable[Ending | None]]
"""Completes an ending in a store, whose rows are sealed with this key, and whose database may be this file."""

SETTINGS_MAC: Final = "settings-mac"  # for comparing settings with other brokers

log = structlog.get_logger("agentwrit.bootstrap")


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A broker, ready to serve. `metrics_app` serves only /v1/metrics, for a separate port.

    `metrics` are its metrics. `housekeeping` runs by itself; callers may request an additional round.
    """

    app: Edge
    metrics_app: Edge
    metrics: Metrics
    housekeeping: Housekeeping


@contextlib.asynccontextmanager
async def open_broker(
    config: Config,
    *,
    is_draining: Callable[[], bool],
    is_stopping: Callable[[], bool],
    ending_elsewhere: EndingElsewhere | None = None,
) -> AsyncIterator[Broker]:
    """A broker over the store that the settings name. `ending_elsewhere`: completes large endings in another process.

    Raises:
        ConfigurationError: something that it needs is missing or invalid.
    """
    async with open_store(config, is_to_serve=True) as (store, clock, master_key):
        await _require_operator(store, config)
        elsewhere: Elsewhere | None = None
        if ending_elsewhere is not None:
            database = config.data_dir / DATABASE_FILE
            elsewhere = partial(ending_elsewhere, store, master_key.derive(ROW_MAC), database)
        async with open_on(
            store,
            clock,
            config,
            master_key,
            is_draining=is_draining,
            is_stopping=is_stopping,
            ending_elsewhere=elsewhere,
        ) as broker:
            yield broker


@contextlib.asynccontextmanager
async def open_in_memory(config: Config, clock: Clock, *, is_stopping: Callable[[], bool]) -> AsyncIterator[Broker]:
    """A broker that keeps nothing after its end, for tests. It does not touch the data directory.

    Raises:
        ConfigurationError: no operator's secret is set.
    """
    store = MemoryStore(clock)
    await _require_operator(store, config)
    master_key = MasterKey(secrets.token_bytes(KEY_BYTES))
    async with open_on(store, clock, config, master_key, is_draining=is_stopping, is_stopping=is_stopping) as broker:
        yield broker


@contextlib.asynccontextmanager
async def open_on(
    store: Store,
    clock: Clock,
    config: Config,
    master_key: MasterKey,
    *,
    is_draining: Callable[[], bool],
    is_stopping: Callable[[], bool],
    ending_elsewhere: Elsewhere | None = None,
) -> AsyncIterator[Broker]:
    """A broker over an open store.

    `is_draining`: whether requests should go elsewhere, although they are served; `is_stopping`: whether to disconnect
    the followers of the feed.
    """
    wrap = KeyWrap(master_key)
    rings = await KeyRings.load(store, wrap)
    keys = rings.access_tokens
    liveness = await Liveness.load(store, clock)
    metrics = Metrics()
    background = Background(metrics)
    endings = Endings(store, liveness, background, ending_elsewhere)
    key_service = KeyService(store, rings, wrap, config, clock, endings)
    denials = DenialLog(store, clock)
    checker = PasswordChecker()
    issuer = TokenIssuer(config, keys)
    possession = Possession(clock, master_key)
    authenticator = Authenticator(keys, config.issuer, clock, liveness, possession, denials)
    log_budget = LogBudget(config.app_log_rate)
    operators = OperatorService(store, denials, issuer, checker, config)
    await operators.recall()
    apps = AppService(store, denials, issuer, config, log_budget, endings)
    logins = AppLogins(apps, ClientService(store, denials, clock))
    tokens = TokenService(denials, issuer, authenticator, possession, log_budget, endings)
    delegations = DelegationService(denials, issuer, authenticator, log_budget)
    limited = LimitedApps(clock)
    registration = RegistrationService(denials, issuer, config, possession, limited, log_budget)
    launch_tokens = LaunchTokenService(denials, config, log_budget)
    revocations = RevocationFeed(store, rings.feed, config.issuer, clock, is_stopping=is_stopping)
    checkpoints = Checkpoints(store, rings.checkpoints, checkpoint.origin(config.trust_domain))
    await checkpoints.make()
    archives = ArchiveService(store)
    turns = Turns()
    metrics.feed_followers = lambda: revocations.follower_count
    metrics.clock_offset = clock.offset
    metrics.store_log_bytes = store.log_bytes
    metrics.log_lines_lost = logs.lost
    metrics.store = store.measures
    metrics.checkpoint_overdue = checkpoints.overdue
    names = KnownNames(config.public_url, hosts=[host for host in config.host if not host.startswith(UNIX)])
    agreement = Agreement(store, config, master_key.derive(SETTINGS_MAC))
    if config.database_url is not None:
        await agreement.declare()
    metrics.settings_differing = lambda: len(agreement.differing)
    failing = partial(_failing, background)
    service_routes = ServiceRoutes(store, keys, clock, metrics, agreement, failing=failing, is_draining=is_draining)
    resources = [
        *TokenRoutes(
            registration,
            tokens,
            delegations,
            metrics,
            names=names,
        ).resources(),
        *OAuthRoutes(
            logins,
            ClientCredentialsService(denials, registration, issuer, limited, log_budget),
            tokens,
            TokenExchangeService(denials, authenticator, delegations),
            TokenRevocationService(store, denials, authenticator, endings),
            authenticator,
            metrics,
            own_names=[config.issuer, *config.public_url],
        ).resources(),
        *MetadataRoutes(config.issuer, config.told_url).resources(),
        *AppRoutes(logins, launch_tokens, authenticator).resources(),
        *OperatorRoutes(
            operators,
            apps,
            launch_tokens,
            RevocationService(store, endings),
            authenticator,
        ).resources(),
        *OperatorAccountRoutes(OperatorAccounts(store, checker, config, endings), authenticator).resources(),
        *AgentRoutes(
            AgentService(store, authenticator, clock), registration, authenticator, turns, names=names
        ).resources(),
        *FeedRoutes(revocations, rings.feed, authenticator).resources(),
        *KeyRoutes(key_service, authenticator).resources(),
        *AuditRoutes(AuditService(store, authenticator), turns).resources(),
        *AccessRoutes(AccessService(denials, authenticator, log_budget)).resources(),
        *CheckpointRoutes(checkpoints, authenticator, turns).resources(),
        *ArchiveRoutes(archives, authenticator).resources(),
        *service_routes.resources(),
    ]
    metrics_resource = service_routes.metrics_resource()
    if config.metrics_port is None:
        resources.append(metrics_resource)

    def edge(*of: Resource) -> Edge:
        return Edge(
            Router(of),
            metrics,
            trusted_proxies=config.trusted_proxies,
            is_tls=config.is_tls,
            is_draining=is_draining,
        )

    housekeeping = Housekeeping(store, liveness, denials, key_service, archives, endings, metrics, background)
    timekeeping = Timekeeping(clock, WHOSE if config.database_url is None else "the database's clock")
    running = [
        revocations.run(background),
        housekeeping.run(),
        checkpoints.run(background),
        timekeeping.run(background),
    ]
    if config.database_url is not None:
        running.append(agreement.run(background))
    if config.audit_retention is not None and config.audit_archive is not None:
        running.append(
            Retention(store, clock, checkpoints, archives, config.audit_archive, config.audit_retention).run(background)
        )
    tasks = [asyncio.create_task(work, name="background") for work in running]
    await background.attempt(Work.RESUMING, endings.resume)
    metrics.holds.start()
    try:
        yield Broker(
            app=edge(*resources), metrics_app=edge(metrics_resource), metrics=metrics, housekeeping=housekeeping
        )
    finally:
        metrics.holds.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await endings.close()
        await background.attempt(Work.DENIALS, partial(denials.flush, everything=True))
        await background.attempt(Work.CHECKPOINTS, checkpoints.make)
        checker.close()


def _failing(background: Background) -> Sequence[str]:
    """What health reports as failing, apart from the store."""
    return [*background.failing(), *(["log"] if logs.is_failing() else [])]


async def _require_operator(store: Store, config: Config) -> None:
    if config.admin_secret is not None:
        if await set_secret(store, config.admin_secret):
            log.info("the operator's secret was set from AGENTWRIT_ADMIN_SECRET")
    elif not any(each.is_active for each in await store.read(lambda snapshot: snapshot.operators())):
        raise ConfigurationError(NO_OPERATOR)
