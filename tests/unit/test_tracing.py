"""The two tracing systems against slow loops written from their formulas, and what each may see."""

import math

import pytest
import torch
from torch.nn import functional

from casestudies_lib.models.tracing import (
    AKT,
    AKTBlock,
    DualStreamBlock,
    GainAKT4,
    MonotonicAttention,
    Predictions,
    Sizes,
    answer,
    isolated_streams,
    predict,
    real_slots,
    shared_stream,
)
from casestudies_lib.tasks.students import simulate_students

SIZES = Sizes(concepts=6, slots=9, dim=8, heads=2, blocks=2, hidden=12, dropout=0.2)
REPORTED = Sizes(concepts=100, slots=200, dim=256, heads=4, blocks=4, hidden=512, dropout=0.2)
SYSTEMS = pytest.mark.parametrize("system", [GainAKT4, AKT])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(students=3, slots=9, seed=0):
    draw = generator(seed)
    asked = torch.randint(SIZES.concepts, (students, slots + 1), generator=draw)
    answered = torch.randint(2, (students, slots), generator=draw)
    return asked[:, :-1], answered, asked[:, 1:]


def build(system, seed=0, **options):
    return system(SIZES, isolated_streams(seed), **options)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def by_rows(linear, rows):
    return [linear.weight @ row + linear.bias for row in rows]


def softmax(numbers):
    largest = max(numbers)
    powers = [math.exp(number - largest) for number in numbers]
    return [power / sum(powers) for power in powers]


def layer_norm(row, norm):
    centred = row - row.mean()
    return centred / torch.sqrt((centred**2).mean() + norm.eps) * norm.weight + norm.bias


# Slow loops


@torch.no_grad()
def dual_stream_by_hand(block, context, value):
    """Run one student through a dual-stream block, slot by slot and head by head, as the source describes it."""
    width = context.shape[1] // block.heads
    queries, keys = by_rows(block.query, context), by_rows(block.key, context)
    values = by_rows(block.value, value)
    contexts, streams = [], []
    for slot in range(len(context)):
        mixed = []
        for head in range(block.heads):
            own = slice(head * width, (head + 1) * width)
            scores = [float(queries[slot][own] @ keys[past][own]) / math.sqrt(width) for past in range(slot + 1)]
            weights = softmax(scores)
            mixed.append(sum(weight * values[past][own] for past, weight in enumerate(weights)))
        attended = block.out.weight @ torch.cat(mixed) + block.out.bias
        after = layer_norm(context[slot] + attended, block.context_norm)
        first, _, _, last = block.feed_forward
        inner = last.weight @ (first.weight @ after + first.bias).clamp(min=0) + last.bias
        contexts.append(layer_norm(after + inner, block.forward_norm))
        streams.append(layer_norm(value[slot] + attended, block.value_norm))
    return torch.stack(contexts), torch.stack(streams)


