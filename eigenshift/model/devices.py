"""Where a model runs."""

from __future__ import annotations

import torch

from eigenshift.base.errors import SettingsError


def resolve_device(name: str, setting: str = "execution.device") -> torch.device:
    """Return the device a setting names; "auto" takes an NVIDIA or AMD GPU if there is one.

    Args:
        name: As in the settings.
        setting: Which of them, for errors.

    Raises:
        SettingsError: There is no such device here, or it does not compute in float64.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] == "mps":
        raise SettingsError(
            f"{setting}: expected a device with float64, found {name!r}. Sums over texts "
            "are in float64, which Apple's GPUs do not have. Use auto or cpu."
        )
    try:
        device = torch.device(name)
        if name == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(
            f"{setting}: expected a device of this machine, found {name!r}: {reason} "
            "Use auto or cpu, or a torch build for your GPU."
        ) from error
    return device
