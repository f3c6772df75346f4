"""Student records: both layouts, every refusal, cutting and padding, and simulated students who learn."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from casestudies_lib import paths
from casestudies_lib.tasks.students import (
    RecordError,
    Students,
    load_split,
    load_students,
    recorded_classroom,
    simulate_students,
    simulated_classroom,
)

HISTORY = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 1)), min_size=1, max_size=12)
HISTORIES = st.lists(HISTORY, min_size=1, max_size=6)
COLUMNS = "user_id,log_id,sequence_id,correct"


def three_lines(histories):
    """Write (concept, response) pairs, concepts from 1, three lines a student."""
    lines = []
    for number, history in enumerate(histories):
        lines += [f"{number + 100},{number + 7}", ",".join(str(c) for c, _ in history)]
        lines.append(",".join(str(r) for _, r in history))
    return "\n".join(lines) + "\n"


def columns(histories, first_log=1000):
    """Write the same pairs one a line, under sequence ids that keep the order of the concepts."""
    rows = [COLUMNS]
    for number, history in enumerate(histories):
        for concept, response in history:
            rows.append(f"{number + 100},{first_log + len(rows)},{7000 + 10 * concept},{response}")
    return "\n".join(rows) + "\n"


def as_lists(students):
    """Return the real part of each row as (concept, response) pairs."""
    return [
        list(zip(concepts[real].tolist(), responses[real].tolist()))
        for concepts, responses, real in zip(students.concepts, students.responses, students.real)
    ]


def pieces(histories, slots):
    """Cut, drop and renumber by hand: what loading should return."""
    found = []
    for history in histories:
        rest = [(concept - 1, response) for concept, response in history]
        while rest:
            if len(rest[:slots]) >= 3:
                found.append(rest[:slots])
            rest = rest[slots:]
    return found


def saved(folder, text, name="records.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def learner(length, response=1, concept=1):
    return [(concept, response)] * length


# Reading


@given(HISTORIES, st.integers(3, 8))
def test_histories_written_in_three_lines_come_back_cut_and_without_the_short_ones(tmp_path_factory, histories, slots):
    path = saved(tmp_path_factory.mktemp("round"), three_lines(histories))
    expected = pieces(histories, slots)
    if not any(len(history) >= 3 for history in histories):
        with pytest.raises(RecordError, match="no student has 3 responses or more"):
            load_students(path, concepts=5, slots=slots)
        return
    students = load_students(path, concepts=5, slots=slots)
    assert as_lists(students) == expected
    assert students.concepts.shape == (len(expected), slots)
    assert (students.concepts[~students.real] == 0).all()
    assert (students.responses[~students.real] == 0).all()
    lengths = torch.tensor([len(piece) for piece in expected])
    assert torch.equal(students.real, torch.arange(slots) < lengths[:, None])  # padding at the end only


@given(HISTORIES.filter(lambda histories: any(len(history) >= 3 for history in histories)))
def test_both_layouts_say_the_same_about_the_same_histories(tmp_path_factory, histories):
    # The column layout numbers what occurs, so every concept must occur for the two numberings to agree.
    histories = [*histories, [(concept, 0) for concept in range(1, 6)]]
    folder = tmp_path_factory.mktemp("both")
    first = load_students(saved(folder, three_lines(histories), "a.csv"), concepts=5, slots=6)
    second = load_students(saved(folder, columns(histories), "b.csv"), concepts=5, slots=6)
    assert as_lists(first) == as_lists(second)


def test_the_column_layout_is_read_by_name_and_ordered_by_log(tmp_path):
    text = (
        "correct,sequence_id,extra,log_id,user_id\n"
        "1,30,x,9,2\n"
        "0,20,x,5,2\n"
        "1,20,x,2,1\n"
        "0.0,40,x,1,1\n"
        "1.0,20,x,7,2\n"
        "1,30,x,3,1\n"
    )
    students = load_students(saved(tmp_path, text), slots=5)
    # User 1 by log: 40, 20, 30; user 2: 20, 20, 30; sequence ids 20, 30, 40 are concepts 0, 1, 2.
    assert as_lists(students) == [[(2, 0), (0, 1), (1, 1)], [(0, 0), (0, 1), (1, 1)]]


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.rstrip("\n"),
        lambda text: text + "\n\n",
        lambda text: re.sub(r"(?m)^(\d(,\d)+)$", r"\1,", text),  # a comma at the end of every list
        lambda text: re.sub(r"(?m)^(\d(,\d)+)$", lambda found: found[0].replace(",", " , "), text),
    ],
)
def test_line_ends_byte_marks_spaces_and_closing_commas_change_nothing(tmp_path, spell):
    histories = [[(1, 0), (2, 1), (3, 1)], [(3, 1), (3, 0), (1, 0), (2, 1)]]
    text = spell(three_lines(histories))
    assert text != three_lines(histories)
    (tmp_path / "spelt.csv").write_bytes(text.encode())
    assert as_lists(load_students(tmp_path / "spelt.csv", slots=4)) == pieces(histories, 4)


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: re.sub(r"(\w+)", r'"\1"', text),
    ],
)
def test_line_ends_byte_marks_blank_lines_and_quotes_change_nothing(tmp_path, spell):
    histories = [[(1, 0), (2, 1), (3, 1)], [(3, 1), (3, 0), (1, 0), (2, 1)]]
    (tmp_path / "spelt.csv").write_bytes(spell(columns(histories)).encode())
    assert as_lists(load_students(tmp_path / "spelt.csv", slots=4)) == pieces(histories, 4)


def test_a_path_may_be_given_as_text(tmp_path):
    path = saved(tmp_path, three_lines([learner(4)] * 10))
    assert as_lists(load_students(str(path), slots=4)) == as_lists(load_students(path, slots=4))
    assert len(load_split(str(path), slots=4)[0]) == 8


def test_a_long_history_is_cut_to_pieces_and_a_short_rest_is_dropped(tmp_path):
    history = [(1 + place % 5, place % 2) for place in range(23)]
    students = load_students(saved(tmp_path, three_lines([history, learner(2), learner(3)])), concepts=5, slots=7)
    assert [len(row) for row in as_lists(students)] == [7, 7, 7, 3]  # 23 = 7 + 7 + 7 + a rest of 2
    assert as_lists(students)[1] == [(c - 1, r) for c, r in history[7:14]]


def test_counts_and_shares_by_hand(tmp_path):
    histories = [[(1, 1), (2, 0), (3, 1)], [(1, 1), (1, 1), (2, 0), (2, 1), (3, 0)]]
    students = load_students(saved(tmp_path, three_lines(histories)), slots=10)
    assert len(students) == 2
    assert students.n_responses == 8
    assert students.padding_share == pytest.approx(12 / 20)
    assert students.share_right == pytest.approx(5 / 8)


def test_taking_students_takes_their_whole_rows():
    everyone = simulate_students(torch.Generator().manual_seed(0), 6, slots=8)
    chosen = torch.tensor([4, 1])
    mask = torch.tensor([False, True, False, False, True, False])
    rows = as_lists(everyone)
    assert as_lists(everyone.take(chosen)) == [rows[4], rows[1]]
    assert as_lists(everyone.take(mask)) == [rows[1], rows[4]]
    assert as_lists(everyone.take(slice(2, 4))) == rows[2:4]


# Refusals: one line that names the file, the line and what is allowed


def refusal(path, load=load_students, **options):
    with pytest.raises(RecordError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_missing_file_is_named_with_what_to_give_instead(tmp_path):
    message = refusal(tmp_path / "nowhere.csv")
    assert "no such file; give a record file, or a folder that holds train.csv and test.csv" in message
    assert "no such file" in refusal(tmp_path)  # a folder is not a file


@pytest.mark.parametrize("text", ["", "\n", "  \n\n"])
def test_an_empty_file_is_refused(tmp_path, text):
    assert "the file is empty" in refusal(saved(tmp_path, text))


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "picture.csv").write_bytes(b"1,2\n\x89PNG\xff\n")
    assert "not UTF-8 text" in refusal(tmp_path / "picture.csv")


@pytest.mark.parametrize("lines", [1, 2, 4, 5])
def test_three_lines_a_student_must_be_complete(tmp_path, lines):
    text = "\n".join(three_lines([learner(4), learner(5)]).splitlines()[:lines])
    message = refusal(saved(tmp_path, text))
    assert f"{lines} lines are not a multiple of three (student and id; concepts; responses)" in message
    assert "cut short or in another layout" in message
    assert COLUMNS in message


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_last_line_cut_anywhere_is_refused(tmp_path, cut):
    whole = three_lines([learner(4), learner(5)]).rstrip("\n")
    path = saved(tmp_path, whole[:-cut])
    assert re.search(
        r"line 5: 5 concepts for [0-4] responses; each student needs one response a concept", refusal(path)
    )


@pytest.mark.parametrize("cells", range(4))
def test_a_row_cut_between_columns_is_refused_with_its_line(tmp_path, cells):
    rows = columns([learner(4)]).splitlines()
    rows[-1] = ",".join(rows[-1].split(",")[:cells]) + "," * (cells > 0)
    if not rows[-1]:
        rows[-1] = ","  # an empty last line is no row at all
    assert "line 5: a cell is empty; the file is cut short or damaged" in refusal(saved(tmp_path, "\n".join(rows)))


def test_an_empty_cell_inside_a_list_is_refused_rather_than_closed_up(tmp_path):
    text = "1,1\n1,,2,3\n0,1,1\n"
    assert re.search(r"line 2: '' is not a number", refusal(saved(tmp_path, text)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold,uid,questions\n0,1,2\n0,1,3\n", r"line 3|line 2"),
        ("name,age\nanna,ben\n1,0\n", r"line 2: 'anna' is not a number; this layout holds ids and 0/1"),
        ("log_id,sequence_id,correct\n1,2,1\n2,2,1\n", r"line \d"),
        ('{"user": 1}\n{"user": 2}\n{"user": 3}\n', r"line 2: '\{\"user\": 2\}' is not a number"),
    ],
)
def test_another_layout_is_refused_with_the_line_that_gave_it_away(tmp_path, text, message):
    assert re.search(message, refusal(saved(tmp_path, text)))


@pytest.mark.parametrize("column", ["log_id", "sequence_id", "correct"])
def test_a_missing_column_is_named_with_the_columns_needed(tmp_path, column):
    text = columns([learner(4)]).replace(column, "something")
    assert f"column {column} is missing; the CSV layout needs user_id, log_id, sequence_id, correct" in refusal(
        saved(tmp_path, text)
    )


def test_a_header_without_rows_is_refused(tmp_path):
    assert "only a header; no student has a response" in refusal(saved(tmp_path, COLUMNS + "\n"))


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ("2", "response 2; allowed is 0 to 1"),
        ("-1", "response -1; allowed is 0 to 1"),
        ("0.5", "0.5 is not whole; ids are whole and responses 0 or 1"),
        ("right", "'right' is not a number; this layout holds ids and 0/1"),
        ("nan", "nan is not whole"),
        ("inf", "inf is not whole"),
    ],
)
def test_a_response_other_than_0_or_1_is_refused_with_its_line(tmp_path, response, message):
    triples = f"1,1\n1,1,1\n1,0,1\n2,2\n1,1,1\n1,{response},1\n"
    assert f"line 6: {message}" in refusal(saved(tmp_path, triples, "a.csv"))
    table = f"{COLUMNS}\n1,1,5,1\n1,2,5,{response}\n1,3,5,1\n"
    assert f"line 3: {message}" in refusal(saved(tmp_path, table, "b.csv"))


@pytest.mark.parametrize("concept", [0, 101, -3])
def test_a_concept_out_of_range_is_refused_with_its_line(tmp_path, concept):
    text = f"1,1\n1,100,1\n1,0,1\n2,2\n1,{concept},1\n1,1,1\n"
    assert f"line 5: concept {concept}; allowed is 1 to 100" in refusal(saved(tmp_path, text))


def test_the_last_allowed_concept_is_read(tmp_path):
    students = load_students(saved(tmp_path, "1,1\n1,100,1\n1,0,1\n"), slots=3)
    assert students.concepts.tolist() == [[0, 99, 0]]


def test_more_sequence_ids_than_concepts_are_refused(tmp_path):
    path = saved(tmp_path, columns([[(1, 0), (2, 1), (3, 1)]]))
    assert "3 different sequence_id; at most 2 concepts are allowed" in refusal(path, concepts=2)
    assert len(load_students(path, concepts=3, slots=5)) == 1


@pytest.mark.parametrize("blank", ["", " ", ","])
def test_a_student_without_responses_is_refused_with_the_line(tmp_path, blank):
    text = f"1,1\n1,1,1\n1,0,1\n2,2\n{blank}\n{blank}\n3,3\n1,1,1\n1,1,1\n"
    message = refusal(saved(tmp_path, text))
    assert "line 5: 0 concepts for 0 responses; each student needs one response a concept, and at least one" in message


def test_a_file_of_short_histories_only_is_refused(tmp_path):
    message = refusal(saved(tmp_path, three_lines([learner(2), learner(1)])))
    assert "no student has 3 responses or more; is this the right file?" in message


def test_fewer_slots_than_the_shortest_history_are_refused(tmp_path):
    with pytest.raises(ValueError, match="slots=2; at least 3"):
        load_students(saved(tmp_path, three_lines([learner(5)])), slots=2)


# Splits


def test_a_folder_gives_its_two_files(tmp_path):
    saved(tmp_path, three_lines([learner(4), learner(5)]), "train.csv")
    saved(tmp_path, three_lines([learner(6)]), "test.csv")
    train, test = load_split(tmp_path, slots=8)
    assert [len(row) for row in as_lists(train)] == [4, 5]
    assert [len(row) for row in as_lists(test)] == [6]


@pytest.mark.parametrize("lacking", ["train.csv", "test.csv"])
def test_a_folder_that_lacks_a_file_is_refused_with_its_name(tmp_path, lacking):
    kept = {"train.csv": "test.csv", "test.csv": "train.csv"}[lacking]
    saved(tmp_path, three_lines([learner(4)]), kept)
    message = refusal(tmp_path, load_split)
    assert f"{tmp_path / lacking}: no such file" in message
    assert "a folder that holds train.csv and test.csv" in message


def test_files_of_a_folder_share_one_numbering_of_concepts(tmp_path):
    # Alone, the test file would call sequence 25 concept 0, which is sequence 10 in training.
    saved(tmp_path, f"{COLUMNS}\n1,1,10,1\n1,2,20,1\n1,3,30,1\n", "train.csv")
    saved(tmp_path, f"{COLUMNS}\n2,1,30,1\n2,2,25,1\n2,3,30,1\n", "test.csv")
    train, test = load_split(tmp_path, slots=3)
    assert train.concepts.tolist() == [[0, 1, 3]]
    assert test.concepts.tolist() == [[3, 2, 3]]


def test_files_of_a_folder_must_have_one_layout(tmp_path):
    saved(tmp_path, three_lines([learner(4)]), "train.csv")
    saved(tmp_path, columns([learner(4)]), "test.csv")
    assert "train.csv and test.csv have different layouts; give both the same one" in refusal(tmp_path, load_split)


def test_one_file_is_split_four_to_one_and_no_student_is_on_both_sides(tmp_path):
    # Each student practises one concept only, so concepts tell students apart; histories are cut to three pieces.
    text = three_lines([learner(14, concept=number + 1) for number in range(20)])
    train, test = load_split(saved(tmp_path, text), slots=5)
    sides = [{row[0][0] for row in as_lists(side)} for side in (train, test)]
    assert sides[0].isdisjoint(sides[1])
    assert (len(sides[0]), len(sides[1])) == (16, 4)
    assert (len(train), len(test)) == (48, 12)


def test_too_few_students_to_split_are_refused(tmp_path):
    nine = three_lines([learner(4)] * 9 + [learner(2)])
    assert "9 students cannot be split; at least 10 are needed" in refusal(saved(tmp_path, nine), load_split)
    assert len(load_split(saved(tmp_path, three_lines([learner(4)] * 10)), slots=4)[1]) == 2


def test_a_recorded_classroom_keeps_every_student_on_one_side_and_is_drawn_by_its_seed(tmp_path):
    path = saved(tmp_path, three_lines([learner(14, concept=number + 1) for number in range(40)]))
    for seed in range(5):
        room = recorded_classroom(path, seed, students=12, concepts=100, slots=5)
        sides = [{row[0][0] for row in as_lists(side)} for side in room]
        assert all(len(side) <= 12 for side in room)
        assert len(set.union(*sides)) == sum(map(len, sides))
    again = recorded_classroom(path, 4, students=12, concepts=100, slots=5)
    other = recorded_classroom(path, 5, students=12, concepts=100, slots=5)
    assert as_lists(again.train) == as_lists(room.train) != as_lists(other.train)
    assert as_lists(again.test) == as_lists(other.test)


def test_a_recorded_classroom_gives_what_there_is_when_asked_for_more(tmp_path):
    path = saved(tmp_path, three_lines([learner(4, concept=number + 1) for number in range(20)]))
    room = recorded_classroom(path, 0, students=1000, concepts=100, slots=5)
    assert [len(side) for side in room] == [12, 4, 4]  # 16 learn, of whom a quarter choose, and 4 test


# Simulated students


def simulated(seed=0, students=400, **options):
    return simulate_students(torch.Generator().manual_seed(seed), students, **options)


def test_simulated_students_are_reproduced_by_their_generator_and_leave_the_global_one_alone():
    before = torch.random.get_rng_state()
    first = simulated(1)
    torch.rand(3)
    again, other = simulated(1), simulated(2)
    for name in ("concepts", "responses", "real"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    torch.random.set_rng_state(before)
    simulated(1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_simulated_histories_are_padded_at_the_end_with_zeros():
    students = simulated(concepts=7, slots=20)
    assert students.concepts.shape == students.responses.shape == students.real.shape == (400, 20)
    lengths = students.real.sum(dim=1)
    assert torch.equal(students.real, torch.arange(20) < lengths[:, None])
    assert (students.concepts[~students.real] == 0).all()
    assert (students.responses[~students.real] == 0).all()
    assert set(students.concepts[students.real].tolist()) == set(range(7))
    assert set(students.responses[students.real].tolist()) == {0, 1}
    assert students.padding_share == pytest.approx(1 - lengths.sum().item() / 8000)


@pytest.mark.parametrize("mean_length", [3, 3.5, 10, 30])
def test_the_mean_length_is_the_one_asked_for(mean_length):
    lengths = simulated(students=5000, slots=300, mean_length=mean_length, concepts=1).real.sum(dim=1).double()
    # Geometric beyond 3: variance (1 − p) / p² with p = 1 / (mean − 2).
    spread = math.sqrt((mean_length - 3) * (mean_length - 2))
    assert lengths.min() == 3
    assert lengths.mean().item() == pytest.approx(mean_length, abs=4 * spread / math.sqrt(5000) + 1e-9)


def test_longer_practice_of_a_concept_raises_the_share_right():
    students = simulated(students=4000, concepts=10, slots=40, mean_length=200)
    nth = torch.zeros_like(students.concepts)  # how often this concept came before in this history
    for concept in range(10):
        asked = students.concepts == concept
        nth[asked] = (asked.cumsum(dim=1) - 1)[asked]
    shares = [students.responses[students.real & (nth == n)].double().mean().item() for n in (0, 4, 8)]
    assert shares[0] + 0.05 < shares[1]
    assert shares[1] + 0.02 < shares[2]


def test_a_concept_left_alone_is_forgotten_a_little():
    students = simulated(students=4000, concepts=4, slots=40, mean_length=1000)
    straight, after_a_break = [], []
    for asked, answered, real in zip(students.concepts.tolist(), students.responses.tolist(), students.real.tolist()):
        times, last = [0] * 4, [0] * 4
        for slot in range(sum(real)):
            concept = asked[slot]
            # The same amount of practice on both sides, so that only the break differs.
            if 5 <= times[concept] <= 8:
                gap = slot - last[concept]
                (straight if gap == 1 else after_a_break if gap >= 8 else []).append(answered[slot])
            times[concept] += 1
            last[concept] = slot
    shares = [sum(side) / len(side) for side in (straight, after_a_break)]
    error = math.sqrt(sum(share * (1 - share) / len(side) for share, side in zip(shares, (straight, after_a_break))))
    assert shares[0] - shares[1] > 4 * error


def test_students_stay_on_a_concept_two_times_out_of_three():
    students = simulated(students=3000, concepts=1000, slots=40, mean_length=400)
    both = students.real[:, 1:]
    stays = (students.concepts[:, 1:] == students.concepts[:, :-1])[both].double()
    assert stays.mean().item() == pytest.approx(2 / 3, abs=4 * math.sqrt(2 / 9 / stays.numel()) + 0.001)


@pytest.mark.parametrize(
    "sizes",
    [
        {"students": 0},
        {"students": 5, "concepts": 0},
        {"students": 5, "slots": 2},
        {"students": 5, "mean_length": 2.9},
        {"students": 5, "mean_length": math.nan},
        {"students": 5, "mean_length": math.inf},
        {"students": -1},
    ],
)
def test_impossible_sizes_are_refused_with_the_least_allowed(sizes):
    with pytest.raises(ValueError, match=r"students=.*concepts=.*slots=.*mean_length=.*at least 1, 1, 3 and 3"):
        simulate_students(torch.Generator(), **sizes)


def test_the_least_allowed_sizes_work():
    students = simulate_students(torch.Generator(), 1, concepts=1, slots=3, mean_length=3)
    assert students.real.tolist() == [[True, True, True]]
    assert isinstance(students, Students)


def test_a_simulated_classroom_is_one_draw_cut_in_three():
    room = simulated_classroom(3, students=8, concepts=5, slots=9, mean_length=6)
    everyone = simulate_students(torch.Generator().manual_seed(3), 20, 5, 9, 6)
    assert [len(side) for side in room] == [8, 4, 8]
    assert as_lists(room.train) + as_lists(room.valid) + as_lists(room.test) == as_lists(everyone)


# The published records


@pytest.fixture(scope="module")
def published():
    folder = paths.root().parent / "shared" / "data" / "assist2015"
    if not folder.is_dir():
        pytest.skip("the ASSISTments 2015 records are not beside the checkout (../shared/data/assist2015)")
    return folder


def counted(path):
    """Return the responses of each student, counted from the file's lines alone."""
    lines = path.read_text().split("\n")
    return [[int(cell) for cell in line.split(",")] for line in lines[2::3] if line]


