-- Do the same units stand out when the samples are drawn again? Bootstrap, per layer.
SELECT
    dataset,
    site || ' (' || pooling || ')' AS read_at,
    layer,
    metric,
    round(value, 3) AS value,
    round(low, 3) AS low,
    round(high, 3) AS high,
    top_k,
    n_resamples
FROM neuron_stability
WHERE run_id = {run}
ORDER BY ALL
