"""Steps over packs are the steps over padded batches, for any split; graphs themselves are tested on a GPU."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from lorabench.config.run_config import LoraArgs
from lorabench.data.batching import MicroBatch, PaddedCollator, StepPlan, TokenizedRows
from lorabench.distributed.data_parallel import DataParallel, DataParallelGradients
from lorabench.distributed.ranks import Ranks
from lorabench.errors import RunError
from lorabench.models.classifier import SequenceClassifier
from lorabench.packed.captured import CapturedExecution, PackPlan
from lorabench.packed.classifier import PackedClassifier, PackedForward
from lorabench.packed.graphs import CaptureError, CompileError
from lorabench.packed.passes import PackedPasses
from lorabench.step.eager import EagerExecution
from lorabench.step.evaluation import PaddedForward, predict_logits
from lorabench.step.execution import Execution, StepOutcome
from lorabench.step.loss import LOSS, CrossEntropy

WEIGHTS = (1.0, 4.0)
ROWS = 37
LAYOUTS = [(16, 1), (3, 6)]


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: tiny.save_tiny(tmp_path_factory.mktemp(family), family) for family in ("llama", "roberta")}


class Recorder(torch.optim.AdamW):
    """AdamW that keeps the clipped gradients of each step."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__([p for p in model.parameters() if p.requires_grad], lr=0.01)
        self.used: list[dict[int, torch.Tensor]] = []

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.used.append({i: p.grad.clone() for i, p in enumerate(parameters)})
        super().step(closure)


def build(folder: Path, dropout: float = 0.0) -> SequenceClassifier:
    classifier = tiny.build_tiny(folder, lora=LoraArgs(lora_dropout=dropout, lora_r=2))
    tiny.stir_adapter(classifier)
    return classifier.train()


def make_rows(family: str, classifier: SequenceClassifier) -> PaddedCollator:
    tokenizer = tiny.tiny_tokenizer(family)
    ids = [tokenizer(text).input_ids for text in tiny.texts(ROWS, seed=5)]
    data = TokenizedRows(ids, [int(i % 4 == 0) for i in range(ROWS)], 0)
    return PaddedCollator(data, WEIGHTS, classifier.config.pad_token_id)


def make_execution(
    kind: str, family: str, folder: Path, accelerator: Accelerator, layout: tuple[int, int], **settings: Any
) -> tuple[Execution, SequenceClassifier, Recorder, StepPlan]:
    classifier, loss = build(folder, settings.pop("dropout", 0.0)), settings.pop("loss", LOSS)
    rows, ranks = make_rows(family, classifier), Ranks.of(accelerator)
    optimizer = Recorder(classifier)
    plan = StepPlan(rows.data.lengths, *layout, world_size=1, rank=0, seed=3)
    if kind == "eager":
        gradients = DataParallel(accelerator).gradients(classifier, optimizer, 0.5, ranks)
        return EagerExecution(classifier, gradients, rows, plan, ranks, loss=loss), classifier, optimizer, plan
    passes = PackedPasses(PackedClassifier(classifier), loss=loss)
    gradients = DataParallelGradients(accelerator, passes.flat, optimizer, 0.5, ranks)
    asked: dict[str, Any] = {"use_graphs": False, "steps": 6, "checkpointing": "off", **settings}
    execution = CapturedExecution(passes, gradients, rows, plan, ranks, **asked)
    return execution, classifier, optimizer, plan


def take_steps(execution: Execution, plan: StepPlan) -> list[StepOutcome]:
    return [execution.step(window) for epoch in range(2) for window in plan.epoch(epoch)]


def losses_by_row(outcome: StepOutcome) -> dict[int, float]:
    pairs = (zip(part.rows, part.losses.tolist(), strict=True) for part in outcome.row_losses)
    return {row: loss for part in pairs for row, loss in part}


