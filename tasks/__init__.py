"""Stages as Prefect tasks: one generic task runs any of them, one any that makes several artifacts.

No arithmetic, no decisions on data, and no stage by name: what a stage is stands in its declaration
(`eigenshift/stages/`). Every task asks the store whether its artifact is already there, so a task
that has been done, in this run or any other, does no work.
"""
