"""The probe finds errors that a few groups hold, labels that were never written, and an r that few groups carry."""

import json

import numpy as np
import pytest
import torch

from casestudies_lib.probes import ProbeFault, grouped_errors
from casestudies_lib.stats import bootstrap_groups

SEEDS = range(10)
BLANK = {2: 0.97, 5: 0.45, 11: 0.76}


def readings(seed, blank=(), groups=20, rows=150, noise=1.4):
    generator = np.random.default_rng(seed)
    names = np.repeat(np.arange(groups), rows)
    target = generator.normal(0, 10, groups)[names] + generator.normal(0, 10, names.size)
    predicted = target + generator.normal(0, noise, names.size)
    for name, share in dict(blank).items():
        target = np.where((names == name) & (generator.random(names.size) < share), 0.0, target)
    return predicted, target, names


@pytest.mark.parametrize("seed", SEEDS)
def test_partly_blank_labels_in_three_groups_are_found_and_named(seed):
    result = grouped_errors(*readings(seed, BLANK))
    assert result.ok is False
    assert result.measures["inconsistent_groups"] == sorted(BLANK)
    assert result.measures["share_of_squared_error"] > 0.5
    assert any("of its targets are 0" in finding.measured for finding in result.findings)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_healthy_twin_is_silent(seed):
    result = grouped_errors(*readings(seed))
    assert result.ok is True
    assert result.findings == ()
    assert result.findings == ()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_group_that_the_model_cannot_learn_is_a_cluster_but_its_labels_are_not_accused(seed):
    predicted, target, names = readings(seed)
    predicted = np.where(names == 4, np.random.default_rng(seed).normal(0, 14, names.size), predicted)
    result = grouped_errors(predicted, target, names)
    assert result.ok is False
    assert result.measures["outlying_groups"] == [4]
    assert result.measures["inconsistent_groups"] == []


def test_zeros_that_are_right_accuse_nobody():
    predicted, target, names = readings(0)
    zero = np.random.default_rng(1).random(names.size) < 0.3
    assert grouped_errors(np.where(zero, 0.0, predicted), np.where(zero, 0.0, target), names).ok is True


def test_zeros_that_are_right_are_not_blamed_for_a_group_that_the_model_cannot_learn():
    predicted, target, names = readings(0)
    generator = np.random.default_rng(1)
    target = np.where((names == 4) & (generator.random(names.size) < 0.3), 0.0, target)
    predicted = np.where(names == 4, generator.normal(0, 14, names.size), target + (predicted - target) * (target != 0))
    result = grouped_errors(predicted, target, names)
    assert result.measures["outlying_groups"] == [4]
    assert result.measures["inconsistent_groups"] == []


def test_one_wild_row_is_no_label_that_many_rows_share():
    predicted, target, names = readings(0)
    lowest = np.flatnonzero(names == 4)[target[names == 4].argmin()]
    predicted[lowest] += 200
    result = grouped_errors(predicted, target, names)
    assert result.measures["outlying_groups"] == [4]
    assert result.measures["inconsistent_groups"] == []


def test_the_table_holds_what_two_groups_add_up_to_by_hand():
    result = grouped_errors([1, 2, 3, 1, 2, 3], [1, 2, 3, 2, 3, 4], list("aaabbb"))
    table = result.table().set_index("group")
    assert table["mean squared error"].to_dict() == {"a": 0.0, "b": 1.0}
    assert table["share of squared error"].to_dict() == {"a": 0.0, "b": 1.0}
    assert table["r"].to_numpy() == pytest.approx(1)
    assert result.measures["r"] == pytest.approx(np.corrcoef([1, 2, 3, 1, 2, 3], [1, 2, 3, 2, 3, 4])[0, 1])


def test_resampling_groups_gives_a_wider_interval_than_resampling_rows_where_groups_err_together():
    predicted, target, names = readings(3, BLANK)
    measures = grouped_errors(predicted, target, names).measures
    assert np.ptp(measures["interval_by_group"]) > 3 * np.ptp(measures["interval_by_row"])
    healthy = grouped_errors(*readings(3)).measures
    assert np.ptp(healthy["interval_by_group"]) < 0.05


def test_few_groups_without_a_finding_cannot_be_told():
    result = grouped_errors(*readings(0, groups=3))
    assert result.ok is None
    assert "3 groups are too few" in result.reason


def test_it_takes_tensors_and_names_that_are_words_and_its_result_is_plain():
    predicted, target, names = readings(0, BLANK)
    result = grouped_errors(
        torch.tensor(predicted, requires_grad=True), torch.tensor(target), [f"deal {n}" for n in names]
    )
    assert result.measures["inconsistent_groups"] == ["deal 11", "deal 2", "deal 5"]
    assert "NaN" not in json.dumps(result.to_dict())
    with pytest.raises(ProbeFault, match="deal 2"):
        result.raise_if_found()


def test_a_group_whose_labels_are_all_blank_has_no_r_and_is_named():
    predicted, target, names = readings(0)
    result = grouped_errors(predicted, np.where(names == 1, 0.0, target), names)
    row = {entry["group"]: entry for entry in result.to_dict()["rows"]}[1]
    assert row["r"] == row["mean squared error without it"] == "not defined"
    assert result.measures["inconsistent_groups"] == [1]
    assert not result.table().isna().any().any()
    json.dumps(result.measures, allow_nan=False)


def test_few_rows_are_resampled_one_by_one_for_the_interval_by_row():
    predicted, target, names = readings(0, groups=5, rows=8, noise=6)
    low, high = grouped_errors(predicted, target, names, resamples=4000).measures["interval_by_row"]
    draws = bootstrap_groups(
        np.arange(40), lambda rows: np.corrcoef(predicted[rows], target[rows])[0, 1], 4000, np.random.default_rng(1)
    )
    assert (low, high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.02)
