"""Upkeep: whether all that a store says is still true, and what can be done if it is not.

Reads every object of a store; sets damaged ones aside and removes what nothing needs. What an
artifact should hold is taken from the stages' declarations (`pipeline.py`).

    verification.py  every checksum, schema, lineage link and row
    file_formats.py  whether a file opens as its name says and has its declared schema
    repair.py        set damage aside, so that it is made again
    retention.py     what can be removed
    reproduction.py  one JSON from which a run can be repeated
    replay.py        a repeated run against that file
"""
