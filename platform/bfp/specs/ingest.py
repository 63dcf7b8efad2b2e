"""kind: ingest — cohorts -> slice store."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bfp.specs.cohorts import Cohort, in_cohorts, same_names
from bfp.specs.fields import Clash, CpuCompute, Job, Misfit, Share, Uri, lies_in, run_in_store
from bfp.specs.preprocessing import ModalityStacks, Preprocessing


class Ingest(Job):
    """Scans of one or more cohorts become stacks in a slice store."""

    kind: Literal["ingest"]
    store: Uri = Field(
        description="The slice store: made, or added to when its preprocessing is the same.",
        examples=["stores/my-store", "s3://brains/stores/v1"],
    )
    cohorts: list[Cohort] = Field(
        min_length=1, description="Where the scans come from.", examples=[[{"name": "my-cohort", "bids": "data/bids"}]]
    )
    preprocessing: Preprocessing = Field(default_factory=Preprocessing, description="What is done to every scan.")
    sessions_per_shard: int = Field(
        16, ge=1, le=1000, description="Sessions in a shard, on average: the unit of commit, retry and resume."
    )
    max_rejected: Share | None = Field(
        None, description="Fail when more than this share of the scans is rejected. null: never."
    )
    pictures: bool = Field(True, description="Show slices of the scans in the report.")
    compute: CpuCompute = Field(default_factory=CpuCompute, description="How the work is spread out.")

    @model_validator(mode="after")
    def _cohorts_fit(self) -> Ingest:
        clashes = [*same_names(self.cohorts), *run_in_store(self, [self.store])]
        clashes += in_cohorts("output", self.folder, self.cohorts) + in_cohorts("store", self.store, self.cohorts)
        if lies_in(self.store, self.folder) and self.store != self.folder:
            expected = f"the store would lie in the run's folder {self.folder}; it outlives its runs: put it beside"
            clashes.append(Clash("store", expected, ("output",)))
        stacks = self.preprocessing.stacks
        wanted = list(stacks.channels if isinstance(stacks, ModalityStacks) else stacks.modalities)
        for number, cohort in enumerate(self.cohorts):
            if self.preprocessing.brain == "given" and "brain" not in [mask.name for mask in cohort.segmentations]:
                expected = "preprocessing.brain: given needs a segmentation named `brain` in every cohort"
                clashes.append(Clash(f"cohorts[{number}]", expected, ("preprocessing.brain",)))
            for place, mask in enumerate(cohort.segmentations):
                if mask.name in wanted:
                    expected = "a modality has this name, and what is left out is told by name; choose another"
                    at = f"cohorts[{number}].segmentations[{place}].name"
                    clashes.append(Clash(at, expected, ("preprocessing.stacks",)))
                if mask.drawn_on not in wanted:
                    expected = f"no stacks are made of it, but of {', '.join(wanted)}: nothing could carry the labels"
                    at = f"cohorts[{number}].segmentations[{place}].drawn_on"
                    clashes.append(Clash(at, expected, ("preprocessing.stacks",)))
        if clashes:
            raise Misfit(*clashes)
        return self
