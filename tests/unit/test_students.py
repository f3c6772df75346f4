"""Student records: both layouts, every refusal, cutting and padding, and simulated students who learn."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from casestudies_lib import paths
from casestudies_lib.reports import load_report
from casestudies_lib.tasks.students import RecordError, recorded_classroom, simulate_students, simulated_classroom

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


EVERY_CONCEPT = [(concept, 0) for concept in range(1, 6)]


def read(folder, text, slots=6, concepts=5):
    """Read a file as the test part of a folder, beside a training file of the same layout that holds every concept."""
    beside = columns if text.startswith((COLUMNS, "correct")) else three_lines
    saved(folder, beside([EVERY_CONCEPT] * 4), "train.csv")
    saved(folder, text, "test.csv")
    return recorded_classroom(folder, 0, 1000, concepts, slots).test


# Reading


@pytest.mark.parametrize("layout", [three_lines, columns])
@given(HISTORIES.filter(lambda histories: any(len(history) >= 3 for history in histories)), st.integers(3, 8))
def test_histories_come_back_cut_and_padded_and_without_the_short_ones(layout, tmp_path_factory, histories, slots):
    students = read(tmp_path_factory.mktemp("round"), layout(histories), slots)
    expected = pieces([history for history in histories if len(history) >= 3], slots)
    assert as_lists(students) == expected
    assert students.concepts.shape == (len(expected), slots)
    assert not students.concepts[~students.real].any()
    assert not students.responses[~students.real].any()
    lengths = torch.tensor([len(piece) for piece in expected])
    assert torch.equal(students.real, torch.arange(slots) < lengths[:, None])  # padding at the end only


def test_the_column_layout_is_read_by_name_and_ordered_by_log(tmp_path):
    # User 1 by log: 7040, 7020, 7030; user 2: 7020, 7020, 7030; 7010 to 7050 are concepts 0 to 4.
    text = (
        "correct,sequence_id,extra,log_id,user_id\n1,7030,x,9,2\n0,7020,x,5,2\n1,7020,x,2,1\n"
        "0.0,7040,x,1,1\n1.0,7020,x,7,2\n1,7030,x,3,1\n"
    )
    assert as_lists(read(tmp_path, text)) == [[(3, 0), (1, 1), (2, 1)], [(1, 0), (1, 1), (2, 1)]]


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
    assert as_lists(read(tmp_path, text)) == pieces(histories, 6)


def test_counts_and_shares_by_hand(tmp_path):
    histories = [[(1, 1), (2, 0), (3, 1)], [(1, 1), (1, 1), (2, 0), (2, 1), (3, 0)]]
    students = read(tmp_path, three_lines(histories), slots=10)
    assert (len(students), students.n_responses) == (2, 8)
    assert students.padding_share == pytest.approx(12 / 20)
    assert students.share_right == pytest.approx(5 / 8)


WHOLE = three_lines([learner(4), learner(5)])
DAMAGED = [
    ("", "the file is empty"),
    (" \n\n", "the file is empty"),
    ("\n".join(WHOLE.splitlines()[:4]), r"4 lines are not a multiple of three \(student and id; concepts; responses\)"),
    (WHOLE[:-2], "line 5: 5 concepts for 4 responses; each student needs one response a concept"),
    (WHOLE[:-4], "line 5: 5 concepts for 3 responses"),
    ("1,1\n1,,2,3\n0,1,1\n", "line 2: '' is not a number"),
    ("1,1\n1,1,1\n1,0,1\n2,2\n,\n,\n3,3\n1,1,1\n1,1,1\n", "line 5: 0 concepts for 0 responses; .* at least one"),
    ("name,age\nanna,ben\n1,0\n", "line 2: 'anna' is not a number; this layout holds ids and 0/1"),
    (three_lines([learner(2), learner(1)]), "no student has 3 responses or more; is this the right file?"),
    ("1,1\n1,6,1\n1,0,1\n", "line 2: concept 6; allowed is 1 to 5"),
    ("1,1\n1,0,1\n1,0,1\n", "line 2: concept 0; allowed is 1 to 5"),
    ("1,1\n1,1,1\n1,2,1\n", "line 3: response 2; allowed is 0 to 1"),
    ("1,1\n1,1,1\n1,0.5,1\n", "line 3: 0.5 is not whole; ids are whole and responses 0 or 1"),
    ("1,1\n1,1,1\n1,right,1\n", "line 3: 'right' is not a number"),
    (f"{COLUMNS}\n1,1,7010,1\n1,2,7010,-1\n1,3,7010,1\n", "line 3: response -1; allowed is 0 to 1"),
    (f"{COLUMNS}\n1,1,7010,1\n1,2,7010,nan\n1,3,7010,1\n", "line 3: nan is not whole"),
    (f"{COLUMNS}\n1,1,7010,1\n1,2,7010\n", "line 3: a cell is empty; the file is cut short or damaged"),
    (f"{COLUMNS}\n", "only a header; no student has a response"),
    (columns([learner(4)]).replace("log_id", "log"), "column log_id is missing; the CSV layout needs user_id, log_id"),
    (columns([[(1, 0), (2, 1), (9, 1)]]), "6 different sequence_id; at most 5 concepts are allowed"),
]


@pytest.mark.parametrize(("text", "message"), DAMAGED)
def test_a_damaged_file_is_refused_in_one_line_that_names_file_and_place(tmp_path, text, message):
    with pytest.raises(RecordError, match=message) as refused:
        read(tmp_path, text)
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_files_that_are_missing_no_text_of_two_layouts_or_too_few_are_refused(tmp_path):
    def refused(path, message):
        with pytest.raises(RecordError, match=message):
            recorded_classroom(path, 0, 10, 100, 8)

    refused(
        tmp_path / "nowhere.csv", r"nowhere.csv: no such file; give a record file, or a folder that holds train.csv"
    )
    saved(tmp_path, three_lines([learner(4)]), "train.csv")
    refused(tmp_path, r"test.csv: no such file")
    saved(tmp_path, columns([learner(4)]), "test.csv")
    refused(tmp_path, "train.csv and test.csv have different layouts; give both the same one")
    (tmp_path / "test.csv").write_bytes(b"1,2\n\x89PNG\xff\n")
    refused(tmp_path, "not UTF-8 text")
    refused(saved(tmp_path, three_lines([learner(4)] * 9 + [learner(2)])), "9 students cannot be split; at least 10")
    with pytest.raises(ValueError, match="slots=2; at least 3"):
        recorded_classroom(saved(tmp_path, three_lines([learner(5)] * 10)), 0, 10, 100, 2)


# Parts


def test_taking_students_takes_their_whole_rows():
    everyone = simulate_students(torch.Generator().manual_seed(0), 6, slots=8)
    rows = as_lists(everyone)
    assert as_lists(everyone.take(torch.tensor([4, 1]))) == [rows[4], rows[1]]
    assert as_lists(everyone.take(torch.tensor([False, True, False, False, True, False]))) == [rows[1], rows[4]]
    assert as_lists(everyone.take(slice(2, 4))) == rows[2:4]


def test_files_of_a_folder_share_one_numbering_of_concepts(tmp_path):
    # Alone, the test file would call sequence 25 concept 0, which is sequence 10 in training.
    rows = "".join(f"{user},{log},{10 * log},1\n" for user in range(4) for log in (1, 2, 3))
    saved(tmp_path, f"{COLUMNS}\n{rows}", "train.csv")
    saved(tmp_path, f"{COLUMNS}\n2,1,30,1\n2,2,25,1\n2,3,30,1\n", "test.csv")
    room = recorded_classroom(tmp_path, 0, 10, 100, 3)
    assert room.train.concepts[0].tolist() == [0, 1, 3]
    assert room.test.concepts.tolist() == [[3, 2, 3]]


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


def test_the_published_test_file_is_read_but_for_short_pieces_and_has_the_size_that_the_report_states(published):
    students, printed = counted(published / "test.csv"), load_report("zero_weight_head").printed
    assert (len(students), sum(map(len, students))) == (
        printed["test_students"].value, printed["test_responses"].value
    )  # fmt: skip
    cut = [student[start : start + 200] for student in students for start in range(0, len(student), 200)]
    kept = [piece for piece in cut if len(piece) >= 3]
    test = recorded_classroom(published, 0, 5000, 100, 200).test
    assert test.real.sum(dim=1).tolist() == [len(piece) for piece in kept]
    assert test.responses[test.real].tolist() == [response for piece in kept for response in piece]
    assert test.padding_share == pytest.approx(0.83, abs=0.01)  # what the reported run averaged over
    assert test.concepts.max() == 99
