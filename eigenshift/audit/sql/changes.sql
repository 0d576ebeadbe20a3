-- What changed between two runs or two releases? Settings, numbers, code, sources, components.
WITH pair AS (SELECT {before} AS before, {after} AS after),
facts AS (
    SELECT run_id, 'settings' AS part, fullkey AS what, atom->>'$' AS value
    FROM runs, json_tree(runs.settings) WHERE atom IS NOT NULL
    UNION ALL
    SELECT run_id, 'metrics', fullkey, atom->>'$' FROM runs, json_tree(runs.metrics)
    WHERE atom IS NOT NULL
    UNION ALL
    SELECT run_id, 'versions', fullkey, atom->>'$' FROM runs, json_tree(runs.versions)
    WHERE atom IS NOT NULL
    UNION ALL
    SELECT run_id, 'model', 'model_digest', model_digest FROM runs
    UNION ALL
    SELECT a.run_id, 'source_files', f.dataset || ' ' || f.source_uri, f.sha256
    FROM (SELECT DISTINCT run_id, fingerprint FROM artifacts WHERE kind = 'samples') a
    JOIN source_files f USING (fingerprint)
    UNION ALL
    SELECT
        run_id,
        'components',
        concat_ws(' ', basis, module, component_index),
        coalesce('damped, factor ' || factor, 'step ' || round(step, 3))
    FROM components
    WHERE is_in_patch AND run_id IN ({before}, {after})
)
SELECT
    part,
    what,
    any_value(value) FILTER (run_id = before) AS before,
    any_value(value) FILTER (run_id = after) AS after
FROM facts, pair
WHERE run_id IN (before, after)
GROUP BY part, what
HAVING any_value(value) FILTER (run_id = before)
    IS DISTINCT FROM any_value(value) FILTER (run_id = after)
ORDER BY ALL
