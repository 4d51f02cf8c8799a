"""The ledger's SQL: named parameters; `{table}` and the like are identifiers, quoted by the caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA_VERSION = 2

CREATE_TABLES = """
CREATE SCHEMA kafka_assets_ledger;

CREATE TABLE kafka_assets_ledger.meta (
    schema_version INTEGER NOT NULL,
    ledger_id      VARCHAR NOT NULL
);

-- No table has a key or an index: uniqueness is kept by compare-and-swap on streams.plan_version and
-- batches.generation, whose rows are only ever changed by plain UPDATEs that count what they changed.
CREATE TABLE kafka_assets_ledger.streams (
    stream        VARCHAR NOT NULL,
    table_schema  VARCHAR NOT NULL,
    table_name    VARCHAR NOT NULL,
    fingerprint   VARCHAR NOT NULL,
    plan_version  BIGINT NOT NULL,
    registered_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE kafka_assets_ledger.positions (
    stream        VARCHAR NOT NULL,
    topic         VARCHAR NOT NULL,
    topic_id      VARCHAR,
    incarnation   INTEGER NOT NULL,
    "partition"   INTEGER NOT NULL,
    start_offset  BIGINT NOT NULL,
    planned_until BIGINT NOT NULL,
    leader_epoch  INTEGER
);

CREATE TABLE kafka_assets_ledger.batches (
    stream       VARCHAR NOT NULL,
    batch        VARCHAR NOT NULL,
    kind         VARCHAR NOT NULL,
    state        VARCHAR NOT NULL,
    planned_at   TIMESTAMPTZ NOT NULL,
    generation   INTEGER NOT NULL,
    attempts     INTEGER NOT NULL,
    launched_at  TIMESTAMPTZ,
    run_id       VARCHAR,
    committed_at TIMESTAMPTZ,
    fingerprint  VARCHAR NOT NULL,
    last_error   VARCHAR,
    blocked      BOOLEAN NOT NULL,
    "rows"       BIGINT
);

CREATE TABLE kafka_assets_ledger.offset_ranges (
    stream          VARCHAR NOT NULL,
    batch           VARCHAR NOT NULL,
    topic           VARCHAR NOT NULL,
    topic_id        VARCHAR,
    incarnation     INTEGER NOT NULL,
    "partition"     INTEGER NOT NULL,
    from_offset     BIGINT NOT NULL,
    until_offset    BIGINT NOT NULL,
    leader_epoch    INTEGER,
    -- What became of it, NULL until the batch is committed.
    loaded          BIGINT,
    filtered        BIGINT,
    quarantined     BIGINT,
    undeliverable   BIGINT,
    lost            BIGINT,
    removed         BIGINT,
    bytes           BIGINT,
    gaps            BIGINT,
    end_proof       VARCHAR,
    min_timestamp   TIMESTAMPTZ,
    max_timestamp   TIMESTAMPTZ,
    offset_sum      HUGEINT,
    digest          HUGEINT,
    digest_function VARCHAR,
    -- Over the rest of the row, NULL until the batch is committed: the classes alone could be traded unseen.
    seal            VARCHAR
);

CREATE TABLE kafka_assets_ledger.quarantine (
    stream                VARCHAR NOT NULL,
    _kafka_topic          VARCHAR NOT NULL,
    _kafka_partition      INTEGER NOT NULL,
    _kafka_offset         BIGINT NOT NULL,
    _kafka_timestamp      TIMESTAMPTZ,
    _kafka_timestamp_type VARCHAR,
    _kafka_key            BLOB,
    _kafka_headers        STRUCT("key" VARCHAR, "value" BLOB)[],
    _kafka_batch          VARCHAR NOT NULL,
    _ingested_at          TIMESTAMPTZ NOT NULL,
    _kafka_value          BLOB,
    stage                 VARCHAR NOT NULL,
    error                 VARCHAR NOT NULL
);

CREATE TABLE kafka_assets_ledger.losses (
    stream       VARCHAR NOT NULL,
    -- NULL: the offsets were skipped by a plan and are in no batch.
    batch        VARCHAR,
    topic        VARCHAR NOT NULL,
    topic_id     VARCHAR,
    incarnation  INTEGER NOT NULL,
    "partition"  INTEGER NOT NULL,
    from_offset  BIGINT NOT NULL,
    until_offset BIGINT NOT NULL,
    reason       VARCHAR NOT NULL,
    noticed_at   TIMESTAMPTZ NOT NULL
);

CREATE TABLE kafka_assets_ledger.removals (
    stream      VARCHAR NOT NULL,
    predicate   VARCHAR NOT NULL,
    -- The greatest batch key there was: later batches may load what looks the same.
    until_batch VARCHAR,
    removed_at  TIMESTAMPTZ NOT NULL
);
"""

CREATE_VIEWS = """
CREATE SCHEMA IF NOT EXISTS kafka_assets;

CREATE OR REPLACE VIEW kafka_assets.batches AS
SELECT
    stream, batch, kind, state, planned_at, committed_at, run_id, attempts, last_error,
    counted.records, batches."rows"
FROM kafka_assets_ledger.batches
LEFT JOIN (
    SELECT stream, batch, sum(loaded + filtered + quarantined)::BIGINT AS records
    FROM kafka_assets_ledger.offset_ranges
    GROUP BY stream, batch
) AS counted USING (stream, batch);

CREATE OR REPLACE VIEW kafka_assets.offset_ranges AS
SELECT
    stream, batch, topic, topic_id, incarnation, "partition", from_offset, until_offset, state,
    loaded, filtered, quarantined, undeliverable, lost, removed
FROM kafka_assets_ledger.offset_ranges
JOIN kafka_assets_ledger.batches USING (stream, batch);

CREATE OR REPLACE VIEW kafka_assets.positions AS
SELECT
    stream, topic, topic_id, incarnation, "partition", start_offset, planned_until,
    coalesce(open.from_offset, planned_until) AS committed_until
FROM kafka_assets_ledger.positions
LEFT JOIN (
    SELECT stream, topic, incarnation, "partition", min(from_offset) AS from_offset
    FROM kafka_assets_ledger.offset_ranges
    JOIN kafka_assets_ledger.batches USING (stream, batch)
    WHERE state = 'planned'
    GROUP BY ALL
) AS open USING (stream, topic, incarnation, "partition");

CREATE OR REPLACE VIEW kafka_assets.quarantine AS
SELECT
    stream, _kafka_topic, _kafka_partition, _kafka_offset, _kafka_timestamp, _kafka_timestamp_type,
    _kafka_key, _kafka_headers, _kafka_batch, _ingested_at, _kafka_value, stage, error
FROM kafka_assets_ledger.quarantine;

CREATE OR REPLACE VIEW kafka_assets.losses AS
SELECT stream, topic, topic_id, incarnation, "partition", from_offset, until_offset, reason, noticed_at
FROM kafka_assets_ledger.losses;
"""

_SEALED = (
    "batch",
    "topic",
    "topic_id",
    "incarnation",
    "partition",
    "from_offset",
    "until_offset",
    "leader_epoch",
    "loaded",
    "filtered",
    "quarantined",
    "undeliverable",
    "lost",
    "removed",
    "bytes",
    "gaps",
    "end_proof",
    "min_timestamp",
    "max_timestamp",
    "offset_sum",
    "digest",
    "digest_function",
)


def _seal(changes: Mapping[str, str]) -> str:
    """Return the SQL of the seal of a range, named `planned`, with these columns changed.

    All of its row but the stream, which may be renamed. A NULL counts as empty; what the columns hold has no bar.
    """
    values = [changes.get(name, f'planned."{name}"') for name in _SEALED]
    # The text of a moment would depend on the time zone.
    texts = ", '|', ".join(
        f"epoch_us({value})" if name.endswith("_timestamp") else value
        for name, value in zip(_SEALED, values, strict=True)
    )
    return f"md5(concat({texts}))"


def settled(changes: Mapping[str, str]) -> str:
    """Return the SET clause that changes columns of a range, named `planned`, and seals it anew."""
    assignments = [f"{name} = {value}" for name, value in {**changes, "seal": _seal(changes)}.items()]
    return "SET " + ",\n    ".join(assignments)


SEALED_SINCE = 2
SEAL_BROKEN = f"planned.seal IS DISTINCT FROM {_seal({})}"

UPGRADES = {
    1: f"""
ALTER TABLE kafka_assets_ledger.offset_ranges ADD COLUMN seal VARCHAR;
UPDATE kafka_assets_ledger.offset_ranges AS planned {settled({})} WHERE loaded IS NOT NULL;
UPDATE kafka_assets_ledger.meta SET schema_version = 2;
""",  # noqa: S608  put together from constants
}
"""What makes a ledger of a schema version one of the next."""

SCHEMA_VERSIONS = "SELECT schema_version FROM kafka_assets_ledger.meta"

LEDGER_TABLES = """
SELECT table_name
FROM duckdb_tables()
WHERE database_name = current_database() AND schema_name = 'kafka_assets_ledger'
"""

READ_STREAM = """
SELECT plan_version, table_schema, table_name, registered_at
FROM kafka_assets_ledger.streams
WHERE stream = $stream
"""

READ_POSITIONS = """
SELECT topic, "partition", topic_id, incarnation, start_offset, planned_until, leader_epoch
FROM kafka_assets_ledger.positions
WHERE stream = $stream
QUALIFY incarnation = max(incarnation) OVER (PARTITION BY topic, "partition")
ORDER BY topic, "partition"
"""

READ_LAST_BATCH = """
-- max() would read every batch there ever was; the greatest of a sorted column is in the newest row groups.
SELECT
    (
        SELECT batch FROM kafka_assets_ledger.batches
        WHERE stream = $stream
        ORDER BY batch DESC
        LIMIT 1
    ),
    (
        SELECT planned_at FROM kafka_assets_ledger.batches
        WHERE stream = $stream AND kind = 'live'
        ORDER BY planned_at DESC
        LIMIT 1
    )
"""

READ_OPEN_KEYS = """
SELECT batch
FROM kafka_assets_ledger.batches
WHERE stream = $stream AND state = 'planned'
"""

READ_RECENT_KEYS = """
SELECT batch
FROM kafka_assets_ledger.batches
WHERE stream = $stream AND state = 'committed'
ORDER BY committed_at DESC, batch DESC
LIMIT $count
"""

READ_COMMITTED_KEYS = """
SELECT batch
FROM kafka_assets_ledger.batches
WHERE stream = $stream AND state = 'committed' AND committed_at > $since
ORDER BY committed_at, batch
LIMIT $count
"""

READ_BYTES_PER_RECORD = """
-- What the latest batch says counts at once where records have grown: too large a batch is worse than a small one.
WITH recent AS (
    SELECT stream, batch, committed_at
    FROM kafka_assets_ledger.batches
    WHERE stream = $stream AND state = 'committed' AND kind = 'live'
    ORDER BY committed_at DESC, batch DESC
    LIMIT $count
),
sized AS (
    SELECT committed_at, batch, sum(bytes) AS bytes, sum(loaded + filtered + quarantined + removed) AS records
    FROM kafka_assets_ledger.offset_ranges
    JOIN recent USING (stream, batch)
    GROUP BY ALL
    HAVING records > 0
    ORDER BY committed_at DESC, batch DESC
    LIMIT $sized
)
SELECT greatest(arg_max(bytes / records, (committed_at, batch)), sum(bytes) / sum(records))
FROM sized
"""

LARGEST_RECORDS = """
SELECT coalesce(max(bytes / (loaded + filtered + quarantined + removed)), 0)
FROM kafka_assets_ledger.offset_ranges
WHERE loaded + filtered + quarantined + removed > 0
"""

COUNT_COMMITS = """
SELECT coalesce(sum(generation), 0) FROM kafka_assets_ledger.batches WHERE stream = $stream
"""

LATEST_COMMITS = """
WITH latest AS (
    SELECT batch, committed_at
    FROM kafka_assets_ledger.batches
    WHERE stream = $stream AND committed_at IS NOT NULL AND batch <> $batch
    ORDER BY committed_at DESC, batch DESC
    LIMIT $count
),
sized AS (
    SELECT batch, committed_at, sum(bytes) AS bytes
    FROM kafka_assets_ledger.offset_ranges
    JOIN latest USING (batch)
    WHERE stream = $stream
    GROUP BY ALL
)
SELECT batch, (sum(bytes) OVER (ORDER BY committed_at DESC, batch DESC))::BIGINT
FROM sized
ORDER BY committed_at DESC, batch DESC
"""

OF_LATEST_IN_LEDGER = """
stream = $stream AND batch IN (SELECT unnest($batches))
"""

OF_LATEST_QUARANTINED = """
stream = $stream AND _kafka_batch IN (SELECT unnest($batches))
"""

OF_LATEST_ROWS = """
_kafka_batch IN (SELECT unnest($batches))
"""

KEEP_LATEST = """
CREATE TEMP TABLE _kafka_assets_kept AS SELECT * FROM {table} WHERE {those}
"""

DELETE_LATEST = """
DELETE FROM {table} WHERE {those}
"""

INSERT_KEPT = """
INSERT INTO {table} FROM temp._kafka_assets_kept
"""

DROP_KEPT = """
DROP TABLE temp._kafka_assets_kept
"""

READ_COMPLETED = """
WITH recent AS (
    SELECT stream, batch, greatest(planned_at, launched_at) AS ready_at, committed_at
    FROM kafka_assets_ledger.batches
    WHERE stream = $stream AND state = 'committed' AND kind = 'live' AND generation = 1
    ORDER BY committed_at DESC, batch DESC
    LIMIT $count
)
SELECT epoch(ready_at), epoch(committed_at), sum(until_offset - from_offset)::BIGINT
FROM recent
JOIN kafka_assets_ledger.offset_ranges USING (stream, batch)
GROUP BY ready_at, committed_at, batch
ORDER BY committed_at, batch
"""

READ_BATCHES = """
SELECT
    batch, kind, state, planned_at, generation, attempts, launched_at, run_id, committed_at,
    fingerprint, last_error, blocked, "rows"
FROM kafka_assets_ledger.batches
WHERE stream = $stream AND list_contains($batches, batch)
ORDER BY batch
"""

READ_RANGES = """
SELECT
    batch, topic, "partition", from_offset, until_offset, incarnation, topic_id, leader_epoch,
    loaded, filtered, quarantined, undeliverable, lost, removed, bytes
FROM kafka_assets_ledger.offset_ranges
WHERE stream = $stream AND list_contains($batches, batch)
ORDER BY batch, topic, "partition", from_offset
"""

TABLE_OWNER = """
SELECT stream
FROM kafka_assets_ledger.streams
WHERE lower(table_schema) = lower($schema) AND lower(table_name) = lower($name)
"""

TABLE_COLUMNS = """
SELECT column_name, data_type
FROM duckdb_columns()
WHERE database_name = current_database()
  AND lower(schema_name) = lower($schema) AND lower(table_name) = lower($name)
ORDER BY column_index
"""

REGISTER_STREAM = """
INSERT INTO kafka_assets_ledger.streams
VALUES ($stream, $schema, $name, $fingerprint, 1, $now)
"""

SWAP_PLAN_VERSION = """
UPDATE kafka_assets_ledger.streams
SET plan_version = plan_version + 1, fingerprint = $fingerprint
WHERE stream = $stream AND plan_version = $expected
"""

INSERT_POSITIONS = """
INSERT INTO kafka_assets_ledger.positions BY NAME
SELECT $stream AS stream, * FROM {rows}
"""

UPDATE_POSITIONS = """
UPDATE kafka_assets_ledger.positions AS stored
SET topic_id = changed.topic_id,
    start_offset = changed.start_offset,
    planned_until = changed.planned_until,
    leader_epoch = changed.leader_epoch
FROM {rows} AS changed
WHERE stored.stream = $stream
  AND stored.topic = changed.topic
  AND stored."partition" = changed."partition"
  AND stored.incarnation = changed.incarnation
"""

INSERT_BATCHES = """
INSERT INTO kafka_assets_ledger.batches BY NAME
SELECT
    $stream AS stream, unnest($batches) AS batch, $kind AS kind, 'planned' AS state,
    $planned_at AS planned_at, 0 AS generation, 0 AS attempts, $fingerprint AS fingerprint,
    false AS blocked
"""

INSERT_RANGES = """
INSERT INTO kafka_assets_ledger.offset_ranges BY NAME
SELECT $stream AS stream, * FROM {rows}
"""

INSERT_LOSSES = """
INSERT INTO kafka_assets_ledger.losses BY NAME
SELECT $stream AS stream, * FROM {rows}
"""

CLAIM_ATTEMPT = """
UPDATE kafka_assets_ledger.batches
SET attempts = attempts + 1, launched_at = $now
WHERE stream = $stream AND batch = $batch AND state = 'planned' AND attempts = $expected
"""

RECORD_FAILURE = """
UPDATE kafka_assets_ledger.batches
SET last_error = $error, blocked = $blocked AND state = 'planned'
WHERE stream = $stream AND batch = $batch
"""

CLEAR_BLOCK = """
UPDATE kafka_assets_ledger.batches
SET blocked = false
WHERE stream = $stream AND batch = $batch
"""

SWAP_GENERATION = """
UPDATE kafka_assets_ledger.batches
SET state = 'committed',
    generation = generation + 1,
    run_id = $run_id,
    committed_at = $now,
    fingerprint = $fingerprint,
    last_error = NULL,
    blocked = false,
    "rows" = (
        SELECT sum(loaded) FROM kafka_assets_ledger.offset_ranges WHERE stream = $stream AND batch = $batch
    )
WHERE stream = $stream AND batch = $batch AND generation = $expected
"""

ROWS_NOT_STAGED = """
-- Rows of the ranges to be replaced that were not fetched again.
SELECT
    _kafka_topic, _kafka_partition, count(*), min(_kafka_offset), max(_kafka_offset),
    sum(_kafka_offset)::HUGEINT, {digest}
FROM (SELECT * FROM {table} WHERE _kafka_batch = $batch AND {those}) AS held
ANTI JOIN {staged} AS staged USING (_kafka_topic, _kafka_partition, _kafka_offset)
GROUP BY ALL
ORDER BY ALL
"""

QUARANTINED_NOT_STAGED = """
SELECT
    _kafka_topic, _kafka_partition, count(*), min(_kafka_offset), max(_kafka_offset),
    sum(_kafka_offset)::HUGEINT, {bad_digest}
FROM (
    SELECT * FROM kafka_assets_ledger.quarantine
    WHERE stream = $stream AND _kafka_batch = $batch AND {those}
) AS held
ANTI JOIN {staged} AS staged USING (_kafka_topic, _kafka_partition, _kafka_offset)
GROUP BY ALL
ORDER BY ALL
"""

STAGED_AND_BAD = """(
    SELECT _kafka_topic, _kafka_partition, _kafka_offset FROM {staged}
    UNION ALL
    SELECT _kafka_topic, _kafka_partition, _kafka_offset FROM {bad}
)"""

OF_REPLACED_RANGES = """
(_kafka_topic, _kafka_partition) IN (SELECT topic, "partition" FROM {replaced})
"""

OF_STAGED_OFFSETS = """
(_kafka_topic, _kafka_partition, _kafka_offset)
    IN (SELECT _kafka_topic, _kafka_partition, _kafka_offset FROM {staged})
"""

DELETE_ROWS = """
DELETE FROM {table} WHERE _kafka_batch = $batch AND {those}
"""

DELETE_QUARANTINED = """
DELETE FROM kafka_assets_ledger.quarantine WHERE stream = $stream AND _kafka_batch = $batch AND {those}
"""

COUNT_QUARANTINED = """
SELECT count(*) FROM kafka_assets_ledger.quarantine WHERE stream = $stream
"""

READ_REMOVALS = """
SELECT predicate
FROM kafka_assets_ledger.removals
WHERE stream = $stream AND until_batch >= $batch
ORDER BY removed_at, predicate
"""

REMOVED_OF_STAGED = """
SELECT
    _kafka_topic, _kafka_partition, count(*), sum(_kafka_offset)::HUGEINT, {digest}
FROM (SELECT {columns}, $batch AS _kafka_batch FROM {staged}) AS incoming
WHERE {removed}
GROUP BY ALL
"""

MATCHING_ROWS = """
SELECT
    batch, topic, "partition", from_offset, until_offset,
    matching."rows", matching.bad, matching.offset_sum, matching.digest
FROM (
    SELECT
        batch, topic, "partition",
        sum("rows")::BIGINT AS "rows", sum(bad)::BIGINT AS bad,
        sum(offset_sum)::HUGEINT AS offset_sum, sum(digest)::HUGEINT AS digest
    FROM (
        SELECT
            _kafka_batch AS batch, _kafka_topic AS topic, _kafka_partition AS "partition",
            count(*) AS "rows", 0 AS bad, sum(_kafka_offset)::HUGEINT AS offset_sum, {digest} AS digest
        FROM {table}
        WHERE {removed}
        GROUP BY ALL
        UNION ALL
        SELECT
            _kafka_batch, _kafka_topic, _kafka_partition,
            0, count(*), sum(_kafka_offset)::HUGEINT, {bad_digest}
        FROM kafka_assets_ledger.quarantine
        WHERE stream = $stream AND {bad_removed}
        GROUP BY ALL
    )
    GROUP BY ALL
) AS matching
JOIN kafka_assets_ledger.offset_ranges USING (batch, topic, "partition")
WHERE stream = $stream
ORDER BY ALL
"""

DELETE_REMOVED = """
DELETE FROM {table} WHERE {removed}
"""

DELETE_BAD_REMOVED = """
DELETE FROM kafka_assets_ledger.quarantine WHERE stream = $stream AND {removed}
"""

_MOVED = settled(
    {
        "loaded": "planned.loaded + moved.loaded",
        "quarantined": "planned.quarantined + moved.quarantined",
        "removed": "planned.removed - moved.loaded - moved.quarantined",
        "offset_sum": "planned.offset_sum + moved.offset_sum::HUGEINT",
        "digest": "CASE WHEN digest_function = $digest_function THEN planned.digest + moved.digest::HUGEINT END",
        "digest_function": "CASE WHEN digest_function = $digest_function THEN digest_function END",
    }
)

MOVE_CLASSES = f"""
UPDATE kafka_assets_ledger.offset_ranges AS planned
{_MOVED}
FROM {{rows}} AS moved
WHERE planned.stream = $stream AND planned.batch = moved.batch
  AND planned.topic = moved.topic AND planned."partition" = moved."partition"
"""

COUNT_ROWS_AGAIN = """
UPDATE kafka_assets_ledger.batches AS counted
SET "rows" = (
    SELECT sum(loaded)
    FROM kafka_assets_ledger.offset_ranges AS one
    WHERE one.stream = counted.stream AND one.batch = counted.batch
)
WHERE stream = $stream AND list_contains($batches, batch)
"""

DELETE_REMOVALS = """
DELETE FROM kafka_assets_ledger.removals
WHERE stream = $stream
  AND (predicate = $predicate OR (starts_with(predicate, $prefix) AND predicate < $predicate))
"""

INSERT_REMOVAL = """
INSERT INTO kafka_assets_ledger.removals
SELECT $stream, $predicate, max(batch), $now
FROM kafka_assets_ledger.batches
WHERE stream = $stream
"""

FUNCTION_STABILITY = """
SELECT DISTINCT stability, internal FROM duckdb_functions() WHERE lower(function_name) = $name
"""

COMMITTED_RANGES = """
-- Neighbours made one: of a stream without holes a row for each topic-partition, however many batches it has.
WITH committed AS (
    SELECT
        topic, "partition", from_offset, until_offset, incarnation, topic_id, leader_epoch,
        lag(until_offset) OVER along AS reached
    FROM kafka_assets_ledger.offset_ranges
    JOIN kafka_assets_ledger.batches USING (stream, batch)
    WHERE stream = $stream AND state = 'committed'
    WINDOW along AS (PARTITION BY topic, "partition", incarnation ORDER BY from_offset)
),
numbered AS (
    SELECT
        *,
        count(*) FILTER (reached IS DISTINCT FROM from_offset) OVER (
            PARTITION BY topic, "partition", incarnation ORDER BY from_offset
        ) AS stretch
    FROM committed
)
SELECT
    topic, "partition", min(from_offset) AS from_offset, max(until_offset), incarnation,
    arg_min(topic_id, numbered.from_offset), arg_min_null(leader_epoch, numbered.from_offset)
FROM numbered
GROUP BY topic, "partition", incarnation, stretch
ORDER BY topic, "partition", incarnation, from_offset
"""

COMMITTED_IN_SPANS = """
SELECT batch, topic, "partition", planned.from_offset, planned.until_offset
FROM kafka_assets_ledger.offset_ranges AS planned
JOIN kafka_assets_ledger.batches USING (stream, batch)
JOIN {spans} AS span USING (topic, "partition", incarnation)
WHERE stream = $stream AND state = 'committed' AND filtered = 0
  AND planned.from_offset < span.until_offset AND planned.until_offset > span.from_offset
"""

ALL_REMOVALS = """
SELECT until_batch, predicate
FROM kafka_assets_ledger.removals
WHERE stream = $stream AND until_batch IS NOT NULL
ORDER BY ALL
"""

DEEP_FLAWS = """
-- What Kafka delivers of committed ranges, beside the rows of the batches that own them.
WITH fetched AS (
    SELECT fetched.*, ranges._kafka_batch
    FROM {fetched} AS fetched
    JOIN {ranges} AS ranges USING (_kafka_topic, _kafka_partition)
    WHERE _kafka_offset >= from_offset AND _kafka_offset < until_offset
),
held AS (
    SELECT {columns}, _kafka_batch, true AS there
    FROM {table}
    WHERE _kafka_batch IN ({batches}) AND _kafka_offset >= {low} AND _kafka_offset < {high}
),
compared AS (
    SELECT
        fetched.*,
        CASE WHEN there THEN list_filter([{differing}], lambda name: name IS NOT NULL) END AS differing
    FROM fetched
    LEFT JOIN held USING (_kafka_topic, _kafka_partition, _kafka_offset, _kafka_batch)
)
SELECT _kafka_topic, _kafka_partition, _kafka_offset, _kafka_batch, differing
FROM compared
ANTI JOIN (
    SELECT _kafka_topic, _kafka_partition, _kafka_offset, _kafka_batch
    FROM kafka_assets_ledger.quarantine
    WHERE stream = $stream
) AS bad USING (_kafka_topic, _kafka_partition, _kafka_offset, _kafka_batch)
WHERE CASE WHEN differing IS NULL THEN NOT coalesce({removed}, false) ELSE len(differing) > 0 END
ORDER BY ALL
LIMIT $limit
"""

DEEP_BAD_FLAWS = """
-- What Kafka delivers of committed ranges, beside the quarantine.
WITH fetched AS (
    SELECT fetched.*, ranges._kafka_batch
    FROM {fetched} AS fetched
    JOIN {ranges} AS ranges USING (_kafka_topic, _kafka_partition)
    WHERE _kafka_offset >= from_offset AND _kafka_offset < until_offset
),
held AS (
    SELECT *, true AS there FROM kafka_assets_ledger.quarantine WHERE stream = $stream
),
compared AS (
    SELECT
        fetched.*,
        CASE WHEN there THEN list_filter([{differing}], lambda name: name IS NOT NULL) END AS differing
    FROM fetched
    LEFT JOIN held USING (_kafka_topic, _kafka_partition, _kafka_offset, _kafka_batch)
)
SELECT _kafka_topic, _kafka_partition, _kafka_offset, _kafka_batch, differing
FROM compared
WHERE CASE
    WHEN differing IS NULL THEN
        (_kafka_topic, _kafka_partition, _kafka_offset)
            IN (SELECT _kafka_topic, _kafka_partition, _kafka_offset FROM {bad})
        AND NOT coalesce({removed}, false)
    ELSE len(differing) > 0
END
ORDER BY ALL
LIMIT $limit
"""

ALL_KEYS = """
SELECT batch FROM kafka_assets_ledger.batches WHERE stream = $stream ORDER BY batch
"""

RENAME_STREAM = """
UPDATE kafka_assets_ledger.streams
SET stream = $new, table_schema = $schema, table_name = $name, plan_version = plan_version + 1
WHERE stream = $old
"""

TABLES_BY_STREAM = ("positions", "batches", "offset_ranges", "quarantine", "losses", "removals")

RENAME_ROWS = """
UPDATE kafka_assets_ledger.{table} SET stream = $new WHERE stream = $old
"""

PLANNED_WITHIN = """
-- Ranges of the latest incarnation, those of them that meet what is asked.
SELECT batch, topic, "partition", from_offset, until_offset
FROM kafka_assets_ledger.offset_ranges
JOIN (
    SELECT topic, "partition", max(incarnation) AS incarnation
    FROM kafka_assets_ledger.positions
    WHERE stream = $stream
    GROUP BY ALL
) AS latest USING (topic, "partition", incarnation)
WHERE stream = $stream AND {asked}
ORDER BY batch, topic, "partition"
"""

BY_OFFSET = """
topic = $topic AND "partition" = $partition AND from_offset < $until_offset AND until_offset > $from_offset
"""

BY_TIMESTAMP = """
max_timestamp >= coalesce($since::TIMESTAMPTZ, '-infinity')
    AND min_timestamp < coalesce($until::TIMESTAMPTZ, 'infinity')
"""

ROWS_REPLACED = """
SELECT _kafka_topic, _kafka_partition, count(*)
FROM {table}
WHERE _kafka_batch = $batch AND _ingested_at = $committed_at
GROUP BY ALL
"""

INSERT_ROWS = """
INSERT INTO {table} ({columns}, _kafka_batch, _ingested_at)
SELECT {columns}, _kafka_batch, $now
FROM (SELECT {columns}, $batch AS _kafka_batch FROM {staged}) AS incoming
WHERE NOT {removed}
"""

QUARANTINED = """
SELECT {columns}
FROM kafka_assets_ledger.quarantine
WHERE stream = $stream AND {asked}
ORDER BY _kafka_topic, _kafka_partition, _kafka_offset, _kafka_batch
LIMIT $limit
"""

QUARANTINED_BATCHES = """
SELECT DISTINCT _kafka_batch
FROM kafka_assets_ledger.quarantine
WHERE stream = $stream
ORDER BY 1
"""

LEAVING_QUARANTINE = """
SELECT _kafka_topic, _kafka_partition, count(*), {bad_digest}
FROM kafka_assets_ledger.quarantine
WHERE stream = $stream AND _kafka_batch = $batch AND {those}
GROUP BY ALL
"""

RENEW_ERRORS = """
UPDATE kafka_assets_ledger.quarantine AS held
SET stage = still.stage, error = still.error
FROM {rows} AS still
WHERE held.stream = $stream AND held._kafka_batch = $batch
  AND held._kafka_topic = still._kafka_topic AND held._kafka_partition = still._kafka_partition
  AND held._kafka_offset = still._kafka_offset
  AND (held.stage, held.error) IS DISTINCT FROM (still.stage, still.error)
"""

INSERT_QUARANTINED = """
INSERT INTO kafka_assets_ledger.quarantine (stream, {columns}, _kafka_batch, _ingested_at)
SELECT $stream, {columns}, _kafka_batch, $now
FROM (SELECT {columns}, $batch AS _kafka_batch FROM {bad}) AS incoming
WHERE NOT {removed}
"""

# What was kept of an earlier fetch lies within that one's bounds.
_SETTLED = settled(
    {
        **{
            name: f"outcome.{name}"
            for name in (
                "loaded",
                "filtered",
                "quarantined",
                "undeliverable",
                "lost",
                "removed",
                "bytes",
                "gaps",
                "end_proof",
                "digest_function",
            )
        },
        "min_timestamp": "least(make_timestamptz(outcome.min_timestamp_ms * 1000),"
        " CASE WHEN outcome.kept > 0 THEN planned.min_timestamp END)",
        "max_timestamp": "greatest(make_timestamptz(outcome.max_timestamp_ms * 1000),"
        " CASE WHEN outcome.kept > 0 THEN planned.max_timestamp END)",
        "offset_sum": "outcome.offset_sum::HUGEINT",
        "digest": "outcome.digest::HUGEINT",
    }
)

UPDATE_OUTCOMES = f"""
UPDATE kafka_assets_ledger.offset_ranges AS planned
{_SETTLED}
FROM {{rows}} AS outcome
WHERE planned.stream = $stream AND planned.batch = $batch
  AND planned.topic = outcome.topic AND planned."partition" = outcome."partition"
"""

TAKE_LOSSES = """
SELECT topic, "partition", from_offset, until_offset, noticed_at
FROM kafka_assets_ledger.losses
WHERE stream = $stream AND batch = $batch
  AND (topic, "partition") IN (SELECT topic, "partition" FROM {replaced})
"""

DELETE_LOSSES = """
DELETE FROM kafka_assets_ledger.losses
WHERE stream = $stream AND batch = $batch
  AND (topic, "partition") IN (SELECT topic, "partition" FROM {replaced})
"""

POSITIONS_REPORT = """
-- From the open ranges, of which there are few: with none, nothing else of the ranges is read.
WITH open AS (
    SELECT topic, incarnation, "partition", from_offset, until_offset
    FROM kafka_assets_ledger.offset_ranges
    JOIN kafka_assets_ledger.batches USING (stream, batch)
    WHERE stream = $stream AND state = 'planned'
),
reached AS (
    SELECT topic, incarnation, "partition", max(until_offset) AS last_committed
    FROM kafka_assets_ledger.offset_ranges
    SEMI JOIN open USING (topic, incarnation, "partition")
    WHERE stream = $stream AND loaded IS NOT NULL
    GROUP BY ALL
),
opened AS (
    SELECT
        topic, incarnation, "partition",
        min(from_offset) AS open_from,
        sum(until_offset - from_offset) FILTER (until_offset <= last_committed)::BIGINT AS hole
    FROM open
    LEFT JOIN reached USING (topic, incarnation, "partition")
    GROUP BY ALL
)
SELECT
    topic, topic_id, incarnation, "partition", start_offset, planned_until,
    coalesce(open_from, planned_until),
    coalesce(hole, 0)
FROM kafka_assets_ledger.positions
LEFT JOIN opened USING (topic, incarnation, "partition")
WHERE stream = $stream
ORDER BY topic, "partition", incarnation
"""

BATCH_COUNTS = """
SELECT
    count(*) FILTER (state = 'planned'),
    count(*) FILTER (state = 'committed'),
    count(*) FILTER (state = 'planned' AND NOT blocked AND last_error IS NOT NULL),
    count(*) FILTER (state = 'planned' AND blocked)
FROM kafka_assets_ledger.batches
WHERE stream = $stream
"""

_PIECES = """
pieces AS (
    SELECT
        batch, state, topic, incarnation, "partition", from_offset, until_offset,
        until_offset - from_offset AS size,
        loaded, filtered, quarantined, undeliverable, lost, removed
    FROM kafka_assets_ledger.offset_ranges
    JOIN kafka_assets_ledger.batches USING (stream, batch)
    WHERE stream = $stream
    UNION ALL
    -- What a plan skipped lies in no range; what was lost inside a range is in that range's class.
    SELECT
        NULL, 'skipped', topic, incarnation, "partition", from_offset, until_offset,
        until_offset - from_offset,
        0, 0, 0, 0, until_offset - from_offset, 0
    FROM kafka_assets_ledger.losses
    WHERE stream = $stream AND batch IS NULL
)
"""

COVERAGE = f"""
WITH {_PIECES},
places AS (
    SELECT
        topic, topic_id, incarnation, "partition",
        start_offset AS from_offset, planned_until AS until_offset
    FROM kafka_assets_ledger.positions
    WHERE stream = $stream AND $batch IS NULL
    UNION ALL
    SELECT topic, topic_id, incarnation, "partition", from_offset, until_offset
    FROM kafka_assets_ledger.offset_ranges
    WHERE stream = $stream AND batch = $batch
),
counted AS (
    SELECT
        topic, incarnation, "partition",
        sum(loaded) AS loaded, sum(filtered) AS filtered, sum(quarantined) AS quarantined,
        sum(undeliverable) AS undeliverable, sum(lost) AS lost, sum(removed) AS removed,
        sum(size) FILTER (state = 'planned') AS pending
    FROM pieces
    WHERE $batch IS NULL OR batch = $batch
    GROUP BY ALL
)
SELECT
    topic, topic_id, incarnation, "partition", places.from_offset, places.until_offset,
    COLUMNS(['loaded', 'filtered', 'quarantined', 'undeliverable', 'lost', 'removed', 'pending'])
FROM places
LEFT JOIN counted USING (topic, incarnation, "partition")
ORDER BY topic, "partition", incarnation
"""  # noqa: S608  put together from constants

TILING_FLAWS = f"""
WITH {_PIECES},
neighbours AS (
    SELECT
        *,
        lag(until_offset) OVER along AS reached,
        lead(from_offset) OVER along AS following
    FROM pieces
    WINDOW along AS (PARTITION BY topic, incarnation, "partition" ORDER BY from_offset, until_offset)
),
positions AS (
    SELECT topic, incarnation, "partition", start_offset, planned_until
    FROM kafka_assets_ledger.positions
    WHERE stream = $stream
)
SELECT
    batch, topic, "partition", from_offset, until_offset, incarnation,
    coalesce(reached, start_offset) AS expected_from,
    CASE WHEN following IS NULL THEN planned_until END AS expected_until
FROM neighbours
LEFT JOIN positions USING (topic, incarnation, "partition")
WHERE from_offset IS DISTINCT FROM coalesce(reached, start_offset)
   OR (following IS NULL AND until_offset IS DISTINCT FROM planned_until)
ORDER BY topic, "partition", incarnation, from_offset
LIMIT $limit
"""  # noqa: S608  put together from constants

CLASS_FLAWS = """
WITH booked AS (
    SELECT batch, topic, "partition", sum(until_offset - from_offset) AS booked
    FROM kafka_assets_ledger.losses
    WHERE stream = $stream AND batch IS NOT NULL
    GROUP BY ALL
),
kept AS (
    SELECT
        _kafka_batch AS batch, _kafka_topic AS topic, _kafka_partition AS "partition",
        count(*) AS kept
    FROM kafka_assets_ledger.quarantine
    WHERE stream = $stream
    GROUP BY ALL
)
SELECT
    batch, topic, "partition", from_offset, until_offset,
    loaded + filtered + quarantined + undeliverable + lost + removed AS accounted,
    lost, coalesce(booked, 0), quarantined, coalesce(kept, 0),
    least(loaded, filtered, quarantined, undeliverable, lost, removed) < 0 AS negative,
    {broken} AS broken
FROM kafka_assets_ledger.offset_ranges AS planned
JOIN kafka_assets_ledger.batches USING (stream, batch)
LEFT JOIN booked USING (batch, topic, "partition")
LEFT JOIN kept USING (batch, topic, "partition")
WHERE stream = $stream AND state = 'committed' AND ($batch IS NULL OR batch = $batch)
  AND (
    accounted IS DISTINCT FROM until_offset - from_offset
    OR negative
    OR lost IS DISTINCT FROM coalesce(booked, 0)
    OR quarantined IS DISTINCT FROM coalesce(kept, 0)
    OR broken
  )
ORDER BY ALL
LIMIT $limit
"""

LEDGER_FLAWS = """
-- What has no place in the tiling and in the classes, or could be changed without disturbing them.
SELECT NULL AS batch, NULL AS topic, NULL AS "partition", what
FROM (
    SELECT 'streams has ' || count(*) || ' rows of it' AS what
    FROM kafka_assets_ledger.streams WHERE stream = $stream GROUP BY stream HAVING count(*) > 1
)
UNION ALL
SELECT
    NULL, topic, "partition",
    'positions has ' || count(*) || ' rows of incarnation ' || incarnation
FROM kafka_assets_ledger.positions
WHERE stream = $stream
GROUP BY topic, "partition", incarnation
HAVING count(*) > 1
UNION ALL
SELECT batch, NULL, NULL, 'batches has ' || count(*) || ' rows of it'
FROM kafka_assets_ledger.batches
WHERE stream = $stream
GROUP BY batch
HAVING count(*) > 1
UNION ALL
SELECT batch, NULL, NULL, 'has no ranges'
FROM (SELECT batch FROM kafka_assets_ledger.batches WHERE stream = $stream) AS named
ANTI JOIN (SELECT batch FROM kafka_assets_ledger.offset_ranges WHERE stream = $stream) AS ranged USING (batch)
UNION ALL
SELECT batch, topic, "partition", 'is a range of a batch that the ledger does not have'
FROM (SELECT batch, topic, "partition" FROM kafka_assets_ledger.offset_ranges WHERE stream = $stream) AS ranged
ANTI JOIN (SELECT batch FROM kafka_assets_ledger.batches WHERE stream = $stream) AS named USING (batch)
UNION ALL
SELECT batch, NULL, NULL, 'batches counts ' || "rows" || ' rows, its ranges ' || loaded
FROM (SELECT batch, "rows" FROM kafka_assets_ledger.batches WHERE stream = $stream AND state = 'committed') AS told
JOIN (
    SELECT batch, sum(loaded) AS loaded FROM kafka_assets_ledger.offset_ranges WHERE stream = $stream GROUP BY batch
) AS counted USING (batch)
WHERE "rows" IS DISTINCT FROM loaded
UNION ALL
SELECT batch, topic, "partition", 'has outcomes, and its batch is ' || state
FROM kafka_assets_ledger.offset_ranges
JOIN kafka_assets_ledger.batches USING (stream, batch)
WHERE stream = $stream AND ((state = 'planned' AND loaded IS NOT NULL) OR state NOT IN ('planned', 'committed'))
UNION ALL
SELECT
    batch, topic, "partition",
    'is of topic id ' || ranged.topic_id || ', its incarnation ' || incarnation || ' of ' || positions.topic_id
FROM (
    SELECT stream, batch, topic, "partition", incarnation, topic_id
    FROM kafka_assets_ledger.offset_ranges WHERE stream = $stream AND topic_id IS NOT NULL
) AS ranged
JOIN kafka_assets_ledger.positions USING (stream, topic, "partition", incarnation)
WHERE ranged.topic_id <> positions.topic_id
UNION ALL
SELECT
    batch, topic, "partition",
    'losses has [' || lost.from_offset || ', ' || lost.until_offset || '), which is not within it'
FROM (SELECT * FROM kafka_assets_ledger.losses WHERE stream = $stream AND batch IS NOT NULL) AS lost
LEFT JOIN (
    SELECT batch, topic, "partition", incarnation, from_offset, until_offset
    FROM kafka_assets_ledger.offset_ranges WHERE stream = $stream
) AS ranged USING (batch, topic, "partition", incarnation)
WHERE NOT coalesce(lost.from_offset >= ranged.from_offset AND lost.until_offset <= ranged.until_offset, false)
UNION ALL
SELECT batch, topic, "partition", removed || ' rows count as removed, and no removal holds for its batch'
FROM kafka_assets_ledger.offset_ranges
WHERE stream = $stream AND removed > 0 AND NOT EXISTS (
    FROM kafka_assets_ledger.removals
    WHERE removals.stream = $stream AND removals.until_batch >= offset_ranges.batch
)
ORDER BY ALL
LIMIT $limit
"""

BLOCKS = """
WITH sized AS (
    SELECT batch, sum(1 + least(coalesce(loaded, 0), (until_offset - from_offset) // 64 + 1)) AS cells
    FROM kafka_assets_ledger.offset_ranges
    WHERE stream = $stream
    GROUP BY batch
),
blocks AS (
    SELECT batch, sum(cells) OVER (ORDER BY batch) // $cells AS block
    FROM sized
)
SELECT min(batch)
FROM blocks
GROUP BY block
ORDER BY 1
"""

ROWS_WITHOUT_IDENTITY = """
SELECT count(*)
FROM {table}
WHERE _kafka_batch IS NULL OR _kafka_topic IS NULL OR _kafka_partition IS NULL OR _kafka_offset IS NULL
"""

TABLE_FLAWS = """
-- Distinct offsets are counted as bits of 64 neighbours, in a 64th of the memory that a set would take.
WITH cells AS (
    SELECT
        _kafka_batch AS batch, _kafka_topic AS topic, _kafka_partition AS "partition",
        _kafka_offset // 64 AS cell,
        count(*) AS "rows",
        0 AS kept,
        bit_or(1::UBIGINT << (_kafka_offset & 63)::UBIGINT) AS offsets,
        min(_kafka_offset) AS low,
        max(_kafka_offset) AS high,
        sum(_kafka_offset) AS offset_sum,
        {digest} AS digest
    FROM {table}
    WHERE {rows_of_block}
    GROUP BY ALL
    UNION ALL
    SELECT
        _kafka_batch, _kafka_topic, _kafka_partition, _kafka_offset // 64 AS cell,
        0, count(*),
        bit_or(1::UBIGINT << (_kafka_offset & 63)::UBIGINT),
        min(_kafka_offset), max(_kafka_offset), sum(_kafka_offset), {bad_digest}
    FROM kafka_assets_ledger.quarantine
    WHERE stream = $stream AND {rows_of_block}
    GROUP BY ALL
),
held AS (
    SELECT
        batch, topic, "partition",
        sum("rows")::BIGINT AS "rows", sum(kept)::BIGINT AS kept, sum(bit_count(offsets))::BIGINT AS offsets,
        min(low) AS low, max(high) AS high, sum(offset_sum) AS offset_sum, sum(digest) AS digest
    FROM cells
    GROUP BY ALL
),
booked AS (
    SELECT
        batch, topic, "partition", from_offset, until_offset, state,
        CASE WHEN state = 'committed' THEN loaded ELSE 0 END AS loaded,
        CASE WHEN state = 'committed' THEN quarantined ELSE 0 END AS quarantined,
        offset_sum, digest,
        filtered = 0 AS sum_holds,
        digest_function = $digest_function AS digest_holds
    FROM kafka_assets_ledger.offset_ranges
    JOIN kafka_assets_ledger.batches USING (stream, batch)
    WHERE stream = $stream AND {ranges_of_block}
)
SELECT
    batch, topic, "partition", from_offset, until_offset, state, loaded, quarantined,
    coalesce(held."rows", 0), coalesce(held.kept, 0), held.offsets, low, high,
    sum_holds AND booked.offset_sum IS DISTINCT FROM coalesce(held.offset_sum, 0),
    digest_holds AND sum_holds AND coalesce(booked.digest, 0) IS DISTINCT FROM coalesce(held.digest, 0)
FROM booked
FULL JOIN held USING (batch, topic, "partition")
WHERE from_offset IS NULL
   OR loaded IS DISTINCT FROM coalesce(held."rows", 0)
   OR quarantined IS DISTINCT FROM coalesce(held.kept, 0)
   OR held."rows" + held.kept <> held.offsets
   OR low < from_offset
   OR high >= until_offset
   OR (
        state = 'committed' AND sum_holds
        AND booked.offset_sum IS DISTINCT FROM coalesce(held.offset_sum, 0)
   )
   OR (
        state = 'committed' AND digest_holds AND sum_holds
        AND coalesce(booked.digest, 0) IS DISTINCT FROM coalesce(held.digest, 0)
   )
ORDER BY batch, topic, "partition"
LIMIT $limit
"""
