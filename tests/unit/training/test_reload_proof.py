"""At the end the best adapter is back, and proved: the file's tensors bit by bit, and then its logits."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import tiny
import torch
from toys import CPU, OneRank
from transformers import AutoConfig

from lorabench.checkpoint import adapter
from lorabench.checkpoint.adapter import adapter_state
from lorabench.config.run_config import ModelConfig, OptimConfig, RunConfig
from lorabench.data.batching import PaddedCollator, TokenizedRows
from lorabench.distributed.data_parallel import DataParallel
from lorabench.errors import RunError
from lorabench.files import file_hash
from lorabench.models.classifier import SequenceClassifier
from lorabench.models.footprint import WeightCount
from lorabench.step.evaluation import PaddedForward, predict_logits
from lorabench.training.best import CALLED_BYTES, RELOAD_TOLERANCE, BestAdapter

ROWS = 11
BATCH = 2
RECORD = {"epoch": 1.0, "rows": ROWS, "loss": 0.5}


class Alone(OneRank):
    """One process, which does what the first rank does."""

    def on_main(self, action: Any) -> Any:
        return action()


class Run:
    """A tiny model with its validation rows, and what keeps its best adapter."""

    def __init__(
        self, folder: Path, precision: str = "fp32", shape_only: bool = False, weights: int = CALLED_BYTES // 4 + 1
    ) -> None:
        """`weights` are as many as the card's call is made for, at most; by default it is not."""
        self.folder = folder / "run"
        self.classifier: SequenceClassifier = tiny.build_tiny(tiny.save_tiny(folder / "model", "bert")).eval()
        ids = [[3 + (5 * i + 7 * j) % 300 for j in range(1 + i % 7)] for i in range(ROWS)]
        self.data = PaddedCollator(TokenizedRows(ids, [i % 2 for i in range(ROWS)], 0), (1.0, 1.0), 0)
        config = RunConfig(model=ModelConfig(model=str(folder / "model")), optim=OptimConfig(eval_batch_size=BATCH))
        launch: Any = SimpleNamespace(num_processes=1)
        rows = SimpleNamespace(ids=[f"row-{i}" for i in range(ROWS)], labels=[i % 2 for i in range(ROWS)])
        self.ranks = Alone()
        setting = SimpleNamespace(
            config=config, ranks=self.ranks, strategy=DataParallel(launch), precision=precision, may_halve=True,
            shape_only=shape_only, data=SimpleNamespace(labels=("no", "yes"), validation=rows),
        )  # fmt: skip
        execution = SimpleNamespace(forward=PaddedForward(self.classifier, CPU), name="eager")
        built = SimpleNamespace(classifier=self.classifier, execution=execution)
        inputs = SimpleNamespace(
            collators={"validation": self.data}, tokenizer=tiny.tiny_tokenizer("bert"),
            weights=WeightCount(weights, linear=0), saved_config=AutoConfig.from_pretrained(folder / "model"),
        )  # fmt: skip
        self.execution = execution
        self.best = BestAdapter(cast(Any, setting), cast(Any, inputs), cast(Any, built), self.folder)

    def logits(self) -> torch.Tensor:
        return predict_logits(PaddedForward(self.classifier, CPU), self.data, BATCH, cast(Any, self.ranks))

    def keep(self) -> torch.Tensor:
        """Train a little, in a way, and keep what came of it."""
        tiny.stir_adapter(self.classifier, seed=4)
        logits = self.logits()
        self.best.save(RECORD, logits)
        return logits

    def go_on(self) -> None:
        """Change the adapter once more."""
        tiny.stir_adapter(self.classifier, seed=5)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(BestAdapter, "_card", lambda self, record: f"the card of epoch {record['epoch']}")
    return Run(tmp_path)


def restored(best: BestAdapter) -> float | None:
    """The difference that the record gives of a restored adapter, once its hash is that of the file."""
    found = best.restore()
    weights = best._folder / "adapter" / "adapter_model.safetensors"
    assert found is not None and found["folder"] == "adapter" and found["sha256"] == file_hash(weights)
    difference = found["reload_difference"]
    assert not isinstance(difference, str)
    return difference


