-- One batch of a consumer of schema version 2, statement by statement, for an upload at offset :next of a vehicle of its own.
SET ROLE telemetry_writer;
SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '12s'; SET statement_timeout = '30s';
SELECT make_day((now() AT TIME ZONE 'UTC')::date);
SELECT make_day((now() AT TIME ZONE 'UTC')::date + 2);
BEGIN;
INSERT INTO stream_offset (topic_id, partition, topic, next, last_timestamp, last_crc)
VALUES ('00000000-0000-0000-0000-000000000002', 0, 'two', :next, 1, 1) ON CONFLICT DO NOTHING;
UPDATE stream_offset SET next = :next + 1, last_timestamp = 1, last_crc = 1
WHERE topic_id = '00000000-0000-0000-0000-000000000002' AND partition = 0 AND next = :next;
SELECT vin, epoch, last FROM progress
JOIN unnest(ARRAY['VERSION2000000000']::char(17)[], ARRAY[:next + 1]::bigint[]) AS wanted (vin, epoch) USING (vin, epoch);
SELECT vin, epoch, from_seq, to_seq, state, reason FROM gap
JOIN unnest(ARRAY['VERSION2000000000']::char(17)[], ARRAY[:next + 1]::bigint[]) AS wanted (vin, epoch) USING (vin, epoch)
WHERE state <> 'filled' ORDER BY from_seq;
INSERT INTO form_seen (vin, seq, hash, received_at) VALUES ('VERSION2000000000', :next + 1, '\x00', now())
ON CONFLICT DO NOTHING RETURNING vin, seq, hash;
INSERT INTO diag (vin, make, model, epoch, received_at, seq, timestamp, position_x, position_y, position_z, speed)
VALUES ('VERSION2000000000', 'Ford', 'F-150', :next + 1, now(), 3, 0, 0, 0, 0, 0);
SELECT found.* FROM unnest(ARRAY['VERSION2000000000']::char(17)[], ARRAY[:next + 1]::bigint[], ARRAY[1]::bigint[], ARRAY[3]::bigint[])
AS wanted (vin, epoch, first, last) CROSS JOIN LATERAL (
SELECT vin, epoch, seq, make, model, timestamp, position_x, position_y, position_z, speed FROM diag
WHERE diag.vin = wanted.vin AND diag.epoch = wanted.epoch AND diag.epoch >= 1
AND diag.seq BETWEEN wanted.first AND wanted.last OFFSET 0) AS found;
INSERT INTO conflict (vin, epoch, seq, record, topic_id, partition, "offset")
VALUES ('VERSION2000000000', :next + 1, 1, '{}', '00000000-0000-0000-0000-000000000002', 0, :next) ON CONFLICT DO NOTHING;
INSERT INTO progress (vin, epoch, last) VALUES ('VERSION2000000000', :next + 1, 2) ON CONFLICT DO NOTHING;
UPDATE progress SET last = new.last FROM (VALUES ('VERSION2000000000', :next + 1, 2, 3)) AS new (vin, epoch, was, last)
WHERE progress.vin = new.vin::char(17) AND progress.epoch = new.epoch AND progress.last = new.was;
INSERT INTO gap (vin, epoch, from_seq, to_seq, state, reason)
VALUES ('VERSION2000000000', :next + 1, 1, 2, 'undeclared', 'missing');
DELETE FROM gap USING (VALUES ('VERSION2000000000', :next + 1, 1)) AS old (vin, epoch, from_seq)
WHERE gap.vin = old.vin::char(17) AND gap.epoch = old.epoch AND gap.from_seq = old.from_seq;
INSERT INTO gap (vin, epoch, from_seq, to_seq, state, reason)
VALUES ('VERSION2000000000', :next + 1, 1, 1, 'filled', 'missing'), ('VERSION2000000000', :next + 1, 2, 2, 'undeclared', 'missing');
INSERT INTO dead_letter (topic_id, partition, "offset", topic, key, value, headers, received_at, reason)
VALUES ('00000000-0000-0000-0000-000000000002', 0, :next, 'two', '', '', '[]', now(), 'bad') ON CONFLICT DO NOTHING;
COMMIT;
SELECT drop_days();
