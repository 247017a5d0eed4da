-- The database: who may do what, the tables, and the functions by which days come and go.
-- Runs as the superuser by the local socket, as often as one likes: at the version below it changes nothing and says nothing.
-- Prints a line `changed` when it changed something. It drops nothing.

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

-- Days of diag that are kept; 0 keeps them for ever. Here, not in an argument: the writer may ask for the dropping of old days, and
-- what is old is not for it to say.
CREATE TABLE retention (
  days integer NOT NULL CHECK (days >= 0),
  one boolean NOT NULL DEFAULT true PRIMARY KEY CHECK (one)
);
INSERT INTO retention VALUES (0);

CREATE TABLE schema_version (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());
INSERT INTO schema_version VALUES (1);

GRANT SELECT ON ALL TABLES IN SCHEMA public TO telemetry_reader, telemetry_writer;
GRANT INSERT ON diag, dead_letter, conflict, form_seen, lost_range, progress, gap, stream_offset TO telemetry_writer;
GRANT UPDATE ON progress, gap, stream_offset TO telemetry_writer;
GRANT DELETE ON gap TO telemetry_writer;
GRANT USAGE ON SEQUENCE diag_id TO telemetry_writer;

-- Makes the partition of a day (UTC). In a transaction of its own: attaching takes a lock that no batch should hold. The index is
-- a guard, and local to its day so that dropping a day weakens nothing: progress decides what is a repeat.
CREATE FUNCTION make_day(day date) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '10s' AS $$
DECLARE
  name text := 'diag_' || to_char(day, 'YYYYMMDD');
BEGIN
  IF day < DATE '2000-01-01' OR day > (now() AT TIME ZONE 'UTC')::date + 7 THEN
    RAISE EXCEPTION 'no day of this table: %', day;
  END IF;
  PERFORM pg_advisory_xact_lock(hashtext('tachograph.days'));
  IF to_regclass('public.' || name) IS NOT NULL THEN
    RETURN false;
  END IF;
  EXECUTE format('CREATE TABLE public.%I (LIKE public.diag INCLUDING DEFAULTS)', name);
  EXECUTE format('CREATE UNIQUE INDEX %I ON public.%I (vin, epoch, seq) WHERE epoch >= 1', name || '_guard', name);
  EXECUTE format('ALTER TABLE public.diag ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
                 name, day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
  EXECUTE format('GRANT SELECT ON public.%I TO telemetry_reader', name);
  RETURN true;
END $$;

-- Drops the days that are older than the retention, and returns their names. Forgets what form clients said 90 days ago: longer than
-- Kafka's retention and the age of a backup, within which the same record may come again.
-- Dropping waits for all who read the table, and all who come later wait behind it: it gives up soon, and is called again.
CREATE FUNCTION drop_days() RETURNS SETOF text LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
  today date := (now() AT TIME ZONE 'UTC')::date;
  keep integer := (SELECT days FROM public.retention);
  name text;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('tachograph.days'));
  FOR name IN
    SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE keep > 0 AND i.inhparent = 'public.diag'::regclass AND c.relname ~ '^diag_\d{8}$'
      AND to_date(substr(c.relname, 6), 'YYYYMMDD') < today - keep
    ORDER BY 1
  LOOP
    EXECUTE format('DROP TABLE public.%I', name);
    RETURN NEXT name;
  END LOOP;
  DELETE FROM public.form_seen WHERE received_at < now() - make_interval(days => greatest(90, keep));
END $$;

REVOKE ALL ON FUNCTION make_day(date), drop_days() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION make_day(date), drop_days() TO telemetry_writer;
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
