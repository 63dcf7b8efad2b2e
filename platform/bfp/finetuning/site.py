"""The site probe: how well vectors tell where a session was scanned, and what is left once that is taken away.

What differs between the means of the sites (each standardised component over the training sessions) spans at most
S - 1 directions; vectors without them are told apart by no linear head that was fitted on those sessions. Whatever else
differs between sites (how much, and how together, components vary) stays, so that the nearest neighbours are asked too:
the NEIGHBOURS nearest training sessions by angle vote (`bfp.metrics.class_probe`). Taking a site away also takes what
it shares with the disease, where one site has more of the ill: the task is judged again.

Letters: n sessions, F length of a vector, S sites.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import safetensors.numpy

from bfp.finetuning.crossvalidation import Study, gather, run_fold
from bfp.finetuning.heads import fit_head
from bfp.finetuning.logistic import Logistic
from bfp.metrics.class_probe import nearest
from bfp.models.linear import standardised


@dataclass(frozen=True, slots=True, eq=False)
class SiteProbe:
    """What is said of each session by the heads that did not see its subject.

    linear, near: of the site, float64 (n, S), by the linear head and by the nearest neighbours; linear_after,
    near_after: the same once the site is taken away; task_after: of the task, (n, K).
    """

    linear: np.ndarray
    near: np.ndarray
    linear_after: np.ndarray
    near_after: np.ndarray
    task_after: np.ndarray


def probe_site(task: Study, sites: np.ndarray, vectors: np.ndarray) -> SiteProbe:
    """task: the study whose vectors they are, (n, F); sites: int64 (n,), 0 … S-1."""
    count = int(sites.max()) + 1
    said = {name: np.zeros((len(sites), count)) for name in ("linear", "near", "linear_after", "near_after")}
    judged = []
    for fold in range(task.fold_count):
        learned, tested = task.folds != fold, task.folds == fold
        after = without_site(vectors, sites, learned=learned)
        for suffix, own in (("", standardised(vectors, learned)), ("_after", after)):
            known, asked = own[learned], own[tested]
            said[f"linear{suffix}"][tested] = _linear(task, sites, own, learned=learned, tested=tested)
            said[f"near{suffix}"][tested] = nearest(known, sites[learned], asked, class_count=count)
        judged.append(run_fold(task, after, fold))
    return SiteProbe(**said, task_after=gather(judged, task).said)


def _linear(
    task: Study, sites: np.ndarray, vectors: np.ndarray, *, learned: np.ndarray, tested: np.ndarray
) -> np.ndarray:
    """float64 (t, S), 0 for a site of which nobody was learned from."""
    there, renumbered = np.unique(sites[learned], return_inverse=True)
    said = np.zeros((int(tested.sum()), int(sites.max()) + 1))
    if len(there) == 1:
        said[:, there] = 1.0
        return said
    persons = [task.persons[number] for number in np.flatnonzero(learned)]
    learner = Logistic(len(there))
    head = fit_head(
        learner, vectors[learned], renumbered, persons=persons, strengths=task.strengths, seed=task.seed
    ).head
    said[:, there] = learner.say(head, vectors[tested])
    return said


def without_site(vectors: np.ndarray, sites: np.ndarray, *, learned: np.ndarray) -> np.ndarray:
    """Standardised vectors float64 (n, F) less what tells the means of the sites of the learned sessions, bool (n,)."""
    own = standardised(vectors, learned)
    means = np.stack([own[learned & (sites == site)].mean(axis=0) for site in np.unique(sites[learned])])
    _, spread, directions = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    directions = directions[spread > 1e-9 * max(1.0, spread[0])]
    return own - (own @ directions.T) @ directions


def dump_probe(probe: SiteProbe) -> bytes:
    return safetensors.numpy.save({name: np.ascontiguousarray(getattr(probe, name)) for name in probe.__slots__})


def load_probe(data: bytes) -> SiteProbe:
    return SiteProbe(**safetensors.numpy.load(data))


def numbered(values: list[str]) -> tuple[np.ndarray, list[str]]:
    """Sites as numbers, int64 (n,), and their names, the largest first."""
    names, at, count = np.unique(np.array(values), return_inverse=True, return_counts=True)
    order = np.argsort(-count, kind="stable")
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    return rank[at], [str(names[number]) for number in order]
