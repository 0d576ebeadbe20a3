-- All runs, newest first: what each did, what it found, and which led to the release in force.
SELECT
    r.run_id,
    r.command,
    r.status,
    strftime(r.started_at, '%Y-%m-%d %H:%M') AS started,
    round(date_diff('second', r.started_at, r.finished_at) / 60, 1) AS minutes,
    date_diff('second', r.started_at, r.finished_at) AS seconds,
    r.model_id,
    round(CAST(r.metrics->'toxicity_rate_base'->'value' AS DOUBLE), 4) AS toxicity_base,
    round(CAST(r.metrics->'toxicity_rate_patched'->'value' AS DOUBLE), 4) AS toxicity_patched,
    round(CAST(r.metrics->'perplexity_base'->'value' AS DOUBLE), 2) AS perplexity_base,
    round(CAST(r.metrics->'perplexity_patched'->'value' AS DOUBLE), 2) AS perplexity_patched,
    round(CAST(r.metrics->'scorer_auroc'->'value' AS DOUBLE), 3) AS scorer_auroc,
    r.release,
    r.run_id IN (
        SELECT run_id FROM releases WHERE is_current AND patch_fingerprint IS NOT NULL
    ) AS is_in_force
FROM runs r
ORDER BY r.run_id DESC
