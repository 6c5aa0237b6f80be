"""Rows as tensors in both layouts, and how rows are dealt to processes and micro-batches."""

import itertools
import math
import random
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from conftest import KINDS, VOCAB, adamw_steps, make_model
from trl.trainer.utils import add_fused_lm_head

import orthora
from orthora.train.batches import collate
from orthora.train.dealing import deal, filled, packed, share_pays
from orthora.train.losses import Objective
from orthora.train.rollouts import Row
from orthora.train.scoring import Scorer
from orthora.train.updates import Shape, apart, passes_per_update, plan_updates

PAD = 0
LAYOUTS = [False, True]
SHARING = ["qwen2", "qwen2-tied", "qwen3", "llama", "gemma", "gpt2", "phi3", "qwen3_moe", "mixtral"]
OBJECTIVE = Objective(
    loss="dapo", ratio="token", clip_low=0.2, clip_high=0.2, dual_clip=None, beta=0.0,
    entropy_bonus=0.0, max_tokens=9,
)  # fmt: skip
WINDOWED = ["mistral", "gemma2", "gemma3"]


def some_rows(lengths, prompts=None, seed=0):
    """Rows of random tokens; ``lengths`` by group, ``prompts`` the prompts' lengths."""
    generator = torch.Generator().manual_seed(seed)
    prompts = prompts or [3 + 2 * i for i in range(len(lengths))]

    def tokens(count):
        return torch.randint(3, VOCAB, (count,), generator=generator, dtype=torch.int32)

    rows = []
    for number, (group, size) in enumerate(zip(lengths, prompts, strict=True)):
        prompt = tuple(tokens(size).tolist())
        for k, length in enumerate(group):
            old = -torch.rand(length, generator=generator)
            ids = tokens(length)
            rows.append(Row(number, prompt, ids, old, None, None, (-1.0) ** k, True))
    return rows


def scorer(model, *, share=True, fold=False):
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    add_fused_lm_head(base, temperature=1.0, outputs=("log_probs", "entropy"))
    cpu = torch.device("cpu")
    return Scorer(model, nullcontext, cpu, PAD, fold=fold, share=share)


@pytest.mark.parametrize("shared", LAYOUTS)
def test_a_batch_holds_every_value_at_the_place_of_its_token(shared):
    rows = some_rows([[2, 4], [1, 3, 2]], prompts=[3, 1])
    rows[1].counts = False
    batch = collate(rows, PAD, shared=shared)
    assert len(batch.ids) == (2 if shared else 5)
    assert batch.take.shape == batch.mask.shape == batch.old.shape == (5, 4)
    following = batch.ids[:, 1:].flatten()
    labels = batch.labels[:, 1:].flatten()
    positions = batch.positions[:, :-1].flatten()  # of the tokens that predict
    for i, row in enumerate(rows):
        t = len(row.ids)
        assert following[batch.take[i, :t]].tolist() == row.ids.tolist()
        assert labels[batch.take[i, :t]].tolist() == row.ids.tolist()
        first = len(row.prompt) - 1
        assert positions[batch.take[i, :t]].tolist() == list(range(first, first + t))
        assert torch.equal(batch.old[i, :t], row.old)
        assert not batch.old[i, t:].any()
        assert batch.mask[i].tolist() == [float(row.counts)] * t + [0.0] * (4 - t)
    assert int((batch.labels != -100).sum()) == sum(len(row.ids) for row in rows)
    assert batch.advantage.tolist() == [1.0, -1.0, 1.0, -1.0, 1.0]
    assert batch.sampled is batch.reference is None


def test_the_mask_of_the_shared_layout_by_hand():
    """Prompt p q, responses a and b c: p | q a | q b c, where q stands twice."""
    one, two = torch.tensor([4], dtype=torch.int32), torch.tensor([5, 6], dtype=torch.int32)
    rows = [Row(0, (1, 2), ids, None, None, None, 0.0, True) for ids in (one, two)]
    batch = collate(rows, PAD, shared=True)
    assert batch.ids.tolist() == [[1, 2, 4, 2, 5, 6]]
    assert batch.positions.tolist() == [[0, 1, 2, 1, 2, 3]]
    assert (batch.attention[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 0, 0, 1, 1, 1],
    ]


