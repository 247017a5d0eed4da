-- The database: who may do what, the tables, and the functions by which days come and go.
-- Runs as the superuser by the local socket, as often as one likes: at the last version below it changes nothing and says nothing.
-- Prints a line `changed` when it changed something. It drops no rows.
--
-- The first block makes a fresh database of version 1, and each step after it leads one version on; a step that has run anywhere is
-- never changed again. Consumers store while steps run, those of the version before too: a step waits two seconds for a lock at
-- most and fails then, to be run again; what takes longer (an index on what may be large) is made beside the writers, outside a
-- transaction.

SET client_min_messages = warning;
SELECT to_regclass('public.schema_version') IS NULL AS fresh \gset
\if :fresh
BEGIN;

DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'telemetry_owner') THEN
    CREATE ROLE telemetry_owner NOLOGIN;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'telemetry_writer') THEN
    CREATE ROLE telemetry_writer LOGIN;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'telemetry_reader') THEN
    CREATE ROLE telemetry_reader LOGIN;
  END IF;
END $$;

SELECT current_database() AS database \gset
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"database" TO telemetry_writer, telemetry_reader;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO telemetry_writer, telemetry_reader;
GRANT USAGE, CREATE ON SCHEMA public TO telemetry_owner;

SET LOCAL ROLE telemetry_owner;

-- The predecessor's columns first and by its names; then what makes a record one record.
-- cache 1: ids of one connection are ids in the order of its rows.
CREATE SEQUENCE diag_id AS bigint CACHE 1;
CREATE TABLE diag (
  id bigint NOT NULL DEFAULT nextval('diag_id'),
  timestamp double precision NOT NULL,
  vin char(17) COLLATE "C" NOT NULL,
  make varchar(20) NOT NULL,
  model varchar(20) NOT NULL,
  position_x double precision NOT NULL,
  position_y double precision NOT NULL,
  position_z double precision NOT NULL,
  speed double precision NOT NULL,
  epoch bigint NOT NULL,
  seq bigint NOT NULL,
  received_at timestamptz NOT NULL
) PARTITION BY RANGE (received_at);
ALTER SEQUENCE diag_id OWNED BY diag.id;

-- The place in the topic, and what its last record looked like: a topic made again or cut short is noticed.
CREATE TABLE stream_offset (
  topic_id uuid NOT NULL,
  partition integer NOT NULL,
  topic text COLLATE "C" NOT NULL,
  next bigint NOT NULL CHECK (next >= 0),
  last_timestamp bigint,
  last_crc bigint,
  PRIMARY KEY (topic_id, partition)
);
CREATE UNIQUE INDEX stream_offset_name ON stream_offset (topic, partition, topic_id);

-- Kept for ever: what decides that a record is a repeat.
CREATE TABLE progress (
  vin char(17) COLLATE "C" NOT NULL,
  epoch bigint NOT NULL CHECK (epoch >= 1),
  last bigint NOT NULL CHECK (last >= 1),
  PRIMARY KEY (vin, epoch)
);

-- Seqs that will not come (declared) or have not come (not declared). Rows ever inserted and open gaps are exactly 1..last.
CREATE TABLE gap (
  vin char(17) COLLATE "C" NOT NULL,
  epoch bigint NOT NULL,
  from_seq bigint NOT NULL CHECK (from_seq >= 1),
  to_seq bigint NOT NULL CHECK (to_seq >= from_seq),
  state text NOT NULL CHECK (state IN ('undeclared', 'declared', 'filled')),
  reason text NOT NULL,
  noted_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (vin, epoch, from_seq)
);

CREATE TABLE dead_letter (
  topic_id uuid NOT NULL,
  partition integer NOT NULL,
  "offset" bigint NOT NULL,
  topic text COLLATE "C" NOT NULL,
  key bytea,
  value bytea,
  headers jsonb NOT NULL DEFAULT '[]',
  received_at timestamptz NOT NULL,
  reason text NOT NULL,
  noted_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (topic_id, partition, "offset")
);

