"""The routed language model: shapes, routers by hand, and that leaving heads out changes nothing but the arithmetic."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from casestudies_lib.models import cost
from casestudies_lib.models.routing.model import (
    LanguageModel,
    RoutedAttention,
    Sizes,
    SwiGLU,
    Wiring,
    greedy,
    next_token_loss,
)
from casestudies_lib.models.routing.routers import (
    ROUTERS,
    RouterSettings,
    auxiliary,
    chosen,
    draw_router,
    make_router,
    ranked,
)
from casestudies_lib.models.routing.sparse import dense, sparse

SIZES = Sizes(vocab=20, tokens=12, dim=16, hidden=16)


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def model(router="all heads", seed=0, **settings):
    return LanguageModel(SIZES, Wiring(router, RouterSettings(**settings)), drawn(seed))


def ids(seed=0, batch=3, tokens=8):
    return torch.randint(20, (batch, tokens), generator=drawn(seed))


def router(name, dim=16, heads=8, seed=0, **settings):
    made = make_router(name, dim, heads, RouterSettings(**settings), drawn(seed))
    draw_router(made, drawn(seed))
    return made


def hidden(seed=0, batch=2, tokens=5, dim=16):
    return torch.randn(batch, tokens, dim, generator=drawn(seed))


# The model


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_gives_logits_routings_and_head_outputs_of_the_right_shape(name):
    reading = model(name)(ids())
    assert reading.logits.shape == (3, 8, 20)
    assert len(reading.routings) == len(reading.heads) == 3
    assert all(routing.weights.shape == (3, 8, 8) for routing in reading.routings)
    assert all(heads.shape == (3, 8, 8, 2) for heads in reading.heads)


@pytest.mark.parametrize("name", [name for name in ROUTERS if name != "gumbel"])
def test_no_token_sees_a_later_one(name):
    early, late = ids(), ids()
    late[:, 5:] = (late[:, 5:] + 1) % 20
    routed = model(name)
    torch.testing.assert_close(routed(early).logits[:, :5], routed(late).logits[:, :5])


def test_with_all_heads_on_attention_is_that_of_torch():
    attention = RoutedAttention(SIZES, Wiring())
    values = hidden(tokens=6)
    parts = [project(values).unflatten(-1, (-1, 2)).transpose(1, 2) for project in (attention.query, attention.key)]
    value = attention.value(values).unflatten(-1, (-1, 2)).transpose(1, 2)
    heads = functional.scaled_dot_product_attention(*parts, value, is_causal=True, enable_gqa=True)
    added, outputs = attention(values, torch.ones(2, 6, 8))
    torch.testing.assert_close(outputs, heads)
    torch.testing.assert_close(added, attention.out(heads.transpose(1, 2).flatten(2)))


def test_the_feed_forward_is_gated_by_a_swish():
    part, values = SwiGLU(3, 4), torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    gate = values @ part.gate.weight.T
    by_hand = (gate / (1 + (-gate).exp()) * (values @ part.value.weight.T)) @ part.out.weight.T
    torch.testing.assert_close(part(values), by_hand)


def test_wirings_of_one_seed_start_from_the_same_network_but_for_the_router():
    plain, routed = model().state_dict(), model("learned temperature").state_dict()
    assert all(torch.equal(plain[name], routed[name]) for name in plain)
    assert any(not torch.equal(value, model("hard", seed=1).state_dict()[name]) for name, value in plain.items())


def test_the_loss_counts_real_tokens_only():
    logits = model()(ids()[:, :-1]).logits
    real = torch.ones(3, 8)
    real[0, 4:] = 0
    entropy = functional.cross_entropy(logits.transpose(1, 2), ids()[:, 1:], reduction="none")
    expected = torch.cat([entropy[0, :3], entropy[1], entropy[2]]).mean()
    torch.testing.assert_close(next_token_loss(logits, ids(), real), expected)


def test_greedy_generation_takes_the_likeliest_token_and_stops_at_the_end():
    routed = model()
    said = greedy(routed, [1, 2, 3], end=-1, limit=4)
    text = [1, 2, 3]
    for token in said:
        assert token == int(routed(torch.tensor([text])).logits[0, -1].argmax())
        text.append(token)
    assert len(said) == 4
    assert greedy(routed, [1, 2, 3], end=said[0], limit=4) == said[:1]
    assert routed.training


# Bad input


# Routers


@given(st.lists(st.integers(1, 40), min_size=2, max_size=8))
def test_ranks_and_sums_are_those_of_a_sorted_list(parts):
    probabilities = torch.tensor([[parts]], dtype=torch.float64) / sum(parts)
    places = ranked(probabilities)
    order = sorted(range(len(parts)), key=lambda head: -parts[head])  # stable: of equals the first is ahead
    for rank, head in enumerate(order):
        assert places.rank[0, 0, head] == rank
        ahead = sum(parts[other] for other in order[:rank]) / sum(parts)
        assert places.before[0, 0, head] == pytest.approx(ahead)
        assert places.cumulative[0, 0, head] == pytest.approx(ahead + parts[head] / sum(parts))


@given(st.integers(0, 10_000), st.floats(0.31, 0.79), st.floats(1.0, 8.0))
def test_a_hard_choice_is_the_loop_of_the_published_code(seed, threshold, target):
    probabilities = torch.randn(8, generator=drawn(seed), dtype=torch.float64).softmax(-1)
    wanted, summed, count = torch.zeros(8, dtype=torch.bool), 0.0, 0
    for head in probabilities.argsort(descending=True).tolist():
        if summed >= threshold or count >= target:
            break
        wanted[head], summed, count = True, summed + float(probabilities[head]), count + 1
    limits = [torch.tensor([[value]], dtype=torch.float64) for value in (threshold, target)]
    assert torch.equal(chosen(ranked(probabilities[None, None]), *limits)[0, 0], wanted)


@pytest.mark.parametrize("name", ["standard", "hard", "soft"])
def test_shared_heads_are_on_for_every_token_and_the_best_routed_one_is_selected(name):
    routing = router(name, shared=2)(hidden())
    assert routing.selected[..., :2].all()
    assert (routing.weights[..., :2] == 1).all()
    best = routing.probabilities[..., 2:].argmax(-1, keepdim=True)
    assert routing.selected[..., 2:].gather(-1, best).all()


def test_standard_routing_stops_once_its_probability_is_reached():
    routing = router("standard", shared=2, top_p=0.5)(hidden(tokens=30))
    kept = (routing.probabilities * routing.selected)[..., 2:]
    assert (kept.sum(-1) >= 0.5).all()
    without_last = kept.sum(-1) - kept.masked_fill(kept == 0, math.inf).min(-1).values
    assert (without_last < 0.5).all()
    assert router("standard", top_p=1.0)(hidden()).selected.all()
    assert (router("standard", most=2)(hidden(tokens=30)).selected.sum(-1) <= 2).all()


def test_weighting_by_probability_gives_the_selected_heads_their_probability():
    routing = router("standard, weighted", shared=2)(hidden())
    torch.testing.assert_close(routing.weights[..., 2:], (routing.probabilities * routing.selected)[..., 2:])


def test_predictors_keep_to_the_published_ranges():
    routing = router("hard")(100 * hidden(tokens=40))
    thresholds, targets = ([limit.item() for limit in each.aminmax()] for each in (routing.thresholds, routing.targets))
    assert thresholds == pytest.approx([0.3, 0.8], abs=0.02)  # far out, the sigmoids reach both ends
    assert targets == pytest.approx([1, 8], abs=0.2)
    assert 0.2999 < thresholds[0] < thresholds[1] < 0.8001


def test_rescaled_soft_weights_sum_to_the_target_and_plain_ones_are_probability_times_gate():
    for name in ("soft", "soft, other sign", "learned temperature"):
        routing = router(name)(hidden())
        torch.testing.assert_close(routing.weights.sum(-1), routing.targets)
    for name in ("soft, plain", "soft, other sign, plain"):
        routing = router(name)(hidden())
        torch.testing.assert_close(routing.weights, routing.probabilities * routing.gates)


def test_the_published_gate_opens_from_the_worst_head_on_and_the_other_sign_from_the_best():
    rising, falling = (router(name)(hidden()) for name in ("soft", "soft, other sign"))
    order = rising.probabilities.argsort(-1, descending=True)
    assert (rising.gates.gather(-1, order).diff(dim=-1) > 0).all()
    assert (falling.gates.gather(-1, order).diff(dim=-1) < 0).all()


def test_straight_through_is_the_hard_choice_forward_and_the_gate_backward():
    made, choice = router("straight-through"), router("hard")
    routing, hard = made(hidden()), choice(hidden())
    assert torch.equal(routing.weights, hard.weights)
    (through,) = torch.autograd.grad(routing.weights.square().sum(), made.router.weight)
    gates = made(hidden()).gates
    (expected,) = torch.autograd.grad((2 * hard.weights * gates).sum(), made.router.weight)
    torch.testing.assert_close(through, expected)
    assert not hard.weights.requires_grad


def test_gumbel_noise_comes_from_the_generator_and_only_in_training():
    first, second = router("gumbel", seed=1), router("gumbel", seed=1)
    assert torch.equal(first(hidden()).weights, second(hidden()).weights)
    again = first(hidden()).probabilities
    assert not torch.equal(again, first(hidden()).probabilities)
    assert torch.equal(first.eval()(hidden()).selected, router("hard", seed=1)(hidden()).selected)


@pytest.mark.parametrize(("gradient", "reaches_input"), [("heuristic", False), ("leaking", True)])
def test_the_heuristic_goes_to_the_router_and_only_where_it_leaks_to_the_input(gradient, reaches_input):
    made, values = router("soft", gradient=gradient), hidden().requires_grad_()
    routing = made(values)
    routing.weights.sum().backward()
    rule = (routing.weights - made.router(values).softmax(-1)).detach() / 10
    torch.testing.assert_close(made.router.weight.grad, torch.einsum("bth,btd->hd", rule, values.detach()))
    assert made.threshold.weight.grad is None
    assert (values.grad is not None) == reaches_input
    if reaches_input:
        torch.testing.assert_close(values.grad, rule @ made.router.weight.detach())


def test_auxiliary_losses_are_their_formulas_on_real_tokens():
    routing = router("hard")(hidden())
    real = torch.ones(2, 5)
    real[1, 2:] = 0
    places = real.bool()
    probability, weight = routing.probabilities[places].mean(0), routing.weights[places].mean(0)
    found = auxiliary(routing, real)
    torch.testing.assert_close(found["load balance"], (probability * weight).sum())
    torch.testing.assert_close(found["complexity"], (weight.sum() - routing.targets[places].mean()).abs())
    torch.testing.assert_close(found["sparsity"], weight.sum() / 8)
    soft = auxiliary(router("soft")(hidden()), torch.ones(2, 5))
    assert soft["complexity"].item() == pytest.approx(0, abs=1e-5)  # rescaled to the target, so nothing is left to lose


# Leaving heads out


@given(st.integers(0, 1000), st.floats(0.0, 1.0))
def test_leaving_heads_out_gives_what_computing_and_masking_gives(seed, share):
    attention = RoutedAttention(SIZES, Wiring())
    values, selected = hidden(seed), torch.rand(2, 5, 8, generator=drawn(seed)) < share
    torch.testing.assert_close(sparse(attention, values, selected), dense(attention, values, selected))
    torch.testing.assert_close(dense(attention, values, selected), attention(values, selected.float())[0])


def test_leaving_heads_out_gives_the_same_gradients():
    attention = RoutedAttention(SIZES, Wiring())
    selected = torch.rand(2, 5, 8, generator=drawn()) < 0.4
    gradients = []
    for way in (sparse, dense):
        attention.zero_grad()
        way(attention, hidden(), selected).square().sum().backward()
        gradients.append([weight.grad.clone() for weight in attention.parameters()])
    torch.testing.assert_close(*gradients)


def test_a_quarter_of_the_heads_takes_the_operations_counted_by_hand():
    dim, tokens = 32, 16
    attention = RoutedAttention(Sizes(2, tokens, dim, 8, 4, 1, 8), Wiring())
    selected = torch.zeros(1, tokens, 8, dtype=torch.bool)
    selected[..., :2] = True
    ways = [lambda way=way: way(attention, hidden(0, 1, tokens, dim), selected).sum() for way in (dense, sparse)]
    whole, quarter = (cost.operations(way).forward for way in ways)
    keys_and_values, rest = 2 * tokens * dim * dim, 2 * (2 * tokens * dim * dim + 2 * tokens * tokens * dim)
    assert whole == keys_and_values + rest
    assert quarter == keys_and_values + rest / 4
