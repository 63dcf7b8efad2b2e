"""Whether an encoder has met, in its pretraining, the subjects that it is judged on (`bfp.models.seen`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from bfp.models.folders import encoder_folder
from bfp.specs.encoders import parse_encoder
from bfp.specs.pretrain import Pretrain
from bfp.storage import Place, place
from bfp.words import counted, some_of

if TYPE_CHECKING:
    import pyarrow as pa

    from bfp.cohorts.sessions import Key
    from bfp.drivers.pretrain_material import Material
    from bfp.models.seen import Met
    from bfp.store.reader import SliceStore

_NAMES = 3  # that a sentence names


class Acquaintance(NamedTuple):
    """met: None where it is not known; told: what is known, as a sentence; subjects: that are judged."""

    met: Met | None
    told: str
    subjects: int

    @property
    def is_met(self) -> bool:
        return self.met is not None and bool(self.met.anyhow)


def write_seen_by(spec: Pretrain, material: Material, folder: Place) -> None:
    """Beside the exported encoder: the scans that it was trained on, and those that its start was."""
    from bfp.models.seen import fingerprints, write_seen

    tables = [
        fingerprints(scans_of(store, _keys(index)))
        for store, index in zip(material.stores, material.training, strict=True)
    ]
    if (before := _seen_by(spec.encoder)) is not None:
        tables.append(before)
    write_seen(folder, tables)


def keep_acquaintances(encoder: str, folder: Place) -> None:
    """Beside an encoder that is exported as it was: whom it has met, where that is known."""
    from bfp.models.seen import write_seen

    if (before := _seen_by(encoder)) is not None:
        write_seen(folder, [before])


def acquaintance(encoder: str, scans: Sequence[pa.Table]) -> Acquaintance:
    """encoder: as a spec names it; scans: of the sessions that are judged, a table for each store."""
    import pyarrow as pa

    from bfp.models.seen import met

    reference, own = parse_encoder(encoder), pa.concat_tables(scans)
    subjects = len(set(zip(own["cohort"].to_pylist(), own["subject"].to_pylist(), strict=True)))
    if reference.origin == "random":
        return Acquaintance(None, "untrained: it has met nobody", subjects)
    if (seen := _seen_by(encoder)) is None:
        return Acquaintance(None, "not known: no list of what it was pretrained on stands beside it", subjects)
    found = met(seen, own)
    return Acquaintance(found, _in_words(found, subjects), subjects)


def _seen_by(encoder: str) -> pa.Table | None:
    from bfp.models.seen import read_seen

    if parse_encoder(encoder).origin != "folder":
        return None
    return read_seen(encoder_folder(place(encoder)))


def _in_words(found: Met, subjects: int) -> str:
    if not found.anyhow:
        return f"none of the {counted(subjects, 'subject')} that are judged"
    some = sorted(found.anyhow)
    names = some_of(some, most=_NAMES)
    told = f"{len(some)} of the {counted(subjects, 'subject')} that are judged ({names})"
    other = len(found.by_voxels - found.by_name)
    return told + (f", {other} of them under another name, by their voxels" if other else "")


def scans_of(store: SliceStore, sessions: set[Key]) -> pa.Table:
    """The rows of a store's scans that are of these sessions."""
    import pyarrow as pa

    scans = store.scans()
    keys = zip(*(scans[name].to_pylist() for name in ("cohort", "subject", "session")), strict=True)
    return scans.filter(pa.array([key in sessions for key in keys], pa.bool_()))


def _keys(index: pa.Table) -> set[Key]:
    from bfp.cohorts.sessions import Key

    return {Key(*key) for key in zip(*(index[name].to_pylist() for name in Key._fields), strict=True)}
