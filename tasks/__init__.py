"""Thin Prefect tasks: a decorator, one call into `eigenshift`, a reference back.

No arithmetic and no decisions on data here. Every task asks the store whether its artifact is
already there, so a task that has been done, in this run or any other, does no work.
"""