-- A record that came again with other values, whole, beside the place where it came.
CREATE TABLE conflict (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  vin char(17) COLLATE "C" NOT NULL,
  epoch bigint NOT NULL,
  seq bigint NOT NULL,
  record jsonb NOT NULL,
  topic_id uuid NOT NULL,
  partition integer NOT NULL,
  "offset" bigint NOT NULL,
  noted_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (topic_id, partition, "offset", vin, epoch, seq)
);

-- Repeats of form clients, who count nothing: recognized by what they say.
CREATE TABLE form_seen (
  vin char(17) COLLATE "C" NOT NULL,
  seq bigint NOT NULL,
  hash bytea NOT NULL,
  received_at timestamptz NOT NULL,
  PRIMARY KEY (vin, seq, hash)
);
CREATE INDEX form_seen_received_at ON form_seen USING brin (received_at);

-- Offsets that were given up by hand.
CREATE TABLE lost_range (
  topic_id uuid NOT NULL,
  partition integer NOT NULL,
  from_offset bigint NOT NULL,
  to_offset bigint NOT NULL CHECK (to_offset >= from_offset),
  topic text COLLATE "C" NOT NULL,
  reason text NOT NULL,
  noted_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (topic_id, partition, from_offset)
);

-- Days of diag that are kept; 0 keeps them for ever. Here, not in an argument: the writer may ask for the dropping of what is old,
-- and what is old is not for it to say.
CREATE TABLE retention (
  days integer NOT NULL CHECK (days >= 0),
  one boolean NOT NULL DEFAULT true PRIMARY KEY CHECK (one)
);
INSERT INTO retention VALUES (0);

CREATE TABLE schema_version (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());
INSERT INTO schema_version VALUES (1);

-- For a fresh database only: a later step grants what it makes.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO telemetry_reader, telemetry_writer;
GRANT INSERT ON diag, dead_letter, conflict, form_seen, lost_range, progress, gap, stream_offset TO telemetry_writer;
GRANT UPDATE ON progress, gap, stream_offset TO telemetry_writer;
GRANT DELETE ON gap TO telemetry_writer;
GRANT USAGE ON SEQUENCE diag_id TO telemetry_writer;

RESET ROLE;
COMMIT;
\echo changed
\endif

-- Dead letters that were put back into the topic are marked, so that nobody puts them back again.
SELECT max(version) < 2 AS outdated FROM schema_version \gset
\if :outdated
BEGIN;
ALTER TABLE dead_letter ADD COLUMN redriven_at timestamptz;
GRANT UPDATE (redriven_at) ON dead_letter TO telemetry_writer;
INSERT INTO schema_version VALUES (2);
COMMIT;
\echo changed
\endif

-- A conflict is an upload, kept whole: `seqs` are those of its records that were stored with other values, `seq` is the first.
-- Rows of version 1 have one record each, in `record`.
SELECT max(version) < 3 AS outdated FROM schema_version \gset
\if :outdated
BEGIN;
SET LOCAL lock_timeout = '2s';
ALTER TABLE conflict ALTER COLUMN record DROP NOT NULL, ADD COLUMN seqs bigint[], ADD COLUMN value bytea;
INSERT INTO schema_version VALUES (3);
COMMIT;
\echo changed
\endif

-- Names and values of a dead letter's headers in turn, byte for byte; a value may be NULL. Rows of version 1 have them in `headers`,
-- names as text and values in hexadecimal.
SELECT max(version) < 4 AS outdated FROM schema_version \gset
\if :outdated
BEGIN;
SET LOCAL lock_timeout = '2s';
ALTER TABLE dead_letter ADD COLUMN header_bytes bytea[];
INSERT INTO schema_version VALUES (4);
COMMIT;
\echo changed
\endif

