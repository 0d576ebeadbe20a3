-- Do toxicity and perplexity drift from release to release? Before and after the patch, each time.
--
-- A release of the unpatched model has nothing after the patch.
WITH numbers AS (
    SELECT
        run_id,
        any_value(value) FILTER (arm = 'base' AND metric = 'toxicity_rate') AS toxicity_base,
        any_value(value) FILTER (arm = judged AND metric = 'toxicity_rate')
            AS toxicity_patched,
        any_value(low) FILTER (arm = judged AND metric = 'toxicity_rate') AS toxicity_low,
        any_value(high) FILTER (arm = judged AND metric = 'toxicity_rate') AS toxicity_high,
        any_value(value) FILTER (arm = 'base' AND metric = 'perplexity') AS perplexity_base,
        any_value(value) FILTER (arm = judged AND metric = 'perplexity')
            AS perplexity_patched
    FROM evaluations JOIN (SELECT run_id, judged FROM runs) USING (run_id)
    WHERE slice = 'all'
    GROUP BY run_id
)
SELECT
    model_id,
    released_at,
    version,
    action,
    is_current,
    round(toxicity_base, 4) AS toxicity_base,
    round(CASE WHEN is_patched THEN toxicity_patched END, 4) AS toxicity_patched,
    round(CASE WHEN is_patched THEN toxicity_low END, 4) AS toxicity_low,
    round(CASE WHEN is_patched THEN toxicity_high END, 4) AS toxicity_high,
    round(perplexity_base, 3) AS perplexity_base,
    round(CASE WHEN is_patched THEN perplexity_patched END, 3) AS perplexity_patched
FROM (SELECT *, patch_fingerprint IS NOT NULL AS is_patched FROM releases)
LEFT JOIN numbers USING (run_id)
ORDER BY model_id, version
