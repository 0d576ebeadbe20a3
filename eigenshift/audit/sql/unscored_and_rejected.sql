-- What was left out? Rejected rows of the sources and continuations without a score, with reasons.
WITH used AS (
    SELECT DISTINCT fingerprint FROM artifacts WHERE run_id = {run} AND kind = 'samples'
)
SELECT 'rejected row' AS what, dataset || ' ' || source_uri AS place, reason, count(*) AS n
FROM rejected_rows JOIN used USING (fingerprint)
GROUP BY ALL
UNION ALL
SELECT 'unscored continuation', arm || ' ' || part, reason, count(*)
FROM generations
WHERE run_id = {run} AND status = 'unscored'
GROUP BY ALL
ORDER BY ALL
