"""The cost of a large sweep on paper, against numbers that a hand works out."""

import pandas as pd
import pytest

from casestudies_lib.runner.errors import Mistake
from casestudies_lib.runner.sweep_cost import Measured, cost, measure
from casestudies_lib.runner.sweep_table import Sweep

ROW = Measured(row_seconds=36.0, longest_seconds=72.0, table_bytes=2000.0, task_seconds=0.009)


def test_ten_thousand_rows_on_a_hundred_workers_by_hand():
    found = cost(ROW, rows=10_000, workers=100, lost_per_hour=0.1)
    assert found.core_hours == pytest.approx(100)
    assert found.retry_core_hours == pytest.approx(100 * 0.1 * 0.01 / 2)
    assert found.hours == pytest.approx(1 + 0.0005 + 0.02)
    assert found.scheduler_share == pytest.approx(100 * 0.009 / 36)
    assert found.table_megabytes == pytest.approx(20)


def test_short_rows_are_bound_by_the_scheduler():
    found = cost(Measured(0.1, 0.1, 1.0, 0.01), rows=3600, workers=100, lost_per_hour=0)
    assert found.scheduler_share == pytest.approx(10)
    assert found.hours == pytest.approx(0.01)


def test_more_workers_than_rows_are_of_no_use():
    assert cost(ROW, 10, 10, 0).hours == cost(ROW, 10, 1000, 0).hours


def test_a_row_counts_once_however_many_lines_it_has():
    lines = pd.DataFrame({"key": ["a", "a", "a", "b", "c"], "seconds": [10.0, 10.0, 10.0, 30.0, None]})
    assert measure(Sweep(lines, {"rows": 3}), 600, 0.01) == Measured(20.0, 30.0, 200.0, 0.01)


@pytest.mark.parametrize(("rows", "workers", "lost"), [(0, 1, 0.0), (1, 0, 0.0), (1, 1, -0.1), (1, 1, 1.1)])
def test_numbers_that_make_no_sweep_are_refused(rows, workers, lost):
    with pytest.raises(Mistake, match="give 1 or more, and 0 to 1"):
        cost(ROW, rows, workers, lost)
