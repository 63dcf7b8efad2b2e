"""A slice of `tests.campaigns.faults`, which takes minutes in full."""

from __future__ import annotations

import pytest

from tests.campaigns.faults import Campaign, a_share_fails, each_fails, no_try_mends
from tests.ceph import Gateway
from tests.faults import PASSING, Fault
from tests.storage.makers import faulty

QUICK = tuple(fault for fault in PASSING if fault is not Fault.TIMEOUT)


@pytest.fixture(scope="module")
def campaign(s3_gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    made = Campaign(s3_gateway, tmp_path_factory.mktemp("faults"))
    made.undisturbed()
    return made


def test_an_ingest_of_which_a_fifth_of_all_requests_fail_makes_the_same_store(campaign: Campaign) -> None:
    with faulty(campaign.gateway) as proxy:
        assert list(a_share_fails(campaign, proxy, faults=20, share=0.2, seed=1000)) == [""]
    assert "failed and were made again" in campaign.last.said


def test_whichever_request_fails_the_store_is_the_same(campaign: Campaign) -> None:
    with faulty(campaign.gateway) as proxy:
        assert not any(each_fails(campaign, proxy, seed=1000, every=31, kinds=QUICK))


def test_what_no_try_mends_is_one_error_and_leaves_nothing_half_done(campaign: Campaign) -> None:
    assert {case: wrong for case, wrong in no_try_mends(campaign, moments=3) if wrong} == {}


def test_a_difference_is_found(campaign: Campaign) -> None:
    expected, campaign.expected = campaign.expected, {**campaign.expected, "store.json": b"another"}
    try:
        with faulty(campaign.gateway) as proxy:
            (said,) = a_share_fails(campaign, proxy, faults=1, share=1 / 60, seed=2000)
    finally:
        campaign.expected = expected
    assert said == "differs: store.json"
