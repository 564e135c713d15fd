"""The composition root: makes the parts of a broker and puts them together. Only it and `backups` name adapters."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from agentwrit.broker import logs
from agentwrit.broker.clock import Clock
from agentwrit.broker.config import UNIX, Config
from agentwrit.broker.data_directory import (
    DATABASE_FILE,
    DataDirectory,
    read_master_key_text,
    read_new_master_key_text,
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
from agentwrit.broker.metrics import Metrics
from agentwrit.broker.passwords import PasswordChecker
from agentwrit.broker.services import promotion, state_check
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
from agentwrit.broker.storage import sqlite_schema, sqlite_verification
from agentwrit.broker.storage.base import Cluster, Store
from agentwrit.broker.storage.memory import MemoryStore
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sqlite import SqliteStore
from agentwrit.domain import checkpoint
from agentwrit.domain.audit_export import Progress
from agentwrit.domain.checkpoint import Checkpoint
from agentwrit.domain.ending import Ending
from agentwrit.domain.errors import ConfigurationError, TamperedRecord, Unavailable
from agentwrit.domain.note import VerifierKey
from agentwrit.domain.target_uri import KnownNames

NO_OPERATOR: Final = "no operator's secret is set: make one with `agentwrit init`, or set AGENTWRIT_ADMIN_SECRET"

EndingElsewhere = Callable[[Store, bytes, Path, str], Awaitable[Ending | None]]
"""Sees an ending through in a store, whose rows are sealed with this key, and which may be in this file."""

NewClock = Callable[[Callable[[], float]], Clock]
"""Makes a clock of the source of its time."""

ROW_MAC: Final = "row-mac"  # what the master key is derived for, to seal rows with
SETTINGS_MAC: Final = "settings-mac"  # to compare settings with those of other brokers

log = structlog.get_logger("agentwrit.bootstrap")


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A broker, ready to serve. `metrics_app` answers /v1/metrics alone, for a port of its own.

    `metrics` are what it counts. `housekeeping` runs by itself; a round may be asked for out of turn.
    """

    app: Edge
    metrics_app: Edge
    metrics: Metrics
    housekeeping: Housekeeping


class OpenStore(NamedTuple):
    """A store, the clock that it keeps, and the key that it is sealed with."""

    store: Store
    clock: Clock
    master_key: MasterKey


@contextlib.asynccontextmanager
async def open_store(
    config: Config, *, is_ours: bool = True, is_to_serve: bool = False, new_clock: NewClock = Clock.of_broker
) -> AsyncIterator[OpenStore]:
    """The store of these settings: a database that brokers share, or a data directory, which is ours alone for as long.

    `is_ours`: whether it has to have the names in these settings, as it has for a broker; `is_to_serve`: by a broker,
    which remembers what it sees of a database, and goes on with it when that was promoted; `new_clock`: what makes a
    clock of the time's source.

    Raises:
        ConfigurationError: the directory, the database or the master key cannot be used.
    """
    opening = (
        _open_embedded(config, new_clock, is_ours=is_ours)
        if config.database_url is None
        else _open_shared(config, new_clock, is_to_serve=is_to_serve)
    )
    async with opening as opened:
        try:
            yield opened
        finally:
            await opened.store.close()


@contextlib.asynccontextmanager
async def _open_embedded(config: Config, new_clock: NewClock, *, is_ours: bool) -> AsyncIterator[OpenStore]:
    directory = DataDirectory(config.data_dir)
    try:
        if directory.restoring.exists() and not directory.has_store:
            raise ConfigurationError(
                f"a backup was not restored to the end in {directory.path}: run `agentwrit restore` again, or remove"
                f" {directory.restoring.name} to begin with an empty store"
            )
        if directory.has_store and not directory.database.exists():
            raise ConfigurationError(
                f"{directory.database} is missing, and what was written to it last is beside its place: put it back, or"
                f" move {DATABASE_FILE}-wal and {DATABASE_FILE}-journal away to begin with an empty store"
            )
        master_key, clock = load_master_key(config, directory), new_clock(time.time)
        try:
            cluster = cluster_of(config) if is_ours else None
            store = SqliteStore(directory.database, clock, row_sealer(master_key), cluster)
        except OSError as error:
            raise ConfigurationError(f"the data directory {directory.path} is not usable: {error}") from error
        except TamperedRecord as error:
            raise ConfigurationError(
                f"{directory.database} was altered outside the broker ({error}):"
                " keep the file as evidence, and put a backup in its place"
            ) from error
        yield OpenStore(store, clock, master_key)
    finally:
        directory.close()


