"""Questions that base and patched model both answer: what a patch costs in capability."""

from __future__ import annotations

from pydantic import Field

from eigenshift.settings.fields import Frozen, Location, Switch


class BenchmarkSettings(Frozen):
    """Tasks of EleutherAI's lm-evaluation-harness (pip extra `benchmark`), and how they are put."""

    tasks: tuple[Location, ...] = Field(
        (),
        description="Names the harness knows (piqa, mmlu), or folders or YAML files of tasks in "
        "its own format, with their data beside them; such files may name Python code, which is "
        "run. Empty: nothing is measured.",
    )
    limit: int | None = Field(
        None, ge=1, description="Questions of each task, the first ones; empty: all."
    )
    num_fewshot: int | None = Field(
        None, ge=0, description="Solved examples before each question; empty: as the task says."
    )
    apply_chat_template: Switch = Field(
        "auto",
        description="Put questions through the tokenizer's chat template: 'auto' as the model is "
        "studied (model.chat).",
    )
