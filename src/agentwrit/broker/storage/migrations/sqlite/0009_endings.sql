-- Endings that take more than one commit: what is still to do is gone on with after a crash.

CREATE TABLE endings (
    id      TEXT PRIMARY KEY,
    done_at INTEGER NOT NULL,
    body    BLOB NOT NULL,
    mac     BLOB NOT NULL
) WITHOUT ROWID;

-- How many delegations are alive from one grant, and in all chains that begin with one.

ALTER TABLE grants ADD COLUMN tree TEXT NOT NULL DEFAULT '';

UPDATE grants SET tree = CAST(body AS TEXT) ->> '$.chain[0].sid' WHERE parent_sid <> '';

CREATE INDEX grants_live_below     ON grants (parent_sid, ended_at, exp) WHERE parent_sid <> '';
CREATE INDEX grants_live_in_tree   ON grants (tree, ended_at, exp)       WHERE tree <> '';
CREATE INDEX grants_live_delegates ON grants (subject)                   WHERE ended_at = 0 AND parent_sid <> '';
