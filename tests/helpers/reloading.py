"""Adapters by the code of their own model card, in a fresh process that knows PEFT and nothing of this package.

As a program, that process: `reloading.py JOBS.json RESULTS.json`.
"""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def reload_adapters(runs: Mapping[str, Path], texts: Sequence[str], base: Path) -> dict[str, dict[str, Any]]:
    """What a reader of the cards gets, for all runs in one process.

    Args:
        runs: folders of finished runs, by name.
        base: takes the files of the exchange.

    Returns:
        By name: `logits` [texts, labels], the `pad` token id, and the `last` real token of each text.
    """
    from launching import explain, python, read_json

    jobs = []
    for name, run in runs.items():
        jobs.append((name, str(run / "adapter"), card_code(run), list(texts)))
    asked, answered = base / "reload.json", base / "reloaded.json"
    asked.write_text(json.dumps(jobs))
    fresh = {"PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    result = python([Path(__file__), asked, answered], base, fresh)
    assert result.returncode == 0, explain(result)
    return read_json(answered)


def card_code(run: Path) -> str:
    """How the model card of a finished run loads the adapter."""
    code, _merge = re.findall(r"```python\n(.*?)```", (run / "adapter" / "README.md").read_text(), re.DOTALL)
    return code


def run_card(folder: str, code: str, texts: list[str]) -> dict[str, Any]:
    """The card's code in its folder, then a forward pass over padded rows."""
    import torch

    os.chdir(folder)
    scope: dict[str, Any] = {}
    exec(code, scope)
    model, tokenizer = scope["model"].eval(), scope["tokenizer"]
    tokenizer.padding_side = "right"
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
    last = [[token for token, real in zip(ids, mask, strict=True) if real][-1] for ids, mask in rows]
    return {"logits": logits.float().tolist(), "pad": tokenizer.pad_token_id, "last": last}


def main() -> None:
    asked, answered = sys.argv[1:]
    with open(asked) as file:
        jobs = json.load(file)
    results = {name: run_card(folder, code, texts) for name, folder, code, texts in jobs}
    with open(answered, "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
