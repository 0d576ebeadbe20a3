-- Why was a run held, or let through? Every check of the gate with what was expected and found.
SELECT
    r.status,
    item->>'name' AS check_name,
    CAST(item->'is_passed' AS BOOLEAN) AS is_passed,
    item->>'expected' AS expected,
    item->>'found' AS found,
    item->>'missed_by' AS missed_by
FROM (
    SELECT status, unnest(CAST(checks AS JSON[])) AS item FROM runs WHERE run_id = {run}
) r
ORDER BY is_passed, check_name
