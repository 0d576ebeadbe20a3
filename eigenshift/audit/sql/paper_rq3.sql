-- RQ3: does damping components reduce toxicity, and at what cost? All arms, with intervals.
WITH shown AS (
    SELECT
        arm,
        metric,
        CASE
            WHEN value IS NULL THEN '-'
            WHEN low IS NULL THEN format('{:.4f}', value)
            WHEN metric = 'toxicity_reduction' AND value < 0
                THEN format('{:.4f} rise [{:.4f}, {:.4f}]', -value, -high, -low)
            WHEN metric IN ('tph', 'tph_paper') AND low <= 0
                THEN format('{:.4f} [{:.4f}, {:.4f}] (holds 0)', value, low, high)
            ELSE format('{:.4f} [{:.4f}, {:.4f}]', value, low, high)
        END AS estimate
    FROM evaluations
    WHERE run_id = {run} AND slice = 'all'
)
SELECT
    arm,
    any_value(estimate) FILTER (metric = 'toxicity_rate') AS toxicity_rate,
    any_value(estimate) FILTER (metric = 'toxicity_reduction') AS toxicity_reduction,
    any_value(estimate) FILTER (metric = 'perplexity') AS perplexity,
    any_value(estimate) FILTER (metric = 'perplexity_change') AS perplexity_change,
    any_value(estimate) FILTER (metric = 'tph') AS tph,
    any_value(estimate) FILTER (metric = 'tph_paper') AS tph_paper
FROM shown
GROUP BY arm
ORDER BY arm