def test_a_dual_stream_block_is_its_slow_loop():
    block = DualStreamBlock(SIZES, generator()).double().eval()
    context, value = torch.randn(2, 2, 7, SIZES.dim, generator=generator(1), dtype=torch.float64)
    for norm in (block.context_norm, block.value_norm, block.forward_norm):
        torch.nn.init.normal_(norm.weight, generator=generator(2))  # so that swapped norms show
    new_context, new_value = block(context, value)
    for student in range(2):
        slow_context, slow_value = dual_stream_by_hand(block, context[student], value[student])
        torch.testing.assert_close(new_context[student], slow_context, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(new_value[student], slow_value, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def monotonic_by_hand(attention, queries, values):
    """Run one student through monotonic attention by the formulas of section 3.2, with the published square root."""
    slots, dim = queries.shape
    width = dim // attention.heads
    projected, read = by_rows(attention.query_key, queries), by_rows(attention.value, values)
    outputs = []
    for slot in range(slots):
        seen = range(slot if attention.strict else slot + 1)
        mixed = torch.zeros(dim, dtype=queries.dtype)
        for head in range(attention.heads):
            own = slice(head * width, (head + 1) * width)
            rate = math.log1p(math.exp(float(attention.decay[head])))
            scores = [float(projected[slot][own] @ projected[past][own]) / math.sqrt(width) for past in seen]
            if not scores:
                continue
            plain = softmax(scores)
            distances = [math.sqrt((slot - past) * sum(plain[past + 1 :])) for past in seen]
            faded = [score * max(math.exp(-rate * far), 1e-5) for score, far in zip(scores, distances)]
            mixed[own] = sum(weight * read[past][own] for past, weight in enumerate(softmax(faded)))
        outputs.append(attention.out.weight @ mixed + attention.out.bias)
    return torch.stack(outputs)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("decay", [(0.0, 0.0), (-3.0, 20.0)])
def test_monotonic_attention_is_its_slow_loop(strict, decay):
    attention = MonotonicAttention(SIZES, generator(), strict).double().eval()
    attention.decay.data = torch.tensor(decay, dtype=torch.float64).reshape(2, 1, 1)
    queries, values = 2 * torch.randn(2, 2, 7, SIZES.dim, generator=generator(1), dtype=torch.float64)
    fast = attention(queries, values)
    for student in range(2):
        slow = monotonic_by_hand(attention, queries[student], values[student])
        # "Weight after" is one minus a sum, and the root of its last bit, 1e-16, is 1e-8.
        torch.testing.assert_close(fast[student], slow, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("fed_forward", [True, False])
def test_an_akt_block_adds_and_normalises(fed_forward):
    block = AKTBlock(SIZES, generator(), strict=True, apply_feed_forward=fed_forward).double().eval()
    queries, values = torch.randn(2, 1, 5, SIZES.dim, generator=generator(1), dtype=torch.float64)
    attended = monotonic_by_hand(block.attention, queries[0], values[0])
    expected = [layer_norm(query + change, block.norm) for query, change in zip(queries[0], attended)]
    if fed_forward:
        first, _, _, last = block.feed_forward
        inner = [last.weight @ (first.weight @ row + first.bias).clamp(min=0) + last.bias for row in expected]
        expected = [layer_norm(row + change, block.forward_norm) for row, change in zip(expected, inner)]
    torch.testing.assert_close(block(queries, values)[0], torch.stack(expected), rtol=1e-6, atol=1e-7)


def test_gainakt4_assembles_embeddings_positions_blocks_and_heads():
    model = build(GainAKT4).double().eval()
    concepts, responses, queries = batch(students=1, slots=5)
    encoder = model.encoder
    pairs = [int(concept) + 6 * int(right) for concept, right in zip(concepts[0], responses[0])]
    context = torch.stack(
        [encoder.context_embedding.weight[p] + encoder.positions.weight[s] for s, p in enumerate(pairs)]
    )
    value = torch.stack([encoder.value_embedding.weight[p] + encoder.positions.weight[s] for s, p in enumerate(pairs)])
    for block in encoder.blocks:
        context, value = dual_stream_by_hand(block, context, value)
    asked = model.concept_embedding.weight[queries[0]]
    (first, _, _, second), _, last = model.response_head
    answers = model(concepts, responses, queries)
    levels = torch.full((6,), -math.inf, dtype=torch.float64)
    level_in, _, _, level_out = model.mastery_head.level
    answer_in, _, _, answer_out = model.mastery_head.answer
    for slot in range(5):
        features = torch.cat([context[slot], value[slot], asked[slot]])
        hidden = second.weight @ (first.weight @ features + first.bias).clamp(min=0) + second.bias
        logit = last.weight @ hidden.clamp(min=0) + last.bias
        assert answers.response_logits[0, slot].item() == pytest.approx(logit.item(), rel=1e-9)
        raw = level_out.weight @ (level_in.weight @ context[slot] + level_in.bias).clamp(min=0) + level_out.bias
        levels = torch.maximum(levels, torch.log1p(raw.exp()))
        torch.testing.assert_close(answers.mastery[0, slot], levels, rtol=1e-9, atol=1e-9)
        inner = (answer_in.weight @ levels + answer_in.bias).clamp(min=0)
        mastery_logit = (answer_out.weight @ inner + answer_out.bias).item()
        assert answers.mastery_logits[0, slot].item() == pytest.approx(mastery_logit, rel=1e-9)


# What a prediction may depend on


@SYSTEMS
@pytest.mark.parametrize("changed_slot", [1, 4, 8])
@pytest.mark.parametrize("part", ["concepts", "responses", "queries"])
def test_a_change_in_one_slot_moves_no_earlier_prediction_and_moves_later_ones(system, part, changed_slot):
    model = build(system).double().eval()
    inputs = dict(zip(("concepts", "responses", "queries"), batch()))
    base = model(**inputs).response_logits
    inputs[part] = inputs[part].clone()
    if part == "responses":
        inputs[part][:, changed_slot] = 1 - inputs[part][:, changed_slot]
    else:
        inputs[part][:, changed_slot] = (inputs[part][:, changed_slot] + 1) % SIZES.concepts
    moved = (model(**inputs).response_logits - base).abs() > 1e-12
    assert not moved[:, :changed_slot].any()
    assert moved[:, changed_slot].all()  # this slot's own prediction knows what happened in it and what is asked
    if part != "queries" and changed_slot < 8:
        assert moved[:, changed_slot + 1 :].all()
    if part == "queries" and system is GainAKT4:
        assert not moved[:, changed_slot + 1 :].any()  # it asks a concept; it does not remember having asked


@pytest.mark.parametrize("slots", [1, 2, 9])
@pytest.mark.parametrize("training", [True, False])
def test_akt_has_no_nan_forward_or_backward_though_its_first_slot_sees_nothing(slots, training):
    model = build(AKT).train(training)
    logits = model(*batch(slots=slots)).response_logits
    functional.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)).backward()
    assert logits.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_mastery_is_positive_and_never_falls():
    model = build(GainAKT4).eval()
    model.mastery_head.level[-1].bias.data -= 5  # levels near zero, where a wrong sign would show
    mastery = model(*batch(students=20)).mastery
    assert mastery.shape == (20, 9, SIZES.concepts)
    assert (mastery > 0).all()
    steps = mastery.diff(dim=1)
    assert (steps >= 0).all()
    assert (steps > 0).any()
    assert (steps == 0).any()


# Heads that are skipped or not built


def test_a_mastery_head_that_is_skipped_or_not_built_gives_no_answer_and_changes_none():
    inputs = batch()
    both = build(GainAKT4).eval()(*inputs)
    for options in ({"run_mastery": False}, {"build_mastery": False}):
        one = build(GainAKT4, **options).eval()(*inputs)
        assert isinstance(one, Predictions)
        assert one.mastery is None
        assert one.mastery_logits is None
        assert torch.equal(one.response_logits, both.response_logits)
    assert both.mastery_logits.shape == both.response_logits.shape == (3, 9)


def test_a_mastery_head_that_is_skipped_keeps_its_parameters_and_gets_no_gradient():
    model = build(GainAKT4, run_mastery=False)
    model(*batch()).response_logits.sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("mastery_head"), name


# Answers about histories


def histories(students=23):
    return simulate_students(generator(4), students, concepts=SIZES.concepts, slots=SIZES.slots, mean_length=5)


@SYSTEMS
def test_predict_asks_about_each_slot_s_successor(system):
    model, students = build(system).eval(), histories()
    answers = predict(model, students)
    for slot in (0, 3, 7):
        past = slice(slot + 1)
        asked = students.concepts[:, 1 : slot + 2]
        expected = model(students.concepts[:, past], students.responses[:, past], asked).response_logits[:, slot]
        torch.testing.assert_close(answers.response_logits[:, slot], expected, rtol=1e-4, atol=1e-5)
    assert answers.response_logits.shape == (23, SIZES.slots - 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"build_mastery": False}])
