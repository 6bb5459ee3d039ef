"""Labels and probabilities for new texts: by a finished run's adapter, or at the end of a run."""

import csv
import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lorabench.config.run_config import RunConfig
from lorabench.data.task import Rows, load_rows
from lorabench.errors import ConfigError
from lorabench.files import replacing
from lorabench.machine.hub import prefer_cache_if_unreachable
from lorabench.results.run_folder import read_run

PREDICT_BATCH_SIZE = 32


def write_predictions(path: Path, ids: Sequence[str], labels: Sequence[str], logits: torch.Tensor) -> None:
    """Write id, label and one probability per class, as CSV or, by the suffix, as JSON lines.

    Args:
        path: replaced whole.
        labels: class names, in the order of the logits.
        logits: [rows, classes].
    """
    probabilities = logits.double().softmax(dim=1).tolist()
    chosen = logits.argmax(dim=1).tolist()
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


def predict_command(
    run_dir: Path,
    input_file: Path,
    output_file: Path,
    batch_size: int = PREDICT_BATCH_SIZE,
    trust_remote_code: bool = False,
) -> int:
    """Predict every row of a file with the best adapter of a finished run.

    A row's result does not depend on the others: packed or padded, its tokens attend to each other only, and it is
    pooled at one of them.

    Args:
        run_dir: folder of the run, with `run.json` and `adapter/`.
        input_file: CSV, JSON lines, JSON array or Parquet with the run's text column.
        output_file: .csv or .jsonl, replaced whole.
        trust_remote_code: run Python code that comes with the base model; what the run did is no consent.

    Returns:
        How many rows were predicted.

    Raises:
        ConfigError: the run has no adapter, or a file cannot be read or written.
    """
    if output_file.suffix.lower() not in (".csv", ".jsonl", ".ndjson"):
        raise ConfigError(f"--output {output_file}: expected a file ending in .csv or .jsonl")
    if not output_file.parent.is_dir() or not os.access(output_file.parent, os.W_OK):
        raise ConfigError(f"--output {output_file}: {output_file.parent} is no folder that can be written to")
    record = read_run(run_dir)
    if output_file.exists() and output_file.samefile(input_file):
        raise ConfigError(f"--output {output_file}: the same file as --input, which would be lost")
    try:
        config = RunConfig.from_json(record["config"])
        labels: list[str] = record["data"]["labels"]
        precision: str = record["precision"]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"--run {run_dir}: its run.json is not one of this version ({error})") from None
    rows = load_rows("--input", input_file, config.data)
    from lorabench.checkpoint.adapter import find_adapter

    adapter = find_adapter(run_dir)
    if adapter is None:
        raise ConfigError(
            f"--run {run_dir}: no adapter there (status {record.get('status')}; random weights save none)"
        )
    if not os.path.isdir(base_of(adapter)):
        prefer_cache_if_unreachable()
    # As the run evaluated.
    packs = record.get("execution") == "captured"
    logits = _predict(adapter, config, precision, len(labels), rows, batch_size, packs, trust_remote_code)
    write_predictions(output_file, rows.ids, labels, logits)
    return len(rows)


def base_of(adapter: Path) -> str:
    """What PEFT loads the base model of an adapter from: a folder or a Hub id."""
    try:
        return str(
            json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{adapter}: no readable adapter_config.json ({error})") from None


def _predict(
    adapter: Path,
    config: RunConfig,
    precision: str,
    classes: int,
    rows: Rows,
    batch_size: int,
    packs: bool,
    trust_remote_code: bool,
) -> torch.Tensor:
    """Logits of `rows`, [rows, classes]: on the GPU in the run's precision if there is one, else in float32.

    Args:
        packs: on a GPU, pack rows rather than pad them, where the model allows it; the batch size is without effect.
    """
    # Heavy imports, only once the input is known to be good.
    from lorabench.checkpoint.adapter import load_adapter
    from lorabench.data.batching import PaddedCollator, evaluation_batches, tokenize
    from lorabench.data.tokenizer import pad_id
    from lorabench.machine.precision import DTYPES
    from lorabench.models.build import load_trained_classifier
    from lorabench.packed.classifier import PackedClassifier, try_packing
    from lorabench.packed.packs import evaluation_runs, make_pack

    nf4 = config.model.quantize == "nf4"
    if nf4 and find_spec("bitsandbytes") is None:
        raise ConfigError("--run: its base model is held in 4 bits; expected `pip install bitsandbytes` before")
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    compute_dtype = DTYPES[precision] if on_gpu else torch.float32
    frozen_dtype = torch.float32 if config.model.frozen_dtype == "fp32" else compute_dtype
    classifier, tokenizer = load_trained_classifier(
        adapter, classes, device, frozen_dtype, trust_remote_code, quantized_from=DTYPES[precision] if nf4 else None
    )
    # Once more, now into float32: a half-precision base would have rounded the head on the way in.
    load_adapter(classifier.adapted, adapter)
    tokens = tokenize(rows, tokenizer, config.data.max_length, "--input")
    collate = PaddedCollator(tokens, (1.0,) * classes, pad_id(tokenizer))
    logits = torch.empty(len(rows), classes)
    is_half = compute_dtype != torch.float32
    autocast, longest = compute_dtype if is_half else None, max(tokens.lengths)
    packed = try_packing(classifier, autocast, longest) if on_gpu and packs else None
    if isinstance(packed, PackedClassifier):
        with torch.no_grad():
            for run in evaluation_runs(tokens.lengths, 1, 0, packed.longest_pack(longest)):
                logits[run.rows] = packed(make_pack(collate, run.rows).to(device)).cpu()
        return logits
    with torch.no_grad(), torch.autocast(device.type, dtype=compute_dtype, enabled=is_half):
        for micro_batch in evaluation_batches(tokens.lengths, batch_size, world_size=1, rank=0):
            batch = collate(micro_batch).to(device)
            logits[batch.rows] = classifier(batch.input_ids, batch.attention_mask).cpu()
    return logits
