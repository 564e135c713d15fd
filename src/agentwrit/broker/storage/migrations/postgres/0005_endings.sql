-- Endings that take more than one commit: what is still to do is gone on with after a crash.

CREATE TABLE endings (
    id      TEXT COLLATE "C" PRIMARY KEY,
    done_at BIGINT NOT NULL,
    body    BYTEA NOT NULL,
    mac     BYTEA NOT NULL
);

-- How many delegations are alive from one grant, and in all chains that begin with one.

ALTER TABLE grants ADD COLUMN tree TEXT COLLATE "C" NOT NULL DEFAULT '';

UPDATE grants SET tree = convert_from(body, 'UTF8')::json #>> '{chain,0,sid}' WHERE parent_sid <> '';

CREATE INDEX grants_live_below     ON grants (parent_sid, ended_at, exp) WHERE parent_sid <> '';
CREATE INDEX grants_live_in_tree   ON grants (tree, ended_at, exp)       WHERE tree <> '';
CREATE INDEX grants_live_delegates ON grants (subject, place)            WHERE ended_at = 0 AND parent_sid <> '';

-- What is to end is read page by page, in the order in which it was made.

DROP INDEX grants_live_by_kind;
DROP INDEX grants_live_by_app;
DROP INDEX grants_live_by_task;
DROP INDEX grants_by_parent;
CREATE INDEX grants_live_by_kind ON grants (kind, place)         WHERE ended_at = 0;
CREATE INDEX grants_live_by_app  ON grants (app_id, kind, place) WHERE ended_at = 0;
CREATE INDEX grants_live_by_task ON grants (task_id, place)      WHERE ended_at = 0 AND task_id <> '';
CREATE INDEX grants_by_parent    ON grants (parent_sid, place)   WHERE parent_sid <> '';
