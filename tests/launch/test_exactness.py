"""Loss, gradients, clipping and evaluation are those of one big batch, for any split over micro-batches and ranks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exactness
import forking
import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score
from torch import nn

from lorabench.distributed.setting import enter_launch
from lorabench.training.assembly import prepare_inputs

MODELS = ("tiny-llama", "tiny-bert")
Results = dict[tuple[Any, ...], Any]


@pytest.fixture(scope="module")
def folders(models: dict[str, Path]) -> list[str]:
    return [str(models["llama"]), str(models["bert"])]


@pytest.fixture(scope="module")
def results(folders: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Results]]:
    """All cases on 1 (in this process), 2 and 3 ranks."""
    out = tmp_path_factory.mktemp("exactness")
    AcceleratorState._reset_state(reset_partial_state=True)
    collected = {1: exactness.run_cases(folders)}
    for ranks in (2, 3):
        file = out / f"{ranks}.pt"
        ended = forking.run(exactness.write_cases, [str(file), folders], ranks)
        assert ended.code == 0, ended
        collected[ranks] = torch.load(file)
    yield collected
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def references(folders: list[str], results: dict[int, Results]) -> dict[str, Any]:
    """The same classifiers through transformers' own forward pass, and their tokenized rows."""
    found = {}
    for folder in folders:
        config = exactness.make_config(folder, 1.0)
        setting = enter_launch(config, exactness.make_data(37, 29))
        inputs = prepare_inputs(setting)
        found[Path(folder).name] = (exactness.make_classifier(setting, inputs).classifier, inputs)
    return found


