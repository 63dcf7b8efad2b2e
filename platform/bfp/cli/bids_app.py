"""`bfp bids-app`: the command line of BIDS Apps (https://bids-apps.neuroimaging.io) over a job of kind infer.

<out>/dataset_description.json     says that this is a derivative, of what, made by what
<out>/predictions.tsv, .json       a row for each session of all runs below, and what its columns mean
<out>/sub-01/anat/…_dseg.nii.gz    with a model that segments: the masks, as the runs wrote them, with what their
                                   numbers mean (desc-…_dseg.tsv)
<out>/runs/<name>/                 the run: named by the participants, so that many may go on side by side
<out>/.bidsignore                  what BIDS has no place for: runs/
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bfp import __version__
from bfp.cli.columns import CLASS, infer_meanings
from bfp.cli.jobs import Finished, next_steps
from bfp.cli.output import shown
from bfp.errors import InputError
from bfp.inference.kept import EMBEDDINGS
from bfp.inference.ready import model_hash
from bfp.models.encoder_alone import encoder_alone
from bfp.models.session_model import model_folder
from bfp.specs import Spec, loads
from bfp.storage import Place, place

if TYPE_CHECKING:
    from rich.console import RenderableType

BIDS_VERSION = "1.10.0"
LEVEL = "participant"
COHORT = "bids"
HIDDEN = ("cohort", "subject", "session", "scans", *EMBEDDINGS, "inputs")  # of the run's table; names have BIDS's form
TABLE = "predictions.tsv"


class Derivative(NamedTuple):
    """What a call came to: the run, the table, and how many sessions stand in it."""

    finished: Finished
    table: Place
    sessions: int


def participants_of(labels: Sequence[str] | None, following: Sequence[str]) -> list[str]:
    """`--participant-label 01 02` comes as one label and what follows it; given twice, as two.

    Raises InputError where something follows that belongs to no option.
    """
    if following and not labels:
        raise InputError(f"{' '.join(following)}: unexpected after the level; participants follow --participant-label")
    return [*(labels or []), *following]


def spec_of(bids: str, out: str, level: str, *, participants: Sequence[str], model: str | None) -> Spec:
    """The job that a call asks for. Raises InputError where it asks for another level, names no model,
    or OUT is another model's."""
    if level != LEVEL:
        raise InputError(f"{level}: no level of this app, which predicts each session by itself; give `{LEVEL}`")
    if model is None:
        raise InputError("no model: give --model, a finetune run or a model folder, or set BFP_MODEL")
    _check_model(out, model)
    labels = sorted({label.removeprefix("sub-") for label in participants})
    told = {
        "kind": "infer",
        "name": _run_name(labels),
        "output": f"{_absolute(out)}/runs",
        "model": _absolute(model),
        "cohorts": [{"name": COHORT, "bids": _absolute(bids)}],
        "subjects": labels or None,
    }
    return loads(json.dumps(told), file="bfp bids-app")


def _check_model(out: str, model: str) -> None:
    """Raise InputError where the table in OUT holds what another model says: rows of two would look alike in it."""
    ours = model_hash(encoder_alone(place(model)) or model_folder(place(model)))
    for each in _tables(place(out)):
        with each.table.open_parquet() as parquet:
            theirs = parquet.read(columns=["model"])["model"].unique().to_pylist()
        if others := sorted(set(theirs) - {ours}):
            raise InputError(
                f"{out}: holds predictions of another model ({others[0]}, this one is {ours}); give each model an OUT "
                "of its own"
            )


def _run_name(labels: Sequence[str]) -> str:
    if not labels:
        return "all"
    if len(labels) == 1:
        return f"sub-{labels[0]}"
    return f"{len(labels)}-subjects-{hashlib.sha256(' '.join(labels).encode()).hexdigest()[:8]}"


def _absolute(path: str) -> str:
    return path.rstrip("/") if "://" in path else os.path.abspath(path)