def test_the_published_training_file_holds_what_is_published_about_it(published):
    students = counted(published / "train.csv")
    responses = [response for student in students for response in student]
    assert len(students) == 11_904
    assert len(responses) == 406_838
    assert sum(responses) / len(responses) == pytest.approx(0.730, abs=0.0005)
    assert len(responses) / len(students) == pytest.approx(34, abs=0.5)


@pytest.mark.parametrize("name", ["train.csv", "test.csv"])
def test_the_loader_agrees_with_the_lines_but_for_the_short_pieces_it_drops(published, name):
    cut = [
        student[start : start + 200] for student in counted(published / name) for start in range(0, len(student), 200)
    ]
    kept = [piece for piece in cut if len(piece) >= 3]
    students = load_students(published / name)
    assert len(students) == len(kept)
    assert students.n_responses == sum(map(len, kept))
    assert students.real.sum(dim=1).tolist() == [len(piece) for piece in kept]
    assert students.responses[students.real].tolist() == [response for piece in kept for response in piece]
    assert students.padding_share == pytest.approx(0.83, abs=0.01)  # what the reported run averaged over
    assert students.concepts.max() == 99


def test_the_published_test_file_has_the_size_that_the_report_file_states(published):
    from casestudies_lib.claims import load_report

    printed = load_report("zero_weight_head").printed
    students = counted(published / "test.csv")
    assert len(students) == printed["test_students"].value
    assert sum(map(len, students)) == printed["test_responses"].value
