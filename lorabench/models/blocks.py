"""The stack of blocks that a transformer consists of, found by its shape: architectures name theirs differently."""

from torch import nn


def find_blocks(body: nn.Module) -> tuple[nn.Module, nn.ModuleList] | None:
    """The module that runs a model's transformer blocks, and the blocks in order; None where there is no such list.

    Of all lists of modules it is the one with the most parameters. Its length tells less: a mixture of experts may
    have more experts in each block than blocks. The blocks may be of several kinds, as where attention and state-space
    layers alternate.
    """
    stacks = [
        (owner, blocks)
        for owner in body.modules()
        for blocks in owner.children()
        # A list of lists runs nothing itself; those inside it are looked at in their turn.
        if isinstance(blocks, nn.ModuleList) and not any(isinstance(block, nn.ModuleList) for block in blocks)
    ]
    # Of lists with equally many parameters, one within the other, the outer one comes first.
    found = max(stacks, key=lambda stack: sum(p.numel() for p in stack[1].parameters()), default=None)
    return found if found and len(found[1]) else None
