-- A row of authority carries its whole record as JSON in `body` and a MAC over it. The columns beside it are copies, to
-- find rows by: what a row says is what its body says.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE operators (
    name TEXT PRIMARY KEY,
    body BLOB NOT NULL,
    mac  BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE apps (
    position  INTEGER PRIMARY KEY,
    app_id    TEXT NOT NULL UNIQUE,
    client_id TEXT NOT NULL UNIQUE,
    name      TEXT NOT NULL,
    status    TEXT NOT NULL,
    body      BLOB NOT NULL,
    mac       BLOB NOT NULL
);
CREATE UNIQUE INDEX apps_active_name ON apps (name) WHERE status <> 'inactive';

CREATE TABLE launch_tokens (
    token_hash BLOB NOT NULL UNIQUE,
    expires_at INTEGER NOT NULL,
    body       BLOB NOT NULL,
    mac        BLOB NOT NULL
);
CREATE INDEX launch_tokens_expiry ON launch_tokens (expires_at);

CREATE TABLE nonces (
    nonce      BLOB PRIMARY KEY,
    expires_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX nonces_expiry ON nonces (expires_at);

CREATE TABLE grants (
    sid      TEXT NOT NULL UNIQUE,
    kind     TEXT NOT NULL,
    app_id   TEXT NOT NULL,
    ended_at INTEGER NOT NULL,
    exp      INTEGER NOT NULL,
    body     BLOB NOT NULL,
    mac      BLOB NOT NULL
);
CREATE INDEX grants_live_by_app ON grants (app_id, kind) WHERE ended_at = 0;
CREATE INDEX grants_expiry ON grants (exp);

CREATE TABLE revocations (
    kind         TEXT NOT NULL,
    id           TEXT NOT NULL,
    effective_at INTEGER NOT NULL,
    last_exp     INTEGER NOT NULL,
    mac          BLOB NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE INDEX revocations_expiry ON revocations (last_exp);

CREATE TABLE signing_keys (
    kid        TEXT PRIMARY KEY,
    created_at INTEGER NOT NULL,
    body       BLOB NOT NULL,
    mac        BLOB NOT NULL
) WITHOUT ROWID;

-- The audit log is evidence, not authority: every column is part of the event's hash.
CREATE TABLE events (
    sequence         INTEGER PRIMARY KEY,
    version          INTEGER NOT NULL,
    timestamp        TEXT NOT NULL,
    event_type       TEXT NOT NULL,
    outcome          TEXT NOT NULL,
    detail           TEXT NOT NULL,
    resource         TEXT NOT NULL,
    principal        TEXT NOT NULL,
    app_id           TEXT NOT NULL,
    agent_id         TEXT NOT NULL,
    task_id          TEXT NOT NULL,
    orch_id          TEXT NOT NULL,
    sid              TEXT NOT NULL,
    deleg_depth      INTEGER NOT NULL,
    deleg_chain_hash TEXT NOT NULL,
    client_address   TEXT NOT NULL,
    request_id       TEXT NOT NULL,
    trace_id         TEXT NOT NULL,
    data             TEXT NOT NULL,
    prev_hash        TEXT NOT NULL,
    hash             TEXT NOT NULL
);
CREATE INDEX events_by_agent ON events (agent_id) WHERE agent_id <> '';
CREATE INDEX events_by_task  ON events (task_id)  WHERE task_id <> '';
CREATE INDEX events_by_app   ON events (app_id)   WHERE app_id <> '';
CREATE INDEX events_by_type  ON events (event_type);
