"""Which part of a model is where, if it is divided over several places: as told, or as it fits.

Works on a model's structure (on the meta device) and on numbers of bytes; loads nothing. The output
head is always whole on a place that computes, with the embedding it may share: patches are products
with it. Running and changing a divided model is `divided.py`'s.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from eigenshift.base.errors import SettingsError
from eigenshift.model.devices import resolve_device
from eigenshift.model.heads import find_head
from eigenshift.model.layers import list_layers
from eigenshift.model.resources import measure_free_memory
from eigenshift.settings import Placement

Place = int | str
"""A GPU's number, `CPU` or `DISK`."""
CPU, DISK = "cpu", "disk"
SHARE_FOR_WEIGHTS = 0.8
"""Of what is free; the rest is for states, keys and values, logits."""
BALANCE_ROOM = 1.25
"""Largest blocks by which a GPU may be above its even share."""
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
N_SHOWN = 4
"""Names that an error quotes."""


@dataclass(frozen=True)
class Division:
    """Where the parts of a model are.

    Attributes:
        places: Name of a module (of a parameter, where the module has parts elsewhere) -> place;
            together all of the model, none within another.
        n_bytes: Place -> bytes of its weights.
        budgets: Place -> bytes that were allowed there; empty where the map was given.
    """

    places: Mapping[str, Place]
    n_bytes: Mapping[Place, int]
    budgets: Mapping[Place, int] = field(default_factory=dict)

    @property
    def main(self) -> Place:
        """Where the parts that are kept elsewhere are computed: the first GPU, or the processor."""
        return find_main(self.places.values())

    @property
    def is_whole(self) -> bool:
        """Whether all of it is on one place that computes."""
        return set(self.places.values()) == {self.main}

    def is_offloaded(self, place: Place) -> bool:
        """Whether weights there are brought elsewhere to be computed with."""
        return is_offloaded(place, self.main)


def find_main(places: Iterable[Place]) -> Place:
    """Where what is kept elsewhere is computed: the first GPU, or the processor without one."""
    return min((place for place in places if isinstance(place, int)), default=CPU)


def is_offloaded(place: Place, main: Place) -> bool:
    """Whether weights at a place are brought elsewhere to be computed with."""
    return place == DISK or (place == CPU and main != CPU)


def require_accelerate() -> None:
    """Refuse to divide a model without the package that runs it.

    Raises:
        SettingsError: accelerate is not installed.
    """
    if find_spec("accelerate") is None:
        raise SettingsError(
            "execution.device_map: expected the package accelerate, which runs a model that is "
            "divided over several places, found it is not installed. Install it with pip install "
            "'eigenshift[device-map]', or leave the setting empty."
        )


def plan_division(skeleton: Any, placement: Placement, *, is_causal: bool = True) -> Division:
    """Find where each part of a model is to be.

    Args:
        skeleton: The model on the meta device, in the precision it will run in.
        placement: Whose `device_map` is set.
        is_causal: It has an output head, which must be whole.

    Raises:
        SettingsError: The map names modules the model does not have, leaves some out, has the head
            where nothing is computed, or tears a block apart; there is no such device; the head is
            too large for the first place; or accelerate is not installed.
        ModelError: The model's head is not supported, or its blocks are not found.
    """
    require_accelerate()
    if isinstance(placement.device_map, dict):
        given = {name: parse_place(text) for name, text in placement.device_map.items()}
        _check_names(skeleton, given)
        places = _spread(skeleton, given)
        budgets: dict[Place, int] = {}
    else:
        budgets = _find_budgets(placement)
        places = _fill(skeleton, budgets, is_causal)
    if is_causal:
        _check_head(skeleton, places)
    places |= _unite_shared(skeleton, places)
    _check_blocks(skeleton, places)
    main = find_main(places.values())
    return Division(
        dict(_gather(skeleton, "", places, main)), _count_bytes(skeleton, places), budgets
    )


def parse_place(text: str, setting: str = "execution.device_map") -> Place:
    """A place from a setting's text, "1" as "cuda:1".

    Args:
        text: As in the setting.
        setting: Which it is, for errors.

    Raises:
        SettingsError: There is no such device.
    """
    if text in (CPU, DISK):
        return text
    name = f"cuda:{text}" if text.isdigit() else text
    return int(str(resolve_device(name, setting)).partition(":")[2] or 0)


def parse_amount(text: str) -> int:
    """Bytes of an amount of memory, e.g. "20GiB"."""
    number, unit = re.fullmatch(r"([\d.]+)\s?(\w+)", text).groups()  # type: ignore[union-attr]
    return int(float(number) * UNITS[unit])


def show_place(place: Place) -> str:
    """A place as people and torch name it."""
    return f"cuda:{place}" if isinstance(place, int) else place


