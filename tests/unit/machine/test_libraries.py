"""What libraries say of themselves does not stand among what a run says."""

import logging

from lorabench.machine.libraries import quiet_libraries


def test_deepspeeds_advice_is_left_out_whatever_level_it_sets() -> None:
    quiet_libraries()
    quiet_libraries()
    logger, kept = logging.getLogger("DeepSpeed"), []
    handler = logging.Handler()
    handler.emit = lambda record: kept.append(record.getMessage())  # pyright: ignore[reportAttributeAccessIssue]
    logger.addHandler(handler)
    before = logger.level
    try:
        logger.setLevel(logging.WARNING)
        logger.warning(
            "Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it."
        )
        logger.warning("a fault")
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
    assert kept == ["a fault"] and len(logger.filters) == len(set(logger.filters))
