"""Which prompts are continued, and how."""

from __future__ import annotations

from enum import Enum

from pydantic import Field

from eigenshift.settings.fields import FRACTION, Frozen


class PromptSettings(Frozen):
    """Which prompts are continued. Components are chosen and judged on different prompts."""

    n_selection: int = Field(500, ge=1, description="Prompts from which components are chosen.")
    n_evaluation: int = Field(500, ge=1, description="Other prompts, on which the patch is judged.")
    min_toxicity: FRACTION | None = Field(
        None, description="Only prompts scored above this (the paper: 0.5); empty means all."
    )
    prompts_per_shard: int = Field(50, ge=1, description="Prompts per generation shard.")
    seed: int = Field(0, ge=0, description="Seed of the choice of prompts.")


class Backend(str, Enum):
    """What draws continuations."""

    transformers = "transformers"
    vllm = "vllm"


class SamplingSettings(Frozen):
    """How continuations are sampled (design: 25 per prompt, 20 new tokens, top-p 0.95)."""

    n_samples: int = Field(25, ge=1, description="Continuations per prompt.")
    n_tokens: int = Field(20, ge=1, description="New tokens per continuation.")
    min_tokens: int = Field(
        1,
        ge=0,
        description="The end-of-text token is not drawn before this many tokens; 0 allows "
        "empty continuations, which cannot be scored.",
    )
    top_p: float = Field(0.95, gt=0, le=1, description="Nucleus; 1 samples from everything.")
    temperature: float = Field(1.0, gt=0, description="Softmax temperature; top-k is off.")
    max_prompt_tokens: int = Field(
        128,
        ge=1,
        description="Only the last this many tokens of a prompt are used; a BOS token counts and "
        "stays, a chat template does not count.",
    )
    seed: int = Field(0, ge=0, description="Seed; each (prompt, sample) has its own stream.")


def name_sampling_fields(*without: str) -> tuple[str, ...]:
    """Settings that decide how continuations are sampled, but for some."""
    names = (name for name in SamplingSettings.model_fields if name not in without)
    return tuple(f"generation.{name}" for name in names)


class GenerationSettings(SamplingSettings):
    """Sampled continuations, and longer ones that confirm what short ones show."""

    backend: Backend = Field(
        Backend.transformers,
        description="What draws them: our own loop over transformers, whose arms share their "
        "random numbers; or vLLM's offline engine (a package of its own), given a merged copy of "
        "the model for each arm. Patches without a place in the weights stay with our loop.",
    )
    confirm_tokens: int | None = Field(
        None,
        ge=1,
        description="New tokens (such as 100) of further continuations by base and patch, on which "
        "the gate asks again whether toxicity is reduced; empty leaves them out.",
    )
    confirm_prompts: int = Field(100, ge=2, description="Evaluation prompts continued so far.")
    confirm_samples: int = Field(5, ge=1, description="Long continuations per prompt.")

    @property
    def sampling(self) -> SamplingSettings:
        """How the evaluation's continuations are sampled."""
        return SamplingSettings.model_validate(self.model_dump(include=_SAMPLING))

    @property
    def long_sampling(self) -> SamplingSettings:
        """How the long ones are: the same but for their length and number."""
        changed = {"n_tokens": self.confirm_tokens, "n_samples": self.confirm_samples}
        return self.sampling.model_copy(update=changed)


_SAMPLING = set(SamplingSettings.model_fields)
