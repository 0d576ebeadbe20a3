"""The store: files anywhere fsspec reaches, and immutable artifacts with a manifest written last.

Reads and writes objects under one root URL, scratch files of this machine, and the files users
name. Knows no table's meaning and no stage; runs and releases are `ledger/`.

    artifacts.py     find an artifact, or have it made and publish it; the manifests are the cache
    artifact.py      a complete one, opened for reading
    workspace.py     the folder in which one is written
    manifests.py     what an artifact holds and what it was made from
    stored_file.py   a file of one where it lies, read whole or in parts
    storage.py       the store's objects: list, read, write atomically, digest
    range_reader.py  a stream over ranges of an object
    filesystems.py   fsspec filesystems: options, retries, errors explained
    local_files.py   files of this machine: digests remembered, copies of remote ones
    source_files.py  files that users name
    unpacking.py     compressed ones, told by their first bytes
    parquet_files.py how every Parquet file is written
    duckdb_files.py  DuckDB over stored files, read where they lie
    output_folder.py a folder for the user, renamed into place at the end
    scratch.py       temporary folders that go with their process
    traffic.py       requests and bytes, counted
    concurrency.py   many requests at once
"""
