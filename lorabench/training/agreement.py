"""Whether all ranks have read the same: each reads the files itself, which may change, or differ between machines."""

from lorabench.distributed.setting import Setting
from lorabench.errors import ConfigError
from lorabench.training.assembly import Inputs
from lorabench.training.continuation import fingerprint


def check_same_rows(setting: Setting, inputs: Inputs) -> None:
    """Refuse a launch whose ranks have read other rows, tokens or classes. A collective call.

    They would wait for each other for ever, or train on a mixture of both.

    Raises:
        ConfigError: names a rank, and what it has read otherwise.
    """
    ranks, data = setting.ranks, setting.data
    if ranks.world_size == 1:
        return
    read = {f"{split} rows": fingerprint(tokens) for split, tokens in inputs.tokens.items()}
    first, *others = ranks.gather({**read, "classes": data.labels, "class weights": setting.class_weights})
    for rank, other in enumerate(others, start=1):
        differing = [name for name in sorted(first.keys() | other.keys()) if first.get(name) != other.get(name)]
        if differing:
            raise ConfigError(
                f"rank {rank} has read other {' and '.join(differing)} than rank 0; expected the same files for all, "
                "unchanged while the run starts"
            )