def test_the_best_adapter_is_put_back_and_the_record_says_how_well(run: Run) -> None:
    kept = run.keep()
    state = adapter_state(run.classifier.adapted)
    run.go_on()
    assert (run.logits() - kept).abs().max() > 1e-2
    assert restored(run.best) == 0.0
    assert torch.equal(run.logits(), kept)
    assert all(torch.equal(value, state[name]) for name, value in adapter_state(run.classifier.adapted).items())
    assert (run.folder / "adapter" / "README.md").read_text() == "the card of epoch 1.0"


def predicted(folder: Path) -> list[dict[str, str]]:
    with (folder / "validation_predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_what_the_best_adapter_says_of_the_validation_rows_stands_beside_it(run: Run, tmp_path: Path) -> None:
    logits = run.keep()
    rows = predicted(run.folder)
    assert [row["id"] for row in rows] == [f"row-{i}" for i in range(ROWS)]
    assert [row["true_label"] for row in rows] == [("no", "yes")[i % 2] for i in range(ROWS)]
    assert [row["label"] for row in rows] == [("no", "yes")[i] for i in logits.argmax(dim=1).tolist()]
    chances = torch.tensor([[float(row["probability_no"]), float(row["probability_yes"])] for row in rows])
    assert torch.allclose(chances, logits.softmax(dim=1))
    # A run that goes on writes it anew: what it had found after its checkpoint may not come again.
    other = Run(tmp_path / "other")
    other.best.load_state(run.best.state(), RECORD)
    assert predicted(other.folder) == rows


def test_an_adapter_that_gives_other_logits_is_refused(run: Run) -> None:
    run.keep()
    run.go_on()
    head: Any = run.classifier.adapted.get_base_model()
    # Something that the adapter's file does not hold has changed since.
    head.bert.embeddings.word_embeddings.weight.data.mul_(1.05)
    with pytest.raises(RunError, match=r"the reloaded adapter's logits differ by \d.*, more than 0.0001"):
        run.best.restore()


@pytest.mark.parametrize(("part", "refused"), [(0.5, False), (2.0, True)])
@pytest.mark.parametrize("precision", RELOAD_TOLERANCE)
def test_the_difference_that_kernels_may_make_is_that_of_the_precision(
    part: float, refused: bool, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BestAdapter, "_card", lambda self, record: f"the card of epoch {record['epoch']}")
    run = Run(tmp_path, precision)
    tiny.stir_adapter(run.classifier, seed=4)
    logits = run.logits()
    longest = max(range(ROWS), key=lambda row: len(run.data.data.input_ids[row]))
    off = part * RELOAD_TOLERANCE[precision]
    logits[longest, 1] += off
    run.best.save(RECORD, logits)
    if refused:
        with pytest.raises(RunError, match="logits differ by"):
            run.best.restore()
    else:
        found = run.best.restore()
        assert found is not None and found["reload_difference"] == pytest.approx(off, rel=1e-2)


def test_logits_that_are_not_numbers_are_no_proof(run: Run) -> None:
    tiny.stir_adapter(run.classifier, seed=4)
    run.best.save(RECORD, torch.full((ROWS, 2), torch.nan))
    with pytest.raises(RunError, match="logits differ by nan"):
        run.best.restore()


def test_a_file_that_was_changed_is_found(run: Run) -> None:
    run.keep()
    path = run.folder / "adapter" / "adapter_model.safetensors"
    held = bytearray(path.read_bytes())
    held[-3] ^= 1
    path.write_bytes(held)
    with pytest.raises(RunError, match="1 tensors differ from the trained ones"):
        run.best.restore()


# --- the card's call


@pytest.fixture
def small_run(run: Run, tmp_path: Path) -> Run:
    """A run of a model that is small enough for the call to be made."""
    return Run(tmp_path / "small", weights=CALLED_BYTES // 4)


def test_the_call_of_the_card_gives_what_was_trained(small_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    small_run.keep()
    calls: list[Path] = []
    call = adapter.load_with_peft
    monkeypatch.setattr(
        adapter, "load_with_peft", lambda folder, *more: (calls.append(folder), call(folder, *more))[1]
    )
    assert restored(small_run.best) == 0.0
    assert calls == [small_run.folder / "adapter"]


def test_no_second_copy_of_a_large_model_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "load_with_peft", None)
    run.keep()
    assert run.best.restore() is not None


def test_a_base_model_that_has_changed_gives_other_logits_by_the_call(small_run: Run, tmp_path: Path) -> None:
    small_run.keep()
    tiny.save_tiny(tmp_path / "small" / "model", "bert", seed=7)
    with pytest.raises(RunError, match=r"adapter: the call that its card shows gives logits that differ by \d"):
        small_run.best.restore()


def test_a_call_that_gives_another_adapter_is_found(small_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    small_run.keep()
    call = adapter.load_with_peft

    def moved(folder: Path, arguments: dict[str, Any]) -> Any:
        reloaded = call(folder, arguments)
        tiny.stir_adapter(cast(Any, reloaded), seed=5)
        return reloaded

    monkeypatch.setattr(adapter, "load_with_peft", moved)
    with pytest.raises(RunError, match=r"the call that its card shows gives \d+ other tensors \("):
        small_run.best.restore()


def test_a_call_that_fails_is_one_sentence(small_run: Run, tmp_path: Path) -> None:
    small_run.keep()
    (tmp_path / "small" / "model" / "config.json").unlink()
    with pytest.raises(RunError, match=r"the call that its card shows fails \(") as caught:
        small_run.best.restore()
    assert "\n" not in str(caught.value)


def test_only_the_longest_rows_are_computed_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.keep()
    seen: list[int] = []
    forward = run.execution.forward
    logits = forward.logits

    def counted(data: PaddedCollator, micro_batch: Any) -> torch.Tensor:
        seen.extend(len(data.data.input_ids[row]) for row in micro_batch.rows)
        return logits(data, micro_batch)

    monkeypatch.setattr(forward, "logits", counted)
    run.best.restore()
    assert seen == [7, 6, 5, 4]


def test_nothing_was_kept_nothing_is_put_back(run: Run, tmp_path: Path) -> None:
    assert run.best.restore() is None
    assert run.best.state() is None
    random = Run(tmp_path / "random", shape_only=True)
    random.keep()
    assert random.best.restore() is None
    assert not random.folder.exists()


def test_a_run_that_goes_on_has_the_best_adapter_of_before(run: Run, tmp_path: Path) -> None:
    kept = run.keep()
    state = run.best.state()
    other = Run(tmp_path / "other")
    other.best.load_state(state, RECORD)
    assert (other.folder / "adapter" / "adapter_model.safetensors").is_file()
    assert (other.folder / "adapter" / "README.md").read_text() == "the card of epoch 1.0"
    assert restored(other.best) == 0.0
    assert torch.equal(other.logits(), kept)


def test_logits_of_other_batches_are_not_compared(run: Run, tmp_path: Path) -> None:
    run.keep()
    state = run.best.state()
    assert state is not None
    other = Run(tmp_path / "other")
    other.execution.name = "captured"
    other.best.load_state(state, RECORD)
    assert restored(other.best) is None


@pytest.mark.parametrize(("missing", "record"), [(True, RECORD), (False, None)])
def test_a_savepoint_from_before_the_first_evaluation_has_none(
    missing: bool, record: dict[str, Any] | None, run: Run, tmp_path: Path
) -> None:
    run.keep()
    other = Run(tmp_path / "other")
    other.best.load_state(None if missing else run.best.state(), record)
    assert other.best.restore() is None


@pytest.mark.parametrize(("step", "skipped", "checked"), [(3, 0, True), (2, 0, False), (5, 2, True), (5, 3, False)])
def test_after_three_updates_every_tensor_must_have_moved(step: int, skipped: int, checked: bool, run: Run) -> None:
    progress: Any = SimpleNamespace(step=step, skipped_steps=skipped)
    run.go_on()  # A and the head stay
    if checked:
        with pytest.raises(RunError, match=r"6 trainable tensors did not change in training \(.*, ...\)"):
            run.best.check_movement(progress)
    else:
        run.best.check_movement(progress)
    for parameter in run.classifier.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1)
    run.best.check_movement(progress)
