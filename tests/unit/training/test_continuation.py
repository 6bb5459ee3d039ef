"""What a continuation puts back, and how the parts of the ranks are shared out anew."""

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import tiny
import torch

from lorabench.checkpoint.savepoint import Savepoint, read_newest_savepoint, write_savepoint
from lorabench.config.run_config import OptimConfig, RunConfig
from lorabench.data.batching import TokenizedRows
from lorabench.distributed.data_parallel import DataParallel
from lorabench.errors import ConfigError, RunError
from lorabench.machine.meters import MemoryMonitor, Stopwatch, Throughput
from lorabench.models.source import fingerprint_files
from lorabench.step.optimizer import build_optimizer, build_schedule
from lorabench.training import continuation
from lorabench.training.continuation import (
    EXPECTED,
    STATE_FORMAT,
    Continuation,
    find_savepoint,
    fingerprint,
)
from lorabench.training.job import Progress

CPU = torch.device("cpu")
ROWS = TokenizedRows([[1, 2], [3], [4, 5, 6]], [0, 1, 0], cut_rows=0)


@dataclass
class Rank:
    """One of several ranks, in this process.

    Attributes:
        others: what the ranks after it would hand in.
        told: what the first rank would tell it.
    """

    rank: int = 0
    world_size: int = 1
    others: list[Any] = field(default_factory=list)
    told: Any = None
    device: torch.device = CPU

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others]

    def from_main(self, value: Any) -> Any:
        return self.told if self.rank else value

    def on_main(self, action: Callable[[], Any]) -> Any:
        return action() if self.is_main else None

    def wait(self) -> None:
        pass


def make_setting(config: RunConfig | None = None, ranks: Rank | None = None) -> Any:
    launch: Any = SimpleNamespace(num_processes=1, scaler=None)
    return SimpleNamespace(
        config=config or RunConfig(),
        ranks=ranks or Rank(),
        strategy=DataParallel(launch),
        data=SimpleNamespace(labels=("bad", "good")),
    )


def make_inputs(rows: TokenizedRows = ROWS) -> Any:
    return SimpleNamespace(tokens={"train": rows})


def change(config: RunConfig, section: str, **values: Any) -> RunConfig:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


@pytest.mark.parametrize(
    ("ids", "labels"),
    [
        ([[1, 2], [3], [4, 5, 7]], [0, 1, 0]),
        ([[1, 2], [3], [4, 5, 6]], [0, 1, 1]),
        ([[3], [1, 2], [4, 5, 6]], [1, 0, 0]),
        ([[1, 2], [3]], [0, 1]),
        ([[1, 2], [3], [4, 5, 6], [7]], [0, 1, 0, 0]),
        ([[12], [3], [4, 5, 6]], [0, 1, 0]),
    ],
    ids=["token", "label", "order", "fewer", "more", "joined"],
)
def test_other_rows_have_another_fingerprint(ids: list[list[int]], labels: list[int]) -> None:
    assert fingerprint(TokenizedRows(ids, labels, 0)) != fingerprint(ROWS)


def test_equal_rows_have_the_same_fingerprint() -> None:
    assert fingerprint(TokenizedRows([[1, 2], [3], [4, 5, 6]], [0, 1, 0], cut_rows=2)) == fingerprint(ROWS)


def test_the_effective_batch_counts_ranks_and_accumulation() -> None:
    config = change(RunConfig(), "optim", batch_size=3, gradient_accumulation=5)
    assert config.optim.effective_batch(world_size=2) == 30


def leave_run(
    folder: Path, config: RunConfig, status: str = "interrupted", effective: int = 8, **changes: Any
) -> None:
    (folder / "run.json").write_text(
        json.dumps({"schema_version": 1, "status": status, "config": config.to_json()}), encoding="utf-8"
    )
    facts: dict[str, Any] = {**dict.fromkeys(EXPECTED), "step": 4, "format": STATE_FORMAT}
    facts |= {"effective_batch": effective, "train_rows": fingerprint(ROWS)}
    write_savepoint(folder, 4, Savepoint({}, {**facts, **changes}), keep=2)


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_the_run_that_left_a_checkpoint_goes_on(status: str, tmp_path: Path) -> None:
    leave_run(tmp_path, RunConfig(), status)
    found = find_savepoint(make_setting(), make_inputs(), tmp_path)
    assert found is not None and found.progress["step"] == 4


