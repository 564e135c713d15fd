-- How much of its limits an app uses: one row for each app that has had one that needs to be counted.

CREATE TABLE app_usage (
    app_id TEXT COLLATE "C" PRIMARY KEY,
    body   BYTEA NOT NULL,
    mac    BYTEA NOT NULL
);

-- Whose expiry makes room in an app with a limit of live agents: found by when it is, and nobody else's.

ALTER TABLE grants ADD COLUMN counted BIGINT NOT NULL DEFAULT 0;

CREATE INDEX grants_counted ON grants (app_id, exp) WHERE counted = 1 AND ended_at = 0;
