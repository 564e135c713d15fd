-- Up to where a checkpoint covers the log, under a MAC that belongs to the state beside it: so an older checkpoint that is
-- put back is found.

ALTER TABLE cluster ADD COLUMN covered TEXT;