@pytest.mark.parametrize(("batch", "accumulation", "ranks"), [(8, 1, 1), (4, 2, 1), (4, 1, 2), (1, 2, 4)])
def test_the_effective_batch_may_be_split_anew(batch: int, accumulation: int, ranks: int, tmp_path: Path) -> None:
    leave_run(tmp_path, RunConfig())
    config = change(RunConfig(), "optim", batch_size=batch, gradient_accumulation=accumulation)
    assert find_savepoint(make_setting(config, Rank(0, ranks)), make_inputs(), tmp_path) is not None


def test_a_run_without_a_checkpoint_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_run(tmp_path, RunConfig())
    for path in (tmp_path / "checkpoints" / "step-00000004").iterdir():
        path.unlink()
    assert find_savepoint(make_setting(), make_inputs(), tmp_path) is None
    said = capsys.readouterr().out
    assert said.startswith("resume     ") and said.endswith("), and there is none before it\n") and "damaged" in said


def test_a_completed_run_does_not_go_on(tmp_path: Path) -> None:
    leave_run(tmp_path, RunConfig(), "completed")
    with pytest.raises(ConfigError) as raised:
        find_savepoint(make_setting(), make_inputs(), tmp_path)
    assert list(raised.value.issues) == [f"--resume: the run in {tmp_path} is complete"]


def test_a_run_goes_on_under_any_strategy(tmp_path: Path) -> None:
    leave_run(tmp_path, RunConfig())
    setting = make_setting()
    setting.strategy = None  # nobody asks it
    assert find_savepoint(setting, make_inputs(), tmp_path) is not None


@pytest.mark.parametrize("version", [None, 1, STATE_FORMAT + 1])
def test_a_checkpoint_of_another_format_is_refused(version: int | None, tmp_path: Path) -> None:
    leave_run(tmp_path, RunConfig(), format=version)
    with pytest.raises(ConfigError, match=r"--resume: the checkpoints in .* are another version's"):
        find_savepoint(make_setting(), make_inputs(), tmp_path)


@pytest.mark.parametrize("missing", sorted(EXPECTED))
def test_a_checkpoint_that_lacks_something_is_refused(missing: str, tmp_path: Path) -> None:
    leave_run(tmp_path, RunConfig())
    newest = read_newest_savepoint(tmp_path)
    assert newest is not None
    del newest.progress[missing]
    write_savepoint(tmp_path, 5, newest, keep=2)
    with pytest.raises(ConfigError, match=r"--resume: the checkpoints in .* are another version's"):
        find_savepoint(make_setting(), make_inputs(), tmp_path)


