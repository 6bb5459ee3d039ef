"""What a search came to: the best setting as a command and as a file, a table of trials, and pictures."""

import csv
import io
import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabench.catalog.metrics import METRICS
from lorabench.config.config_file import config_text
from lorabench.errors import ConfigError, first_line
from lorabench.experiments.checking import parse_words
from lorabench.experiments.sweep.ledger import Entry
from lorabench.experiments.sweep.pictures import FORMATS, TITLES, draw_pictures
from lorabench.experiments.sweep.plan import SweepPlan, as_json, trial_name
from lorabench.files import replacing, write_text_atomic
from lorabench.harmless import csv_cell, printable
from lorabench.results.amounts import format_seconds
from lorabench.results.ownership import Ownership
from lorabench.results.sheets import Sheet, to_html, to_markdown
from lorabench.results.table import UNKNOWN

PAGE = "sweep"
BEST_FILE = "best.yaml"
OUTPUTS = (
    BEST_FILE,
    *(f"{PAGE}{suffix}" for suffix in (".md", ".html", ".json", ".csv")),
    *(f"{key}.{form}" for key in TITLES for form in FORMATS),
)
"""Files that `write_page` writes, and replaces."""
_LONGEST_ERROR = 120
_LONGEST_WAIT_S = 60


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A sweep, as its ledger is.

    Attributes:
        entries: all trials, by number.
    """

    plan: SweepPlan
    folder: Path
    entries: Sequence[Entry]

    @property
    def best(self) -> Entry | None:
        """The completed trial with the best score; the first of several. None where none is complete."""
        scored = [entry for entry in self.entries if entry.state == "completed" and entry.value is not None]
        return min(scored, key=self.rank, default=None)

    def rank(self, entry: Entry) -> float:
        """The smaller, the better; 0 where there is no score."""
        return (-1.0 if self.plan.search.maximize else 1.0) * (entry.value or 0.0)

    @property
    def label(self) -> str:
        """The metric, as readers know it."""
        return METRICS[self.plan.search.metric].label

    def count(self, state: str) -> int:
        return sum(entry.state == state for entry in self.entries)

    def command(self, entry: Entry) -> list[str]:
        """What trains with a trial's setting again, over as many processes."""
        return [*self.launcher(entry), *self.plan.words(self.plan.search.fixed | entry.values)]

    def launcher(self, entry: Entry) -> list[str]:
        """What starts a run as a trial was started, up to the run's own flags.

        The batch is one of each process, so that another number of them would be another setting.
        """
        processes = entry.fact("world_size")
        more = [] if processes is None else ["--num_processes", str(int(processes))]
        return ["python", "-m", "lorabench.launch", *self.plan.launcher, *more]


def sheets(result: SweepResult) -> list[Sheet]:
    """The tables of the page."""
    best = result.best
    return [_trials(result)] if best is None else [_best(result, best), _trials(result)]


def _best(result: SweepResult, best: Entry) -> Sheet:
    values = result.plan.search.fixed | best.values
    rows = [(name, _shown(values[name]), result.plan.search.parameters[name].describe()) for name in values]
    from_file = [*result.launcher(best), "--config", str(result.folder / BEST_FILE)]
    return Sheet(
        title=f"Best: {trial_name(best.number)}, {result.label} {best.value:.4f}",
        columns=("Parameter", "Value", "Searched"),
        rows=tuple(rows),
        notes=(f"Again: {shlex.join(result.command(best))}", f"Or: {shlex.join(from_file)}"),
    )


def _trials(result: SweepResult) -> Sheet:
    """Every trial that was begun, the best first."""
    names = [parameter.name for parameter in result.plan.search.searched]
    order = {"completed": 0, "pruned": 1, "running": 2, "failed": 3, "waiting": 4}
    begun = [entry for entry in result.entries if entry.state != "waiting" or entry.trial.params]
    ranked = sorted(begun, key=lambda entry: (order[entry.state], result.rank(entry), entry.number))
    rows = [
        (
            trial_name(entry.number),
            entry.state,
            UNKNOWN if entry.value is None else f"{entry.value:.4f}",
            *(_shown(entry.values.get(name, UNKNOWN)) for name in names),
            str(len(entry.trial.intermediate_values)),
            UNKNOWN if entry.fact("train_seconds") is None else format_seconds(entry.fact("train_seconds")),
            _short(entry.error or ""),
        )
        for entry in ranked
    ]
    waiting = len(result.entries) - len(begun)
    notes = [f"{result.label}: best epoch, validation rows. Pruned: stopped after an epoch; its last score stands."]
    notes += [f"{waiting} of {len(result.entries)} trials have not been begun."] if waiting else []
    # Words, between which a narrow terminal breaks the heads.
    heads = [name.replace("_", " ") for name in names]
    columns = ("Trial", "State", result.label, *heads, "Epochs", "Training time", "Error")
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Sheet(title="Trials", columns=columns, rows=tuple(rows), notes=tuple(notes))


