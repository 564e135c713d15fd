-- The way back to the version before, which holds a checkpoint to nothing.

ALTER TABLE cluster DROP COLUMN covered;
