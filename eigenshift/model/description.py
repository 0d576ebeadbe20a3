"""Which model this is and what it looks like: the first artifact of a run.

Writes `model.json`. Every stage that runs the model depends on it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from eigenshift.base.errors import ModelError
from eigenshift.model.chat import ChatFormat
from eigenshift.model.files import ModelIdentity, identify_model
from eigenshift.model.heads import digest_tensor
from eigenshift.model.layers import list_layers
from eigenshift.model.loading import LanguageModel, TextModel, use_text_model
from eigenshift.model.stages import IdentityInputs, IdentityKey
from eigenshift.model.taps import name_sites
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace


def describe_model(text_model: TextModel, identity: ModelIdentity) -> dict[str, Any]:
    """Facts about a model that fit into JSON and hold under any name: digest, size, kind, head."""
    head = _describe_head(text_model) if isinstance(text_model, LanguageModel) else None
    chat = text_model.chat
    return {
        "digest": identity.digest,
        "files": dict(identity.files),
        "model_class": type(text_model.model).__name__,
        "kind": text_model.kind.name,
        "n_parameters": sum(item.numel() for item in text_model.model.parameters()),
        "n_layers": len(list_layers(text_model.model)),
        "head": head,
        **({} if chat is None else {"chat": _describe_chat(chat)}),
    }


def _describe_chat(chat: ChatFormat) -> dict[str, Any]:
    before, after = chat.frame
    return {"digest": chat.digest, "before_message": before, "after_message": after}


def _describe_head(language_model: LanguageModel) -> dict[str, Any]:
    return {
        **asdict(language_model.head),
        "dtype": str(language_model.head.dtype).removeprefix("torch."),
        "digest": digest_tensor(language_model.head_weight),
    }


def carry_out(inputs: IdentityInputs, key: IdentityKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `identify_model`: describe the model, and the sites it has."""
    identity = identify_model(inputs.weights.model)
    if identity.digest != inputs.weights.refer().fingerprint:
        raise ModelError(
            f"{identity.id}: expected the files that were found a moment ago, found others. The "
            "model changed while it was read. Start the same command again."
        )
    with use_text_model(inputs.weights.model, bench.execution) as text_model:
        description = describe_model(text_model, identity)
        description["sites"] = name_sites(text_model.model)
    workspace.write_json("model.json", description)
    workspace.facts = description