def test_a_run_that_goes_on_writes_through_no_link(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    leave_run(run, RunConfig())
    (tmp_path / "precious").write_text("kept")
    (run / "metrics.jsonl").symlink_to("../precious")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl: a link out of the run's folder"):
        find_savepoint(make_setting(), make_inputs(), run)


def test_the_other_ranks_take_the_first_ones_word_and_read_no_file(tmp_path: Path) -> None:
    savepoint = Savepoint({}, {"step": 7})
    elsewhere = make_setting(ranks=Rank(1, 2, told=(savepoint, [])))
    assert find_savepoint(elsewhere, make_inputs(), tmp_path / "nowhere") is savepoint
    leave_run(tmp_path, RunConfig())
    (tmp_path / "checkpoints" / "step-00000004" / "progress.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # whoever reads that checkpoint warns of it
        assert find_savepoint(elsewhere, make_inputs(), tmp_path) is savepoint
    refused = make_setting(ranks=Rank(1, 2, told=(None, ["the first rank's reason"])))
    with pytest.raises(ConfigError, match="the first rank's reason"):
        find_savepoint(refused, make_inputs(), tmp_path / "nowhere")


def test_a_folder_without_a_readable_record_is_refused_on_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json"):
        find_savepoint(make_setting(), make_inputs(), tmp_path)


def test_all_differences_are_said_at_once(tmp_path: Path) -> None:
    leave_run(tmp_path, RunConfig())
    config = change(RunConfig(), "optim", seed=1, batch_size=4)
    with pytest.raises(ConfigError) as raised:
        find_savepoint(make_setting(config), make_inputs(TokenizedRows([[1]], [0], 0)), tmp_path)
    assert list(raised.value.issues) == [
        "--resume: optim.seed: 42 -> 1, and must not change",
        "--resume: the run takes 8 rows per step and this launch 4; choose --batch-size and --gradient-accumulation "
        "so that their product with the number of ranks is the same",
        "--resume: the training rows, or their tokens, are not those of the run",
    ]


@pytest.fixture
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tiny.save_tiny(tmp_path_factory.mktemp("model"), "bert")
    yield lambda seed: tiny.build_tiny(folder, seed=seed)


class Best:
    """The best adapter, as the checkpoint sees it."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def state(self) -> Any:
        return self.value

    def load_state(self, value: Any, record: Any) -> None:
        self.value, self.record = value, record


@dataclass
class Keeper:
    """Counts wall seconds."""

    folder: Path
    seconds: float = 0.0

    def wall_seconds(self) -> float:
        return self.seconds

    def add_wall_seconds(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Steps:
    """An execution, of which only what is kept matters."""

    batch_size: int = 8
    packs: Any = None

    def state(self) -> Any:
        return self.packs

    def load_state(self, state: Any) -> None:
        self.packs = state


@dataclass
class Run:
    """The parts of a run."""

    built: Any
    best: Best
    keeper: Keeper
    progress: Progress
    memory: MemoryMonitor
    state: Continuation


def make_run(model: Any, folder: Path, ranks: Rank | None = None, best: Any = None) -> Run:
    config = OptimConfig(lr_scheduler="cosine", weight_decay=0.1)
    optimizer = build_optimizer(model, config, fused=False)
    built = SimpleNamespace(
        classifier=model, optimizer=optimizer, schedule=build_schedule(optimizer, config, 20),
        plan=SimpleNamespace(effective_batch=8, batch_size=8), execution=Steps(),
    )  # fmt: skip
    kept, keeper, progress, memory = Best(best), Keeper(folder), Progress(Stopwatch(CPU)), MemoryMonitor(CPU)
    state = Continuation(
        make_setting(ranks=ranks),
        make_inputs(),
        cast(Any, built),
        cast(Any, kept),
        cast(Any, keeper),
        progress,
        memory,
    )
    return Run(built, kept, keeper, progress, memory, state)


def take_steps(run: Run, count: int) -> None:
    ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
    for _ in range(count):
        run.built.classifier(ids, (ids != 0).long()).square().sum().backward()
        run.built.optimizer.step()
        run.built.optimizer.zero_grad()
        run.built.schedule.step()
        run.progress.step += 1


def read(folder: Path) -> Savepoint:
    found = read_newest_savepoint(folder)
    assert found is not None
    return found


def test_everything_that_numbers_depend_on_comes_back(classifier: Any, tmp_path: Path) -> None:
    best = {"adapter": {"x": torch.arange(3.0)}, "logits": torch.ones(2, 2)}
    first = make_run(classifier(1), tmp_path, best=best)
    take_steps(first, 3)
    first.progress.before = {"loss": 0.9}
    first.progress.best = {"loss": 0.3, "step": 2, "value": 0.1 + 0.2}
    first.progress.history = [{"loss": 0.3, "step": 2}]
    first.progress.losses, first.progress.epoch_losses = [0.1], [0.1, 1e-9]
    first.progress.skipped_steps, first.progress.skipped_in_a_row = 1, 1
    first.progress.out_of_memory = [{"step": 2, "batch_size": 4, "gradient_accumulation": 2}]
    first.progress.watch.seconds = 12.5
    first.progress.first_step_seconds = 7.5
    first.progress.throughput = Throughput(24, 100, 150)
    first.memory.merge({"train": {"rss_gb": 900.0}})
    first.keeper.seconds = 20.0
    first.built.execution.packs = {"batch_size": 4, "compiled": True}
    torch.manual_seed(77)
    first.state.save()
    expected_random = torch.rand(4)

    second = make_run(classifier(2), tmp_path)
    second.keeper.seconds = 2.0
    torch.manual_seed(78)
    second.state.restore(read(tmp_path))
    assert torch.equal(torch.rand(4), expected_random)
    for item in dataclasses.fields(Progress):
        if item.name not in ("watch", "first_step_seconds"):
            assert getattr(second.progress, item.name) == getattr(first.progress, item.name), item.name
            assert getattr(first.progress, item.name) != getattr(Progress(Stopwatch(CPU)), item.name), "proves nothing"
    assert second.progress.watch.seconds == 12.5 and second.keeper.seconds == 22.0
    assert second.progress.first_step_seconds is None, "each process has a first step of its own"
    assert second.memory.phases["train"]["rss_gb"] == 900.0
    assert second.built.execution.packs == {"batch_size": 4, "compiled": True}
    assert torch.equal(second.best.value["adapter"]["x"], torch.arange(3.0))
    assert torch.equal(second.best.value["logits"], torch.ones(2, 2))
    assert second.best.record == first.progress.best
    take_steps(first, 2)
    take_steps(second, 2)
    assert second.built.schedule.get_last_lr() == first.built.schedule.get_last_lr()
    for (name, one), (_, two) in zip(
        first.built.classifier.named_parameters(), second.built.classifier.named_parameters(), strict=True
    ):
        if one.requires_grad:
            assert torch.equal(one, two), name
    moments = [item["exp_avg_sq"] for item in second.built.optimizer.state.values()]
    assert len(moments) > 4 and any(moment.abs().max() > 0 for moment in moments)


def test_what_a_run_saves_it_can_go_on_from(classifier: Any, tmp_path: Path) -> None:
    run = make_run(classifier(1), tmp_path)
    take_steps(run, 3)
    run.state.save()
    record = {"schema_version": 1, "status": "interrupted", "config": RunConfig().to_json()}
    (tmp_path / "run.json").write_text(json.dumps(record))
    found = find_savepoint(make_setting(), make_inputs(), tmp_path)
    assert found is not None and found.progress["step"] == 3
    assert found.progress.keys() == {*EXPECTED, "format"}
    with pytest.raises(ConfigError, match="training rows"):
        find_savepoint(make_setting(), make_inputs(TokenizedRows([[1]], [0], 0)), tmp_path)


def test_one_step_is_saved_once(classifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(classifier(1), tmp_path)
    saved = []
    monkeypatch.setattr(continuation, "write_savepoint", lambda folder, step, *_, **__: saved.append(step))
    for steps in (1, 0, 1):
        take_steps(run, steps)
        run.state.save()
    assert saved == [1, 2]


def test_the_state_after_an_evaluation_is_saved_too(classifier: Any, tmp_path: Path) -> None:
    """A run stopped between an epoch's last step and its evaluation: the same step, but more is known by now."""
    first = make_run(classifier(1), tmp_path)
    take_steps(first, 3)
    first.state.save()
    second = make_run(classifier(1), tmp_path)
    second.state.restore(read(tmp_path))
    folder = tmp_path / "checkpoints" / "step-00000003"
    before = folder.stat().st_ino
    second.state.save()
    assert folder.stat().st_ino == before, "what was just read is not written again"
    second.progress.history.append({"step": 3, "loss": 0.5})
    second.state.save()
    assert read(tmp_path).progress["history"] == [{"step": 3, "loss": 0.5}]


def rank_state(seconds: float, rows: int, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "random": {"cpu": generator.get_state(), "cuda": None},
        "throughput": {"rows": rows, "tokens": 10 * rows, "padded_tokens": 20 * rows},
        "seconds": seconds,
        "memory": {"train": {"rss_gb": 800.0 + rows}},
    }


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 2), (4, 3)])
def test_counts_add_up_over_another_number_of_ranks(before: int, after: int, classifier: Any, tmp_path: Path) -> None:
    others = [rank_state(seconds=5.0 + i, rows=10**i, seed=i) for i in range(1, before)]
    first = make_run(classifier(1), tmp_path, Rank(0, before, others))
    first.progress.throughput = Throughput(1, 10, 20)
    first.progress.watch.seconds = 5.0
    first.progress.step = 6
    first.state.save()
    parts, seconds, draws = [], [], []
    for rank in range(after):
        again = make_run(classifier(1), tmp_path, Rank(rank, after))
        again.state.restore(read(tmp_path))
        parts.append(again.progress.throughput)
        seconds.append(again.progress.watch.seconds)
        draws.append(torch.rand(1).item())
        peak = again.memory.phases.get("train", {}).get("rss_gb")
        assert peak == (800.0 + 10**rank if before == after and rank else None)
    expected = sum(10**i for i in range(before))
    totals = [sum(getattr(part, key) for part in parts) for key in ("rows", "tokens", "padded_tokens")]
    assert totals == [expected, 10 * expected, 20 * expected]
    assert seconds == [5.0 + before - 1] * after
    assert len(set(draws)) == after, "ranks must not draw the same dropout"
    if before != after:
        # Anew, and the same whenever the run goes on from here.
        seeds = [RunConfig().optim.seed + rank + 6 for rank in range(after)]
        assert draws == [torch.rand(1, generator=torch.Generator().manual_seed(seed)).item() for seed in seeds]
    if before == after and before > 1:
        assert draws[1] == torch.rand(1, generator=torch.Generator().manual_seed(1)).item()


