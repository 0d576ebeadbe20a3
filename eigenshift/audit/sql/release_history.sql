-- All releases and roll-backs, newest first, with what is in force for each model.
SELECT
    model_id,
    version,
    is_current AS is_in_force,
    action,
    strftime(released_at, '%Y-%m-%d %H:%M') AS released,
    released_by,
    run_id,
    coalesce(left(patch_fingerprint, 12), 'unpatched model') AS patch,
    reason
FROM releases
ORDER BY version DESC, model_id
