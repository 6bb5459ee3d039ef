"""Finished runs of tiny models, for what comes after training."""

from pathlib import Path

import tiny
from transformers import AutoTokenizer


def finished_run(base: Path, model_type: str = "bert", padding_side: str | None = None, **flags: object) -> Path:
    """The folder of a run of one step on 24 rows.

    Args:
        base: takes all files.
        padding_side: what the model's own tokenizer says.
        flags: beside, or in the place of, the usual ones.
    """
    model = tiny.save_tiny(base / f"tiny-{model_type}", model_type)
    if padding_side is not None:
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.padding_side = padding_side
        tokenizer.save_pretrained(model)
    train = flags.pop("train_file", None) or tiny.write_rows(base / "train.csv", 24)
    validation = flags.pop("validation_file", None) or tiny.write_rows(base / "validation.csv", 9, seed=1)
    words = tiny.run_flags(model, Path(str(train)), Path(str(validation)), base / "run", **{"max_steps": 1, **flags})
    assert tiny.train_in_process(words) == 0
    return base / "run"