@contextmanager
def page_lock(folder: Path) -> Iterator[None]:
    """Inside, no other worker of a sweep writes its page; who waits too long for that goes on without.

    Args:
        folder: of the sweep.
    """
    ownership, until = Ownership(), time.monotonic() + _LONGEST_WAIT_S
    while True:
        try:
            ownership.take(folder)
            break
        except ConfigError:
            if time.monotonic() >= until:
                break
    try:
        yield
    finally:
        ownership.release()


def write_page(result: SweepResult) -> list[str]:
    """`sweep.md`, `.html`, `.json`, `.csv`, `best.yaml` and the pictures; earlier ones are replaced. Returns names."""
    best = result.best
    texts = {
        f"{PAGE}.json": json.dumps(to_json(result), indent=2, allow_nan=False) + "\n",
        f"{PAGE}.csv": _csv(result),
    }
    texts |= {} if best is None else {BEST_FILE: _best_file(result, best)}
    # First without pictures: what is wrong with those costs no text.
    _write(result, {**texts, **_pages(result, ())})
    drawn = _draw(result)
    if drawn:
        _write(result, _pages(result, tuple((TITLES[key], f"{key}.svg") for key in drawn)))
    names = [f"{key}.{' and .'.join(FORMATS)}" for key in drawn]
    return [f"{PAGE}.md, .html, .json and .csv", *([] if best is None else [BEST_FILE]), *names]


def _pages(result: SweepResult, pictures: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The page for readers, by the file's name.

    Args:
        pictures: titles and files.
    """
    made = sheets(result)
    made += [Sheet(title="Pictures", columns=(), rows=(), pictures=pictures)] if pictures else []
    return {f"{PAGE}.md": to_markdown("Sweep", made), f"{PAGE}.html": to_html("Sweep", made)}


def _write(result: SweepResult, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        write_text_atomic(result.folder / name, text)


def _draw(result: SweepResult) -> list[str]:
    """Draw the pictures. Returns those that there are; none where drawing fails, which is said."""
    names = [parameter.name for parameter in result.plan.search.searched]
    try:
        pictures = draw_pictures(result.entries, names, result.label, result.plan.search.maximize)
    except Exception as error:  # of Optuna's plots and of what they draw with
        print(f"pictures   none: {printable(first_line(error))}", flush=True)
        return []
    for name, content in pictures.items():
        with replacing(result.folder / name) as temporary:
            temporary.write_bytes(content)
    return [key for key in TITLES if f"{key}.svg" in pictures]


def to_json(result: SweepResult) -> dict[str, Any]:
    """Everything as plain values; what is not known is null."""
    best = result.best
    return {
        "search": as_json(result.plan.search),
        "flags": list(result.plan.flags),
        "best": None
        if best is None
        else {"trial": trial_name(best.number), "value": best.value, "command": result.command(best)},
        "trials": [_trial_json(entry) for entry in result.entries],
    }


def _trial_json(entry: Entry) -> dict[str, Any]:
    return {
        "trial": trial_name(entry.number),
        "state": entry.state,
        "value": entry.value,
        "values": entry.values,
        "epochs": {str(epoch): value for epoch, value in sorted(entry.trial.intermediate_values.items())},
        "attempts": entry.attempt + 1,
        "seconds": entry.fact("seconds"),
        "train_seconds": entry.fact("train_seconds"),
        "host": entry.fact("host"),
        "error": entry.error,
    }


def _csv(result: SweepResult) -> str:
    names = [parameter.name for parameter in result.plan.search.searched]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metric = result.plan.search.metric
    writer.writerow(["trial", "state", metric, *names, "epochs", "seconds", "train_seconds", "attempts", "error"])
    for entry in result.entries:
        facts = [len(entry.trial.intermediate_values), entry.fact("seconds"), entry.fact("train_seconds")]
        cells = [trial_name(entry.number), entry.state, entry.value, *(entry.values.get(name) for name in names)]
        cells += [*facts, entry.attempt + 1, printable(entry.error or "")]
        writer.writerow([csv_cell(cell) for cell in cells])
    return text.getvalue()


def _best_file(result: SweepResult, best: Entry) -> str:
    """A file for `--config` of the training command."""
    config = parse_words(result.plan.words(result.plan.search.fixed | best.values))
    remark = f"{trial_name(best.number)} of {result.folder}: {result.label} {best.value:.4f}"
    return config_text(config, (remark,))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(error: str) -> str:
    return error if len(error) <= _LONGEST_ERROR else f"{error[:_LONGEST_ERROR]}..."
