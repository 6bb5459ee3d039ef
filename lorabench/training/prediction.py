"""What a prediction needs of a finished run, and how predictions are written."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.config.run_config import RunConfig
from lorabench.errors import ConfigError
from lorabench.files import replacing
from lorabench.results.run_folder import find_adapter, read_run

if TYPE_CHECKING:
    import torch

PREDICT_BATCH_SIZE = 32


def write_predictions(path: Path, ids: Sequence[str], labels: Sequence[str], logits: "torch.Tensor") -> None:
    """Write id, label and one probability per class, as CSV or, by the suffix, as JSON lines.

    Args:
        path: replaced whole.
        labels: class names, in the order of the logits.
        logits: [rows, classes].
    """
    from lorabench.step.loss import LOSS

    probabilities = LOSS.probabilities(logits).tolist()
    chosen = LOSS.classes(logits).tolist()
    names = [f"probability_{label}" for label in labels]
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            for row_id, index, values in zip(ids, chosen, probabilities, strict=True):
                row: dict[str, Any] = {"id": row_id, "label": labels[index], **dict(zip(names, values, strict=True))}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        else:
            writer = csv.writer(file)
            writer.writerow(["id", "label", *names])
            for row_id, index, values in zip(ids, chosen, probabilities, strict=True):
                writer.writerow([row_id, labels[index], *values])


@dataclass(frozen=True)
class FinishedRun:
    """What its record says of a run, as far as its adapter needs it.

    Attributes:
        labels: class names, in the order of the logits.
        precision: that it was trained in (fp32, fp16 or bf16).
        packs: its steps, and so its evaluations, ran over packs.
    """

    folder: Path
    config: RunConfig
    labels: tuple[str, ...]
    precision: str
    packs: bool
    status: str | None

    @classmethod
    def read(cls, folder: Path) -> "FinishedRun":
        """Read `run.json`.

        Raises:
            ConfigError: there is none, or another version's.
        """
        record = read_run(folder)
        try:
            return cls(
                folder,
                RunConfig.from_json(record["config"]),
                tuple(record["data"]["labels"]),
                record["precision"],
                record.get("execution") == "captured",
                record.get("status"),
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(f"--run {folder}: its run.json is not one of this version ({error})") from None

    def find_adapter(self) -> Path:
        """The folder of its best adapter.

        Raises:
            ConfigError: there is none.
        """
        adapter = find_adapter(self.folder)
        if adapter is None:
            raise ConfigError(
                f"--run {self.folder}: no adapter there (status {self.status}; random weights save none)"
            )
        return adapter