def show_modules(names: Iterable[str]) -> str:
    """Names of modules, numbered ones that follow one another as a range."""
    shown: list[list[Any]] = []
    for name in names:
        before, _, last = name.rpartition(".")
        if last.isdigit() and shown and shown[-1][0] == before and shown[-1][2] == int(last) - 1:
            shown[-1][2] = int(last)
        elif last.isdigit():
            shown.append([before, int(last), int(last)])
        else:
            shown.append([name or "all", None, None])
    return ", ".join(
        name
        if first is None
        else f"{name}.{first}"
        if first == last
        else f"{name}.{first} to {last}"
        for name, first, last in shown
    )


def _find_budgets(placement: Placement) -> dict[Place, int]:
    """Bytes of weights that are allowed at each place, GPUs first."""
    if placement.max_memory is not None:
        told = {
            parse_place(text, "execution.max_memory"): parse_amount(amount)
            for text, amount in placement.max_memory.items()
        }
        return {place: told[place] for place in sorted(told, key=_rank)}
    budgets: dict[Place, int] = {}
    if resolve_device(placement.device).type == "cuda":
        chosen = range(torch.cuda.device_count())
        if placement.device != "auto":
            chosen = range(place := int(parse_place(placement.device)), place + 1)
        for number in chosen:
            budgets[number] = int(SHARE_FOR_WEIGHTS * torch.cuda.mem_get_info(number)[0])
    free = measure_free_memory()
    if free is not None:
        budgets[CPU] = int(SHARE_FOR_WEIGHTS * free)
    return budgets


def _rank(place: Place) -> tuple[bool, int]:
    return (not isinstance(place, int), place if isinstance(place, int) else 0)


def _fill(skeleton: Any, budgets: Mapping[Place, int], is_causal: bool) -> dict[str, Place]:
    """Each tensor's place: places are filled in order, the head kept where it is computed."""
    from accelerate import infer_auto_device_map

    total = sum(_count_bytes(skeleton, dict.fromkeys(skeleton.state_dict(), CPU)).values())
    main = find_main(budgets)
    if total <= budgets.get(main, 0):
        return dict.fromkeys(skeleton.state_dict(), main)
    classes = sorted({type(block).__name__ for block in list_layers(skeleton)})
    classes += sorted(skeleton._no_split_modules or ())

    def fill(allowed: Mapping[Place, int]) -> dict[str, Place]:
        found = infer_auto_device_map(
            skeleton,
            max_memory=dict(allowed),
            no_split_module_classes=classes,
            offload_buffers=True,
        )
        return _spread(skeleton, found)

    allowed = _balance(skeleton, budgets, total)
    places = fill(allowed)
    if not is_causal:
        return places
    name, head = find_head(skeleton)
    if is_offloaded(places[f"{name}.weight"], main):
        # filled from the front, the head came last: its room on the first place is taken first
        parts = _list_head_parts(skeleton, name, head)
        n_bytes = sum(_count_bytes(skeleton, dict.fromkeys(parts, main)).values())
        if n_bytes > allowed.get(main, 0):
            raise SettingsError(
                f"execution.device_map: expected room for the output head on {show_place(main)} "
                f"({n_bytes} bytes of weights), found {budgets.get(main, 0)} allowed. The head is "
                "never offloaded: patches are products with it. Use a larger device, "
                "model.dtype: bfloat16, or raise execution.max_memory."
            )
        places = fill({**allowed, main: allowed[main] - n_bytes})
        places |= dict.fromkeys(parts, main)
    return places


def _balance(skeleton: Any, budgets: Mapping[Place, int], total: int) -> dict[Place, int]:
    """Even shares of several GPUs, so that each keeps room; the last one takes what is left."""
    gpus = [place for place in budgets if isinstance(place, int)]
    if len(gpus) < 2:
        return dict(budgets)
    block = max(
        sum(tensor.nbytes for tensor in block.parameters()) for block in list_layers(skeleton)
    )
    leaf = max(parameter.nbytes for parameter in skeleton.parameters())
    share = total // len(gpus) + int(BALANCE_ROOM * max(block, leaf))
    return {
        place: min(share, n_bytes) if place in gpus[:-1] else n_bytes
        for place, n_bytes in budgets.items()
    }


def _check_names(skeleton: Any, given: Mapping[str, Place]) -> None:
    names = [name for name, _ in skeleton.named_modules()]
    unknown = [name for name in given if name not in names]
    if unknown:
        similar = difflib.get_close_matches(unknown[0], names, n=N_SHOWN) or [
            name for name, _ in skeleton.named_children()
        ]
        raise SettingsError(
            f"execution.device_map: expected modules of {type(skeleton).__name__}, found "
            f"{', '.join(map(repr, unknown[:N_SHOWN]))}. Similar ones: {', '.join(similar)}. "
            "'' stands for all that is not named."
        )


