-- RQ1: are single units reliable detectors? All units of a site against its layers' probes.
--
-- Units are judged in sample, layers on held-out rows, so the comparison favours the units.
-- Shares are of units with an AUROC above each threshold (AurA's experts at 0.50).
WITH units AS (
    SELECT
        dataset,
        site,
        pooling,
        count(*) AS units,
        avg(auroc) AS unit_auroc,
        avg((auroc > 0.50)::INTEGER) AS above_050,
        avg((auroc > 0.55)::INTEGER) AS above_055,
        avg((auroc > 0.60)::INTEGER) AS above_060
    FROM neurons
    WHERE run_id = {run} AND language = 'all' AND auroc IS NOT NULL
    GROUP BY ALL
),
probes AS (
    SELECT dataset, site, pooling, count(*) AS layers, avg(probe_auroc) AS layer_auroc
    FROM layers
    WHERE run_id = {run}
    GROUP BY ALL
)
SELECT
    dataset,
    site || ' (' || pooling || ')' AS read_at,
    layers,
    units,
    round(unit_auroc, 3) AS unit_auroc,
    round(layer_auroc, 3) AS layer_auroc,
    round(above_050, 3) AS above_050,
    round(above_055, 3) AS above_055,
    round(above_060, 3) AS above_060
FROM units
JOIN probes USING (dataset, site, pooling)
ORDER BY ALL