def test_short_groups_stand_in_one_sequence_and_do_not_see_each_other():
    """Prompts p q and r, responses a b c d, e and f: p | q a b c d  and  r e | p q f, padded."""
    ids = [torch.tensor(one, dtype=torch.int32) for one in ([11, 12, 13, 14], [21], [31])]
    prompts = [(1, 2), (3,), (1, 2)]
    rows = [Row(i, prompts[i], ids[i], None, None, None, 0.0, True) for i in range(3)]
    batch = collate(rows, PAD, shared=True)
    assert batch.ids.tolist() == [[1, 2, 11, 12, 13, 14], [3, 21, 1, 2, 31, PAD]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 2, 0]]
    assert batch.labels.tolist() == [[-100] * 2 + [11, 12, 13, 14],
                                     [-100, 21, -100, -100, 31, -100]]  # fmt: skip
    assert (batch.attention[1, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    labels = batch.labels[:, 1:].flatten()
    for one, take, mask in zip(ids, batch.take, batch.mask, strict=True):
        assert labels[take[mask > 0]].tolist() == one.tolist()


@pytest.mark.parametrize("seed", range(20))
def test_packing_wastes_no_sequence_and_loses_nobody(seed):
    lengths = random.Random(seed).choices(range(1, 60), k=1 + seed)
    found = packed(lengths)
    assert sorted(itertools.chain(*found)) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in one) for one in found]
    assert max(sums) == max(lengths)
    assert all(a + b > max(lengths) for a, b in itertools.combinations(sums, 2))
    assert found == sorted(found)
    assert packed([5, 5, 5]) == [[0], [1], [2]]  # as they were, where nothing fits


@pytest.mark.parametrize("together", LAYOUTS)
def test_a_measurement_fills_its_micro_batches(together):
    rows = some_rows([[5] * 4, [9], [2, 3], [7], [1] * 5], prompts=[4] * 5)
    found = filled(rows, 4, together=together)
    assert sorted(itertools.chain(*found)) == list(range(13))
    assert max(map(len, found)) <= 4
    assert all(len(a) + len(b) > 4 for a, b in itertools.pairwise(found))
    if together:  # the last group is larger than a micro-batch, and is cut
        homes = [{k for k, micro in enumerate(found) for i in micro if rows[i].group == g}
                 for g in range(5)]  # fmt: skip
        assert [len(home) for home in homes] == [1, 1, 1, 1, 2]
    else:
        lengths = [rows[i].length for micro in found for i in micro]
        assert lengths == sorted(lengths, reverse=True)
    assert filled([], 4, together=together) == []


@pytest.mark.parametrize("kind", SHARING)
def test_packed_groups_score_as_each_row_alone(kind):
    rows = some_rows([[2, 7, 5, 9], [6], [1, 3], [4], [2]], prompts=[9, 1, 4, 3, 12])
    model = orthora.adapt(make_model(kind), "rlpo", rank=4, alpha=4.0)
    adamw_steps(model)
    made = scorer(model)
    assert len(collate(rows, PAD, shared=True).ids) < 5
    together = made.logps([rows], shared=True)
    alone = made.logps([[row] for row in rows], shared=False)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", SHARING)
