-- What was denied is asked for often, and is a small part of all events.

CREATE INDEX events_denied ON events (outcome) WHERE outcome = 'denied';
