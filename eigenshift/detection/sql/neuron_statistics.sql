-- Statistics of a few units in plain SQL: the reference that the fast path is checked against.
--
-- Variables: activation_files, layer, first_unit, last_unit (both counted from 1, inclusive).
-- {column} is the site and pooling. Needs the table made by labelled_samples.sql.
-- Exact for float16 and float32 alike: equal values form one row of `counts`, so ties count one
-- half in the AUROC, and share one threshold in the average precision (as in scikit-learn).
WITH long AS (
    SELECT
        unnest(range(getvariable('first_unit') - 1, getvariable('last_unit')))::INTEGER
            AS neuron_index,
        unnest("{column}"[getvariable('first_unit') : getvariable('last_unit')])::DOUBLE AS value,
        is_toxic
    FROM read_parquet(getvariable('activation_files'), hive_partitioning = false)
    JOIN labelled_samples USING (sample_id)
    WHERE layer = getvariable('layer')
),
moments AS (
    SELECT
        neuron_index,
        avg(value) FILTER (isfinite(value) AND is_toxic) AS mean_toxic,
        avg(value) FILTER (isfinite(value) AND NOT is_toxic) AS mean_nontoxic,
        var_samp(value) FILTER (isfinite(value) AND is_toxic) AS variance_toxic,
        var_samp(value) FILTER (isfinite(value) AND NOT is_toxic) AS variance_nontoxic,
        count(*) FILTER (isfinite(value) AND is_toxic) AS n_toxic,
        count(*) FILTER (isfinite(value) AND NOT is_toxic) AS n_nontoxic,
        count(*) FILTER (value IS NULL OR NOT isfinite(value)) AS n_nonfinite
    FROM long
    GROUP BY neuron_index
),
counts AS (
    SELECT
        neuron_index,
        value + 0.0 AS value,  -- folds -0.0 into 0.0
        (count(*) FILTER (is_toxic))::DOUBLE AS toxic,
        (count(*) FILTER (NOT is_toxic))::DOUBLE AS nontoxic
    FROM long
    WHERE isfinite(value)
    GROUP BY ALL
),
cumulative AS (
    SELECT
        *,
        sum(toxic) OVER descending AS toxic_so_far,
        sum(nontoxic) OVER descending AS nontoxic_so_far
    FROM counts
    WINDOW descending AS (
        PARTITION BY neuron_index ORDER BY value DESC ROWS UNBOUNDED PRECEDING
    )
),
ranks AS (
    SELECT
        neuron_index,
        sum(nontoxic * (toxic_so_far - toxic / 2)) AS pairs_in_order,
        sum(toxic * toxic_so_far / (toxic_so_far + nontoxic_so_far)) AS precision_sum
    FROM cumulative
    GROUP BY neuron_index
)
SELECT
    neuron_index,
    CASE WHEN n_toxic > 0 AND n_nontoxic > 0
        THEN pairs_in_order / (n_toxic::DOUBLE * n_nontoxic::DOUBLE) END AS auroc,
    CASE WHEN n_toxic > 0 THEN precision_sum / n_toxic END AS average_precision,
    mean_toxic,
    mean_nontoxic,
    variance_toxic,
    variance_nontoxic,
    CASE WHEN n_toxic > 0 AND n_nontoxic > 0 AND n_toxic + n_nontoxic > 2
        THEN (mean_toxic - mean_nontoxic) / nullif(sqrt(
            (coalesce(variance_toxic, 0) * (n_toxic - 1)
                + coalesce(variance_nontoxic, 0) * (n_nontoxic - 1))
            / (n_toxic + n_nontoxic - 2)
        ), 0) END AS cohens_d,
    n_toxic,
    n_nontoxic,
    n_nonfinite
FROM moments
LEFT JOIN ranks USING (neuron_index)
ORDER BY neuron_index