def write_derivative(out: str, *, bids: str, finished: Finished) -> Derivative:
    """The files beside the runs. Of several calls that end at once the last one to write has seen the tables of all."""
    folder = place(out)
    (folder / "dataset_description.json").write(_json(_description(_absolute(bids))))
    (folder / ".bidsignore").write(b"runs/\n")
    found = list[Written]()
    sessions = 0
    while (written := _tables(folder)) != found:
        found = written
        for each in found:
            _bring_masks(each.table, folder)
        rows = [row for each in found for row in _rows(each.table)]
        unique = {(row["participant_id"], row["session_id"]): row for row in rows}
        ordered = [unique[key] for key in sorted(unique)]
        columns = list(dict.fromkeys(name for row in ordered for name in row)) or ["participant_id", "session_id"]
        meanings = {name: {"Description": _meaning(name, columns)} for name in columns}
        (folder / "predictions.json").write(_json(meanings))
        lines = ["\t".join(columns), *("\t".join(_text(row.get(name)) for name in columns) for row in ordered)]
        (folder / TABLE).write(("\n".join(lines) + "\n").encode())
        sessions = len(ordered)
    return Derivative(finished, folder / TABLE, sessions)


def derivative_text(found: Derivative) -> Iterator[RenderableType]:
    yield from next_steps(found.finished)
    yield f"  predictions: {shown(found.table)}"


class Written(NamedTuple):
    """The table of a run, and when it was written."""

    time_s: float
    table: Place


def _tables(folder: Place) -> list[Written]:
    """Of all runs, the latest last: of a session that stands in several it has the word."""
    tables = [folder / "runs" / name / "predictions" / "predictions.parquet" for name in (folder / "runs").folders()]
    found = [(table.modified_s(), table) for table in tables]
    return sorted((Written(time, table) for time, table in found if time is not None), key=lambda each: each.time_s)


def _rows(table: Place) -> Iterator[dict[str, Any]]:
    """Of a run's table, under BIDS's names."""
    with table.open_parquet() as parquet:
        rows: list[dict[str, Any]] = parquet.read().to_pylist()
    for row in rows:
        if "mask" in row:
            row["mask"] = _of_cohort(row["mask"])
        session = f"ses-{row['session']}" if row["session"] else None
        rest = {name: value for name, value in row.items() if name not in HIDDEN}
        yield {"participant_id": f"sub-{row['subject']}", "session_id": session or "n/a", **rest}


def _bring_masks(table: Place, folder: Place) -> None:
    """Copy what a run drew, and what stands beside it, to where BIDS looks for it. table: of the run."""
    drawn = table.parent.parent / "derivatives" / COHORT
    with table.open_parquet() as parquet:
        masks = parquet.read(columns=["mask"])["mask"].to_pylist() if "mask" in parquet.schema_arrow.names else []
    names = [_of_cohort(mask) for mask in masks]
    names += [name.replace(".nii.gz", ".json") for name in names]
    names += [name for name in drawn.names() if name.endswith("_dseg.tsv")] if masks else []
    for name in names:
        there, here = (drawn / name).modified_s(), (folder / name).modified_s()
        if there is not None and (here is None or here < there):
            (folder / name).write((drawn / name).read())


def _of_cohort(mask: str) -> str:
    """The path of a mask in its dataset, from that in a run's table: there is one cohort here."""
    return mask.removeprefix(f"{COHORT}/")


def _text(value: object) -> str:
    """A cell as BIDS wants it: n/a for what is not there, and neither tab nor line break."""
    if value is None or value == []:
        return "n/a"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return " ".join("; ".join(map(str, value)).split())
    return " ".join(str(value).split())


def _meaning(column: str, columns: Sequence[str]) -> str:
    """columns: all of the table, which tell what kind of model it is of."""
    identity = {"participant_id": "label of the subject", "session_id": "label of the session; n/a without one"}
    meanings: Mapping[str, str] = identity | infer_meanings(columns)
    prefixes = (name.removesuffix(CLASS) for name in meanings if name.endswith(CLASS))
    general = next((f"{prefix}{CLASS}" for prefix in prefixes if column.startswith(prefix)), column)
    return meanings[general]


def _description(bids: str) -> dict[str, Any]:
    source = bids if "://" in bids else f"file://{bids}"
    return {
        "Name": "bfp: predictions from brain MRI",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "bfp", "Version": __version__}],
        "SourceDatasets": [{"URL": source}],
        "DatasetLinks": {"source": source},  # which the sidecars of masks name
    }


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
