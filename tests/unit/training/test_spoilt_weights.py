"""A model whose weights hold no numbers is refused before its first step, by their names, and leaves no folder."""

from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from scripted import Recorder, make_job, run

from lorabench.distributed.training_state import non_finite
from lorabench.errors import RunError

NAME = "encoder.layer.1.output.dense.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save_tiny(tmp_path / "model", "bert")


def spoil(model: Path) -> None:
    state = load_file(model / "model.safetensors")
    state[NAME][3, 5] = float("nan")
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})


def test_spoilt_weights_are_named_and_the_mended_command_works(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (model / "model.safetensors").read_bytes()
    train, validation = tiny.write_rows(tmp_path / "train.csv", 12), tiny.write_rows(tmp_path / "validation.csv", 5)
    words = tiny.run_flags(model, train, validation, tmp_path / "runs" / "first", max_steps=1)
    spoil(model)
    assert tiny.train_in_process(words) == 2
    said = capsys.readouterr().err
    assert f"--model {model}: NaN or infinite values in 1 tensor (bert.{NAME}); expected a whole" in said
    assert not (tmp_path / "runs").exists()
    (model / "model.safetensors").write_bytes(whole)
    assert tiny.train_in_process(words) == 0


def test_weights_that_are_all_zero_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(model / "model.safetensors")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    train, validation = tiny.write_rows(tmp_path / "train.csv", 12), tiny.write_rows(tmp_path / "validation.csv", 5)
    words = tiny.run_flags(model, train, validation, tmp_path / "run", max_steps=1)
    save_file(zeros, model / "model.safetensors", metadata={"format": "pt"})
    assert tiny.train_in_process(words) == 2
    assert f"--model {model}: all weights of its checkpoint are zero; expected a whole" in capsys.readouterr().err
    name = "encoder.layer.1.output.dense.weight"
    save_file(zeros | {name: state[name]}, model / "model.safetensors", metadata={"format": "pt"})
    assert tiny.train_in_process(words) == 0


def test_names_are_those_of_the_checkpoint(model: Path) -> None:
    classifier = tiny.build_tiny(model)
    assert non_finite(classifier) == []
    parameters = dict(classifier.named_parameters())
    for part in ("layer.0.attention.self.query.base_layer.weight", "modules_to_save.default.bias"):
        name = next(name for name in parameters if name.endswith(part))
        parameters[name].data.view(-1)[0] = float("inf")
    assert non_finite(classifier) == ["bert.encoder.layer.0.attention.self.query.weight", "classifier.bias"]


def test_codes_of_quantised_weights_are_no_numbers_to_look_at() -> None:
    codes = torch.nn.Module()
    codes.register_parameter("weight", torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False))
    assert non_finite(codes) == []


def test_a_loss_that_is_none_goes_with_finite_weights_where_activations_overflow() -> None:
    recorder = Recorder()
    with pytest.raises(RunError, match=r"the validation loss is nan before training, though all weights are finite"):
        run(make_job(recorder, [float("nan")]))
    assert [record["event"] for record in recorder.records] == ["eval"]
