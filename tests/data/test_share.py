"""A share of the training images: even, the same every time, and nothing else changes."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from tests.data.test_splits import grid

from attar.data.domainbed import make_domainbed_splits
from attar.data.share import keep_share
from attar.data.splits import SplitConfig, make_splits
from attar.errors import UsageError
from attar.run import DataConfig, RunConfig, differences, plain_options
from attar.stages.request import divide


def strata(table):
    return Counter(zip(table.domains, table.labels, strict=True))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_each_domain_and_class_keeps_its_share(share):
    table = grid(per_class=40)
    kept = keep_share(table, share, seed=0)
    assert strata(kept) == dict.fromkeys(strata(table), 40 * share)
    assert keep_share(table, share, seed=0) == kept
    assert keep_share(table, share, seed=1).names != kept.names


def test_a_smaller_share_lies_within_a_larger_one():
    table = grid(per_class=13)
    shares = [set(keep_share(table, share, seed=3).names) for share in (0.05, 0.1, 0.25, 0.7, 1.0)]
    assert all(small <= large for small, large in pairwise(shares))
    assert len(shares[0]) == 4  # one of each domain and class
    assert len(shares[-1]) == len(table)


def test_only_training_images_become_fewer():
    table = grid(per_class=40)
    for make in (
        lambda share: make_splits(table, SplitConfig(train_share=share)),
        lambda share: divide(table, domainbed(share)),
    ):
        whole, part = make(1.0).tables(), make(0.25).tables()
        assert {k: v for k, v in whole.items() if k != "train"} == {
            k: v for k, v in part.items() if k != "train"
        }
        assert set(part["train"].names) < set(whole["train"].names)


def domainbed(share):
    splits = SplitConfig(held_out_domain="photo", train_share=share)
    data = DataConfig(data=(Path("pictures"),))
    return RunConfig(data=data, teacher=None, student="s", splits=splits, protocol="domainbed")


def test_all_of_them_is_what_it_was_before_there_were_shares():
    table = grid(per_class=10)
    assert divide(table, domainbed(1.0)) == make_domainbed_splits(table, "photo")


def test_runs_made_before_there_were_shares_are_the_same_runs():
    new = plain_options(domainbed(1.0))
    old = {**new, "splits": {k: v for k, v in new["splits"].items() if k != "train_share"}}
    assert differences(old, new) == []
    changed = plain_options(replace(domainbed(1.0), splits=domainbed(0.1).splits))
    assert differences(old, changed) == ["splits.train_share 1.0 there, 0.1 asked"]


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_is_above_0_and_at_most_1(share):
    with pytest.raises(UsageError, match=f"train_share {share}: give 0 < share <= 1"):
        make_splits(grid(), SplitConfig(train_share=share))
