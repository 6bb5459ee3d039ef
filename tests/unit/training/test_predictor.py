"""A row's logits are its own: whatever the batch, the neighbours and the side that is padded, and as the card says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from finished import finished_run
from hypothesis import given, settings
from hypothesis import strategies as st
from reloading import card_code

import lorabench
from lorabench.data.task import Rows, text_rows
from lorabench.errors import RunError
from lorabench.packed.classifier import PackedForward
from lorabench.training import predictor as module
from lorabench.training.prediction import FinishedRun
from lorabench.training.predictor import RowPredictor, compute_dtype, frozen_dtype, load_model, out_of_memory_said

# Very uneven in length, the longest beyond the run's --max-length.
TEXTS = [*tiny.texts(7, seed=5), "storm " * 90, "a"]
FAMILIES = ("bert", "roberta", "distilbert", "llama", "mistral", "qwen2")


@pytest.fixture(
    scope="module", params=[*((name, None) for name in FAMILIES), ("bert", "left"), ("llama", "left")], ids=str
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, side = request.param
    targets = {"lora_targets": "q_lin,v_lin"} if family == "distilbert" else {}
    return finished_run(tmp_path_factory.mktemp(family), family, side, **targets)


@pytest.fixture(scope="module")
def predictor(run: Path) -> RowPredictor:
    return RowPredictor(FinishedRun.read(run))


@pytest.fixture(scope="module")
def alone(predictor: RowPredictor) -> torch.Tensor:
    """Logits of each text by itself."""
    return torch.cat([logits(predictor, [text]) for text in TEXTS])


def logits(predictor: RowPredictor, texts: list[str], batch_size: int = 32) -> torch.Tensor:
    return predictor.logits(text_rows(texts), "the texts", batch_size).logits


@settings(max_examples=12, deadline=None)
@given(order=st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=12), batch_size=st.integers(1, 13))
def test_a_row_does_not_depend_on_its_neighbours(
    predictor: RowPredictor, alone: torch.Tensor, order: list[int], batch_size: int
) -> None:
    found = logits(predictor, [TEXTS[i] for i in order], batch_size)
    torch.testing.assert_close(found, alone[order], rtol=1e-5, atol=1e-5)


def test_the_code_of_the_card_gives_the_same_probabilities(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = card_code(run)
    monkeypatch.chdir(run / "adapter")
    scope: dict[str, Any] = {}
    with torch.no_grad():
        exec(code, scope)
    predictions = lorabench.Predictor(run).predict(scope["texts"])
    found = [list(prediction.probabilities.values()) for prediction in predictions]
    torch.testing.assert_close(torch.tensor(found), scope["probabilities"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_packs_of_several_calls_give_the_logits_of_padded_rows(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of texts that grow from call to call, for which packs are prepared anew, and nothing of the old is left."""
    run = FinishedRun.read(finished_run(tmp_path, family))
    padded, packed = RowPredictor(run), RowPredictor(run)
    monkeypatch.setattr(packed, "_packs", True)
    hooks: list[int] = []
    for texts in (["storm", "rain"], TEXTS[:7], TEXTS, ["a"]):
        torch.testing.assert_close(logits(packed, texts), logits(padded, texts), rtol=1e-4, atol=1e-4)
        hooks.append(sum(len(module._forward_hooks) for module in packed._classifier.modules()))
    assert isinstance(packed._forward, PackedForward)
    assert len(set(hooks)) == 1


def rows() -> Rows:
    return text_rows(["storm", "rain and wind"])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> RowPredictor:
    """Of a family that stands for all."""
    return RowPredictor(FinishedRun.read(finished_run(tmp_path_factory.mktemp("one"))))


def failing(error: Exception) -> Any:
    def fail(*arguments: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "expected a GPU with more free memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "expected more"),
        (MemoryError(), "expected more memory"),
    ],
)
def test_a_row_that_does_not_fit_alone_is_one_message(
    one: RowPredictor, monkeypatch: pytest.MonkeyPatch, error: Exception, advice: str
) -> None:
    monkeypatch.setattr("lorabench.step.evaluation.PaddedForward.logits", failing(error))
    with pytest.raises(RunError, match=f"out of memory: not even one row of --input a.csv fits.*{advice}"):
        one.logits(rows(), "--input a.csv")


def test_a_model_that_does_not_fit_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FinishedRun.read(finished_run(tmp_path))
    monkeypatch.setattr("lorabench.training.predictor.load_model", failing(torch.OutOfMemoryError("no memory")))
    with pytest.raises(RunError, match="out of memory: the model does not fit"):
        RowPredictor(run)


