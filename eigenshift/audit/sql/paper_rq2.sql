-- RQ2: does a layer carry a stronger signal? Each layer's probe, clusters, best and mean unit.
--
-- Probe and units are judged on the same held-out rows; clusters are found without labels.
SELECT
    dataset,
    site || ' (' || pooling || ')' AS read_at,
    layer,
    round(probe_auroc, 3) AS probe,
    '[' || round(probe_auroc_low, 3) || ', ' || round(probe_auroc_high, 3) || ']' AS probe_interval,
    round(cluster_auroc, 3) AS clusters,
    round(best_neuron_auroc, 3) AS best_unit,
    round(mean_neuron_heldout_auroc, 3) AS mean_unit,
    reason
FROM layers
WHERE run_id = {run}
ORDER BY dataset, read_at, layer