@contextlib.asynccontextmanager
async def _open_shared(config: Config, new_clock: NewClock, *, is_to_serve: bool) -> AsyncIterator[OpenStore]:
    with driver_of_postgres():
        from agentwrit.broker.storage.postgres import PostgresStore
        from agentwrit.broker.storage.postgres_schema import open_database
    master_key = MasterKey.parse(config.master_key or "")
    sealer = row_sealer(master_key)
    memory_in = config.data_dir if is_to_serve else None
    try:
        opening = open_database(config.database_url or "", sealer, cluster_name(config), memory_in=memory_in)
    except TamperedRecord as error:
        raise ConfigurationError(
            f"the database was altered outside the broker ({error}):"
            " keep the database as evidence, and put a backup in its place"
        ) from error
    clock = new_clock(opening.time)
    go_on = partial(promotion.go_on, wrap=KeyWrap(master_key), config=config) if is_to_serve else None
    store = PostgresStore(opening, clock, sealer, go_on)
    if not opening.is_settled:
        try:
            await store.settle()
        except Unavailable as error:
            await store.close()
            raise ConfigurationError(error.detail) from error
    yield OpenStore(store, clock, master_key)


def cluster_of(config: Config) -> Cluster:
    """The cluster that a broker with these settings is one of."""
    return Cluster(config.issuer, config.trust_domain)


def cluster_name(config: Config) -> str:
    return str(cluster_of(config))


@contextlib.contextmanager
def driver_of_postgres() -> Iterator[None]:
    """Around imports of what needs the driver, which is an extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise ConfigurationError(
            "AGENTWRIT_DATABASE_URL needs the driver of PostgreSQL: pip install 'agentwrit[postgres]'"
        ) from error


def verify_audit_log(
    path: Path, config: Config, keys: Sequence[VerifierKey], *, progress: Progress
) -> tuple[int, Checkpoint | None]:
    """Check the audit log in a data directory, or in a database file that was taken out of one. Changes nothing.

    Raises:
        TamperedRecord: the log is not as the broker left it. Names the first event that is wrong.
        ConfigurationError: there is no database, or nothing to check it by.
    """
    database, sealer = _at_rest(path, config)
    return sqlite_verification.verify(database, sealer, keys, progress=progress)


def verify_store(path: Path | None, config: Config, *, progress: Progress) -> int:
    """Check the audit log in a data directory, and all else in it against the log; without one, those in the database
    that brokers share. Changes nothing.

    Returns how many events there are.

    Raises:
        TamperedRecord: something was altered, deleted, or put back as it once was. Names it.
        ConfigurationError: there is no database, or no master key.
    """
    if path is None:
        return _verify_shared(config, progress)
    database, sealer = _at_rest(path, config)
    if sealer is None:
        raise ConfigurationError(f"the master key of {path} is missing: put its master.key there, or set its variable")
    count, _ = sqlite_verification.verify(database, sealer, progress=progress)
    with sqlite_verification.snapshot(database, sealer) as snapshot:
        state_check.check(snapshot, Clock().now(), progress=progress)
    return count


def _verify_shared(config: Config, progress: Progress) -> int:
    if config.database_url is None:
        raise ConfigurationError("what to verify is missing: name a data directory, or set AGENTWRIT_DATABASE_URL")
    with driver_of_postgres():
        from agentwrit.broker.storage import postgres_verification
    sealer = row_sealer(MasterKey.parse(config.master_key or ""))
    with postgres_verification.verified(config.database_url, sealer, progress=progress) as snapshot:
        state_check.check(snapshot, Clock().now(), progress=progress)
        return snapshot.event_head()


def go_back(version: int, config: Config) -> None:
    """Make the schema of the database that of an older version, for brokers of that version.

    Raises:
        TamperedRecord: the schema is not the one that we make.
        ConfigurationError: there is no way back to it, a broker uses the database, or it cannot be used.
    """
    if config.database_url is None:
        raise ConfigurationError(
            "the way back is one of databases (AGENTWRIT_DATABASE_URL): put a backup of the data directory in its place"
        )
    with driver_of_postgres():
        from agentwrit.broker.storage import postgres_alone
    postgres_alone.go_back(config.database_url, row_sealer(MasterKey.parse(config.master_key or "")), version)


def copy_store(directory: Path, url: str, config: Config, *, progress: Progress) -> Mapping[str, int]:
    """Copy a data directory that no broker uses into an empty database. Returns how many rows of each table.

    Raises:
        TamperedRecord: the data directory is not as the broker left it.
        ConfigurationError: there is no database in it, or the other one cannot be used. Nothing was written.
    """
    with driver_of_postgres():
        from agentwrit.broker.storage import postgres_copy
    database, sealer = _at_rest(directory, config)
    if sealer is None or not database.is_file():
        raise ConfigurationError(f"{directory} is no data directory of a broker: it has no database, or no master.key")
    held = DataDirectory(directory)
    try:
        with contextlib.closing(sqlite_schema.open_database(database, sealer, cluster_of(config))) as source:
            return postgres_copy.copy(source, url, sealer, cluster_name(config), progress=progress)
    finally:
        held.close()


def _at_rest(path: Path, config: Config) -> tuple[Path, Sealer | None]:
    """The database in a data directory, or the file itself, and what its rows are sealed with if that is known."""
    database = path / DATABASE_FILE if path.is_dir() else path
    new = read_new_master_key_text(database.parent)
    if config.master_key is None and new is not None and is_sealed_by(database, new):
        return database, row_sealer(MasterKey.parse(new))  # a change of the key was cut short when it was done
    text = config.master_key or read_master_key_text(database.parent)
    return database, None if text is None else row_sealer(MasterKey.parse(text))


def row_sealer(master_key: MasterKey) -> Sealer:
    """What rows are sealed with under a master key."""
    return Sealer(master_key.derive(ROW_MAC))


def is_sealed_by(database: Path, text: str) -> bool:
    """Whether the rows of a database that is there are under the master key that `text` is, if it is one."""
    try:
        key = MasterKey.parse(text)
    except ConfigurationError:
        return False
    return database.is_file() and sqlite_verification.sealed_by(database) == row_sealer(key).name


@contextlib.asynccontextmanager
async def open_broker(
    config: Config,
    *,
    is_draining: Callable[[], bool],
    is_stopping: Callable[[], bool],
    ending_elsewhere: EndingElsewhere | None = None,
) -> AsyncIterator[Broker]:
    """A broker over the store of these settings. `ending_elsewhere`: what sees large endings through beside it.

    Raises:
        ConfigurationError: something that it needs is missing or wrong.
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
    """A broker that keeps nothing beyond its end, for tests. The data directory is left alone.

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
    """A broker over a store that is open. `is_draining`: whether requests should go elsewhere, though they are served;
    `is_stopping`: whether those who follow the feed are let go.
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
    """What health names besides the store."""
    return [*background.failing(), *(["log"] if logs.is_failing() else [])]


