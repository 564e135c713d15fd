-- Delegation, revocation at every level, the list of agents, and safe retries: columns to find grants by.

ALTER TABLE grants ADD COLUMN subject    TEXT NOT NULL DEFAULT '';
ALTER TABLE grants ADD COLUMN task_id    TEXT NOT NULL DEFAULT '';
ALTER TABLE grants ADD COLUMN orch_id    TEXT NOT NULL DEFAULT '';
ALTER TABLE grants ADD COLUMN jti        TEXT NOT NULL DEFAULT '';
ALTER TABLE grants ADD COLUMN parent_sid TEXT NOT NULL DEFAULT '';

UPDATE grants SET
    subject = CAST(body AS TEXT) ->> '$.subject',
    task_id = CAST(body AS TEXT) ->> '$.task_id',
    orch_id = CAST(body AS TEXT) ->> '$.orch_id',
    jti     = CAST(body AS TEXT) ->> '$.jti';

DROP INDEX grants_live_by_app;
CREATE INDEX grants_live_by_kind ON grants (kind)          WHERE ended_at = 0;
CREATE INDEX grants_live_by_app  ON grants (app_id, kind)  WHERE ended_at = 0;
CREATE INDEX grants_live_by_task ON grants (task_id)       WHERE ended_at = 0 AND task_id <> '';
CREATE INDEX grants_live_by_jti  ON grants (jti)           WHERE ended_at = 0;
CREATE INDEX grants_by_subject   ON grants (subject, parent_sid);
CREATE INDEX grants_by_parent    ON grants (parent_sid)    WHERE parent_sid <> '';

CREATE TABLE first_answers (
    key        BLOB NOT NULL UNIQUE,
    expires_at INTEGER NOT NULL,
    body       BLOB NOT NULL,
    mac        BLOB NOT NULL
);
CREATE INDEX first_answers_expiry ON first_answers (expires_at);