def test_other_errors_stay_what_they_are(one: RowPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabench.step.evaluation.PaddedForward.logits", failing(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        one.logits(rows(), "--input a.csv")


def test_logits_that_are_no_numbers_are_refused(one: RowPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = torch.tensor([[0.0, 1.0], [float("nan"), 0.0]])
    monkeypatch.setattr("lorabench.training.predictor.predict_logits", lambda *arguments, **keywords: broken)
    with pytest.raises(RunError, match=r"--input a.csv: the model's logits of 1 row \(id 1\) are no finite numbers"):
        one.logits(rows(), "--input a.csv")


def test_every_row_is_reported_once_also_where_batches_are_halved(
    one: RowPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorabench.step.evaluation import PaddedForward

    whole = PaddedForward.logits

    def small(self: PaddedForward, data: Any, micro_batch: Any) -> torch.Tensor:
        if micro_batch.real > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, data, micro_batch)

    monkeypatch.setattr(PaddedForward, "logits", small)
    reported: list[int] = []
    found = one.logits(text_rows(TEXTS), "the texts", 9, reported.append)
    assert sum(reported) == len(TEXTS) == len(found.logits) and max(reported) == 2
    assert found.cut_rows == 1


# --- what is loaded


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """How base models and adapters were asked for; none is loaded, and the Hub is in reach."""
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(module, "load_adapted", lambda *values, **how: asked.append((values, how)) or ("a", "t"))
    monkeypatch.setattr(module, "prefer_cache_if_unreachable", lambda: asked.append((("cache",), {})))
    return asked


def finished(adapter: Path, quantize: str = "none", precision: str = "bf16", frozen: str = "auto") -> Any:
    model = SimpleNamespace(quantize=quantize, frozen_dtype=frozen)
    return SimpleNamespace(
        find_adapter=lambda: adapter, config=SimpleNamespace(model=model), labels=("a", "b"), precision=precision
    )


@pytest.mark.parametrize("consent", [True, False])
@pytest.mark.parametrize(
    ("quantize", "frozen", "gpu", "dtype"),
    [
        ("none", "auto", True, torch.bfloat16),
        ("none", "fp32", True, torch.float32),
        ("none", "auto", False, torch.float32),
        ("nf4", "auto", True, torch.bfloat16),
        ("nf4", "auto", False, torch.float32),
    ],
)
def test_a_model_is_loaded_as_its_run_had_it(
    quantize: str, frozen: str, gpu: bool, dtype: torch.dtype, consent: bool, loaded: list[Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    places = {"here": str(tmp_path), "owner/name": "owner/name"}
    monkeypatch.setattr(module, "local_source", lambda base, revision: places[base])
    run, device = finished(tmp_path, quantize, frozen=frozen), torch.device("cuda" if gpu else "cpu")
    how = {"quantized_from": torch.bfloat16 if quantize == "nf4" else None}
    expected = ((tmp_path, ("a", "b"), device, dtype, consent), how)
    for base, first in (("here", []), ("owner/name", [(("cache",), {})])):
        monkeypatch.setattr(module, "base_of", lambda adapter, base=base: (base, "a1"))
        loaded.clear()
        assert load_model(run, consent) == ("a", "t")
        assert loaded == [*first, expected]
    assert compute_dtype(run) == (torch.bfloat16 if gpu else torch.float32) and frozen_dtype(run) == dtype


def test_code_of_a_model_is_run_only_by_consent(loaded: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "base_of", lambda adapter: ("here", None))
    run = finished(Path("adapter"))
    load_model(run)
    assert loaded[-1][0][-1] is False
    asked: list[Any] = []

    def refuse(*values: Any) -> Any:
        asked.append(values)
        raise RuntimeError("out of memory, or so")

    monkeypatch.setattr(module, "load_model", refuse)
    for words, consent in (((), False), ((True,), True)):
        with pytest.raises(RuntimeError):
            RowPredictor(run, *words)
        assert asked.pop() == (run, consent)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (MemoryError(), "more memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), "more memory"),
        (
            RuntimeError("CUDA error: out of memory"),
            "a GPU with more free memory, or CUDA_VISIBLE_DEVICES= for the CPU",
        ),
    ],
)
def test_a_lack_of_memory_says_what_would_help(error: Exception, advice: str) -> None:
    with pytest.raises(RunError) as caught, out_of_memory_said("it does not fit"):
        raise error
    assert str(caught.value) == f"out of memory: it does not fit; expected {advice}"


def test_how_a_row_is_computed_is_chosen_anew_only_for_longer_texts_or_other_types(
    one: RowPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[Any] = []
    monkeypatch.setattr(module, "choose_forward", lambda *values: chosen.append(values[3:]) or object())
    monkeypatch.setattr(one, "_forward", None)
    for longest, types in ((8, False), (8, False), (7, False), (9, False), (9, True), (9, False)):
        one._forward_for(longest, types)
    assert chosen == [(8, False, False), (9, False, False), (9, False, True), (9, False, False)]