def big_batch(classifier: Any, inputs: Any, data: Any, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and flat gradient of `rows` as one batch, by `torch.nn.CrossEntropyLoss(weight=...)`."""
    ids = [torch.tensor(inputs.tokenizer(data.train.texts[row]).input_ids) for row in rows]
    padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=inputs.tokenizer.pad_token_id)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    classifier.train().zero_grad()
    logits = classifier.adapted(input_ids=padded, attention_mask=mask).logits
    labels = torch.tensor([data.train.labels[row] for row in rows])
    loss = nn.CrossEntropyLoss(weight=torch.tensor(exactness.WEIGHTS))(logits, labels)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in classifier.parameters() if p.requires_grad])


def assert_close(found: torch.Tensor, expected: torch.Tensor, relative: float = 1e-5) -> None:
    """Relative to the size of the whole vector: single entries may cancel to nothing."""
    assert found.shape == expected.shape
    assert (found - expected).norm() <= relative * expected.norm(), (found - expected).norm() / expected.norm()


def test_the_worker_ran_on_as_many_ranks_as_it_says(results: dict[int, Results]) -> None:
    assert {ranks: found["world_size",] for ranks, found in results.items()} == {1: 1, 2: 2, 3: 3}


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("count", exactness.TRAINING_ROWS)
@pytest.mark.parametrize("name", MODELS)
def test_loss_gradient_norm_and_clipping_equal_one_big_torch_batch(
    name: str, count: int, ranks: int, results: dict[int, Results], references: dict[str, Any]
) -> None:
    classifier, inputs = references[name]
    data = exactness.make_data(count, 11)
    for layout in exactness.LAYOUTS[ranks]:
        for max_grad_norm in exactness.MAX_GRAD_NORMS:
            case = results[ranks]["train", name, count, layout, max_grad_norm]
            assert sorted(row for rows in case["rows"] for row in rows) == list(range(count))
            for step, rows in enumerate(case["rows"]):
                loss, gradient = big_batch(classifier, inputs, data, rows)
                norm = gradient.norm().item()
                assert norm > 0.1
                assert case["loss"][step] == pytest.approx(loss.item(), rel=1e-5)
                assert case["norm"][step] == pytest.approx(norm, rel=1e-5)
                assert_close(case["whole"][step], gradient)
                factor = min(1.0, max_grad_norm / (norm + 1e-6))
                assert (factor < 1) == (max_grad_norm < 1)
                assert_close(case["clipped"][step], gradient * factor)


@pytest.mark.parametrize("count", exactness.TRAINING_ROWS)
@pytest.mark.parametrize("name", MODELS)
def test_every_split_of_sixteen_rows_gives_the_same_step(name: str, count: int, results: dict[int, Results]) -> None:
    for max_grad_norm in exactness.MAX_GRAD_NORMS:
        first = results[1]["train", name, count, (16, 1), max_grad_norm]
        assert [len(rows) for rows in first["rows"]] == {32: [16, 16], 37: [16, 16, 5], 33: [16, 16, 1]}[count]
        for ranks, layout in [(1, (4, 4)), (1, (1, 16)), (2, (2, 4)), (2, (8, 1)), (2, (1, 8))]:
            other = results[ranks]["train", name, count, layout, max_grad_norm]
            assert [set(rows) for rows in other["rows"]] == [set(rows) for rows in first["rows"]]
            assert other["loss"] == pytest.approx(first["loss"], rel=1e-5)
            assert other["norm"] == pytest.approx(first["norm"], rel=1e-5)
            for part in ("whole", "clipped"):
                for found, expected in zip(other[part], first[part], strict=True):
                    assert_close(found, expected)


@pytest.mark.parametrize("name", MODELS)
def test_three_ranks_give_the_step_of_one(name: str, results: dict[int, Results]) -> None:
    for count in exactness.TRAINING_ROWS:
        for layout in exactness.LAYOUTS[3]:
            one = results[1]["train", name, count, (18, 1), 1e4]
            three = results[3]["train", name, count, layout, 1e4]
            assert three["loss"] == pytest.approx(one["loss"], rel=1e-5)
            for found, expected in zip(three["whole"], one["whole"], strict=True):
                assert_close(found, expected)


@pytest.mark.parametrize("name", MODELS)
def test_the_mean_of_the_micro_batches_own_weighted_means_would_be_another_loss(
    name: str, references: dict[str, Any], results: dict[int, Results]
) -> None:
    """The tests above can tell the difference."""
    classifier, inputs = references[name]
    data = exactness.make_data(37, 11)
    rows = results[1]["train", name, 37, (16, 1), 1e4]["rows"][0]
    whole, _ = big_batch(classifier, inputs, data, rows)
    parts = [big_batch(classifier, inputs, data, rows[i : i + 2])[0] for i in range(0, 16, 2)]
    assert abs(torch.stack(parts).mean() - whole) > 1e-3 * whole


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("count", exactness.EVALUATION_ROWS)
@pytest.mark.parametrize("name", MODELS)
def test_every_row_is_evaluated_once_with_the_logits_of_a_batch_of_one(
    name: str, count: int, ranks: int, results: dict[int, Results], references: dict[str, Any]
) -> None:
    classifier, inputs = references[name]
    data = exactness.make_data(32, count)
    classifier.eval()
    with torch.no_grad():
        alone = [
            classifier.adapted(input_ids=torch.tensor([inputs.tokenizer(text).input_ids])).logits[0]
            for text in data.validation.texts
        ]
    expected = torch.stack(alone)
    labels = torch.tensor(data.validation.labels)
    loss = nn.CrossEntropyLoss(weight=torch.tensor(exactness.WEIGHTS))(expected, labels).item()
    chosen = expected.argmax(1).numpy()
    assert 0 < chosen.sum() < count
    for batch_size in exactness.EVALUATION_BATCHES:
        case = results[ranks]["eval", name, count, batch_size]
        torch.testing.assert_close(case["logits"], expected, rtol=1e-5, atol=1e-5)
        scores = case["scores"]
        assert scores["rows"] == count
        assert scores["f1"] == pytest.approx(f1_score(labels, chosen), abs=1e-12)
        assert scores["precision"] == pytest.approx(precision_score(labels, chosen), abs=1e-12)
        assert scores["recall"] == pytest.approx(recall_score(labels, chosen), abs=1e-12)
        assert scores["accuracy"] == pytest.approx(accuracy_score(labels, chosen), abs=1e-12)
        assert scores["loss"] == pytest.approx(loss, rel=1e-5)


def test_class_weights_of_the_cases_are_unequal_and_rows_uneven() -> None:
    data = exactness.make_data(37, 11)
    assert exactness.WEIGHTS[1] == 4 * exactness.WEIGHTS[0]
    assert set(data.train.labels or []) == {0, 1}
    assert len({len(text) for text in tiny.texts(37, 1)}) > 15
