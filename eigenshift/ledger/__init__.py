"""The ledger: what was run, what was released, and who is at work.

Reads and writes `runs/`, `releases/` and marks of presence. Making artifacts is `store/`'s,
deciding on a release `evaluation/gate.py`'s, and whether the store is sound `upkeep/`'s.

    runs.py      records of runs
    releases.py  what is in force, and its history
    holdings.py  whether anything of ours is in a store
    presence.py  who is at work in this store
"""
