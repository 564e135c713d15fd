-- Which key signed a grant's current token: what is to end when that key is revoked.

ALTER TABLE grants ADD COLUMN kid TEXT NOT NULL DEFAULT '';

-- The order of the revocation feed.

ALTER TABLE revocations ADD COLUMN seq INTEGER NOT NULL DEFAULT 0;

UPDATE revocations SET seq = numbered.seq
FROM (SELECT kind, id, row_number() OVER (ORDER BY effective_at, kind, id) AS seq FROM revocations) AS numbered
WHERE revocations.kind = numbered.kind AND revocations.id = numbered.id;

CREATE UNIQUE INDEX revocations_by_seq ON revocations (seq);
