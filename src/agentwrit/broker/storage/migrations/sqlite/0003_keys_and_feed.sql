-- Which key signed a grant's current token: what is to end when that key is revoked.

ALTER TABLE grants ADD COLUMN kid TEXT NOT NULL DEFAULT '';
