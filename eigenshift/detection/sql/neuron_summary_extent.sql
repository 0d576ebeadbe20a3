-- How much the summaries of one dataset, layer and site hold.
--
-- Variables: summary_files, dataset, layer, site, pooling.
-- Rows: one per width and precision among the shards, so one where they are of one run, none
-- without summaries.
WITH chosen AS (
    SELECT filename, neuron_index, language, n_samples, key_bytes
    FROM read_parquet(getvariable('summary_files'), filename = true, hive_partitioning = false)
    WHERE dataset = getvariable('dataset')
      AND layer = getvariable('layer')
      AND site = getvariable('site')
      AND pooling = getvariable('pooling')
),
widths AS (
    SELECT filename, max(neuron_index) + 1 AS n_units FROM chosen GROUP BY filename
)
SELECT
    n_units,
    sum(n_samples)::BIGINT AS n_samples,
    max(n_samples)::BIGINT AS n_samples_of_largest,
    key_bytes,
    coalesce(list(DISTINCT language) FILTER (language IS NOT NULL), []) AS languages
FROM chosen
JOIN widths USING (filename)
WHERE neuron_index = 0
GROUP BY n_units, key_bytes