def load_master_key(config: Config, directory: DataDirectory) -> MasterKey:
    """The master key of a data directory. A new one is made where there is no database yet.

    Raises:
        ConfigurationError: it is missing, or is none.
    """
    if config.master_key is not None:
        return MasterKey.parse(config.master_key)
    is_moved = settle_master_key(directory)
    if is_moved is not None:
        log.warning(
            "a change of the master key was cut short when it was done: master.key is the new one now"
            if is_moved
            else "a change of the master key was cut short before it was done: master.key is the old one, as before"
        )
    text = directory.read_master_key_text()
    if text is not None:
        return MasterKey.parse(text)
    if directory.database.exists():
        raise ConfigurationError(
            f"the master key of {directory.path} is missing: put its master.key back, or set AGENTWRIT_MASTER_KEY"
        )
    return MasterKey.parse(directory.create_master_key())


def settle_master_key(directory: DataDirectory) -> bool | None:
    """End a change of the master key, whatever stopped it. Returns whether the store is under the new one; None if
    there is no change to end, or if it cannot be told: then the new key stays where it is.

    Raises:
        ConfigurationError: the store, which would tell, is gone.
    """
    new, old = directory.read_new_master_key_text(), directory.read_master_key_text()
    if new is None:
        return None
    if not directory.database.is_file():
        raise ConfigurationError(
            f"a change of the master key in {directory.path} was cut short, and {DATABASE_FILE} is missing: put it back"
        )
    if is_sealed_by(directory.database, new):
        directory.take_new_master_key(former=None if old is None else former_name(MasterKey.parse(old)))
        return True
    if old is not None and is_sealed_by(directory.database, old):
        directory.drop_new_master_key()
        return False
    return None


def former_name(master_key: MasterKey) -> str:
    """What tells the file of a master key that was replaced from those of others."""
    return row_sealer(master_key).name[:8]


async def _require_operator(store: Store, config: Config) -> None:
    if config.admin_secret is not None:
        if await set_secret(store, config.admin_secret):
            log.info("the operator's secret was set from AGENTWRIT_ADMIN_SECRET")
    elif not any(each.is_active for each in await store.read(lambda snapshot: snapshot.operators())):
        raise ConfigurationError(NO_OPERATOR)
