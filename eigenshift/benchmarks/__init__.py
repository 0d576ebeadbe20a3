"""Capability as the field measures it: questions that base and patched model both answer.

Reads a model, patches and tasks of EleutherAI's lm-evaluation-harness (pip extra `benchmark`),
which asks and marks; writes each arm's mark for each question, and the arms against the base with
intervals. What the gate makes of them is `evaluation/capability.py`'s.

    tasks.py      which tasks a name or folder stands for, and what identifies them
    harness.py    the harness on a model in memory: the only user of its package
    answers.py    one arm's answers to one of the tasks asked for
    comparison.py the arms against the base, question by question
    stages.py     what the stages of this room are
"""