-- Days and retention as they are now; a view by which queries of one vehicle use an index; what readers may not do.
SELECT max(version) < 5 AS outdated FROM schema_version \gset
\if :outdated
BEGIN;
SET LOCAL lock_timeout = '2s';
SET LOCAL ROLE telemetry_owner;

-- Room for an update beside the row it replaces: no index entry, and fewer pages written after a checkpoint.
ALTER TABLE progress SET (fillfactor = 70);

-- kafka_hours: the topic's retention. letter_days: days that dead letters and conflicts are kept; 0 keeps them for ever.
-- reached: the day to which retention has counted; what is old is counted back from it. held: why it goes no further, if so.
ALTER TABLE retention
  ADD COLUMN kafka_hours integer NOT NULL DEFAULT 168 CHECK (kafka_hours >= 0),
  ADD COLUMN letter_days integer NOT NULL DEFAULT 365 CHECK (letter_days >= 0),
  ADD COLUMN reached date,
  ADD COLUMN held text NOT NULL DEFAULT '';

-- What an operator has looked into and found explained. The gaps stay as they are, and can still be filled.
CREATE TABLE gap_acknowledged (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  vin char(17) COLLATE "C" NOT NULL,
  epoch bigint NOT NULL CHECK (epoch >= 1),
  from_seq bigint NOT NULL CHECK (from_seq >= 1),
  to_seq bigint NOT NULL CHECK (to_seq >= from_seq),
  who text NOT NULL,
  why text NOT NULL,
  acknowledged_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX gap_acknowledged_vehicle ON gap_acknowledged (vin, epoch, from_seq);
GRANT SELECT ON gap_acknowledged TO telemetry_reader, telemetry_writer;
GRANT INSERT ON gap_acknowledged TO telemetry_writer;

-- diag for questions about single vehicles: `WHERE vin = ...` is an index scan of each day. The indexes of a day are partial, one for
-- each kind of epoch, and a query of diag itself finds them only where it names the epoch.
CREATE VIEW diag_by_vin AS SELECT * FROM diag WHERE epoch >= 1 UNION ALL SELECT * FROM diag WHERE epoch = 0;
GRANT SELECT ON diag_by_vin TO telemetry_reader, telemetry_writer;

-- The days that there are.
CREATE FUNCTION diag_days() RETURNS SETOF date LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT to_date(substr(c.relname, 6), 'YYYYMMDD') FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
  WHERE i.inhparent = 'public.diag'::regclass AND c.relname ~ '^diag_\d{8}$' ORDER BY 1
$$;

CREATE FUNCTION diag_day_has_rows(day date) RETURNS boolean LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  found boolean;
BEGIN
  EXECUTE format('SELECT EXISTS (SELECT FROM public.%I)', 'diag_' || to_char(day, 'YYYYMMDD')) INTO found;
  RETURN found;
END $$;

-- Makes the partition of a day (UTC). In a transaction of its own: attaching takes a lock that no batch should hold. The first index
-- is a guard, and local to its day so that dropping a day weakens nothing: progress decides what is a repeat. The second finds the
-- records of form clients.
-- One at a time: by the row of retention, which no reader can lock.
CREATE OR REPLACE FUNCTION make_day(day date) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '10s' AS $$
DECLARE
  name text := 'diag_' || to_char(day, 'YYYYMMDD');
BEGIN
  IF day < DATE '2000-01-01' OR day > (now() AT TIME ZONE 'UTC')::date + 7 THEN
    RAISE EXCEPTION 'no day of this table: %', day;
  END IF;
  IF to_regclass('public.' || name) IS NOT NULL THEN
    RETURN false;
  END IF;
  PERFORM FROM public.retention FOR UPDATE;
  IF to_regclass('public.' || name) IS NOT NULL THEN
    RETURN false;
  END IF;
  EXECUTE format('CREATE TABLE public.%I (LIKE public.diag INCLUDING DEFAULTS)', name);
  EXECUTE format('CREATE UNIQUE INDEX %I ON public.%I (vin, epoch, seq) WHERE epoch >= 1', name || '_guard', name);
  EXECUTE format('CREATE INDEX %I ON public.%I (vin, seq) WHERE epoch = 0', name || '_forms', name);
  EXECUTE format('ALTER TABLE public.diag ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
                 name, day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
  EXECUTE format('GRANT SELECT ON public.%I TO telemetry_reader', name);
  RETURN true;
END $$;

-- Counts on to the newest day with rows that is not ahead of the clock: at most two days for each day with rows. So a clock that leaps
-- ahead, with all that is stored by it, makes nothing old; a fleet that was away for long makes it wait, and say so.
CREATE FUNCTION move_retention() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $$
DECLARE
  today date := (now() AT TIME ZONE 'UTC')::date;
  first boolean;
  counted date;
  newest date;
  day date;
  stored integer := 0;
BEGIN
  SELECT reached IS NULL, least(coalesce(reached, '-infinity'), today) INTO first, counted FROM public.retention FOR UPDATE;
  newest := counted;
  FOR day IN SELECT each FROM public.diag_days() AS each WHERE each <= today AND each > counted ORDER BY 1 LOOP
    CONTINUE WHEN NOT public.diag_day_has_rows(day);
    newest := day;
    stored := stored + 1;
    IF first OR day - counted <= 2 * stored THEN
      counted := day;
      stored := 0;
    END IF;
  END LOOP;
  UPDATE public.retention SET reached = nullif(counted, '-infinity'), held = CASE WHEN newest > counted THEN format(
    'nothing more is dropped, for the newest day with rows is %s, more than two days for each day with rows after %s. '
    'If the clocks are right, it goes on when as much was stored, or at once after: UPDATE retention SET reached = %L',
    newest, counted, newest) ELSE '' END;
END $$;

-- Drops the oldest day that is older than the retention, and returns its name: one day a call, so that each is a transaction alone.
-- Dropping waits for all who read the table, and all who come later wait behind it: it gives up soon, and is called again.
CREATE OR REPLACE FUNCTION drop_days() RETURNS SETOF text LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $$
DECLARE
  name text;
BEGIN
  PERFORM public.move_retention();
  SELECT 'diag_' || to_char(min(each), 'YYYYMMDD') INTO name FROM public.diag_days() AS each, public.retention
  WHERE days > 0 AND each < reached - days;
  IF name IS NOT NULL THEN
    EXECUTE format('DROP TABLE public.%I', name);
    RETURN NEXT name;
  END IF;
END $$;

-- Forgets at most 10,000 rows of each kind that are old, and returns how many. What form clients said is known for longer than the
-- topic holds it and than a backup is old, which is taken to be 90 days at most: within that time the same record may come again.
CREATE FUNCTION forget() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $$
DECLARE
  forms timestamptz;
  letters timestamptz;
  part bigint;
  total bigint;
BEGIN
  PERFORM public.move_retention();
  SELECT (reached - 90 - ceil(kafka_hours / 24.0)::integer)::timestamp AT TIME ZONE 'UTC',
         CASE WHEN letter_days > 0 THEN (reached - letter_days)::timestamp AT TIME ZONE 'UTC' END
  INTO forms, letters FROM public.retention;
  DELETE FROM public.form_seen WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM public.form_seen WHERE received_at < forms ORDER BY received_at LIMIT 10000));
  GET DIAGNOSTICS total = ROW_COUNT;
  DELETE FROM public.dead_letter WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM public.dead_letter WHERE noted_at < letters ORDER BY noted_at LIMIT 10000));
  GET DIAGNOSTICS part = ROW_COUNT;
  total := total + part;
  DELETE FROM public.conflict WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM public.conflict WHERE noted_at < letters ORDER BY noted_at LIMIT 10000));
  GET DIAGNOSTICS part = ROW_COUNT;
  RETURN total + part;
