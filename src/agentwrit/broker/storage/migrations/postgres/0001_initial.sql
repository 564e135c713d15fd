-- A row of authority carries its whole record as JSON in `body` and a MAC over it. The columns beside it are copies, to
-- find rows by: what a row says is what its body says. Text is compared byte by byte: that needs no locale, and an
-- index stays whole when the system's locale changes.

CREATE TABLE meta (
    name  TEXT COLLATE "C" PRIMARY KEY,
    value TEXT NOT NULL
);

-- What every commit moves on: where the log and the feed end, and the time, under a MAC. Whoever writes locks this row
-- first, so brokers commit one after the other.
CREATE TABLE cluster (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    state TEXT NOT NULL
);

CREATE TABLE operators (
    name TEXT COLLATE "C" PRIMARY KEY,
    body BYTEA NOT NULL,
    mac  BYTEA NOT NULL
);

CREATE TABLE apps (
    position  BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    app_id    TEXT COLLATE "C" NOT NULL UNIQUE,
    client_id TEXT COLLATE "C" NOT NULL UNIQUE,
    name      TEXT COLLATE "C" NOT NULL,
    status    TEXT COLLATE "C" NOT NULL,
    body      BYTEA NOT NULL,
    mac       BYTEA NOT NULL
);
CREATE UNIQUE INDEX apps_active_name ON apps (name) WHERE status <> 'inactive';

CREATE TABLE launch_tokens (
    token_hash BYTEA PRIMARY KEY,
    expires_at BIGINT NOT NULL,
    body       BYTEA NOT NULL,
    mac        BYTEA NOT NULL
);
CREATE INDEX launch_tokens_expiry ON launch_tokens (expires_at);

CREATE TABLE nonces (
    nonce      BYTEA PRIMARY KEY,
    expires_at BIGINT NOT NULL
);
CREATE INDEX nonces_expiry ON nonces (expires_at);

CREATE TABLE grants (
    place      BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sid        TEXT COLLATE "C" NOT NULL UNIQUE,
    kind       TEXT COLLATE "C" NOT NULL,
    app_id     TEXT COLLATE "C" NOT NULL,
    ended_at   BIGINT NOT NULL,
    exp        BIGINT NOT NULL,
    subject    TEXT COLLATE "C" NOT NULL,
    task_id    TEXT COLLATE "C" NOT NULL,
    orch_id    TEXT COLLATE "C" NOT NULL,
    jti        TEXT COLLATE "C" NOT NULL,
    parent_sid TEXT COLLATE "C" NOT NULL,
    kid        TEXT COLLATE "C" NOT NULL,
    body       BYTEA NOT NULL,
    mac        BYTEA NOT NULL
);
CREATE INDEX grants_expiry       ON grants (exp);
CREATE INDEX grants_live_by_kind ON grants (kind)          WHERE ended_at = 0;
CREATE INDEX grants_live_by_app  ON grants (app_id, kind)  WHERE ended_at = 0;
CREATE INDEX grants_live_by_task ON grants (task_id)       WHERE ended_at = 0 AND task_id <> '';
CREATE INDEX grants_live_by_jti  ON grants (jti)           WHERE ended_at = 0;
CREATE INDEX grants_by_subject   ON grants (subject, parent_sid);
CREATE INDEX grants_by_parent    ON grants (parent_sid)    WHERE parent_sid <> '';

CREATE TABLE first_answers (
    key        BYTEA PRIMARY KEY,
    expires_at BIGINT NOT NULL,
    body       BYTEA NOT NULL,
    mac        BYTEA NOT NULL
);
CREATE INDEX first_answers_expiry ON first_answers (expires_at);

CREATE TABLE revocations (
    kind         TEXT COLLATE "C" NOT NULL,
    id           TEXT COLLATE "C" NOT NULL,
    effective_at BIGINT NOT NULL,
    last_exp     BIGINT NOT NULL,
    mac          BYTEA NOT NULL,
    seq          BIGINT NOT NULL UNIQUE,
    PRIMARY KEY (kind, id)
);
CREATE INDEX revocations_expiry ON revocations (last_exp);

CREATE TABLE signing_keys (
    kid        TEXT COLLATE "C" PRIMARY KEY,
    created_at BIGINT NOT NULL,
    body       BYTEA NOT NULL,
    mac        BYTEA NOT NULL
);

-- The audit log is evidence, not authority: every column is part of the event's hash.
CREATE TABLE events (
    sequence         BIGINT PRIMARY KEY,
    version          BIGINT NOT NULL,
    timestamp        TEXT COLLATE "C" NOT NULL,
    event_type       TEXT COLLATE "C" NOT NULL,
    outcome          TEXT COLLATE "C" NOT NULL,
    detail           TEXT COLLATE "C" NOT NULL,
    resource         TEXT COLLATE "C" NOT NULL,
    principal        TEXT COLLATE "C" NOT NULL,
    app_id           TEXT COLLATE "C" NOT NULL,
    agent_id         TEXT COLLATE "C" NOT NULL,
    task_id          TEXT COLLATE "C" NOT NULL,
    orch_id          TEXT COLLATE "C" NOT NULL,
    sid              TEXT COLLATE "C" NOT NULL,
    deleg_depth      BIGINT NOT NULL,
    deleg_chain_hash TEXT COLLATE "C" NOT NULL,
    client_address   TEXT COLLATE "C" NOT NULL,
    request_id       TEXT COLLATE "C" NOT NULL,
    trace_id         TEXT COLLATE "C" NOT NULL,
    data             TEXT COLLATE "C" NOT NULL,
    prev_hash        TEXT COLLATE "C" NOT NULL,
    hash             TEXT COLLATE "C" NOT NULL
);
CREATE INDEX events_by_agent ON events (agent_id) WHERE agent_id <> '';
CREATE INDEX events_by_task  ON events (task_id)  WHERE task_id <> '';
CREATE INDEX events_by_app   ON events (app_id)   WHERE app_id <> '';
CREATE INDEX events_by_type  ON events (event_type);
CREATE INDEX events_denied   ON events (outcome)  WHERE outcome = 'denied';

CREATE TABLE tiles (
    level  BIGINT NOT NULL,
    number BIGINT NOT NULL,
    hashes BYTEA NOT NULL,
    mac    BYTEA NOT NULL,
    PRIMARY KEY (level, number)
);

CREATE TABLE checkpoint (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    size BIGINT NOT NULL,
    note TEXT NOT NULL
);
