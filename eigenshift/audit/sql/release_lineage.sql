-- What is a release made of? Every artifact behind its patch, back to source files and digests.
--
-- `steps_back`: 0 is the patch. Files outside the store (sources, weights, classifiers) are known by
-- digest only; `source_file` rows say which file of a source had which digest.
WITH RECURSIVE made AS (
    SELECT kind, fingerprint, uri, sha256, inputs
    FROM artifacts
    WHERE run_id = (SELECT run_id FROM releases WHERE version = {release})
),
inputs AS (
    SELECT owner, item->>'kind' AS kind, item->>'fingerprint' AS fingerprint
    FROM (SELECT fingerprint AS owner, unnest(CAST(inputs AS JSON[])) AS item FROM made)
),
reached AS (
    SELECT 0 AS steps_back, 'patch' AS kind, patch_fingerprint AS fingerprint
    FROM releases
    WHERE version = {release} AND patch_fingerprint IS NOT NULL
    UNION
    SELECT r.steps_back + 1, i.kind, i.fingerprint
    FROM reached r JOIN inputs i ON i.owner = r.fingerprint
),
behind AS (
    SELECT kind, fingerprint, min(steps_back) AS steps_back FROM reached GROUP BY ALL
)
SELECT steps_back, b.kind, b.fingerprint, m.uri AS place, coalesce(m.sha256, b.fingerprint) AS sha256
FROM behind b LEFT JOIN made m USING (kind, fingerprint)
UNION
SELECT b.steps_back + 1, 'source_file', f.fingerprint, f.source_uri, f.sha256
FROM behind b JOIN source_files f ON b.kind = 'samples' AND f.fingerprint = b.fingerprint
ORDER BY ALL