def test_answer_is_predict_in_evaluation_mode_piece_by_piece_and_puts_the_mode_back(training, options):
    model, students = build(GainAKT4, **options), histories()
    expected = predict(model.eval(), students)
    model.train(training)
    answers = answer(model, students, rows=5)
    assert model.training is training
    for name in Predictions._fields:
        whole, joined = getattr(expected, name), getattr(answers, name)
        assert (whole is None) == (joined is None) == bool(options and name != "response_logits")
        if whole is not None:
            torch.testing.assert_close(joined, whole, rtol=1e-4, atol=1e-5)
            assert not joined.requires_grad


def test_real_slots_are_those_whose_successor_holds_a_response():
    students = histories(4)
    values = torch.arange(4 * (SIZES.slots - 1), dtype=torch.float32).reshape(4, -1)
    expected = [
        values[student, slot].item()
        for student in range(4)
        for slot in range(SIZES.slots - 1)
        if students.real[student, slot + 1]
    ]
    assert real_slots(values, students).tolist() == expected
    assert len(expected) == students.n_responses - 4  # nobody is asked about a first response


# Random streams


@pytest.mark.parametrize("streams", [shared_stream, isolated_streams])
def test_head_two_is_drawn_last_so_building_it_leaves_all_other_weights_equal(streams):
    without = GainAKT4(SIZES, streams(3), build_mastery=False).state_dict()
    with_head = GainAKT4(SIZES, streams(3)).state_dict()
    assert all(torch.equal(with_head[name], weight) for name, weight in without.items())


