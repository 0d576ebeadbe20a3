-- Which singular components are chosen, does the judged patch damp them, and what do they say? Tokens are hidden without --show-text.
SELECT
    component_index,
    round(sigma, 3) AS sigma,
    round(effect_size, 3) AS effect_size,
    round(auroc, 3) AS auroc,
    round(logit_gain, 3) AS logit_gain,
    round(inclusion_frequency, 3) AS inclusion_frequency,
    group_size,
    factor,
    is_in_patch,
    tokens_up,
    tokens_down,
    contexts_high,
    contexts_low
FROM components
WHERE run_id = {run} AND is_selected AND basis = 'singular'
ORDER BY rank
