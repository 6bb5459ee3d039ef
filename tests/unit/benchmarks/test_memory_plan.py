"""What the benchmark of plans makes of its rows."""

import dataclasses
import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.memory_plan import (
    EXECUTIONS,
    KINDS,
    LARGEST_BATCH,
    LIMITS,
    Combination,
    combinations,
    largest,
    main,
    read_rows,
    summarise,
)
from lorabench.catalog.gpus import gpu_of
from lorabench.config.command_line import parse_run_config
from lorabench.errors import EXIT_BAD_INPUT


def row(key: str, error: float, status: str = "measured", **others: object) -> dict[str, object]:
    errors = dict.fromkeys(("eval", "train", "peak"), error) if status == "measured" else {}
    known = {"recompute": "off", "recomputes": False, "planned": {"verdict": "fits", "recomputed_blocks": 0}}
    return {"key": key, "status": status, "error": errors, **known, **others}


def test_there_are_more_combinations_than_asked_for_and_all_are_runs() -> None:
    found = [item for kind in KINDS for execution in EXECUTIONS for item in combinations(*kind, execution)]
    assert len({item.key for item in found}) == len(found) > 60
    for item in (*found[:3], *found[-3:]):
        config = parse_run_config([word for word in item.flags() if word not in ("--quantize", "nf4", "none")])
        assert config.optim.batch_size == item.batch
    assert sum(item.limit_gb is not None for item in found) == sum(map(len, LIMITS.values()))


def test_the_summary_has_median_nine_in_ten_and_maximum_and_false_promises() -> None:
    rows = [row(f"r{i}", sign * i / 100) for i, sign in zip(range(11), (1, -1) * 6, strict=False)]
    said = summarise([*rows, row("gone", 0, "oom"), row("odd", 0, "ValueError: no")])
    assert "peak: 11 combinations, error median 5.0%, 9 in 10 at most 9.0%, largest 10.0% (r10)" in said
    assert "said to fit, and failed: gone; 1 with another error" in said
    unplanned = row("more", 0.0, recompute="auto", recomputes=True)
    assert "said to fit, and failed: more;" in summarise([unplanned])


@given(st.integers(0, LARGEST_BATCH))
def test_the_largest_batch_that_fits_is_found_to_within_a_tenth(most: int) -> None:
    kind = Combination("llama3-8b", "bf16", "eager", "tweets", 1, "auto", 18.0)
    found = largest(kind, lambda item: item.batch <= most)
    assert (found is None) is (most == 0)
    if found is not None:
        assert found.batch <= most <= found.batch + max(1, found.batch // 10)


def test_the_largest_batches_are_counted_apart() -> None:
    filled = [
        row(f"{name} largest", 0.0, limit_gb=20.0, measured={"peak": peak})
        for name, peak in (("a", 18.0), ("e", 19.0), ("f", 19.5))
    ]
    rows = [*filled, row("b largest", 0, "oom"), row("c largest", 0, "planned"), row("d", 0.0)]
    said = summarise(rows)
    assert "largest batches said to fit: 3 of 4 did, not b largest" in said
    assert "of their limits these took 90% to 98%, 95% in the median" in said
    assert "largest batches said to fit: 1 of 1 did\n" in summarise([filled[0], rows[-1]])
    assert "largest" not in summarise([rows[-2]])


def test_the_largest_batches_wait_until_they_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the kinds that are asked for: eager steps first, since captured ones lay weights out anew."""
    path = tmp_path / "rows.jsonl"
    monkeypatch.setattr("benchmarks.memory_plan.FILLED_UP", {("tiny", "bf16"): (2.0,), ("tiny", "nf4"): (1.0, 3.0)})
    monkeypatch.setattr("benchmarks.memory_plan.ProcessPoolExecutor", scripted_pool)
    monkeypatch.setattr("benchmarks.memory_plan.largest_that_fits", fit_three_per_gb)
    assert main(["--output", str(path), "--largest", "--models", "tiny:nf4", "--workers", "3"]) == 0
    waiting = read_rows(path)
    assert [(item["execution"], item["limit_gb"], item["batch"]) for item in waiting] == [
        ("eager", 3.0, 9), ("captured", 3.0, 9),
    ]  # fmt: skip
    assert {item["status"] for item in waiting} == {"planned"}
    before = path.read_bytes()
    assert main(["--output", str(path), "--summary"]) == main(["--output", str(path), "--replan"]) == 0
    assert path.read_bytes() == before
    assert main(["--output", str(path), "--largest", "--models", "tiny"]) == 0
    assert len(read_rows(path)) == 2 + 4


def fit_three_per_gb(kind: Combination) -> Combination | None:
    assert kind.limit_gb is not None
    return None if kind.limit_gb < 2 else dataclasses.replace(kind, batch=int(3 * kind.limit_gb))


def scripted_pool(workers: int, mp_context: object) -> object:
    """As the real one, which starts processes, but in this one."""
    return nullcontext(SimpleNamespace(map=map))


def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row("one", 0.02)) + "\n", encoding="utf-8")
    assert main(["--output", str(path), "--summary"]) == 0
    assert "error median 2.0%" in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert main(["--output", str(path)]) == EXIT_BAD_INPUT
        assert "there is no CUDA GPU" in capsys.readouterr().err


def test_what_was_measured_is_planned_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    item = Combination("roberta-large", "bf16", "eager", "tweets", 8, "off")
    measured = dict.fromkeys(("eval", "train", "peak"), 1.5)
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps(row(item.key, 0.0) | asdict(item) | {"measured": measured, "gpu": asdict(gpu_of("H100"))}) + "\n",
        encoding="utf-8",
    )
    assert main(["--output", str(path), "--replan"]) == 0
    (again,) = read_rows(path)
    assert again["planned"]["train"]["expected_gb"] == 1.5 * (1 + again["error"]["train"])
    assert f"{item.key}: eval" in capsys.readouterr().out
