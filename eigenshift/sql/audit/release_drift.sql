-- Do toxicity and perplexity drift from release to release? Before and after the patch, each time.
WITH numbers AS (
    SELECT
        run_id,
        any_value(value) FILTER (arm = 'base' AND metric = 'toxicity_rate') AS toxicity_base,
        any_value(value) FILTER (arm = 'eigenshift' AND metric = 'toxicity_rate')
            AS toxicity_patched,
        any_value(low) FILTER (arm = 'eigenshift' AND metric = 'toxicity_rate') AS toxicity_low,
        any_value(high) FILTER (arm = 'eigenshift' AND metric = 'toxicity_rate') AS toxicity_high,
        any_value(value) FILTER (arm = 'base' AND metric = 'perplexity') AS perplexity_base,
        any_value(value) FILTER (arm = 'eigenshift' AND metric = 'perplexity')
            AS perplexity_patched
    FROM evaluations
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
    round(toxicity_patched, 4) AS toxicity_patched,
    round(toxicity_low, 4) AS toxicity_low,
    round(toxicity_high, 4) AS toxicity_high,
    round(perplexity_base, 3) AS perplexity_base,
    round(perplexity_patched, 3) AS perplexity_patched
FROM releases LEFT JOIN numbers USING (run_id)
ORDER BY model_id, version
