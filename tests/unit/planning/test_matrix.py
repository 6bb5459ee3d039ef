"""Models x cards x ways, and how long passes take."""

import dataclasses
from typing import Any

import pytest

from lorabench.catalog.gpus import GPUS
from lorabench.planning.duration import plan_duration
from lorabench.planning.matrix import WAYS, matrix_sheet, plan_matrix
from lorabench.planning.memory import Planner
from lorabench.planning.rates import (
    _H100_GRAPHED_S,
    _H100_LAUNCHED_S,
    _H100_PRODUCTS,
    _H100_TRAFFIC,
    PASS_OVERHEAD,
    RECOMPUTED_OVERHEAD,
    Rates,
    measured_rates,
    pass_seconds,
    sheet_rates,
)
from lorabench.planning.recording import Cost


def test_every_model_has_a_cell_for_each_way_and_card(workload: Any) -> None:
    pytest.importorskip("bitsandbytes")
    cards = ("3090", "h100")
    cells = list(plan_matrix(lambda model: workload(), ["tiny"], cards))
    assert len(cells) == len(WAYS) * len(cards)
    assert {cell.plan.verdict for cell in cells} == {"fits"}
    sheet = matrix_sheet(cells, ["tiny"], cards)
    assert [row[1] for row in sheet.rows] == [way.name for way in WAYS]
    assert sheet.rows[0][2:] == tuple(cell.text for cell in cells[:2])
    assert cells[0].to_json()["card"] == "3090" and cells[0].to_json()["expected_gb"] == cells[0].gigabytes


def test_a_cell_says_what_does_not_fit_and_what_recomputes(workload: Any) -> None:
    (cell, *_) = plan_matrix(lambda model: workload(), ["tiny"], ("3090",))
    none = dataclasses.replace(cell, plan=dataclasses.replace(cell.plan, runs_out="capture"))
    assert none.text == f"{cell.gigabytes:.1f} (no)"
    execution = dataclasses.replace(cell.plan.execution, recomputed=1)
    some = dataclasses.replace(cell, plan=dataclasses.replace(cell.plan, execution=execution))
    assert some.text == f"{cell.gigabytes:.1f} (1/2 recomputed)"


def test_a_pass_takes_its_arithmetic_its_traffic_and_its_launches() -> None:
    rates = Rates(((1, 1e12), (10, 1e12)), ((1, 1e11), (10, 1e11)), 1e9, 1e-6, 1e-5, "")
    assert pass_seconds(Cost(products=int(2e12)), 5, rates, captured=True) == 2
    assert pass_seconds(Cost(products=1, product_traffic=int(3e9)), 5, rates, captured=True) == 3
    assert pass_seconds(Cost(traffic=int(4e9)), 5, rates, captured=True) == 4
    assert pass_seconds(Cost(operations=1000), 5, rates, captured=True) == pytest.approx(1e-3)
    assert pass_seconds(Cost(operations=1000), 5, rates, captured=False) == pytest.approx(PASS_OVERHEAD * 1e-2)
    recomputed = pass_seconds(Cost(operations=1000), 5, rates, captured=False, recomputes=True)
    assert recomputed == pytest.approx(RECOMPUTED_OVERHEAD * PASS_OVERHEAD * 1e-2)
    assert pass_seconds(Cost(products=int(2e12)), 5, rates, captured=True, precision="fp32") == 20


@pytest.mark.parametrize("factor", [0.25, 1.0, 2.0])
def test_a_card_that_runs_small_programs_slower_runs_passes_slower_by_as_much(factor: float) -> None:
    products = [(tokens, factor * rate) for tokens, rate in _H100_PRODUCTS]
    found = measured_rates(products, factor * _H100_TRAFFIC, _H100_GRAPHED_S / factor, _H100_LAUNCHED_S / factor)
    known = sheet_rates(GPUS["h100"])
    for precision in ("bf16", "fp32"):
        for tokens in (1, 128, 512, 8192):
            expected = pytest.approx(factor * known.product_rate(tokens, precision))
            assert found.product_rate(tokens, precision) == expected
    assert found.traffic == pytest.approx(factor * known.traffic)
    assert found.graphed_s == pytest.approx(known.graphed_s / factor)
    assert found.launched_s == pytest.approx(known.launched_s / factor)


def test_a_faster_card_and_captured_steps_take_less_time(workload: Any) -> None:
    asked = {name: Planner(workload(execution=name)) for name in ("eager", "captured")}
    found = {name: plan_duration(planner, planner.plan()) for name, planner in asked.items()}
    assert found["captured"].step.expected < found["eager"].step.expected
    for duration in found.values():
        assert duration.step.low < duration.step.expected < duration.step.high < duration.run.high
        assert duration.steps == 50 and duration.to_json()["rates"] == sheet_rates(GPUS["h100"]).source
    slow = asked["captured"].on(
        dataclasses.replace(
            asked["captured"].workload, cards=dataclasses.replace(asked["captured"].workload.cards, gpu=GPUS["t4"])
        )
    )
    assert plan_duration(slow, slow.plan()).step.expected > found["captured"].step.expected


def test_split_weights_that_cross_a_slow_link_take_time(workload: Any) -> None:
    asked = [Planner(workload(strategy="zero3", gpus=2, card=card)) for card in ("h100", "3090")]
    away = [sum(planner.holdings.frozen) / (1e9 * planner.workload.cards.gpu.link) for planner in asked]
    found = [plan_duration(planner, planner.plan_with(0)).step.expected for planner in asked]
    assert away[1] > away[0] and found[1] > found[0]
