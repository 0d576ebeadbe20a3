-- Which terms do Fisher patches consist of, the judged one first, and what do they say? Tokens are hidden without --show-text.
SELECT
    component_index,
    module,
    round(step, 3) AS step,
    round(benefit, 4) AS benefit,
    round(benefit_low, 4) AS benefit_low,
    round(benefit_high, 4) AS benefit_high,
    round(cost, 5) AS cost,
    round(inclusion_frequency, 3) AS inclusion_frequency,
    is_in_patch,
    tokens_up,
    tokens_down,
    contexts_high,
    contexts_low
FROM components
WHERE run_id = {run} AND basis = 'fisher'
ORDER BY is_in_patch DESC, fingerprint, component_index
