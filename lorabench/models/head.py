"""The head that a checkpoint carries: whether it is gone on with, row by row, or a new one is drawn; and why.

A head knows its classes by position only. Their names are in the checkpoint's configuration, and decide which row
belongs to which class of the data.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from lorabench.models.classifier import head_names
from lorabench.models.configuration import SINGLE_LABEL
from lorabench.wording import listed

_GENERIC = re.compile(r"LABEL_\d+")


@dataclass(frozen=True)
class SavedHead:
    """What is known of the head that a checkpoint, or an adapter, may carry.

    Attributes:
        names: its classes, in the order of its rows; empty where they are not known.
        problem_type: what transformers calls its task (None: it does not say).
        architecture: the class of model that was saved (None: it does not say).
        contradiction: why its names cannot be told to belong to its rows, in a few words; None where they can.
    """

    names: tuple[str, ...] = ()
    problem_type: str | None = None
    architecture: str | None = None
    contradiction: str | None = None

    @classmethod
    def of_config(cls, config: PretrainedConfig) -> "SavedHead":
        """What a checkpoint's configuration says, before the classes of the data are put into it."""
        names: dict[Any, Any] = dict(config.id2label or {})
        architectures = getattr(config, "architectures", None) or [None]
        return cls(
            names=tuple(str(names[row]) for row in sorted(names)),
            problem_type=getattr(config, "problem_type", None),
            architecture=architectures[0],
            contradiction=_contradiction(names, getattr(config, "label2id", None) or {}),
        )


def _contradiction(names: Mapping[Any, Any], rows: Mapping[Any, Any]) -> str | None:
    """What keeps a configuration's `id2label` from telling which row is which class.

    Args:
        names: row -> class.
        rows: class -> row. Where it is about other names, as those that only count, it says nothing.
    """
    if sorted(names) != list(range(len(names))):
        return f"names rows {listed([str(row) for row in sorted(names)])}, not those from 0 on"
    if any(rows.get(name, row) not in (row, str(row)) for row, name in names.items()):
        return "has an id2label and a label2id that contradict each other"
    return None


@dataclass(frozen=True)
class HeadPlan:
    """What becomes of a head that is there and has as many rows as it says.

    Attributes:
        rows: its rows in the order of the classes; None: all of them are drawn anew.
        reason: why, in a few words.
        named: how many classes it says to have, where that is why.
    """

    rows: tuple[int, ...] | None
    reason: str
    named: int | None = None


def plan_head(saved: SavedHead, labels: Sequence[str], whose: str = "the checkpoint's") -> HeadPlan:
    """Whether a head's rows can stand for the classes of the data, and in which order.

    Names decide, whatever their case. Names that only count (LABEL_0, LABEL_1), or none, are no names: there the order
    decides.

    Args:
        saved: the head.
        labels: classes of the data.
        whose: what a message calls it.
    """
    if saved.architecture is not None and not saved.architecture.endswith("ForSequenceClassification"):
        return HeadPlan(None, f"new: {whose} is of a {saved.architecture}")
    if saved.problem_type not in (None, SINGLE_LABEL):
        return HeadPlan(None, f"new: {whose} is for {saved.problem_type}")
    if saved.contradiction is not None:
        return HeadPlan(None, f"new: {whose} {saved.contradiction}")
    if saved.names and len(saved.names) != len(labels):
        reason = f"new: {whose} has {len(saved.names)} classes and the data {len(labels)}"
        return HeadPlan(None, reason, named=len(saved.names))
    own, wanted = ([name.strip().casefold() for name in names] for names in (saved.names, labels))
    if len(set(own)) == len(own) and sorted(own) == sorted(wanted):
        rows = tuple(own.index(name) for name in wanted)
        moved = "" if rows == tuple(range(len(rows))) else ", its rows in the order of the data's classes"
        return HeadPlan(rows, f"{whose}, for the same classes{moved}")
    if all(_GENERIC.fullmatch(name) for name in saved.names):
        taken = listed([f"row {row} for {label!r}" for row, label in enumerate(labels)], most=3)
        return HeadPlan(tuple(range(len(labels))), f"{whose}, which names no classes: {taken}")
    return HeadPlan(None, f"new: {whose} is for {_quoted(saved.names)} and the data for {_quoted(labels)}")


def _quoted(names: Sequence[str]) -> str:
    return listed([repr(name) for name in names], most=3)


@dataclass(frozen=True)
class HeadOrigin:
    """Where the rows of a classifier's head come from.

    Attributes:
        reason: in a few words, for a message and the record.
        resized: the base model's checkpoint has a head of another size, which loading it has to leave out.
    """

    reason: str = "new"
    resized: bool = False


def output_layer(base: nn.Module) -> tuple[str, Any]:
    """The linear layer that gives the logits, with its name: the last one of a classifier's heads."""
    heads = tuple(f"{name}." for name in head_names(base))
    found = [
        (name, module)
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.".startswith(heads)
    ]
    if not found:
        raise LookupError(f"{type(base).__name__} has no linear layer in its head")
    return found[-1]


def settle_head(base: nn.Module, fresh: set[str], resized: bool, plan: HeadPlan) -> HeadOrigin:
    """Follow a plan in a base model that has been loaded: reorder the rows, or have them drawn.

    Args:
        fresh: names of the weights that the checkpoint does not carry, or carries in another shape; what is to be
            drawn is added.
        resized: some of them are there in another shape.
    """
    name, layer = output_layer(base)
    if f"{name}.weight" in fresh:
        if not resized:
            return HeadOrigin("new: the checkpoint carries none")
        return HeadOrigin("new: the checkpoint's has another size" if plan.rows is not None else plan.reason, True)
    if plan.rows is None:
        fresh |= {f"{name}.{part}" for part, _ in layer.named_parameters()}
        if plan.named not in (None, layer.out_features):  # the weights fit, whatever the names say
            reason = f"new: the checkpoint's has {layer.out_features} rows and names for {plan.named}"
            return HeadOrigin(reason, resized)
        return HeadOrigin(plan.reason, resized)
    if plan.rows != tuple(range(layer.out_features)):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(parameter[list(plan.rows)].clone())
    return HeadOrigin(plan.reason, resized)
