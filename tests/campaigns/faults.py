"""An ingest from and to a real object store that fails: the same store as without faults, or one clear error.

    python -m tests.campaigns.faults [--faults 1000] [--share 0.2] [--seed 0] [--every 1]

Starts a Ceph gateway and a proxy that deals faults before it (`tests.faults`). A small made cohort is ingested
undisturbed, then

- again and again into new stores while a share of all requests fails, until as many faults were dealt;
- once for each number N, while the N-th request fails (every: 1, or only each k-th N);
- with credentials that are wrong from the start, or expire in the middle, no permission, and no bucket.

In the first two each store must be the undisturbed one byte for byte. In the third the command must end with one
message and exit code 2 (before anything was written) or 1, and the next ingest make the same store.

It is `bfp submit` in this process, its shards prepared on two threads instead of on Ray, whose start would take most of
the time, and with waits and time limits a hundredth of the usual ones. Prints its figures; exits 1 where a promise
broke.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import s3fs
import yaml

from bfp.cli.main import run
from bfp.drivers import ingest
from bfp.storage import Place
from bfp.store import layout
from bfp.targets.local import Local
from tests.ceph import Gateway, gateway
from tests.cohorts.makers import write_bids
from tests.faults import PASSING, Fault, FaultProxy, Plan, from_on, only, share_of
from tests.storage.makers import clients, faulty

BUCKET = "bfp-faults"
SUBJECTS = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """What one submission came to."""

    code: int
    said: str


class Campaign:
    """One cohort in one bucket, and what its undisturbed store holds."""

    def __init__(self, made: Gateway, folder: Path) -> None:
        self.gateway, self.folder = made, folder
        self.spec = folder / "ingest.yaml"
        self.runs = 0
        here = write_bids(folder / "cohort", subjects=SUBJECTS)
        self.bucket = Place(f"s3://{BUCKET}")
        with clients(made.environment()):
            s3fs.S3FileSystem().mkdir(BUCKET)
            for file in sorted(here.rglob("*.*")):
                (self.bucket / f"cohort/{file.relative_to(here)}").upload(file)
        self.write_spec()
        self.expected: dict[str, bytes] = {}
        self.last = Answer(0, "")

    def write_spec(self, **fields: Any) -> None:
        given = {
            "kind": "ingest",
            "name": "run",
            "output": f"{self.bucket}/runs",
            "store": f"{self.bucket}/store",
            "cohorts": [{"name": "heads", "bids": f"{self.bucket}/cohort"}],
            "preprocessing": {"spacing_mm": 4.0, "slice_spacing_mm": 10.0, "size": 56, "register": "none"},
            "sessions_per_shard": 1,
            "pictures": False,
        }
        self.spec.write_text(yaml.safe_dump({**given, **fields}))

    def submit(self, store: str) -> Answer:
        """A run of its own into that store."""
        self.runs += 1
        line = ["submit", str(self.spec), "--set", f"store={self.bucket}/{store}", "--name", f"run-{self.runs}"]
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), without_ray():
            code = run(line)
        self.last = Answer(code, out.getvalue() + errors.getvalue())
        return self.last

    def contents(self, store: str) -> dict[str, bytes]:
        """Every object of a store by its name; asked of the gateway itself.

        But for the marker of an ingest that could not take it away, since its credentials had expired: a prune does.
        """
        with clients(self.gateway.environment()):
            folder = self.bucket / store
            found = {entry.place.uri.removeprefix(f"{folder}/"): entry.place for entry in folder.files()}
            return {name: file.read() for name, file in found.items() if not layout.marker_of(name)}

    def undisturbed(self) -> None:
        with clients(self.gateway.environment()):
            answer = self.submit("store")
        assert answer.code == 0, answer.said
        self.expected = self.contents("store")

    def wrong(self, answer: Answer, store: str) -> str:
        """What is wrong with an ingest that should have succeeded; "" where nothing is."""
        if answer.code != 0:
            return f"ended with {answer.code}: {answer.said.strip()[-300:]}"
        found = self.contents(store)
        differing = [name for name in found.keys() | self.expected.keys() if found.get(name) != self.expected.get(name)]
        return f"differs: {', '.join(sorted(differing))}" if differing else ""


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    def in_threads(shards: Sequence[Any], *, task: ingest.Task, workers: int | None, retries: int) -> Iterator[Any]:
        with ThreadPoolExecutor(2) as pool:
            yield from pool.map(task, [{"shard": pickle.dumps(shard)} for shard in shards])

    with mock.patch.object(ingest, "on_ray", in_threads), mock.patch.object(Local, "_start_ray"):
        yield


def a_share_fails(campaign: Campaign, proxy: FaultProxy, *, faults: int, share: float, seed: int) -> Iterator[str]:
    """What went wrong in each round, "" for nothing, until so many faults were dealt."""
    while proxy.dealt.total() < faults:
        proxy.plan = share_of(share, seed=seed)
        answer = campaign.submit(store := f"share-{seed}")
        seed += 1
        yield campaign.wrong(answer, store)


def each_fails(
    campaign: Campaign, proxy: FaultProxy, *, seed: int, every: int, kinds: Sequence[Fault] = PASSING
) -> Iterator[str]:
    """What went wrong with each N, "" for nothing, until there is no N-th request."""
    number, draw = 1, random.Random(seed)
    while True:
        proxy.plan = only(number, draw.choice(kinds))
        answer = campaign.submit(store := f"each-{number}")
        asked = proxy.requests
        wrong = campaign.wrong(answer, store)
        yield f"request {number}: {wrong}" if wrong else ""
        if number >= asked:
            return
        number += every


def refused(
    campaign: Campaign, store: str, *, expected: str, codes: Sequence[int], plan: Plan | None = None, **changes: str
) -> str:
    """What is wrong with an ingest that should have ended with one message; "" where nothing is.

    changes: to the environment. expected: what the message says.
    """
    with faulty(campaign.gateway) as proxy, clients({"AWS_ENDPOINT_URL": proxy.endpoint, **changes}):
        proxy.plan = plan or (lambda number: None)
        answer = campaign.submit(store)
    told = [line for line in answer.said.splitlines() if line.startswith("bfp: ")]
    if answer.code not in codes or len(told) != 1 or expected not in answer.said or "Traceback" in answer.said:
        return f"expected {codes} and {expected!r}; got {answer.code}: {answer.said.strip()[-500:]}"
    return ""


def no_try_mends(campaign: Campaign, *, moments: int) -> Iterator[tuple[str, str]]:
    """Each case, and what is wrong with it. moments: at how many of them the credentials expire, the first request to
    nine tenths of those that a run takes: by the clock, which counts too, it may take a few fewer."""
    stranger = campaign.gateway.add_user("passer-by")
    as_stranger = {"AWS_ACCESS_KEY_ID": stranger.access, "AWS_SECRET_ACCESS_KEY": stranger.secret}
    unknown = {"AWS_ACCESS_KEY_ID": "nobody"}
    for case, changes, expected in (
        ("unknown key", unknown, "the store does not know these credentials"),
        ("wrong secret", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "the secret does not fit the access key"),
        ("no permission", as_stranger, "no permission with these credentials"),
    ):
        yield case, refused(campaign, "refused", expected=expected, codes=(2,), **changes)
    gone = "s3://bfp-gone"
    campaign.write_spec(cohorts=[{"name": "heads", "bids": f"{gone}/cohort"}])
    yield "no bucket of scans", refused(campaign, "refused", expected="there is no bucket bfp-gone", codes=(2,))
    campaign.write_spec(output=f"{gone}/runs")
    yield "no bucket for runs", refused(campaign, "refused", expected="there is no bucket bfp-gone", codes=(2,))
    campaign.write_spec()
    if campaign.contents("refused"):
        yield "refused", "something was written"
    with faulty(campaign.gateway) as proxy:
        campaign.submit("counted")
        asked = proxy.requests
    for number in sorted({1 + round(moment * 0.9 * asked / max(moments - 1, 1)) for moment in range(moments)}):
        case, store = f"expired at request {number} of {asked}", f"expired-{number}"
        plan = from_on(number, Fault.EXPIRED)
        yield case, refused(campaign, store, expected="the credentials have expired", codes=(1, 2), plan=plan)
        with clients(campaign.gateway.environment()):
            answer = campaign.submit(store)
        yield f"{case}, and submitted again", campaign.wrong(answer, store)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    given = parser.parse_args()
    began, bad = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, gateway(Path(folder, "ceph")) as made:
        campaign = Campaign(made, Path(folder))
        campaign.undisturbed()
        size = sum(map(len, campaign.expected.values()))
        print(f"undisturbed: {len(campaign.expected)} files, {size / 1e6:.1f} MB", flush=True)
        with faulty(made) as proxy:
            rounds = list(a_share_fails(campaign, proxy, faults=given.faults, share=given.share, seed=given.seed))
            bad += tell(f"{given.share:.0%} of requests", rounds, proxy)
        with faulty(made) as proxy:
            bad += tell(
                "the N-th request", list(each_fails(campaign, proxy, seed=given.seed, every=given.every)), proxy
            )
        for case, wrong in no_try_mends(campaign, moments=10):
            bad += bool(wrong)
            print(f"{case}: {wrong or 'as promised'}", flush=True)
    print(f"{bad} promises broken; {time.monotonic() - began:.0f} s")
    sys.exit(bad > 0)


def tell(title: str, outcomes: list[str], proxy: FaultProxy) -> int:
    """Print what came out of ingests; how many of them were not as they should be."""
    wrong = [outcome for outcome in outcomes if outcome]
    kinds = ", ".join(f"{count} {fault}" for fault, count in sorted(proxy.dealt.items()))
    print(f"{title}: {len(outcomes)} ingests, {proxy.dealt.total()} faults ({kinds}); {len(wrong)} not as undisturbed")
    for each in wrong:
        print(f"    {each}")
    sys.stdout.flush()
    return len(wrong)


if __name__ == "__main__":
    main()