def test_both_layouts_score_alike_and_give_the_same_gradients(kind):
    """Unequal groups, a prompt of one token, a group of one response."""
    rows = some_rows([[2, 7, 5], [6], [1, 3]], prompts=[9, 1, 4])
    gradients, scores = [], []
    for shared in LAYOUTS:
        model = orthora.adapt(make_model(kind), "rlpo", rank=4, alpha=4.0)
        adamw_steps(model)  # else B = 0, and A has no gradient
        made = scorer(model)
        batch = made.batch(rows, shared=shared)
        logps, entropy = made.score(model, batch)
        ((logps * batch.advantage[:, None] + 0.1 * entropy) * batch.mask).sum().backward()
        scores.append((logps * batch.mask, entropy * batch.mask))
        named = model.named_parameters()
        gradients.append({name: p.grad for name, p in named if p.grad is not None})
    for one, other in zip(*scores, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    assert gradients[0].keys() == gradients[1].keys()
    assert gradients[0]
    for name, one in gradients[0].items():
        torch.testing.assert_close(one, gradients[1][name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "method"),
    [(kind, "rlpo") for kind in SHARING] + [("qwen2", m) for m in ("ia3", "vera", "miss", "ln")],
)
def test_scores_equal_those_of_the_model_itself_token_by_token(kind, method):
    """Against plain forward passes without padding, mask, fused head or neighbours."""
    rows = some_rows([[2, 7], [4]], prompts=[5, 2])
    model = orthora.adapt(make_model(kind), method, rank=4, alpha=4.0)
    adamw_steps(model)
    model.eval()
    made = scorer(model)
    expected = []
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.ids.tolist()]])
        with torch.no_grad():
            logps = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        picked = logps.gather(1, ids[0, 1:, None])[:, 0]
        expected.append(picked[len(row.prompt) - 1 :])
    for shared in LAYOUTS:
        for found, values in zip(made.logps([rows], shared=shared), expected, strict=True):
            torch.testing.assert_close(found, values, atol=2e-5, rtol=1e-4)


def test_sharing_in_bfloat16_stays_within_its_rounding():
    rows = some_rows([[9] * 8, [9] * 8], prompts=[20, 20])
    model = orthora.adapt(make_model("qwen2", torch.bfloat16), "rlpo", rank=4, alpha=4.0)
    one, other = (scorer(model).logps([rows], shared=shared) for shared in LAYOUTS)
    assert max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) < 0.1


def pays(rows, micro_batch, width, parameters):
    """Whether sharing does, of rows in micro-batches filled one after the other."""
    return share_pays(*layouts(rows, micro_batch), width, parameters)


def layouts(rows, micro_batch=16):
    """Micro-batches group by group, and row by row."""
    dealt = [filled(rows, micro_batch, together=together) for together in (True, False)]
    return [[[rows[i] for i in micro] for micro in one] for one in dealt]


def shares(made, rows):
    """Whether a scorer shares, asked as the trainer asks."""
    made.check(rows)
    return made.shares(*layouts(rows))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"qwen2-medium", "qwen3_moe-dense"}))
def test_models_with_sliding_windows_are_scored_row_by_row(kind):
    rows = some_rows([[9] * 8, [9] * 8], prompts=[20, 20])
    assert pays(rows, 16, 32, 10_000)
    assert shares(scorer(make_model(kind)), rows) == (kind not in WINDOWED)


def test_a_model_that_reads_masks_its_own_way_is_found_out():
    """A layer whose attention ignores the mask it is given."""
    rows = some_rows([[9] * 8, [9] * 8], prompts=[20, 20])
    model = make_model("qwen2")
    assert shares(scorer(model), rows)
    for layer in model.model.layers:
        attention = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, attention=attention, **kwargs: attention(
            *args, **kwargs | {"attention_mask": None}
        )
    assert not shares(scorer(model), rows)


def test_flash_attention_and_the_setting_turn_sharing_off():
    rows = some_rows([[9] * 8, [9] * 8], prompts=[20, 20])
    assert not shares(scorer(make_model("qwen2"), share=False), rows)
    model = make_model("qwen2")
    model.config._attn_implementation = "flash_attention_2"
    assert not shares(scorer(model), rows)


def test_sharing_pays_for_long_prompts_and_not_for_long_responses_in_attention():
    long_prompts = some_rows([[10] * 8], prompts=[90])
    assert pays(long_prompts, 8, 64, 50_000)
    assert not pays(some_rows([[100]], prompts=[100]), 8, 64, 50_000)  # nobody to share with
    long_responses = some_rows([[500] * 16], prompts=[8])
    assert not pays(long_responses, 16, 64, 1_000)  # attention dominates


def test_sharing_is_weighed_with_the_padding_that_it_brings():
    """Eight prompts of 40 tokens: one with three responses of 20 in the sample, seven with one."""
    rows = some_rows([[20] * 3, *[[20]] * 7], prompts=[40] * 8)
    assert 39 + 3 * 21 == 102  # tokens of the first group, to which all others are padded:
    assert 8 * 102 > 10 * 60
    assert not pays(rows, 10, 16, 50_000)
    assert pays(rows[:3], 10, 16, 50_000)  # alone it pays, 102 against 180
    assert not pays(rows[:3], 1, 16, 50_000)  # not where each row has a micro-batch
    assert pays(rows, 3, 16, 50_000)  # apart from the others: 102 + 7 x 60 against 600


