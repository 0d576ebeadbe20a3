"""Files in their original schemas -> one common record (`schemas.SAMPLES`).

`ingest_source` reads one source of the settings: every record becomes a row of samples or of
rejected_rows, so rows read = samples + rejected rows for each file. One module per format;
`delimited.py`, `json_lines.py` and `tables.py` read files, `screening.py` judges texts.
"""

from eigenshift.datasets.ingestion import STEP_VERSION, digest_source, ingest_source

__all__ = ["STEP_VERSION", "digest_source", "ingest_source"]