def test_what_a_checkpoint_lacks_or_holds_otherwise_is_one_sentence(classifier: Any, tmp_path: Path) -> None:
    run = make_run(classifier(1), tmp_path)
    run.state.save()
    for place, change, said in (
        ("progress", {"ranks": []}, r"ValueError: max\(\)[^\n]*"),
        ("progress", {"ranks": [{}]}, "KeyError: 'seconds'"),
        ("progress", {"ranks": None}, "TypeError: 'NoneType' object is not iterable"),
        ("state", {"schedule": 3}, "AttributeError: 'int' object has no [^\n]*"),
    ):
        savepoint = read(tmp_path)
        getattr(savepoint, place).update(change)
        with pytest.raises(
            RunError, match=rf"^the checkpoint does not hold what a run of this version saves \({said}\)$"
        ):
            run.state.restore(savepoint)


@pytest.mark.parametrize(
    ("asked", "halved_to", "expected"), [(8, None, 8), (8, [4, 2], 2), (1, [4, 2], 1), (2, [2], 2)]
)
def test_a_batch_that_did_not_fit_is_not_tried_again(
    asked: int, halved_to: list[int] | None, expected: int, classifier: Any, tmp_path: Path
) -> None:
    first = make_run(classifier(1), tmp_path)
    take_steps(first, 1)
    first.progress.out_of_memory = [
        {"step": 1, "batch_size": size, "gradient_accumulation": 8 // size} for size in halved_to or []
    ]
    first.state.save()
    second = make_run(classifier(1), tmp_path)
    second.built.plan.batch_size = second.built.execution.batch_size = asked
    second.state.restore(read(tmp_path))
    assert second.built.execution.batch_size == expected
    assert second.progress.out_of_memory == first.progress.out_of_memory


def test_other_validation_rows_are_refused(tmp_path: Path) -> None:
    inputs: Any = SimpleNamespace(tokens={"train": ROWS, "validation": ROWS})
    leave_run(tmp_path, RunConfig())
    assert find_savepoint(make_setting(), inputs, tmp_path) is not None, "earlier versions kept no word of them"
    leave_run(tmp_path, RunConfig(), validation_rows=fingerprint(ROWS))
    assert find_savepoint(make_setting(), inputs, tmp_path) is not None
    inputs.tokens["validation"] = TokenizedRows([[1, 2], [3], [4, 5, 7]], [0, 1, 0], cut_rows=0)
    with pytest.raises(ConfigError, match="the validation rows, or their tokens, are not those of the run"):
        find_savepoint(make_setting(), inputs, tmp_path)


def add_to_record(folder: Path, section: str = "model", **values: Any) -> None:
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, section: values}))


