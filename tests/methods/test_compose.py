"""Names of compositions: parts in any order, defaults, and pairs that have no meaning."""

import itertools

import pytest
import torch

import orthora
from orthora.methods import compose, compositions, names
from orthora.methods.structural import OPTIMIZERS, STRUCTURES

STARTS = names("initialisation")
ALL = compositions()


def test_the_public_list_holds_every_kind_once():
    everything = orthora.methods()
    assert everything == sorted(set(everything))
    assert set(everything) == set(STARTS) | set(STRUCTURES) | set(OPTIMIZERS)
    issue = "dora rslora adalora vera miss ia3 ln full safe-mask lora-plus lora-fa"
    assert set(issue.split()) <= set(everything)
    with pytest.raises(ValueError, match="unknown kind 'start'; choose initialisation"):
        names("start")


@pytest.mark.parametrize("name", ALL)
def test_parts_may_stand_in_any_order_and_the_name_is_canonical(name):
    assert compose(name).name == name
    parts = name.split("+")
    for order in itertools.permutations(parts):
        assert compose("+".join(order)).name == name
    assert compose(f" {name.upper().replace('-', '_')} ").name == name


def test_the_default_start_is_left_out_of_the_name_where_something_else_stands():
    assert compose("lora+dora").name == "dora"
    assert compose("lora").name == "lora"
    assert compose("lora-plus").init.name == "lora"
    assert compose("lora-rlpo+dora").name == "rlpo+dora"


def test_aliases_with_a_plus_sign():
    assert compose("lora+").name == "lora-plus"
    assert compose("rlpo+lora+").name == "rlpo+lora-plus"
    assert compose("lora++rlpo").name == "rlpo+lora-plus"


def legal(start: str, structures: tuple[str, ...], optimizer: str) -> bool:
    """The rules, said independently of the code."""
    own = {"adalora", "vera", "miss", "ia3", "ln", "full", "safe-mask"}
    main = [s for s in structures if s != "rslora"]
    if len(main) > 1:
        return False
    if set(main) & own:
        return start == "lora" and "rslora" not in structures and not optimizer
    return not (optimizer == "lora-fa" and "dora" in main)


def test_every_pair_is_legal_or_refused_as_the_rules_say():
    structures = [
        (),
        *itertools.combinations(STRUCTURES, 1),
        *itertools.combinations(STRUCTURES, 2),
    ]
    found = set()
    for start, pair, optimizer in itertools.product(STARTS, structures, ("", *OPTIMIZERS)):
        name = "+".join(filter(None, (start, *pair, optimizer)))
        if legal(start, pair, optimizer):
            found.add(compose(name).name)
        else:
            with pytest.raises(ValueError, match=r"."):
                compose(name)
    assert found == set(ALL)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("rlpo+pissa", "names two initialisations, rlpo and pissa"),
        ("dora+adalora", "names two structures, adalora and dora"),
        ("lora-plus+lora-fa", "names two optimizers, lora-plus and lora-fa"),
        ("vera+rlpo", "rlpo does not combine with vera: VeRA's A and B are random, frozen"),
        ("full+pissa", "full fine-tuning trains W itself"),
        ("rslora+miss", "rslora does not combine with miss: .* MiSS trains one block"),
        ("dora+lora-fa", "lora-fa does not combine with dora: LoRA-FA projects the gradient"),
        ("adalora+lora-plus", "lora-plus does not combine with adalora"),
        ("rlpo+rlpo", "names 'rlpo' twice"),
        ("rlpo++dora", "has an empty part"),
        ("", "has an empty part"),
        ("disa+rlpo", r"unknown method 'disa'\. Did you mean 'pissa'\?"),
        ("rlpo+dorra", r"unknown method 'dorra'\. Did you mean 'dora'\?"),
    ],
)
def test_a_refusal_gives_the_reason(name, reason):
    with pytest.raises(ValueError, match=reason):
        compose(name)


def test_the_start_of_a_composition_is_that_of_its_initialisation():
    W = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    for name in ("rlpo+dora", "dora+rlpo+lora-plus"):
        A, B = orthora.initialize(W, name, 3)
        plain = orthora.initialize(W, "rlpo", 3)
        assert torch.equal(A, plain.A)
        assert torch.equal(B, plain.B)
    with pytest.raises(ValueError, match="vera has no starting factors: VeRA's A and B"):
        orthora.initialize(W, "vera", 3)


def test_scales():
    assert compose("rlpo").scale(16, 32) == 2.0
    assert compose("rlpo+rslora").scale(16, 32) == 8.0


@pytest.mark.parametrize("name", [*STRUCTURES, *OPTIMIZERS])
def test_every_record_says_what_it_does_and_who_published_it(name):
    record = STRUCTURES.get(name) or OPTIMIZERS[name]
    assert record.name == name
    assert record.claim.isprintable()
    assert "arXiv" in record.reference or name == "full"