class Squared(CrossEntropy):
    """Another loss than that of every run: the squared distance of the right class's probability from 1."""

    def of_rows(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        right = logits.float().softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
        return (1 - right).square() * weights


def test_another_loss_is_one_object_for_both_kinds_of_steps(
    folders: dict[str, Path], accelerator: Accelerator
) -> None:
    taken = {}
    for kind, loss in (("eager", Squared()), ("captured", Squared()), ("captured", LOSS)):
        execution, _, optimizer, plan = make_execution(
            kind, "llama", folders["llama"], accelerator, LAYOUTS[0], loss=loss
        )
        taken[kind, type(loss)] = [outcome.loss_share.item() for outcome in take_steps(execution, plan)], optimizer
    (eager, one), (packed, other) = taken["eager", Squared], taken["captured", Squared]
    assert packed == pytest.approx(eager, rel=1e-4)
    assert all(value < 1 for value in packed) and packed != pytest.approx(taken["captured", CrossEntropy][0], rel=0.1)
    for first, second in zip(one.used, other.used, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_steps_over_packs_are_those_over_padded_batches(
    family: str, layout: tuple[int, int], folders: dict[str, Path], accelerator: Accelerator
) -> None:
    results = {}
    for kind, split in (("eager", (layout[0] * layout[1], 1)), ("captured", layout)):
        execution, classifier, optimizer, plan = make_execution(kind, family, folders[family], accelerator, split)
        outcomes = take_steps(execution, plan)
        trained = {name: p.detach().clone() for name, p in classifier.named_parameters() if p.requires_grad}
        results[kind] = outcomes, optimizer.used, trained
    (padded, used, trained), (packed, packed_used, packed_trained) = results["eager"], results["captured"]
    assert len(padded) == len(packed) > 4
    for i, (one, other) in enumerate(zip(padded, packed, strict=True)):
        assert other.loss_share.item() == pytest.approx(one.loss_share.item(), rel=1e-5 if i == 0 else 1e-4)
        assert other.grad_norm.item() == pytest.approx(one.grad_norm.item(), rel=1e-5 if i == 0 else 1e-4)
        assert (other.counts.rows, other.counts.tokens) == (one.counts.rows, one.counts.tokens)
        assert losses_by_row(other) == pytest.approx(losses_by_row(one), rel=1e-3)
    for found, expected in zip(packed_used[0].values(), used[0].values(), strict=True):
        assert (found - expected).norm() <= 1e-5 * expected.norm()
    for name, value in trained.items():
        torch.testing.assert_close(packed_trained[name], value, rtol=1e-3, atol=1e-4)


def test_rows_that_do_not_fit_one_pack_are_split_with_the_same_step(
    folders: dict[str, Path], accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for longest in (4096, 64):
        monkeypatch.setattr("lorabench.packed.classifier.LONGEST_MASKED_PACK", longest)
        monkeypatch.setattr("lorabench.packed.packs.LENGTH_STEP", 32)
        execution, _, _, plan = make_execution("captured", "llama", folders["llama"], accelerator, (16, 1))
        outcomes.append(execution.step(next(iter(plan.epoch(0)))))
    whole, split = outcomes
    assert len(whole.row_losses) == 1
    assert len(split.row_losses) > 1
    assert split.loss_share.item() == pytest.approx(whole.loss_share.item(), rel=1e-5)
    assert split.grad_norm.item() == pytest.approx(whole.grad_norm.item(), rel=1e-5)


class OutOfMemoryOnce:
    """Fails a pass of more than so many texts, as a GPU does."""

    def __init__(self, passes: PackedPasses, most: int) -> None:
        self._run, self._most = passes.run, most
        self.texts: list[int] = []

    def __call__(self, pack: Any) -> torch.Tensor:
        losses = self._run(pack)  # what it has added by then must not stay
        if len(pack.labels) > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        self.texts.append(len(pack.labels))
        return losses


def test_out_of_memory_halves_the_packs_and_keeps_the_step(folders: dict[str, Path], accelerator: Accelerator) -> None:
    outcomes = []
    for most in (16, 4):
        execution, _, _, plan = make_execution("captured", "llama", folders["llama"], accelerator, (16, 1))
        execution._passes.run = limited = OutOfMemoryOnce(execution._passes, most)
        torch.manual_seed(5)
        outcomes.append(execution.step(next(iter(plan.epoch(0)))))
        assert execution.batch_size == most
        assert limited.texts == [most] * (16 // most)
    assert outcomes[1].batch_size == 4
    assert outcomes[1].loss_share.item() == pytest.approx(outcomes[0].loss_share.item(), rel=1e-5)
    assert outcomes[1].grad_norm.item() == pytest.approx(outcomes[0].grad_norm.item(), rel=1e-5)
    assert outcomes[1].counts.rows == outcomes[0].counts.rows == 16


class OutOfMemoryAbove(OutOfMemoryOnce):
    """Fails a pass of more than so many tokens, as a GPU does."""

    def __call__(self, pack: Any) -> torch.Tensor:
        losses = self._run(pack)
        if pack.length > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        self.texts.append(len(pack.rows))
        return losses


def test_out_of_memory_shortens_the_packs_and_keeps_step_and_batch(
    folders: dict[str, Path], accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorabench.packed.memory.SHORTEST_PACK", 32)
    outcomes = []
    for most in (4096, 64):
        complained: list[str] = []
        execution, _, _, plan = make_execution(
            "captured", "llama", folders["llama"], accelerator, (16, 1), complain=complained.append
        )
        execution._passes.run = limited = OutOfMemoryAbove(execution._passes, most)
        torch.manual_seed(5)
        outcomes.append(execution.step(next(iter(plan.epoch(0)))))
        assert execution.batch_size == outcomes[-1].batch_size == 16
        assert sum(limited.texts[-len(outcomes[-1].row_losses) :]) == 16
        assert all("memory ran out: packs have at most" in line for line in complained)
        assert (len(complained) > 0) is (len(outcomes[-1].row_losses) > 1) is (most == 64)
    whole, shortened = outcomes
    assert shortened.loss_share.item() == pytest.approx(whole.loss_share.item(), rel=1e-5)
    assert shortened.grad_norm.item() == pytest.approx(whole.grad_norm.item(), rel=1e-5)
    assert losses_by_row(shortened) == pytest.approx(losses_by_row(whole), rel=1e-4)


def test_out_of_memory_with_one_row_ends_the_run(folders: dict[str, Path], accelerator: Accelerator) -> None:
    execution, _, _, plan = make_execution("captured", "llama", folders["llama"], accelerator, (2, 1))
    execution._passes.run = OutOfMemoryOnce(execution._passes, 0)
    with pytest.raises(RunError, match=r"out of GPU memory.*Tried to allocate 1 GiB"):
        execution.step(next(iter(plan.epoch(0))))


def test_seeds_give_the_same_steps_and_others_do_not(folders: dict[str, Path], accelerator: Accelerator) -> None:
    losses = []
    for seed in (1, 1, 2):
        execution, _, _, plan = make_execution("captured", "llama", folders["llama"], accelerator, (8, 2), dropout=0.5)
        torch.manual_seed(seed)
        losses.append([outcome.loss_share.item() for outcome in take_steps(execution, plan)])
    assert losses[0] == losses[1] != losses[2]


class Timed:
    """Graphs of which only the time of a pass matters."""

    def __init__(self, pass_s: float) -> None:
        self._pass_s = pass_s

    def time(self, pack: Any) -> float:
        return self._pass_s

    def forget(self, pack: Any) -> None: ...

    def release(self) -> None: ...


@pytest.mark.parametrize(("pass_s", "runs", "compiles"), [(0.027, 1, False), (0.027, 100, True), (0.0001, 50, False)])
def test_long_runs_of_slow_passes_are_compiled(
    pass_s: float, runs: float, compiles: bool, folders: dict[str, Path], accelerator: Accelerator
) -> None:
    execution, _, _, _ = make_execution("captured", "llama", folders["llama"], accelerator, (8, 2))
    totals = [60, 100, 120, 90, 200] * 20
    lengths, found, estimate = execution._weigh_compiling(Timed(pass_s), totals, runs)  # pyright: ignore
    assert found == compiles
    assert lengths == sorted(lengths) and lengths[-1] >= 200
    assert f"about {100 * runs:.0f} passes would take" in estimate


class TimedByLength(Timed):
    """Passes whose time depends on their length.

    Attributes:
        forgotten: lengths whose graphs were given up.
    """

    def __init__(self, seconds: dict[int, float]) -> None:
        super().__init__(0.0)
        self._seconds = seconds
        self.forgotten: list[int] = []

    def time(self, pack: Any) -> float:
        return self._seconds[pack.length]

    def forget(self, pack: Any) -> None:
        self.forgotten.append(pack.length)


def test_lengths_that_take_as_long_as_longer_ones_are_left_out(
    folders: dict[str, Path], accelerator: Accelerator
) -> None:
    execution, _, _, _ = make_execution("captured", "llama", folders["llama"], accelerator, (8, 2))
    graphs = TimedByLength({224: 15.8, 240: 16.5, 256: 16.2, 320: 19.9, 336: 19.19, 352: 19.2})
    kept = execution._leave_out_slow_lengths(graphs, [224, 240, 256, 320, 336, 352])  # pyright: ignore
    assert kept == [224, 256, 352]
    assert sorted(graphs.forgotten) == [240, 320, 336]


class Uncaptured(Timed):
    """Runs passes as they are, on inputs of its own for each shape, as graphs do."""

    def __init__(self, passes: PackedPasses) -> None:
        super().__init__(0.004)
        self._passes = passes
        self._inputs: dict[tuple[int, int], Any] = {}

    def run(self, pack: Any) -> torch.Tensor:
        inputs = self._inputs.setdefault((pack.length, len(pack.labels)), copy.deepcopy(pack))
        inputs.copy_(pack)
        return self._passes.run(inputs)


@pytest.mark.parametrize("layout", [(1, 16), (2, 8), (16, 1)])
def test_what_is_decided_before_the_first_step_changes_no_number(
    layout: tuple[int, int], folders: dict[str, Path], accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which lengths, some too short for the longest text, and which blocks recompute; dropout's numbers stay, too."""
    monkeypatch.setattr("lorabench.packed.packs.LENGTH_STEP", 8)
    monkeypatch.setattr("lorabench.packed.captured.free_bytes", lambda device: 1000)

    def measure(passes: PackedPasses, pack: Any) -> int:
        torch.rand(3)  # as a forward pass with dropout
        assert passes.packed(pack).isfinite().all()
        return 1500 * pack.length // 8

    monkeypatch.setattr(PackedPasses, "measure_activations", measure)
    outcomes = []
    for checkpointing in ("off", "auto"):
        execution, _, _, plan = make_execution(
            "captured", "llama", folders["llama"], accelerator, layout, checkpointing=checkpointing
        )
        if checkpointing == "auto":
            execution._graphs = Uncaptured(execution._passes)
            torch.manual_seed(2)
            execution._packer = execution._prepare()
            drawn = torch.rand(1)
            torch.manual_seed(2)
            assert torch.equal(drawn, torch.rand(1))
            assert execution.recomputes
        outcomes.append(take_steps(execution, plan))
    for one, other in zip(*outcomes, strict=True):
        assert other.loss_share.item() == pytest.approx(one.loss_share.item(), rel=1e-4)
        assert other.grad_norm.item() == pytest.approx(one.grad_norm.item(), rel=1e-4)
        assert other.counts.rows == one.counts.rows


def test_a_plan_is_taken_over_where_it_still_fits(folders: dict[str, Path], accelerator: Accelerator) -> None:
    plans = []
    for given in (None, PackPlan(8, (192, 320), True, 1, True), PackPlan(4, (192, 320), True, 1, True)):
        execution, _, _, plan = make_execution(
            "captured", "llama", folders["llama"], accelerator, (8, 2), checkpointing="auto"
        )
        assert execution.state() is None
        if given is not None:
            execution.load_state(given.to_json())
        execution.step(next(iter(plan.epoch(0))))
        state = execution.state()
        assert state is not None
        plans.append(PackPlan.from_json(state))
    chosen, taken, not_taken = plans
    assert taken == PackPlan(8, (192, 320), False, 1, False)  # without graphs nothing is compiled
    assert chosen == PackPlan(8, chosen.lengths, False, 0, False)
    assert not_taken == chosen != taken
    assert PackPlan.from_json(taken.to_json()) == taken


class Failing(Uncaptured):
    """Refuses what a machine without a compiler, or a pass that waits for the device, refuses."""

    compiles, captures = True, True

    def run(self, pack: Any) -> torch.Tensor:
        if self._passes.compiled and not self.compiles:
            raise CompileError("no C compiler")
        if not self.captures:
            raise CaptureError("not permitted")
        return super().run(pack)


@pytest.mark.parametrize(("compiles", "captures"), [(False, True), (True, False), (False, False)])
def test_what_cannot_be_compiled_or_captured_runs_as_it_is(
    compiles: bool, captures: bool, folders: dict[str, Path], accelerator: Accelerator
) -> None:
    outcomes, said = [], []
    for fails in (False, True):
        execution, _, _, plan = make_execution(
            "captured", "roberta", folders["roberta"], accelerator, (8, 2), dropout=0.3, complain=said.append
        )
        execution._packer = execution._prepare()
        if fails:
            execution._graphs = graphs = Failing(execution._passes)
            graphs.compiles, graphs.captures = compiles, captures
            execution._passes.compiled = not compiles
        torch.manual_seed(1)
        outcomes.append([outcome.loss_share.item() for outcome in take_steps(execution, plan)])
    assert outcomes[0] == outcomes[1]
    expected = [] if compiles else ["packs run uncompiled: compiling failed (no C compiler)"]
    if not captures:
        expected.append("packs run without graphs: capturing one failed (not permitted)")
    assert said == expected


@pytest.mark.parametrize(
    ("compiles", "captures", "complaint"),
    [
        (False, True, "packs run uncompiled: compiling failed (no C compiler)"),
        (True, False, "packs run without graphs: capturing one failed (not permitted)"),
    ],
)
def test_what_fails_while_lengths_are_timed_is_done_without(
    compiles: bool,
    captures: bool,
    complaint: str,
    folders: dict[str, Path],
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lorabench.packed.captured.COMPILE_S", 0.0)
    said, decided = [], []
    execution, _, _, _ = make_execution(
        "captured",
        "llama",
        folders["llama"],
        accelerator,
        (8, 2),
        complain=said.append,
        say=decided.append,
    )
    execution._graphs = graphs = Failing(execution._passes)
    graphs.compiles, graphs.captures = compiles, captures
    graphs.time = lambda pack: graphs.run(pack).sum().item() * 0 + 0.01
    lengths = execution._decide()
    assert lengths and not execution._passes.compiled
    assert (execution._graphs is graphs) == captures
    assert said == [complaint]
    estimate = "about .* passes would take .*" if captures else "not timed"
    assert re.fullmatch(rf"packs of {', '.join(map(str, lengths))} tokens, not compiled: {estimate}", decided[0])


def test_a_lack_of_memory_while_lengths_are_timed_halves_the_packs(
    folders: dict[str, Path], accelerator: Accelerator
) -> None:
    execution, _, _, plan = make_execution("captured", "llama", folders["llama"], accelerator, (8, 2))
    execution._graphs = graphs = Uncaptured(execution._passes)
    times = []

    def time(pack: Any) -> float:
        times.append(len(pack.labels))
        if len(times) == 2:  # after the usual length, the first of those to be timed
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return 0.004

    graphs.time = time
    outcome = execution.step(next(iter(plan.epoch(0))))
    assert outcome.batch_size == execution.batch_size == 4
    assert times[:3] == [8, 8, 4]


class Short(Uncaptured):
    """Has memory for packs of so many texts, where no block recomputes its activations and where all do."""

    room: tuple[int, int] = (8, 8)

    def capture(self, pack: Any) -> None:
        blocks = len(self._passes.packed.blocks)
        if len(pack.labels) > self.room[self._passes.checkpointed == blocks]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")

    def run(self, pack: Any) -> torch.Tensor:
        self.capture(pack)
        return super().run(pack)

    def time(self, pack: Any) -> float:
        self.capture(pack)
        return 0.004


@pytest.mark.parametrize(
    ("checkpointing", "room", "batch_size", "recomputes"),
    [("auto", (8, 8), 8, False), ("auto", (4, 8), 8, True), ("auto", (2, 4), 4, True), ("off", (4, 8), 4, False)],
)
def test_blocks_recompute_before_the_batch_is_halved(
    checkpointing: str,
    room: tuple[int, int],
    batch_size: int,
    recomputes: bool,
    folders: dict[str, Path],
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a plan was taken over, and to the same numbers."""
    monkeypatch.setattr(PackedPasses, "measure_activations", lambda passes, pack: 0)
    for given in (None, PackPlan(8, (192, 320), False, 0, True)):
        said: list[str] = []
        execution, _, _, plan = make_execution(
            "captured", "llama", folders["llama"], accelerator, (8, 2), checkpointing=checkpointing, say=said.append
        )
        execution._graphs = graphs = Short(execution._passes)
        graphs.room = room
        if given is not None:
            execution.load_state(given.to_json())
        outcomes = take_steps(execution, plan)
        assert (execution.batch_size, execution.recomputes) == (batch_size, recomputes)
        told = [line for line in said if "recompute" in line]
        assert told == ["memory ran out: all 2 blocks recompute their activations from now on"] * recomputes
        whole, _, _, plan = make_execution("captured", "llama", folders["llama"], accelerator, (8, 2))
        for one, other in zip(outcomes, take_steps(whole, plan), strict=True):
            assert one.loss_share.item() == pytest.approx(other.loss_share.item(), rel=1e-4)
            assert one.counts.rows == other.counts.rows


def test_a_plan_of_compiled_packs_is_captured_by_its_longest(
    folders: dict[str, Path], accelerator: Accelerator
) -> None:
    execution, _, _, _ = make_execution("captured", "llama", folders["llama"], accelerator, (8, 2))
    execution._graphs = graphs = Uncaptured(execution._passes)
    captured: list[int] = []
    graphs.capture = lambda pack: captured.append(pack.length)
    execution.load_state(PackPlan(8, (192, 320), True, 0, True).to_json())
    packer = execution._prepare()
    assert (captured, packer.lengths) == ([320], [192, 320])
    assert execution._passes.compiled


def test_checkpointed_blocks_change_no_number(folders: dict[str, Path], accelerator: Accelerator) -> None:
    losses = []
    for choice, times in (("off", 1), ("on", 2)):
        execution, classifier, _, plan = make_execution(
            "captured", "roberta", folders["roberta"], accelerator, (8, 2), dropout=0.5, checkpointing=choice
        )
        torch.manual_seed(1)
        run: list[int] = []
        layers = classifier.adapted.get_base_model().roberta.encoder.layer
        for i, layer in enumerate(layers):
            layer.output.register_forward_pre_hook(lambda module, arguments, i=i, run=run: run.append(i))
        outcomes = take_steps(execution, plan)
        losses.append([outcome.loss_share.item() for outcome in outcomes])
        passes = sum(len(outcome.row_losses) for outcome in outcomes)
        assert sorted(run) == sorted([0, 1] * times * passes)
        assert execution.recomputes is (choice == "on")
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_captured_runs_evaluate_over_packs(folders: dict[str, Path], accelerator: Accelerator) -> None:
    execution, classifier, _, _ = make_execution("captured", "roberta", folders["roberta"], accelerator, (8, 2))
    rows, ranks = make_rows("roberta", classifier), Ranks.of(accelerator)
    assert isinstance(execution.forward, PackedForward)
    expected = predict_logits(PaddedForward(classifier, ranks.device), rows, 8, ranks)
    torch.testing.assert_close(predict_logits(execution.forward, rows, 8, ranks), expected, rtol=1e-5, atol=1e-5)


def test_packs_are_for_texts_as_long_as_the_longest_and_a_pass_of_none_is_left_out(
    folders: dict[str, Path], accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a pack's longest text may be decides its attention, and one graph serves all packs of a length."""
    execution, classifier, _, plan = make_execution("captured", "llama", folders["llama"], accelerator, (8, 2))
    longest = max(make_rows("llama", classifier).data.lengths)
    packs, run = [], execution._passes.run
    execution._passes.run = lambda pack: packs.append(pack) or run(pack)
    dealt = [MicroBatch([3], 0), MicroBatch([4, 0], 2), MicroBatch([2, 1], 1)]
    monkeypatch.setattr(StepPlan, "deal", lambda plan, window, batch_size: dealt)
    outcome = execution.step(next(iter(plan.epoch(0))))
    assert [sorted(pack.rows) for pack in packs] == [[0, 4], [2]]
    assert {pack.longest for pack in packs} == {longest} and outcome.counts.rows == 3