def _spread(skeleton: Any, given: Mapping[str, Place]) -> dict[str, Place]:
    """The place of each tensor of a model: that of the innermost module named.

    Raises:
        SettingsError: The map leaves some out.
    """
    found: dict[str, Place] = {}
    left_out = []
    for name in skeleton.state_dict():
        around = name
        while around and around not in given:
            around = around.rpartition(".")[0]
        if around in given:
            found[name] = given[around]
        else:
            left_out.append(name)
    if left_out:
        raise SettingsError(
            f"execution.device_map: expected a place for all of {type(skeleton).__name__}, found "
            f"none for {len(left_out)} tensors, e.g. {', '.join(left_out[:N_SHOWN])}. Name the "
            "modules they are in, or '' for all that is not named."
        )
    return found


def _list_head_parts(skeleton: Any, name: str, head: nn.Module) -> list[str]:
    """Names of the head's parameters, and of what its weight is shared with."""
    return [f"{name}.{part}" for part, _ in head.named_parameters()] + [
        other
        for other, parameter in skeleton.named_parameters(remove_duplicate=False)
        if parameter is head.weight and other != f"{name}.weight"
    ]


def _check_head(skeleton: Any, places: Mapping[str, Place]) -> None:
    name, head = find_head(skeleton)
    main = find_main(places.values())
    own, *others = (places[part] for part in _list_head_parts(skeleton, name, head))
    if is_offloaded(own, main):
        raise SettingsError(
            f"execution.device_map: expected the output head {name} on a device that computes "
            f"({show_place(main)}), found it on {own}. The head is never offloaded: patches are "
            f"products with it. Put {name} on {show_place(main)}."
        )
    if any(other != own for other in others):
        parts = _list_head_parts(skeleton, name, head)
        raise SettingsError(
            f"execution.device_map: expected {' and '.join(parts)} on one place, since they share "
            f"memory or are one head, found {', '.join(show_place(places[part]) for part in parts)}"
            f". Put them all on {show_place(own)}."
        )


def _unite_shared(skeleton: Any, places: Mapping[str, Place]) -> dict[str, Place]:
    """Tensors under several names (T5's embedding) that are at several places -> the first one.

    One that is computed with goes before others: what is in memory under one name cannot be read
    from disk under another.
    """
    main = find_main(places.values())
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return {
        name: min((places[other] for other in group), key=lambda place: is_offloaded(place, main))
        for group in names.values()
        if len({places[other] for other in group}) > 1
        for name in group
    }


def _check_blocks(skeleton: Any, places: Mapping[str, Place]) -> None:
    """A block adds what goes through it to what goes past it: both on one device."""
    main = find_main(places.values())
    names = {id(module): name for name, module in skeleton.named_modules()}
    for block in list_layers(skeleton):
        name = names[id(block)]
        found = {
            main if is_offloaded(places[f"{name}.{part}"], main) else places[f"{name}.{part}"]
            for part in block.state_dict()
        }
        if len(found) > 1:
            raise SettingsError(
                f"execution.device_map: expected all of {name} to be computed on one device, found "
                f"{', '.join(sorted(map(show_place, found)))}. A block cannot be torn apart: put "
                "all of it on one of them, or parts on cpu or disk."
            )


def _gather(
    module: nn.Module, name: str, places: Mapping[str, Place], main: Place
) -> Iterator[tuple[str, Place]]:
    """The largest modules that are at one place each.

    Whatever is beside them is named too: accelerate has no place within a place.
    """
    prefix = f"{name}." if name else ""
    inside = [tensor for tensor in places if tensor.startswith(prefix)]
    found = {places[tensor] for tensor in inside}
    if len(found) == 1:
        yield name, found.pop()
    elif not found:
        if any(True for _ in module.buffers()):  # computed anew, not in any file
            yield name, main
    else:
        for tensor in inside:
            if "." not in tensor.removeprefix(prefix):  # of a module that is not at one place
                yield tensor, main
        for child, part in module.named_children():
            yield from _gather(part, f"{prefix}{child}", places, main)


def _count_bytes(skeleton: Any, places: Mapping[str, Place]) -> dict[Place, int]:
    found: dict[Place, int] = defaultdict(int)
    seen: set[int] = set()
    tensors = dict(skeleton.named_parameters(remove_duplicate=False)) | dict(
        skeleton.named_buffers(remove_duplicate=False)
    )
    for name, tensor in tensors.items():
        if name in places and id(tensor) not in seen:
            seen.add(id(tensor))
            found[places[name]] += tensor.nbytes
    return dict(found)
