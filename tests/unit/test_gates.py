"""The gated miniature: each mechanism against a loop or a hand number, each switch's limits, and the ladder."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from casestudies_lib.models.gates import ladder
from casestudies_lib.models.gates.attention import Attention
from casestudies_lib.models.gates.feed_forward import Coupler, HeadGate, LearnedWidth
from casestudies_lib.models.gates.mixing import PrunedLinear, band, running_mean, strongest
from casestudies_lib.models.gates.model import GatedModel, Planted
from casestudies_lib.models.gates.switches import ALLOWED, ALPHAS, RATIOS, Sizes, Switches, links

SIZES = Sizes(vocab=13, tokens=10, dim=16, heads=4, blocks=2, gate_dim=3, window=4)
COUPLED = {"latent": 8, "reciprocal_mlp": "both"}
EVERY_SWITCH = [
    {},
    *({"reciprocal": kind} for kind in ALLOWED["reciprocal"][1:]),
    {"latent": 8},
    {"latent": 8, "reciprocal": "rank_one"},
    *({"head_gate": kind} for kind in ALLOWED["head_gate"][1:]),
    *({"row_gate": kind} for kind in ALLOWED["row_gate"][1:]),
    {"cross_token": True},
    *({**COUPLED, "coupler": kind} for kind in ALLOWED["coupler"]),
    {**COUPLED, "reciprocal_from": "previous_batch"},
    {"mixing": "convex", "head_gate": "past_tokens", "cross_token": True},
    *({"expansion_form": kind} for kind in ALLOWED["expansion_form"][1:]),
    {"pruned": 0.5},
    *({"planted": kind} for kind in ALLOWED["planted"][1:]),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def model(seed=0, sizes=SIZES, **switches):
    return GatedModel(sizes, Switches(**switches), generator(seed)).double()


def text(batch=3, tokens=9, seed=0):
    return torch.randint(SIZES.vocab, (batch, tokens), generator=generator(seed))


def noise(ids):
    return normal(*ids.shape, SIZES.dim, seed=5)


def logits(built, ids):
    built.forget()
    with torch.no_grad():
        return built(ids, noise(ids))


def attention(**switches):
    part = Attention(SIZES, Switches(**switches), links(Switches(**switches), 1, 2))
    for value in part.parameters():
        if value.dim():
            nn.init.normal_(value, std=0.4, generator=generator(3))
    return part.double()


# The model as a whole


@pytest.mark.parametrize("switches", EVERY_SWITCH, ids=str)
def test_past_logits_depend_on_the_future_only_where_the_switch_says_so(switches):
    built, ids = model(**switches), text()
    other = ids.clone()
    other[:, 5:] = (other[:, 5:] + 1) % SIZES.vocab
    moved = not torch.equal(logits(built, ids)[:, :5], logits(built, other)[:, :5])
    leaks = switches.get("reciprocal") == "transpose_over_mask" or switches.get("head_gate") == "all_tokens"
    assert moved == leaks


@pytest.mark.parametrize("switches", EVERY_SWITCH, ids=str)
def test_a_batch_leaves_something_behind_only_where_the_switch_says_so(switches):
    built, ids = model(**switches), text()
    first = logits(built, ids)
    with torch.no_grad():
        built(text(seed=8), noise(ids))
        again = built(ids, noise(ids))
    assert torch.equal(first, again) == ("previous_batch" not in switches.values())


@pytest.mark.parametrize("switches", EVERY_SWITCH, ids=str)
def test_every_parameter_of_a_mechanism_as_meant_gets_a_gradient(switches):
    built, ids = model(**switches), text()
    for _ in range(2):
        built.zero_grad()
        functional.cross_entropy(built(ids, noise(ids)).mT, ids).backward()
    idle = {name for name, value in built.named_parameters() if value.grad is None or not value.grad.any()}
    if switches.get("planted") == "useless":
        assert idle == {f"blocks.{b}.{name}" for b in (0, 1) for name in ("planted_alpha", "planted_norm.weight",
                                                                          "planted_norm.bias")}  # fmt: skip
    elif switches.get("planted") == "harmful":
        assert all("planted_norm" in name for name in idle)
    elif switches.get("head_gate") == "previous_batch":
        assert {name.split(".")[3] for name in idle} == {"gate"}
    elif switches.get("expansion_form") == "discrete":
        assert all(".widen." in name or ".narrow." in name for name in idle)
        assert idle
    else:
        assert idle == set()


def test_one_seed_gives_one_model_and_another_another():
    first, same, other = (logits(model(seed), text()) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)


# Attention


def by_hand(part, hidden, reciprocal):
    """Attend one text, token by token and head by head, with a reciprocal term given as a function of two tokens."""
    width, tokens = SIZES.dim // SIZES.heads, len(hidden)
    queries, keys, values = (
        hidden @ layer.weight.T + layer.bias for layer in (part.query, part.key, part.value)
    )  # fmt: skip
    rows = []
    for here in range(tokens):
        heads = []
        for head in range(SIZES.heads):
            cut = slice(head * width, (head + 1) * width)
            scores = []
            for there in range(here + 1):
                score = queries[here, cut] @ keys[there, cut] / math.sqrt(width)
                if here - there <= SIZES.window:
                    term = reciprocal(queries[:, cut], keys[:, cut], here, there) / math.sqrt(width)
                    score = score + part.reciprocal_alpha * term
                scores.append(score)
            weights = torch.stack(scores).softmax(0)
            heads.append(sum(weight * values[there, cut] for there, weight in enumerate(weights)))
        rows.append(part.out.weight @ torch.cat(heads) + part.out.bias)
    return torch.stack(rows)


TERMS = {
    "rank_one": lambda q, k, i, j: q[i].sum() * k[j].sum(),
    "repeat": lambda q, k, i, j: q[i] @ k[j],
    "transpose": lambda q, k, i, j: q[j] @ k[i],
    "transpose_after_mask": lambda q, k, i, j: q[j] @ k[i],
}


@pytest.mark.parametrize("kind", TERMS)
@torch.no_grad()
def test_reciprocal_attention_is_the_loop_with_its_term(kind):
    part, hidden = attention(reciprocal=kind), normal(2, 9, SIZES.dim)
    expected = torch.stack([by_hand(part, row, TERMS[kind]) for row in hidden])
    assert torch.allclose(part(hidden).added, expected, atol=1e-10)


@torch.no_grad()
def test_the_rank_one_term_is_that_of_the_published_einsum():
    part, hidden = attention(reciprocal="rank_one", latent=8), normal(2, 9, SIZES.dim)
    keys = part.key(hidden)
    queries, [shared] = part.queries_keys(hidden, keys)[0], [keys]
    published = torch.einsum("bhtd,bsl->bhts", queries, shared) / math.sqrt(8)
    term = part.reciprocal(part.scores(hidden, keys), hidden, keys)
    assert torch.allclose(term, published, atol=1e-12)
    assert torch.linalg.matrix_rank(term).max() == 1


@torch.no_grad()
def test_latent_attention_is_attention_with_low_rank_keys_and_values():
    part, hidden = attention(latent=8), normal(2, 9, SIZES.dim)
    full = attention()
    full.load_state_dict(
        {k: v for k, v in part.state_dict().items() if k.split(".")[0] in ("query", "out")}, strict=False
    )
    scale = math.sqrt(8 / (SIZES.dim // SIZES.heads))  # scores are divided by the root of the latent's width
    full.key.weight.copy_((part.query_to_latent @ part.key.weight).flatten(0, 1) / scale)
    full.value.weight.copy_((part.value_up.mT @ part.value.weight).flatten(0, 1))
    full.key.bias.zero_()
    full.value.bias.zero_()
    assert torch.allclose(part(hidden).added, full(hidden).added, atol=1e-10)


@pytest.mark.parametrize("convex", [False, True])
@torch.no_grad()
def test_head_gates_scale_their_heads_weights(convex):
    part = attention(head_gate="past_tokens", mixing="as_run" if convex else "additive")
    hidden, gates = normal(2, 9, SIZES.dim), torch.rand(2, 9, SIZES.heads, generator=generator(4), dtype=torch.float64)
    plain, gated = part(hidden).weights, part(hidden, gates=gates).weights
    alpha = ALPHAS["gate_alpha"]
    factor = 1 - alpha + alpha * gates if convex else 1 + alpha * gates
    for head in range(SIZES.heads):
        for token in range(9):
            assert torch.allclose(gated[:, head, token], factor[:, token, head, None] * plain[:, head, token])


@pytest.mark.parametrize(("kind", "share"), [("output", 0.2), ("output_in_full", 1.0), ("entropy_in_full", 1.0)])
@torch.no_grad()
def test_row_gates_scale_what_a_head_returns(kind, share):
    part, plain, hidden = attention(row_gate=kind), attention(), normal(1, 9, SIZES.dim)
    plain.load_state_dict(part.state_dict(), strict=False)
    weights = plain(hidden).weights[0]
    values = plain.values(hidden)[0]
    rows = []
    for token in range(9):
        heads = []
        for head in range(SIZES.heads):
            row = weights[head, token, : token + 1]
            statistic = -(row * row.log()).sum() if kind.startswith("entropy") else row.sort().values[-8:].sum()
            gate = 1 / (1 + math.exp(-(float(statistic) * part.row_scale[head] + part.row_bias[head])))
            heads.append((1 - share * (1 - gate)) * (row @ values[head, : token + 1]))
        rows.append(torch.cat(heads))
    assert torch.allclose(part(hidden).added[0], plain.out(torch.stack(rows)), atol=1e-10)


# Couplings of the feed-forward


@pytest.mark.parametrize("tying", ALLOWED["coupler"])
@torch.no_grad()
def test_the_coupler_maps_both_ways_as_its_tying_says(tying):
    switches = Switches(**COUPLED, coupler=tying)
    coupler = Coupler(64, SIZES, switches, to_attention=True).double()
    for value in coupler.parameters():
        nn.init.normal_(value, generator=generator(1))
    keys, hidden = normal(1, 2, 8), normal(1, 2, 64, seed=1)
    if tying == "tied_transpose":
        expected = keys @ coupler.shared.T, hidden @ coupler.shared
    else:
        expected = keys @ coupler.to_mlp.weight.T, hidden @ coupler.to_attention.weight.T
    if tying == "per_head_scalar":
        expected = (
            expected[0] * coupler.to_mlp_scalars.repeat_interleave(16),
            expected[1] * coupler.to_attention_scalars.repeat_interleave(2),
        )
    assert torch.allclose(coupler.for_mlp(keys), expected[0])
    assert torch.allclose(coupler.for_attention(hidden), expected[1])


def test_the_zeros_bug_returns_zeros_and_leaves_every_gate_of_an_additive_mix_without_a_gradient():
    built, ids = model(**COUPLED, coupler="per_head_scalar", coupler_zeros=True), text()
    functional.cross_entropy(built(ids).mT, ids).backward()
    alphas = [value.grad for name, value in built.named_parameters() if name.endswith("_alpha")]
    assert len(alphas) == 3
    assert not any(gradient.any() for gradient in alphas)
    plain = model(latent=8)
    plain.load_state_dict(built.state_dict(), strict=False)
    assert torch.equal(logits(built, ids), logits(plain, ids))


@pytest.mark.parametrize("mode", ["past_tokens", "all_tokens"])
@torch.no_grad()
def test_the_head_gate_is_a_sigmoid_of_a_mean_that_starts_at_its_bias(mode):
    gate = HeadGate(12, SIZES, Switches(head_gate=mode)).double()
    gate.draw()
    hidden = normal(2, 7, 12)
    found = gate(hidden)
    for token in range(found.shape[1]):
        upto = hidden[:, : token + 1] if mode == "past_tokens" else hidden
        context = torch.stack([gate.context(each).mean(0) for each in upto])
        assert torch.allclose(found[:, token], torch.sigmoid(gate.to_heads(context)))
    assert gate(torch.zeros(1, 1, 12, dtype=torch.float64)).mean() == pytest.approx(1 / (1 + math.exp(-2)), abs=0.1)


@torch.no_grad()
def test_cross_token_reading_keeps_the_largest_weights_of_the_heads_mean():
    weights = normal(2, 3, 6, 6, seed=2).softmax(-1)
    found = strongest(weights, 2)
    for text_, matrix in enumerate(weights.mean(1)):
        for token, row in enumerate(matrix):
            top = sorted(range(6), key=lambda place: -row[place])[:2]
            total = sum(float(row[place]) for place in top)
            expected = [float(row[place]) / total if place in top else 0.0 for place in range(6)]
            assert found[text_, token].tolist() == pytest.approx(expected)


# Widths that are learned


@pytest.mark.parametrize("form", ["interpolated", "masked"])
@pytest.mark.parametrize("start", [2.5, 4.0, 5.0])
def test_a_learnable_ratio_starts_where_it_is_told(form, start):
    width = LearnedWidth(Sizes(vocab=2, tokens=4, dim=64, heads=4), Switches(expansion_form=form, expansion=start))
    assert width.ratio().item() == pytest.approx(start, abs=0.06)


def test_a_discrete_ratio_is_one_of_the_widths_and_passes_its_gradient_to_all_preferences():
    built, ids = model(expansion_form="discrete", expansion=5.0), text()
    width = built.blocks[0].feed_forward
    assert width.ratio().item() in RATIOS
    functional.cross_entropy(built(ids).mT, ids).backward()
    assert width.preference.grad.count_nonzero() == len(RATIOS)


@torch.no_grad()
def test_interpolated_widths_are_the_shares_times_each_feed_forward():
    width = model(expansion_form="interpolated").blocks[0].feed_forward
    stream = normal(2, 3, SIZES.dim)
    each = [narrow(functional.gelu(widen(stream))) for widen, narrow in zip(width.widen, width.narrow)]
    expected = sum(float(share) * out for share, out in zip(width.preference.softmax(0), each))
    assert torch.allclose(sum_of(width, stream), expected)


def sum_of(width, stream):
    weights = torch.zeros(len(stream), SIZES.heads, stream.shape[1], stream.shape[1], dtype=stream.dtype)
    return width(stream, weights, stream).added


@torch.no_grad()
def test_a_mask_whose_edge_lies_beyond_the_widest_is_the_widest_feed_forward():
    width = model(expansion_form="masked").blocks[0].feed_forward
    width.edge.fill_(60.0)
    stream = normal(2, 3, SIZES.dim)
    whole = width.narrow[0](functional.gelu(width.widen[0](stream)))
    assert torch.allclose(sum_of(width, stream), whole)
    width.edge.fill_(-60.0)
    assert torch.allclose(sum_of(width, stream), width.narrow[0].bias.expand_as(whole))


# Mixing, planting, pruning


@pytest.mark.parametrize(
    ("switches", "name"),
    [
        ({"reciprocal": "transpose"}, "reciprocal_alpha"),
        ({"head_gate": "past_tokens"}, "gate_alpha"),
        ({"cross_token": True}, "cross_alpha"),
        ({"latent": 8, "reciprocal_mlp": "to_mlp"}, "to_mlp_alpha"),
        ({"latent": 8, "reciprocal_mlp": "to_attention"}, "to_attention_alpha"),
        ({"planted": "useful"}, "planted_alpha"),
    ],
)
def test_under_the_guard_a_weight_below_zero_has_no_gradient_and_its_twin_does(switches, name):
    for guard in (True, False):
        built, ids = model(**switches, guard=guard), text()
        alphas = [value for key, value in built.named_parameters() if key.endswith(name)]
        assert alphas
        for value in alphas:
            value.data.fill_(-0.05)
        functional.cross_entropy(built(ids, noise(ids)).mT, ids).backward()
        assert all((value.grad is None) == guard for value in alphas)


def test_mixing_weights_start_at_the_reports_defaults_and_are_buffers_if_they_are_not_learned():
    everything = {"reciprocal": "transpose", "head_gate": "past_tokens", "cross_token": True, **COUPLED}
    learned = dict(model(**everything).named_parameters())
    found = {name.split(".")[-1]: value.item() for name, value in learned.items() if name.endswith("_alpha")}
    assert found == pytest.approx({name: ALPHAS[name] for name in ALPHAS if name != "planted_alpha"})
    fixed = model(**everything, learnable=False)
    assert not [name for name, _ in fixed.named_parameters() if name.endswith("_alpha")]
    assert {name.split(".")[-1] for name, _ in fixed.named_buffers()} == found.keys()


@torch.no_grad()
def test_the_planted_branches_are_what_they_are_called():
    stream, extra = normal(2, 5, SIZES.dim), normal(2, 5, SIZES.dim, seed=2)
    parts = {kind: Planted(kind, SIZES.dim).double() for kind in ALLOWED["planted"][1:]}
    useful = parts["useful"](stream, extra)
    assert torch.allclose(useful[:, 1:], parts["useful"].map(stream[:, :-1]))
    assert not useful[:, 0].any()
    assert torch.allclose(parts["redundant"](stream, extra), parts["redundant"].map(stream))
    assert not parts["useless"](stream, extra).any()
    assert torch.equal(parts["harmful"](stream, extra), extra)
    with pytest.raises(ValueError, match="noise="):
        parts["harmful"](stream, None)


@given(st.floats(0, 0.99))
def test_pruning_fixes_the_smallest_weights_at_zero(share):
    layer = PrunedLinear(5, 4, share)
    layer.prune()
    dropped = layer.weight.detach().abs()[layer.kept == 0]
    assert len(dropped) == math.floor(share * 20)
    assert not len(dropped) or dropped.max() <= layer.weight.detach().abs()[layer.kept == 1].min()


@given(st.integers(1, 12), st.integers(0, 12))
def test_the_band_and_the_running_mean_are_their_loops(tokens, window):
    near = band(tokens, window)
    assert all(bool(near[i, j]) == (abs(i - j) <= window) for i in range(tokens) for j in range(tokens))
    values = normal(1, tokens, 2)
    means = running_mean(values)
    assert all(torch.allclose(means[0, i], values[0, : i + 1].mean(0)) for i in range(tokens))


# The ladder


STEPS = [row.step for row in ladder.LADDER]
LADDER_SIZES = Sizes(vocab=13, tokens=12, dim=48, heads=4, blocks=2, gate_dim=3)


def built(step, as_run):
    return ladder.build(step, as_run, LADDER_SIZES, generator())


def parts(step, as_run):
    return ladder.parts_of(built(step, as_run), text(tokens=12))


def test_the_ladder_has_steps_0_to_24_and_each_follows_an_earlier_one():
    assert list(range(25)) == STEPS
    assert all(row.after < row.step or row.step == row.after == 0 for row in ladder.LADDER)


@pytest.mark.parametrize("step", STEPS)
def test_a_row_as_named_differs_from_the_row_before_in_the_parts_that_it_names_and_no_other(step):
    row = ladder.row_of(step)
    assert ladder.changed_parts(parts(row.after, False), parts(step, False)) == row.parts


def test_the_named_mechanisms_that_the_rows_as_run_lack_are_these():
    lacking = {}
    for row in ladder.LADDER:
        run, named = parts(row.step, True), parts(row.step, False)
        absent = sorted(part for part in row.parts if run[part] != named[part])
        lacking |= {row.step: absent} if absent else {}
    gated = {step: ["head gates"] for step in (3, 7, 10, 12)}
    row_gated = {step: ["row gates"] for step in (13, 14, 15, 16, 18)}
    width = {step: ["feed-forward width"] for step in (2, 6, 9)}
    rest = {1: ["pruning"], 5: ["reciprocal attention"], 8: ["latent attention"], 11: ["reciprocal attention"]}
    assert lacking == gated | row_gated | width | rest


def test_rows_as_run_that_are_one_model():
    groups = {}
    for step in STEPS:
        groups.setdefault(tuple(parts(step, True).items()), []).append(step)
    assert [group for group in groups.values() if len(group) > 1] == [[0, 1], [2, 8, 9], [5, 6, 11], [13, 14]]


def test_step_2_as_run_is_smaller_than_the_baseline_by_a_count_by_hand():
    dim, latent, heads, blocks = 768, 64, 12, 12
    dropped = 2 * dim * dim + 2 * dim - 2 * dim * latent - 2 * heads * (dim // heads) * latent
    with torch.device("meta"):
        base, run, named = (
            sum(value.numel() for value in ladder.build(step, as_run, ladder.GPT2, torch.Generator()).parameters())
            for step, as_run in ((0, True), (2, True), (2, False))
        )
    assert base - run == blocks * dropped
    assert named - base == blocks * (2 * dim * dim + dim)


def test_latents_scale_with_the_width():
    assert ladder.switches_of(8, False, 768).latent == 128
    assert ladder.switches_of(8, True, 48).latent == 4
    assert ladder.switches_of(8, True, 4).latent == 1