def test_classes_of_other_names_are_refused_though_their_numbers_are_the_same(tmp_path: Path) -> None:
    leave_run(tmp_path, RunConfig())
    add_to_record(tmp_path, "data", labels=["bad", "good"])
    assert find_savepoint(make_setting(), make_inputs(), tmp_path) is not None
    add_to_record(tmp_path, "data", labels=["good", "bad"])
    with pytest.raises(ConfigError, match=r"^--resume: the run's classes are good, bad, and those here bad, good$"):
        find_savepoint(make_setting(), make_inputs(), tmp_path)


def test_a_model_of_another_commit_is_refused_and_the_runs_own_may_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = change(RunConfig(), "model", model="somebody/model")
    leave_run(tmp_path, config)
    add_to_record(tmp_path, revision="a1")
    monkeypatch.setattr(continuation, "pinned_revision", lambda model: model.revision or "b2")
    with pytest.raises(ConfigError, match="is at commit b2, the run began at a1; --revision a1 goes on"):
        find_savepoint(make_setting(config), make_inputs(), tmp_path)
    pinned = change(config, "model", revision="a1")
    assert find_savepoint(make_setting(pinned), make_inputs(), tmp_path) is not None
    with pytest.raises(ConfigError, match=r"model\.revision: None -> b2"):
        find_savepoint(make_setting(change(config, "model", revision="b2")), make_inputs(), tmp_path)


def test_a_local_model_whose_files_have_changed_is_refused(tmp_path: Path) -> None:
    model, run = tmp_path / "model", tmp_path / "run"
    run.mkdir()
    model.mkdir()
    (model / "config.json").write_text("{}")
    config = change(RunConfig(), "model", model=str(model))
    leave_run(run, config)
    add_to_record(run, files=None)
    assert find_savepoint(make_setting(config), make_inputs(), run) is not None, (
        "a run that ended as it loaded has none"
    )
    add_to_record(run, files=fingerprint_files(model))
    assert find_savepoint(make_setting(config), make_inputs(), run) is not None
    (model / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"config\.json in .* is not the file that the run began with"):
        find_savepoint(make_setting(config), make_inputs(), run)
