"""Whether a run could end well, told before it does any work.

Reads versions, the machine, and what settings name; makes and changes nothing but a probe that it
removes. What a stage finds wrong while it works is that stage's room's.

- preflight.py: files that a run reads and a store that it writes, in milliseconds; every run asks.
- diagnosis.py: all of that and the machine, the model's class and memory, the hub: `doctor`.
"""