def test_the_padding_of_packed_groups_is_what_counts():
    """Groups of 60, 30 and 30 tokens take two sequences of 60, not three."""
    rows = some_rows([[20, 20], [5, 5], [5, 5]], prompts=[19] * 3)
    shared, _ = layouts(rows)
    assert collate(shared[0], PAD, shared=True).ids.shape == (2, 60)
    four = [[rows[0]] * 4]  # 156 tokens row by row: more than 120 / 0.9, less than 180 / 0.9
    assert share_pays(shared, four, 0, 1)
    long = some_rows([[20, 20], [6, 5], [5, 6]], prompts=[19] * 3)  # 60, 31 and 31 do not fit
    assert collate(long, PAD, shared=True).ids.shape == (3, 60)
    assert not share_pays([long], four, 0, 1)


def test_a_sample_finds_the_groups_of_rows_that_training_has_apart():
    """Training scores row by row, longest first; the rows of a group then stand apart."""
    rows = some_rows([[4 + 3 * k for k in range(8)]] * 4, prompts=[60] * 4)
    plan = plan_updates(rows, OBJECTIVE, Shape(8, 1, 1, 4, 8), shared=False)
    order = [row.group for row in plan.rows]
    assert len([*itertools.groupby(order)]) > 4
    made = scorer(make_model("qwen2"))
    made.check(rows)
    sample = plan.sample(0.9, 3, made.shares)
    assert sample.shared
    for micro in sample.micro_batches:
        groups = [row.group for row in micro]
        assert len([*itertools.groupby(groups)]) == len({*groups})


def test_a_rollouts_layout_is_weighed_without_padding_of_groups():
    """Groups of 9 and 40 tokens, each by itself; four rows, all padded to 21."""
    rows = some_rows([[2, 3], [18, 18]], prompts=[3, 3])
    groups, whole = apart(rows)
    assert [[row.group for row in group] for group in groups] == [[0, 0], [1, 1]]
    assert whole == [rows]
    assert share_pays(groups, whole, 0, 1)  # 49 < 0.9 x 84
    assert not share_pays([rows], whole, 0, 1)  # 80 is more


@pytest.mark.parametrize("sizes", [[1, 8, 8, 1], [2, 2], [1, 1, 1]])
def test_a_model_that_ignores_its_mask_is_found_out_whatever_the_groups(sizes):
    rows = some_rows([[9] * size for size in sizes], prompts=[20] * len(sizes))
    model = make_model("qwen2")
    for layer in model.model.layers:
        attention = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, attention=attention, **kwargs: attention(
            *args, **kwargs | {"attention_mask": None}
        )
    made = scorer(model)
    made.check(rows)
    many = some_rows([[9] * 8, [9] * 8], prompts=[20, 20])
    assert not made.shares(*layouts(many))


def test_a_router_loss_turns_sharing_off():
    rows = some_rows([[9] * 8, [9] * 8], prompts=[20, 20])
    model = make_model("qwen3_moe")
    assert shares(scorer(model), rows)
    model.config.output_router_logits = True
    assert not shares(scorer(model), rows)


