"""Structures (what is trained, and how it enters the layer) and optimizers, as records.

Data only: `orthora.adapters` builds the structures with PEFT's layers, `orthora.train` the
optimizers. An initialisation decides where A and B start; a structure decides what the layer does
with them, or replaces them by something else; an optimizer decides how they move.
"""

from dataclasses import dataclass
from typing import Literal

Export = Literal["peft", "merged"]
"""The form in which a structure leaves orthora: a PEFT adapter, or the whole model."""


@dataclass(frozen=True)
class Structure:
    """What is trained, and how it enters the layer.

    Attributes:
        name: canonical name.
        claim: one line that says what it does.
        reference: paper and equation.
        trains: what its trained parameters are, in words.
        unstarted: why an initialisation of A and B does not apply; empty where one does.
        modifier: True if it changes a detail of B A and so combines with another structure.
        overrides: which of the run's settings (rank, alpha, targets) it does not take; empty if it
            takes all. `orthora.adapt` records it on the model.
        export: how the trained model leaves orthora.
        aliases: other names that mean the same.
    """

    name: str
    claim: str
    reference: str
    trains: str
    unstarted: str = ""
    modifier: bool = False
    overrides: str = ""
    export: Export = "peft"
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptimizerRecord:
    """How A and B move.

    Attributes:
        name: canonical name.
        claim: one line that says what it does.
        reference: paper and equation.
        structures: names of the structures with which it is defined; ``"lora"`` is plain B A.
        why: the reason why it is undefined for the others.
        aliases: other names that mean the same.
    """

    name: str
    claim: str
    reference: str
    structures: tuple[str, ...]
    why: str
    aliases: tuple[str, ...] = ()


SAFE_SHARE = 0.3
"""alpha of `safe-mask`: M_low and M_princ each hold this share of a matrix's entries."""

STRUCTURES = {
    record.name: record
    for record in (
        Structure(
            "rslora",
            claim="scale alpha / sqrt(r) instead of alpha / r",
            reference="Kalajdzievski 2023, arXiv 2312.03732, section 3",
            trains="A, B",
            modifier=True,
        ),
        Structure(
            "dora",
            claim="each row of W + s B A keeps its direction and gets a trained length m",
            reference="Liu et al. 2024, arXiv 2402.09353, eq. 5, the norm detached as in its "
            "section 4.3",
            trains="A, B, m (one per output)",
        ),
        Structure(
            "adalora",
            claim="B diag(E) A from 1.5 r triplets, pruned to r on average by their importance",
            reference="Zhang et al. 2023, arXiv 2303.10512, eqs. 3-12",
            trains="A, B, E",
            unstarted="AdaLoRA starts from its own triplets with E = 0 and random A and B, which "
            "its orthogonality term shapes",
        ),
        Structure(
            "vera",
            claim="frozen random A and B shared by all layers; trained vectors scale their rows",
            reference="Kopiczko et al. 2024, arXiv 2310.11454, eq. 2",
            trains="two vectors per layer (r and m entries)",
            unstarted="VeRA's A and B are random, frozen and shared by all layers",
            overrides="alpha (VeRA has no scale)",
        ),
        Structure(
            "miss",
            claim="one trained block, shared by all shards of the input",
            reference="Kang and Yin 2024, arXiv 2409.15371 (MiSS)",
            trains="one (r, m) block per layer",
            unstarted="MiSS trains one block D and no pair A, B",
            overrides="alpha (MiSS has no scale)",
        ),
        Structure(
            "ia3",
            claim="trained vectors that scale keys, values and the MLP's inner activations",
            reference="Liu et al. 2022, arXiv 2205.05638, section 3.3",
            trains="one vector per scaled layer",
            unstarted="(IA)^3 trains vectors that scale activations and no pair A, B",
            overrides="rank and alpha (it has neither); 'all-linear' becomes keys, values and the "
            "MLP's output projection, as published",
            aliases=("ia-3",),
        ),
        Structure(
            "ln",
            claim="the weights (and biases) of all normalisation layers",
            reference="Zhao et al. 2024, arXiv 2312.11420 (LN-tuning)",
            trains="every norm's parameters",
            unstarted="LN-tuning trains norms and no pair A, B",
            overrides="rank, alpha and targets (all norms are trained)",
            aliases=("ln-tuning",),
        ),
        Structure(
            "full",
            claim="all weights",
            reference="full fine-tuning",
            trains="every parameter; with target modules by name, theirs alone",
            unstarted="full fine-tuning trains W itself and no pair A, B",
            overrides="rank and alpha (it has neither)",
            export="merged",
        ),
        Structure(
            "safe-mask",
            claim="the entries of W outside its principal part or small in W: M_low or not M_princ",
            reference="Zhu et al. 2025, arXiv 2511.08567; k = r, alpha = 0.3",
            trains="the masked entries of the target matrices",
            unstarted="the safe mask trains entries of W itself and no pair A, B",
            overrides="alpha (it has none); the rank is that of the principal part",
            export="merged",
        ),
    )
}

_BY_FACTORS = ("lora", "rslora", "dora")

OPTIMIZERS = {
    record.name: record
    for record in (
        OptimizerRecord(
            "lora-plus",
            claim="a larger learning rate for B (and DoRA's m) than for A",
            reference="Hayou et al. 2024, arXiv 2402.12354, section 4",
            structures=_BY_FACTORS,
            why="LoRA+ is a ratio of the learning rates of B and A in W + s B A",
            aliases=("lora+",),
        ),
        OptimizerRecord(
            "lora-fa",
            claim="A is frozen; B's gradient is s^-2 G (A A')^-1, nearest to full fine-tuning's",
            reference="Zhang et al. 2023, arXiv 2308.03303; the projection as in PEFT's LoRA-FA",
            structures=("lora", "rslora"),
            why="LoRA-FA projects the gradient of W + s B A with A frozen",
        ),
    )
}
