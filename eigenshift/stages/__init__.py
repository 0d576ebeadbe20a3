"""What a stage is: declared once, with everything it reads and writes, and run from that alone.

Reads and writes artifacts through `store/`. Knows no stage: each room declares its own in its
`stages.py`, beside the functions that do the work; all of them together are `pipeline.py`.

    keys.py      the settings a stage reads: its fingerprint, and all its work is given
    inputs.py    the artifacts, files and things outside the store that it reads
    edges.py     those of them that several rooms read
    tables.py    the tables it writes: file and schema
    stage.py     the declaration
    running.py   an artifact found, or made by a stage's work
"""