END $$;

REVOKE ALL ON FUNCTION make_day(date), drop_days(), forget(), move_retention(), diag_day_has_rows(date), diag_days() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION make_day(date), drop_days(), forget() TO telemetry_writer;
GRANT EXECUTE ON FUNCTION diag_days() TO telemetry_writer, telemetry_reader;
RESET ROLE;

-- Readers can hold up nothing. The limits of time are what a session begins with; the others it cannot change. To give a reader more:
-- ALTER ROLE, by hand, once.
ALTER ROLE telemetry_reader CONNECTION LIMIT 20;
ALTER ROLE telemetry_reader SET statement_timeout = '5min';
ALTER ROLE telemetry_reader SET idle_in_transaction_session_timeout = '1min';
ALTER ROLE telemetry_reader SET temp_file_limit = '1GB';
-- Large objects fill the disk, and advisory locks the table of locks that all share.
DO $$
DECLARE
  function regprocedure;
BEGIN
  FOR function IN
    SELECT oid FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace
      AND (proname ~ '^pg_(try_)?advisory_' OR proname ~ '^lo_' OR proname IN ('loread', 'lowrite'))
  LOOP
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', function);
  END LOOP;
END $$;
-- A call of a function of the version before may be under way.
GRANT EXECUTE ON FUNCTION pg_advisory_xact_lock(bigint) TO telemetry_owner;
INSERT INTO schema_version VALUES (5);
COMMIT;
\echo changed
\endif

