"""What a run says of its rows before it begins: how they were split, and what about them makes scores doubtful."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorabench.results.class_table import name_cells
from lorabench.wording import counted, listed


def data_lines(record: Mapping[str, Any]) -> list[str]:
    """One line for each thing to say; all of it is in the record's `data`."""
    data, flags = record["data"], record["config"]["data"]
    lines = []
    if data["held_out"]:
        how = f"{flags['split']}, seed {flags['split_seed']}"
        lines.append(f"split      {_held_out(data, flags)} of the rows held out for validation, {how}")
    if data["dropped"] is not None:
        shared, repeated = counted(data["dropped"]["shared"], "training row"), data["dropped"]["repeated"]
        lines.append(f"dropped    {shared} whose text stands in validation or test, and {repeated} repeated")
    shared = {split: rows for split, rows in data["rows_in_train"].items() if rows}
    if shared:
        parts = " and ".join(f"{rows} of {data['rows'][split]} {split} rows" for split, rows in shared.items())
        lines.append(
            f"duplicates {parts} have a text that stands in train, too; --drop-duplicates takes it out of train"
        )
    if data["test_rows_in_validation"]:
        lines.append(
            f"duplicates {data['test_rows_in_validation']} of {data['rows']['test']} test rows have a text that "
            "stands in validation, too, by which the best weights are chosen"
        )
    conflicts = data["conflicting_labels"]
    if conflicts["texts"]:
        texts, rows = counted(conflicts["texts"], "text"), counted(conflicts["rows"], "row")
        lines.append(f"conflicts  {texts} with unlike labels, in {rows} of the training data")
    for split, classes in data["absent_classes"].items():
        if classes:
            which = (
                f"class {_names(classes)}: it has" if len(classes) == 1 else f"classes {_names(classes)}: they have"
            )
            lines.append(f"absent     no {split} row of {which} no score there")
    for split, classes in data["rare_classes"].items():
        if classes:
            parts = [
                f"of class {name_cells(name)} rests on {counted(n, f'{split} row')}" for name, n in classes.items()
            ]
            lines.append(f"rare       F1 {listed(parts)}")
    return lines


def _held_out(data: Mapping[str, Any], flags: Mapping[str, Any]) -> str:
    """The share that was held out, with the one that was asked for where a class more on either side made another."""
    asked = flags["validation_share"]
    share = data.get("held_out_share") or asked
    if f"{100 * share:.0f}" == f"{100 * asked:.0f}":
        return f"{100 * asked:g} %"
    return f"{100 * share:.3g} % (asked for: {100 * asked:g} %)"


def source_lines(sources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where the rows are from and how many were read, a line for each file and split."""
    lines = []
    for source in sources.values():
        if "path" in source:
            names = _told_apart([Path(file["path"]) for file in (source, *source.get("and", ()))])
            files = names[0] if len(names) == 1 else f"{len(names)} files, {listed(names)}"
            lines.append(f"{files}: {counted(source['rows'], 'row')} ({source['form']})")
        elif "dataset" in source:
            revision = f", commit {source['revision'][:12]}" if source.get("revision") else ""
            lines.append(f"{source['dataset']}: {counted(source['rows'], 'row')} ({source['split']} split{revision})")
    return lines


def _told_apart(paths: Sequence[Path]) -> list[str]:
    """The files' names, with their folders below the one that all are in where two have one name."""
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    above = os.path.commonpath([path.parent for path in paths])
    return [os.path.relpath(path, above) for path in paths]


def _names(classes: Sequence[str]) -> str:
    return listed([name_cells(name) for name in classes])
