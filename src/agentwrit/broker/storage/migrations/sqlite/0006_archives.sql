-- What of the audit log was archived: these events may be removed, and where they are is known for ever.

CREATE TABLE archives (
    last INTEGER PRIMARY KEY,
    body BLOB NOT NULL,
    mac  BLOB NOT NULL
);
