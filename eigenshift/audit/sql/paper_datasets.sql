-- One dataset against another: probes and units fitted on one, judged on the other, per layer.
--
-- `here` is the probe trained on the dataset itself (held-out), for comparison.
SELECT
    t.training_dataset AS trained_on,
    t.dataset AS judged_on,
    t.site || ' (' || t.pooling || ')' AS read_at,
    t.layer,
    round(t.probe_auroc, 3) AS probe,
    round(l.probe_auroc, 3) AS here,
    round(t.best_neuron_auroc, 3) AS best_unit,
    round(t.rank_correlation, 3) AS unit_ranks,
    round(t.top_overlap, 3) AS top_overlap
FROM layer_transfers t
LEFT JOIN layers l USING (run_id, dataset, site, pooling, layer)
WHERE t.run_id = {run}
ORDER BY ALL