def test_a_sample_is_laid_out_by_what_it_holds_and_not_by_what_training_does():
    rows = some_rows([[8] * 8] * 4, prompts=[40] * 4)
    for row in rows:
        row.old = torch.full((len(row.ids),), -0.1)
    plan = plan_updates(rows, OBJECTIVE, Shape(8, 2, 1, 2, 16), shared=True)
    made = scorer(make_model("qwen2"))
    assert not plan.sample(0.5, 3, made.shares).shared  # it is not known yet whether it may
    made.check(rows)
    few, many = (plan.sample(share, 3, made.shares) for share in (4 / 32, 0.5))
    assert [row.group for row in few.rows] == [0, 1, 2, 3]
    assert not few.shared
    assert many.shared
    assert plan.sample(1.0, 3, made.shares).micro_batches == plan.once
    assert plan.sample(1.0, 3, made.shares).shared == plan.shared
    assert plan.sample(4 / 32, 3).shared  # nobody asked
    for sample in (few, many):
        found = made.logps(sample.micro_batches, shared=sample.shared)
        again = made.logps(sample.micro_batches, shared=not sample.shared)
        for a, b in zip(found, again, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_a_process_without_rows_gets_one_that_counts_nothing():
    model = make_model("qwen2")
    for shared in LAYOUTS:
        batch = scorer(model).batch([], shared=shared)
        logps, _ = scorer(model).score(model, batch)
        assert logps.shape == batch.mask.shape
        assert not batch.mask.any()


def test_scores_without_gradients_come_back_in_order_and_leave_the_mode():
    rows = some_rows([[2, 7, 5], [6, 1, 4]])
    model = make_model("qwen2").train()
    made = scorer(model)
    whole = made.logps([rows], shared=False)
    parts = made.logps([rows[:2], rows[2:3], rows[3:]], shared=False)
    assert model.training
    assert [len(values) for values in whole] == [2, 7, 5, 6, 1, 4]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_importance_weights_are_capped_and_one_where_nothing_is_known():
    row = some_rows([[3]])[0]
    row.sampled = row.old - torch.tensor([0.0, 5.0, float("nan")])
    assert collate([row], PAD).weight(2.0)[0].tolist() == [1.0, 2.0, 1.0]
    assert collate([row], PAD).weight(0.0) is None


def test_an_old_row_without_scores_gives_a_batch_without():
    row = Row(0, (1,), torch.tensor([4]), None, None, None, 0.5, True)
    assert collate([row], PAD).old is None


@pytest.mark.parametrize("groups", [1, 2, 5, 8])
@pytest.mark.parametrize("group_size", [1, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("micro", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("together", LAYOUTS)
def test_rows_are_dealt_once_evenly_and_within_the_passes(
    groups, group_size, size, micro, together
):
    rows = some_rows(
        [[(7 * i + k) % 13 + 1 for k in range(group_size)] for i in range(groups)],
        prompts=[1 + 3 * i % 5 for i in range(groups)],
    )
    dealt = [deal(rows, size, rank, micro, together=together) for rank in range(size)]
    everything = sorted(itertools.chain(*itertools.chain(*dealt)))
    assert everything == list(range(len(rows)))
    assert len({len(batches) for batches in dealt}) == 1  # the same number of passes for all
    assert all(len(batch) <= micro for batches in dealt for batch in batches)
    assert len(dealt[0]) <= passes_per_update(groups, group_size, micro, size)
    counts = [sum(map(len, batches)) for batches in dealt]
    if not together:
        assert len(dealt[0]) == max(1, math.ceil(math.ceil(len(rows) / size) / micro))
        assert max(counts) - min(counts) <= 1
        loads = [sum(rows[i].length for batch in batches for i in batch) for batches in dealt]
        assert max(loads) - min(loads) <= max(row.length for row in rows)
    elif group_size <= micro:
        assert max(counts) - min(counts) <= group_size
        for batch in itertools.chain(*dealt):  # whole groups
            members = [rows[i].group for i in batch]
            assert all(members.count(number) == group_size for number in members)


def test_rows_of_like_length_share_a_micro_batch():
    rows = some_rows([[5], [1], [9], [2], [8], [1]], prompts=[1] * 6)
    assert deal(rows, 1, 0, 2, together=False) == [[2, 4], [0, 3], [1, 5]]


@pytest.mark.parametrize("shared", LAYOUTS)
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("groups", [8, 7, 4])
def test_a_plan_holds_every_row_once_per_epoch_with_its_mini_batchs_divisor(shared, size, groups):
    """Groups of three rows of two tokens; a rollout that is not full has smaller mini-batches."""
    rows = some_rows([[2, 2, 2]] * groups)
    passes = passes_per_update(2, 3, 4, size)
    plans = [
        plan_updates(rows, OBJECTIVE, Shape(3, 4, 2, passes, 4, rank, size), shared=shared)
        for rank in range(size)
    ]
    for update in range(4):
        inside = []
        for plan in plans:
            assert len(plan.passes) == 4 * passes * 2
            mine = plan.passes[update * passes : (update + 1) * passes]
            again = plan.passes[(update + 4) * passes : (update + 5) * passes]
            assert mine == again  # the second epoch
            inside += [row for micro, _ in mine for row in micro]
            divisors = {divisor for _, divisor in mine}
        expected = range(groups * update // 4, groups * (update + 1) // 4)
        assert sorted(row.group for row in inside) == [g for g in expected for _ in range(3)]
        assert divisors == {2.0 * len(inside)}
    assert sum(len(plan.rows) for plan in plans) == len(rows)


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_sample_is_the_same_however_many_processes_there_are(shared, size, even):
    """On each of the rows that it scored itself, in passes as many as fit; all tokens known."""
    rows = some_rows([[2, 3, 1, 4], [5, 2, 2, 2]] * 4)
    passes = passes_per_update(2, 4, 3, size)
    alone, *plans = [
        plan_updates(rows, OBJECTIVE, Shape(4, 4, 1, 8, 3, rank, of, even), shared=shared)
        for rank, of in [(0, 1), *((rank, size) for rank in range(size))]
    ]
    assert passes <= 8
    for step in range(1, 33):
        whole = alone.sample(0.5, step)
        expected = {id(r): w for r, w in zip(whole.rows, whole.weights, strict=True)}
        assert len(expected) == 16
        parts = [plan.sample(0.5, step) for plan in plans]
        found = {}
        for plan, part in zip(plans, parts, strict=True):
            assert {id(row) for row in part.rows} <= {id(row) for row in plan.rows}
            assert all(len(micro) <= 3 for micro in part.micro_batches)
            assert even or all(part.micro_batches)
            found |= {id(r): w for r, w in zip(part.rows, part.weights, strict=True)}
        assert found == expected
        assert sum(part.tokens for part in parts) == sum(len(row.ids) for row in rows)
        if even:  # all must call the model alike
            assert len({len(part.micro_batches) for part in parts}) == 1
    everything = plans[0].sample(1.0, 5)
    assert everything.micro_batches == plans[0].once
    assert set(everything.weights) == {1.0}
    nothing = plans[0].sample(0.0, 5)
    assert (nothing.rows, nothing.tokens) == ([], 0)
    assert sum(len(plan.sample(0.001, 5).rows) for plan in plans) == 1


def test_surprising_responses_are_sampled_more_often():
    rows = some_rows([[20, 20, 20, 20]] * 4)
    for i, row in enumerate(rows):
        row.old = torch.full((20,), -3.0 if i % 4 == 0 else -0.05)
    plan = plan_updates(rows, OBJECTIVE, Shape(4, 1, 1, 4, 4), shared=False)
    samples = [plan.sample(0.25, step) for step in range(1, 101)]
    assert all(len(sample.rows) == 4 for sample in samples)
    surprising = sum(float(row.old[0]) == -3.0 for sample in samples for row in sample.rows)
    assert 335 <= surprising <= 345  # 85 % of 400: a fifth of every chance is even


def test_rows_that_an_engine_did_not_score_are_sampled_evenly():
    rows = [replace(row, old=None) for row in some_rows([[2, 9], [4, 1]] * 4)]
    plan = plan_updates(rows, OBJECTIVE, Shape(2, 2, 1, 4, 4), shared=False)
    assert plan.sample(0.5, 3).weights == pytest.approx([2.0] * 8)


def test_a_sample_leaves_groups_of_an_older_policy_out():
    rows = [replace(row, fresh=row.group % 2 == 1) for row in some_rows([[2, 2]] * 8)]
    plan = plan_updates(rows, OBJECTIVE, Shape(2, 2, 1, 4, 4), shared=False)
    sample = plan.sample(0.5, 3)
    assert len(sample.rows) == 4
    assert all(row.fresh for row in sample.rows)
    assert sample.tokens == plan.sample(1.0, 3).tokens == 16
    old = [replace(row, fresh=False) for row in rows]
    stale = plan_updates(old, OBJECTIVE, Shape(2, 2, 1, 4, 4), shared=False).sample(0.5, 3)
    assert (stale.rows, stale.tokens) == ([], 0)
