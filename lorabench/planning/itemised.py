"""The worst moment of a phase, term by term, each with a sentence."""

from lorabench.planning.playback import Peak
from lorabench.planning.terms import Amount, Phase, PhasePlan, Term, exactly
from lorabench.planning.workload import Cards
from lorabench.units import GB

_SENTENCES = {
    "frozen weights": "Weights that do not train, in the dtype that they are held in; of split ones this GPU's part.",
    "4-bit weights": "Linear layers of the body in nf4: half a byte per weight.",
    "4-bit scales": "An 8-bit scale per 64 weights, a 32-bit one per 256 of those, and their codes.",
    "adapter and head": "LoRA's matrices and the head, which train.",
    "gradients": "One number for each that trains, in one buffer.",
    "dequantised weights": "One layer's 4-bit weights in the compute dtype, in a buffer that all layers share.",
    "working copies": "Adapter and head once more in the dtype that joint products compute in.",
    "optimizer state": "AdamW's two moments of each number that trains, in float32; under DeepSpeed masters as well.",
    "workspaces": "cuBLAS keeps one for each stream and thread that multiplies.",
    "gathered blocks": "Whole weights of blocks that compute or are about to, and the buffers that they travel in.",
    "copies while capturing": "What a pass adds to, kept to be put back.",
    "activations": "What the forward pass leaves for the backward pass, counted by running the model without storage.",
    "temporaries": "What operations of the worst moment hold beside that.",
    "graphs": "The memory that all CUDA graphs share, activations of a captured pass: it stays while they do.",
    "allocator slack": "Pieces of PyTorch's segments that fit nothing else.",
    "CUDA context": "The driver's own, with the code of all kernels; not counted by --gpu-memory-limit.",
    "NCCL": "Buffers of the library that the GPUs meet through.",
}  # fmt: skip


def itemise(phase: Phase, peak: Peak, cards: Cards, captured: bool) -> PhasePlan:
    """The terms of a phase's worst moment: what each is, and between which figures it may be."""
    terms = [Term(name, exactly(size), _SENTENCES[name]) for name, size in peak.held.items() if size]
    if peak.activations:
        amount = Amount(0.97 * peak.activations, peak.activations, 1.03 * peak.activations)
        terms.append(Term("activations", amount, _SENTENCES["activations"]))
    if peak.temporaries:
        amount = Amount(0.8 * peak.temporaries, peak.temporaries, 1.3 * peak.temporaries)
        terms.append(Term("temporaries", amount, _SENTENCES["temporaries"]))
    slack = max(0, peak.reserved - peak.allocated)
    graphs = min(slack, max(0, peak.graphs))
    if graphs:
        amount = Amount(0.97 * graphs, graphs, 1.03 * graphs)
        terms.append(Term("graphs", amount, _SENTENCES["graphs"]))
        slack -= graphs
    spread = 0.01 * peak.reserved
    terms.append(
        Term("allocator slack", Amount(0.5 * slack, slack, 1.2 * slack + spread), _SENTENCES["allocator slack"])
    )
    terms.append(Term("CUDA context", _context(cards, captured), _SENTENCES["CUDA context"], outside=True))
    if cards.count > 1:
        amount = Amount(0.2 * GB, 0.5 * GB, 1.0 * GB)
        terms.append(Term("NCCL", amount, _SENTENCES["NCCL"], outside=True))
    return PhasePlan(phase, tuple(terms), peak.allocated)


def _context(cards: Cards, captured: bool) -> Amount:
    newer = cards.gpu.capability >= (9, 0)
    likely = (0.8 if newer else 0.5) + (0.2 if captured else 0.0)
    return Amount(0.7 * likely * GB, likely * GB, 1.4 * likely * GB)
