"""Labels and probabilities for the texts of a file, by a finished run's adapter."""

import os
from pathlib import Path

from lorabench.data.task import load_rows
from lorabench.errors import ConfigError
from lorabench.training.prediction import PREDICT_BATCH_SIZE, FinishedRun, write_predictions


def predict_file(
    run_dir: Path,
    input_file: Path,
    output_file: Path,
    batch_size: int = PREDICT_BATCH_SIZE,
    trust_remote_code: bool = False,
) -> int:
    """Predict every row of a file with the best adapter of a finished run.

    Args:
        run_dir: folder of the run, with `run.json` and `adapter/`.
        input_file: CSV, JSON lines, JSON array or Parquet with the run's text column.
        output_file: .csv or .jsonl, replaced whole.
        trust_remote_code: see `Predictor`.

    Returns:
        How many rows were predicted.

    Raises:
        ConfigError: the run has no adapter, or a file cannot be read or written.
    """
    if output_file.suffix.lower() not in (".csv", ".jsonl", ".ndjson"):
        raise ConfigError(f"--output {output_file}: expected a file ending in .csv or .jsonl")
    if not output_file.parent.is_dir() or not os.access(output_file.parent, os.W_OK):
        raise ConfigError(f"--output {output_file}: {output_file.parent} is no folder that can be written to")
    run = FinishedRun.read(run_dir)
    if output_file.exists() and input_file.exists() and output_file.samefile(input_file):
        raise ConfigError(f"--output {output_file}: the same file as --input, which would be lost")
    rows = load_rows("--input", input_file, run.config.data)
    run.find_adapter()
    # Heavy imports, only for input that is known to be good.
    from lorabench.training.predictor import Predictor

    logits = Predictor(run, trust_remote_code).logits(rows, "--input", batch_size)
    write_predictions(output_file, rows.ids, run.labels, logits)
    return len(rows)
