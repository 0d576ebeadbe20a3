-- What does each stage cost, run after run? Seconds waited, seconds of work, cached, traffic.
SELECT
    started_at,
    run_id,
    command,
    stage->>'name' AS stage,
    CAST(stage->'shards' AS BIGINT) AS shards,
    CAST(stage->'shards_cached' AS BIGINT) AS shards_cached,
    round(CAST(stage->'elapsed_seconds' AS DOUBLE), 2) AS elapsed_seconds,
    round(CAST(stage->'work_seconds' AS DOUBLE), 2) AS work_seconds,
    CAST(stage->'traffic'->'requests' AS BIGINT) AS requests,
    CAST(stage->'traffic'->'bytes_read' AS BIGINT) AS bytes_read,
    CAST(stage->'traffic'->'bytes_written' AS BIGINT) AS bytes_written
FROM (
    SELECT started_at, run_id, command, unnest(CAST(stages AS JSON[])) AS stage FROM runs
)
ORDER BY started_at, run_id, stage
