"""The contract of every registered method, and the formula of each family."""

import math

import pytest
import torch
from torch import Tensor

import orthora
from orthora.linalg import top_subspace
from orthora.methods import get, initialize
from orthora.methods.geora import SHARE, geometry_mask
from orthora.types import Factors

RANK = 5
SCALES = [0.5, 1.0, 2.0]
SHAPES = {"tall": (40, 24), "wide": (24, 40), "square": (32, 32)}
WEIGHTS = [*SHAPES, "rank-deficient"]

every_method = pytest.mark.parametrize("name", orthora.methods("initialisation"))
every_scale = pytest.mark.parametrize("scale", SCALES)
every_weight = pytest.mark.parametrize("kind", WEIGHTS)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def weight(kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random singular vectors, singular values 4, ..., 0.1; two of them are 0 if rank-deficient."""
    m, n = SHAPES.get(kind, (32, 32))
    k = min(m, n)
    generator = torch.Generator().manual_seed(5)
    U, _ = torch.linalg.qr(torch.randn(m, k, generator=generator, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64))
    S = torch.logspace(math.log10(4.0), -1.0, k, dtype=torch.float64)
    W = (U * S) @ V.mT
    if kind == "rank-deficient":
        W[3], W[:, 7] = 0.0, W[:, 11]
    return W.to(dtype)


def triplets(W: Tensor, end: str, rank: int = RANK) -> tuple[Tensor, Tensor, Tensor]:
    """Top or bottom singular triplets of positive singular value, by the plain float64 SVD."""
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    positive = int(S.gt(1e-12 * S[0]).sum())
    inside = slice(0, rank) if end == "top" else slice(positive - rank, positive)
    return U[:, inside], S[inside], Vh[inside].mT


def product(factors: Factors) -> Tensor:
    return factors.B.double() @ factors.A.double()


def distance(A: Tensor, B: Tensor) -> float:
    return float((A.double() - B.double()).abs().max())


def consumes_randomness(name: str) -> bool:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    get(name).init(weight("tall"), RANK, scale=1.0, generator=generator)
    return not torch.equal(before, generator.get_state())


@every_method
@every_weight
@both_dtypes
@every_scale
def test_factors_are_finite_contiguous_float32_of_the_right_shape(name, kind, dtype, scale):
    W = weight(kind, dtype)
    before = W.clone()
    A, B = initialize(W, name, RANK, scale=scale)
    assert A.shape == (RANK, W.shape[1])
    assert B.shape == (W.shape[0], RANK)
    for factor in (A, B):
        assert factor.dtype == torch.float32
        assert factor.is_contiguous()
        assert bool(factor.isfinite().all())
        assert not factor.requires_grad
    assert torch.equal(W, before)
    assert get(name).anchored == bool((B != 0).any())
    assert float(torch.linalg.matrix_norm(A)) > 0.0  # A = B = 0 would never train


@every_method
@every_weight
@both_dtypes
def test_the_same_seed_gives_the_same_bits(name, kind, dtype):
    W = weight(kind, dtype)
    one = initialize(W, name, RANK, seed=3)
    torch.manual_seed(99)  # the global generator has no say
    two = initialize(W.clone(), name, RANK, seed=3)
    assert torch.equal(one.A, two.A)
    assert torch.equal(one.B, two.B)


@every_method
def test_the_seed_matters_exactly_where_randomness_is_consumed(name):
    W = weight("tall")
    one, two = (initialize(W, name, RANK, seed=seed) for seed in (0, 1))
    assert torch.equal(one.A, two.A) != consumes_randomness(name)
    assert torch.equal(one.B, two.B)


def test_some_methods_are_random_and_some_are_not():
    assert {consumes_randomness(name) for name in orthora.methods("initialisation")} == {
        True,
        False,
    }


@every_method
def test_no_method_touches_the_global_generator(name):
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    initialize(weight("tall"), name, RANK)
    assert torch.equal(before, torch.random.get_rng_state())


@every_method
def test_a_parameter_view_and_its_contiguous_copy_start_alike(name):
    W = torch.nn.Parameter(weight("wide")).mT
    view, copy = (initialize(x, name, RANK) for x in (W, W.detach().contiguous()))
    assert distance(view.A, copy.A) <= 1e-6
    assert distance(view.B, copy.B) <= 1e-6


@every_method
@pytest.mark.parametrize("kind", SHAPES)
def test_ranks_one_and_full_work_and_others_are_refused_by_value(name, kind):
    W = weight(kind)
    k = min(W.shape)
    for rank in (1, k):
        assert initialize(W, name, rank).A.shape == (rank, W.shape[1])
    for rank in (0, -1, k + 1):
        with pytest.raises(ValueError, match=rf"rank {rank} does not fit a .* choose 1 to {k}"):
            initialize(W, name, rank)


@every_method
def test_values_without_meaning_are_refused(name):
    W = weight("tall")
    for scale in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=rf"scale must be positive .* got {scale}"):
            initialize(W, name, RANK, scale=scale)
    W[2, 3] = math.nan
    with pytest.raises(ValueError, match="holds 1 NaN or Inf of 960 values"):
        initialize(W, name, RANK)


@every_method
def test_every_record_says_what_it_does_and_who_published_it(name):
    record = get(name)
    assert record.name == name
    assert len(record.claim) > 20
    assert record.claim.isprintable()
    assert "arXiv" in record.reference


@every_method
def test_aliases_case_and_underscores_do_not_matter(name):
    record = get(name)
    for key in (name, *record.aliases):
        assert get(key) is record
        assert get(key.upper().replace("-", "_")) is record
        assert key == name or key not in orthora.methods("initialisation")


def test_names_are_sorted_and_unique():
    names = orthora.methods("initialisation")
    assert names == sorted(set(names))


@pytest.mark.parametrize(("typo", "meant"), [("pisa", "pissa"), ("lora-rlp", "lora-rlpo")])
def test_an_unknown_name_is_refused_with_the_nearest_and_the_whole_list(typo, meant):
    with pytest.raises(
        ValueError, match=rf"unknown method '{typo}'. Did you mean '{meant}'\?"
    ) as e:
        initialize(weight("tall"), typo, RANK)
    assert all(name in str(e.value) for name in orthora.methods("initialisation"))


def test_a_name_like_no_other_gets_the_list_without_a_guess():
    with pytest.raises(ValueError, match=r"unknown method 'qqqq'\. Available: ") as e:
        get("qqqq")
    assert "Did you mean" not in str(e.value)


@every_weight
@both_dtypes
@every_scale
@pytest.mark.parametrize("name", ["rlpo", "rlmo", "dct", "wavelet"])
def test_orthonormal_methods_have_orthonormal_rows_and_zero_b(name, kind, dtype, scale):
    A, B = initialize(weight(kind, dtype), name, RANK, scale=scale)
    assert distance(A.double() @ A.double().mT, torch.eye(RANK)) <= 1e-6
    assert not B.any()


@every_weight
@both_dtypes
@pytest.mark.parametrize(("name", "end"), [("rlpo", "top"), ("rlmo", "bottom")])
def test_rlpo_and_rlmo_span_the_singular_subspace(name, end, kind, dtype):
    W = weight(kind, dtype)
    A = initialize(W, name, RANK).A.double()
    V = triplets(W, end)[2]
    assert distance(A.mT @ A, V @ V.mT) <= 1e-6


@every_weight
@both_dtypes
@every_scale
@pytest.mark.parametrize(("name", "end"), [("pissa", "top"), ("milora", "bottom")])
def test_pissa_and_milora_carry_the_singular_part_for_every_scale(name, end, kind, dtype, scale):
    W = weight(kind, dtype)
    factors = initialize(W, name, RANK, scale=scale)
    U, S, V = triplets(W, end)
    assert distance(scale * product(factors), (U * S) @ V.mT) <= 1e-6 * float(S[0])
    for gram in (
        factors.A.double() @ factors.A.double().mT,
        factors.B.double().mT @ factors.B.double(),
    ):
        assert distance(gram, torch.diag(S / scale)) <= 1e-6 * float(S[0]) / scale  # split evenly


@every_weight
@both_dtypes
@every_scale
@pytest.mark.parametrize(("name", "end"), [("olora", "top"), ("olora-tail", "bottom")])
def test_olora_factors_are_singular_vectors_without_values(name, end, kind, dtype, scale):
    W = weight(kind, dtype)
    factors = initialize(W, name, RANK, scale=scale)
    U, _, V = triplets(W, end)
    assert distance(product(factors), U @ V.mT) <= 1e-6
    assert distance(factors.A.double().mT @ factors.A.double(), V @ V.mT) <= 1e-6
    assert distance(factors.B.double() @ factors.B.double().mT, U @ U.mT) <= 1e-6


@every_weight
@both_dtypes
@every_scale
def test_olora_qr_takes_the_first_columns_of_q_and_rows_of_r(kind, dtype, scale):
    W = weight(kind, dtype)
    A, B = initialize(W, "olora-qr", RANK, scale=scale)
    assert distance(B.double().mT @ B.double(), torch.eye(RANK)) <= 1e-6
    assert not A[:, :RANK].tril(-1).any()  # R is upper triangular
    first = W[:, :RANK].double()
    assert distance(product(Factors(A, B))[:, :RANK], first) <= 1e-6 * float(first.abs().max() + 1)


def smallest(X: Tensor) -> Tensor:
    """The rho share of smallest magnitudes, by a sort, ties included."""
    place = math.ceil(SHARE * X.numel() - 1e-9)
    return X.abs() <= X.abs().flatten().sort().values[place - 1]


@every_weight
@both_dtypes
def test_geora_masks_the_smallest_entries_of_the_weight_and_of_its_reconstruction(kind, dtype):
    W = weight(kind, dtype)
    U, S, V = triplets(W, "top")
    expected = smallest((U * S) @ V.mT) | smallest(W)
    assert torch.equal(geometry_mask(W, RANK), expected)


@every_weight
@both_dtypes
def test_geora_is_the_best_approximation_of_the_masked_weight_for_every_scale(kind, dtype):
    W = weight(kind, dtype)
    masked = W.double() * geometry_mask(W, RANK)
    U, S, V = triplets(masked, "top")
    one, two = (initialize(W, "geora", RANK, scale=scale) for scale in (1.0, 2.0))
    assert torch.equal(product(one), product(two))  # not divided by s
    assert distance(product(one), (U * S) @ V.mT) <= 1e-6 * float(S[0])
    for gram in (one.A.double() @ one.A.double().mT, one.B.double().mT @ one.B.double()):
        assert distance(gram, torch.diag(S)) <= 1e-6 * float(S[0])


def test_geora_mask_density_on_gaussian_plus_low_rank_weights():
    generator = torch.Generator().manual_seed(0)
    n, head = 1024, 64
    noise = 0.02 * torch.randn(n, n, generator=generator)
    U, V = (torch.randn(n, head, generator=generator) / math.sqrt(n) for _ in range(2))
    spikes = 4.0 * torch.arange(1, head + 1).pow(-0.5)
    W = noise + (U * spikes) @ V.mT
    density = float(geometry_mask(W, 16).float().mean())
    assert 0.354 <= density <= 0.360  # Qwen3-8B: 0.3545; two independent masks: 0.36


def test_geora_works_above_the_size_that_quantile_refuses():
    generator = torch.Generator().manual_seed(0)
    W = 0.02 * torch.randn(262_144, 65, generator=generator)
    assert W.numel() > 2**24
    A, B = initialize(W, "geora", 2, scale=1.0)
    mask = geometry_mask(W, 2)
    assert 0.2 <= float(mask.float().mean()) <= 0.4
    masked = (W * mask).double()
    tail = torch.linalg.eigvalsh(masked.mT @ masked)[:-2].sum()
    error = (masked - B.double() @ A.double()).square().sum()
    assert float(error) == pytest.approx(float(tail), rel=1e-6)  # Eckart and Young


@pytest.mark.parametrize("shape", [(8, 4096), (4096, 1024)])
def test_lora_is_uniform_with_rows_of_norm_one_over_sqrt_three(shape):
    n = shape[1]
    A, B = initialize(torch.ones(shape), "lora", 8)
    unit = A.double() * math.sqrt(n)
    assert not B.any()
    assert 0.999 <= float(unit.abs().max()) <= 1.0 + 1e-6
    assert abs(float(unit.mean())) <= 4 / math.sqrt(3 * 8 * n)
    quarters = torch.histc(unit, bins=4, min=-1.0, max=1.0) / unit.numel()
    assert distance(quarters, torch.full((4,), 0.25)) <= 4 * math.sqrt(3 / 16 / unit.numel())
    norms = torch.linalg.vector_norm(A.double(), dim=1)
    assert distance(norms, torch.full((8,), 1 / math.sqrt(3))) <= 0.03


def test_lora_has_the_moments_of_pefts_default():
    n = 2048
    kaiming = torch.empty(64, n)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.nn.init.kaiming_uniform_(kaiming, a=math.sqrt(5))
    A = initialize(torch.ones(64, n), "lora", 64).A
    assert float(A.std()) == pytest.approx(float(kaiming.std()), rel=0.01)
    assert float(A.abs().max()) == pytest.approx(float(kaiming.abs().max()), rel=0.001)


@pytest.mark.parametrize("shape", [(8, 4096), (4096, 1024)])
def test_lora_gaussian_has_variance_one_over_n(shape):
    n = shape[1]
    A, B = initialize(torch.ones(shape), "lora-gaussian", 8)
    unit = A.double() * math.sqrt(n)
    count = unit.numel()
    assert not B.any()
    assert abs(float(unit.mean())) <= 4 / math.sqrt(count)
    assert abs(float(unit.var()) - 1.0) <= 4 * math.sqrt(2 / count)
    assert abs(float(unit.pow(4).mean()) - 3.0) <= 4 * math.sqrt(96 / count)  # Gaussian kurtosis
    gram = A.double() @ A.double().mT
    assert distance(gram, torch.eye(8)) <= 6 / math.sqrt(n)


def test_bfloat16_weights_start_where_their_float32_values_do():
    W = weight("tall", torch.bfloat16)
    for name in orthora.methods("initialisation"):
        low, high = initialize(W, name, RANK), initialize(W.float(), name, RANK)
        assert torch.equal(low.A, high.A), name
        assert torch.equal(low.B, high.B), name


def test_the_top_of_the_masked_weight_is_not_the_top_of_the_weight():
    W = weight("square")
    A = initialize(W, "geora", RANK).A.double()
    rows = torch.linalg.qr(A.mT).Q
    overlap = float((top_subspace(W, RANK).V.double().mT @ rows).square().sum()) / RANK
    assert overlap < 0.5
