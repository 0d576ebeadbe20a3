"""Files in their original schemas -> one common record (`schemas.SAMPLES`).

`read_file` reads one file of a source, `combine_records` makes the source's samples of all its
files: every record becomes a row of samples or of rejected_rows, so rows read = samples + rejected
rows for each file. One module per format; `delimited.py`, `json_lines.py` and `tables.py` read
files, `screening.py` judges texts.
"""

from eigenshift.datasets.ingestion import STEP_VERSION, FileRecords, combine_records
from eigenshift.datasets.reading import (
    READING_STEP_VERSION,
    RECORDS_NAME,
    REJECTED_NAME,
    SOURCE_FILES_NAME,
    digest_source,
    list_sources,
    read_file,
)

__all__ = [
    "READING_STEP_VERSION",
    "RECORDS_NAME",
    "REJECTED_NAME",
    "SOURCE_FILES_NAME",
    "STEP_VERSION",
    "FileRecords",
    "combine_records",
    "digest_source",
    "list_sources",
    "read_file",
]
