-- How many events of each type there are in each 4,096 of the log, by the number of the last: so that a million of a
-- type need not be counted one by one. As an index, they follow from the events and are evidence of nothing.

CREATE TABLE tallies (
    event_type TEXT NOT NULL,
    last       INTEGER NOT NULL,
    events     INTEGER NOT NULL,
    PRIMARY KEY (event_type, last)
) WITHOUT ROWID;

INSERT INTO tallies (event_type, last, events)
SELECT event_type, (sequence + 4095) / 4096 * 4096, count(*) FROM events
WHERE sequence <= (SELECT max(sequence) FROM events) / 4096 * 4096
GROUP BY 1, 2;

CREATE TRIGGER tally_events AFTER INSERT ON events WHEN NEW.sequence % 4096 = 0
BEGIN
    INSERT INTO tallies (event_type, last, events)
    SELECT event_type, NEW.sequence, count(*) FROM events
    WHERE sequence > NEW.sequence - 4096 AND sequence <= NEW.sequence
    GROUP BY event_type;
END;
