-- The labelled samples of one dataset that have activations in one layer, numbered by sample_id.
--
-- Variables: sample_files, activation_files (lists of local Parquet files), dataset, layer,
-- max_samples (null: all).
-- Rows: one per sample. `position` counts from 0 in the order of sample_id, so every array built
-- from it is the same whatever the order of the shards. Samples without a label are left out. Where
-- there are more than max_samples, those with the smallest md5 of their ids are kept: the same ones
-- whatever the order, and as good as drawn at random.
CREATE OR REPLACE TEMP TABLE labelled_samples AS
WITH labelled AS (
    SELECT
        sample_id,
        language,
        is_toxic,
        row_number() OVER (ORDER BY md5(sample_id), sample_id) AS draw
    FROM read_parquet(getvariable('sample_files'), hive_partitioning = false)
    WHERE dataset = getvariable('dataset')
      AND is_toxic IS NOT NULL
      AND sample_id IN (
          SELECT sample_id
          FROM read_parquet(getvariable('activation_files'), hive_partitioning = false)
          WHERE layer = getvariable('layer')
      )
)
SELECT
    (row_number() OVER (ORDER BY sample_id) - 1)::INTEGER AS position,
    sample_id,
    language,
    is_toxic
FROM labelled
WHERE getvariable('max_samples') IS NULL OR draw <= getvariable('max_samples')
ORDER BY position