-- Indexes, beside the writers and outside a transaction. What an interrupted run left half made goes first.
SELECT max(version) < 6 AS outdated FROM schema_version \gset
\if :outdated
SELECT format('DROP INDEX CONCURRENTLY %s', indexrelid::regclass) FROM pg_index
WHERE NOT indisvalid AND indrelid::regclass::text ~ '^(diag_\d{8}|gap|form_seen|dead_letter|conflict)$' \gexec
-- Open gaps alone: filled ones are kept for ever, and burden no reading of those that are open.
CREATE INDEX CONCURRENTLY IF NOT EXISTS gap_open ON gap (vin, epoch, from_seq) WHERE state <> 'filled';
CREATE INDEX CONCURRENTLY IF NOT EXISTS form_seen_age ON form_seen (received_at);
DROP INDEX CONCURRENTLY IF EXISTS form_seen_received_at;
CREATE INDEX CONCURRENTLY IF NOT EXISTS dead_letter_age ON dead_letter (noted_at);
CREATE INDEX CONCURRENTLY IF NOT EXISTS conflict_age ON conflict (noted_at);
SELECT format('CREATE INDEX CONCURRENTLY %I ON %I (vin, seq) WHERE epoch = 0', name || '_forms', name)
FROM diag_days() AS day, LATERAL (SELECT 'diag_' || to_char(day, 'YYYYMMDD') AS name) AS named
WHERE to_regclass(name || '_forms') IS NULL \gexec
INSERT INTO schema_version VALUES (6);
\echo changed
\endif

-- Statements that define something queue for their lock before they ask for rights, and all who come later wait behind them. A message
-- of a reader would fill the write-ahead log.
SELECT max(version) < 7 AS outdated FROM schema_version \gset
\if :outdated
BEGIN;
CREATE FUNCTION refuse_reader() RETURNS event_trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF 'telemetry_reader' IN (current_user, session_user) THEN
    RAISE EXCEPTION 'permission denied: telemetry_reader only reads' USING ERRCODE = 'insufficient_privilege';
  END IF;
END $$;
CREATE EVENT TRIGGER refuse_reader ON ddl_command_start EXECUTE FUNCTION refuse_reader();
DO $$
DECLARE
  function regprocedure;
BEGIN
  FOR function IN SELECT oid FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = 'pg_logical_emit_message'
  LOOP
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', function);
  END LOOP;
END $$;
INSERT INTO schema_version VALUES (7);
COMMIT;
\echo changed
\endif
