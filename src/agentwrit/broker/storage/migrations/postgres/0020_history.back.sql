-- The way back to the version before: it knows none of this, and what it writes is not held to it.

DROP TRIGGER refuse_older_broker ON cluster;
DROP FUNCTION refuse_older_broker();
ALTER TABLE cluster DROP COLUMN history;
