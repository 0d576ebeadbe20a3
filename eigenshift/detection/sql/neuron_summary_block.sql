-- The summarised values of a block of neighbouring units, one row per shard, language and unit.
--
-- Variables: summary_files, dataset, layer, site, pooling, first_unit, last_unit (counted from 0,
-- inclusive). Row groups of other layers, sites and units are skipped by their statistics. No order:
-- packed keys are counted together, and only which keys there are matters.
SELECT neuron_index, language, n_nonfinite, toxic_keys, nontoxic_keys
FROM read_parquet(getvariable('summary_files'), hive_partitioning = false)
WHERE dataset = getvariable('dataset')
  AND layer = getvariable('layer')
  AND site = getvariable('site')
  AND pooling = getvariable('pooling')
  AND neuron_index BETWEEN getvariable('first_unit') AND getvariable('last_unit')
