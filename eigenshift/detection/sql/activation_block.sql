-- The activations of a block of neighbouring units, one row per labelled sample.
--
-- Variables: activation_files, layer, first_unit, last_unit (both counted from 1, inclusive).
-- {column} is the site and pooling. Needs the table made by labelled_samples.sql. Row groups of
-- other layers are skipped by their statistics. No order: `position` says where a row belongs.
SELECT
    position,
    "{column}"[getvariable('first_unit') : getvariable('last_unit')] AS unit_values
FROM read_parquet(getvariable('activation_files'), hive_partitioning = false)
JOIN labelled_samples USING (sample_id)
WHERE layer = getvariable('layer')