def test_building_head_two_moves_a_shared_stream_and_no_isolated_one():
    shared, isolated = (shared_stream(3), shared_stream(3)), (isolated_streams(3), isolated_streams(3))
    for with_head, without in (shared, isolated):
        GainAKT4(SIZES, with_head)
        GainAKT4(SIZES, without, build_mastery=False)
    purposes = ("encoder dropout", "response dropout", "encoder weights", "response_head weights", "order")
    for purpose in purposes:
        assert not torch.equal(shared[0](purpose).get_state(), shared[1](purpose).get_state())
        assert torch.equal(isolated[0](purpose).get_state(), isolated[1](purpose).get_state())


def test_running_head_two_shifts_the_dropout_of_a_shared_stream_and_of_no_isolated_one():
    def second_answer(streams, run_mastery):
        model = GainAKT4(SIZES, streams(3), run_mastery=run_mastery)
        model(*batch())
        return model(*batch()).response_logits

    assert not torch.equal(second_answer(shared_stream, True), second_answer(shared_stream, False))
    assert torch.equal(second_answer(isolated_streams, True), second_answer(isolated_streams, False))


def test_isolated_streams_differ_by_purpose_and_by_seed_and_come_back():
    purposes = ("order", "redro", "a", "aa", "weights", "encoder weights", "encoder dropout", "mastery dropout", "")
    first = {(p, s): torch.rand(4, generator=isolated_streams(s)(p)) for p in purposes for s in range(10)}
    again = {(p, s): torch.rand(4, generator=isolated_streams(s)(p)) for p in purposes for s in range(10)}
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert len({tuple(numbers.tolist()) for numbers in first.values()}) == len(purposes) * 10


# Sizes


def linear(fan_in, out):
    return fan_in * out + out


def test_head_two_has_the_reported_layers_at_the_reported_size():
    head = GainAKT4(REPORTED, isolated_streams(0)).mastery_head
    by_hand = linear(256, 512) + linear(512, 100) + linear(100, 50) + linear(50, 1)
    assert count(head) == by_hand == 187_985


def test_akt_has_the_parameters_of_its_stated_layers():
    dim, norm = SIZES.dim, 2 * SIZES.dim
    looking = 3 * linear(dim, dim) + SIZES.heads + norm
    feeding = linear(dim, SIZES.hidden) + linear(SIZES.hidden, dim) + norm
    head = linear(2 * dim, SIZES.hidden) + linear(SIZES.hidden, dim) + linear(dim, 1)
    blocks = SIZES.blocks * (3 * looking + 2 * feeding)
    assert count(build(AKT)) == (SIZES.concepts + 2) * dim + blocks + head


# Gradients


def test_the_gradient_of_both_heads_is_the_slope_along_a_direction():
    model = GainAKT4(Sizes(concepts=4, slots=4, dim=4, heads=2, blocks=1, hidden=5, dropout=0.0), isolated_streams(1))
    asked = torch.tensor([[0, 1, 3, 1, 2], [2, 2, 0, 3, 3]])
    inputs = asked[:, :-1], torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]]), asked[:, 1:]
    target, own = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 1]], dtype=torch.float64), list(model.double().parameters())

    def loss():
        answers = model(*inputs)
        first = functional.binary_cross_entropy_with_logits(answers.response_logits, target)
        return first + 0.5 * functional.binary_cross_entropy_with_logits(answers.mastery_logits, target)

    for seed in range(5):
        directions = [torch.randn(value.shape, generator=generator(seed), dtype=torch.float64) for value in own]
        gradients, ends = torch.autograd.grad(loss(), own), []
        with torch.no_grad():
            for step in (1e-6, -2e-6, 1e-6):  # forth, to the other side, and back
                for value, direction in zip(own, directions):
                    value += step * direction
                ends.append(loss().item())
        slope = sum((gradient * direction).sum().item() for gradient, direction in zip(gradients, directions))
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)
