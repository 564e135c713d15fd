-- The tree over the audit log: its tiles, each with a MAC, and the newest checkpoint. The full tiles of level 0 are
-- here; the unfinished one follows from the events. What is in the log already gets its tree when this is applied.

CREATE TABLE tiles (
    level  INTEGER NOT NULL,
    number INTEGER NOT NULL,
    hashes BLOB NOT NULL,
    mac    BLOB NOT NULL
);
CREATE UNIQUE INDEX tiles_by_place ON tiles (level, number);

CREATE TABLE checkpoint (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    size INTEGER NOT NULL,
    note TEXT NOT NULL
);
