-- What of the audit log was archived: these events may be removed, and where they are is known for ever.

CREATE TABLE archives (
    last BIGINT PRIMARY KEY,
    body BYTEA NOT NULL,
    mac  BYTEA NOT NULL
);
