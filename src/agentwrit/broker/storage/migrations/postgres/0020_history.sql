-- Which database this store is in, and on which of its timelines, under a MAC: what a promotion or a copy changes.

ALTER TABLE cluster ADD COLUMN history TEXT;

-- A broker that knows this schema says so in its sessions, and looks at the version with each commit. One from before
-- would go on, and write back rows without what it does not know: it is known by its settings, and may only read.

CREATE FUNCTION refuse_older_broker() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the schema was brought up to date by a newer version of AgentWrit: replace this broker';
END
$$;

CREATE TRIGGER refuse_older_broker BEFORE UPDATE ON cluster FOR EACH ROW
WHEN (current_setting('agentwrit.schema', true) IS NULL AND current_setting('lock_timeout') = '3s')
EXECUTE FUNCTION refuse_older_broker();
