"""Every mistake of a spec, in words: pydantic's errors become `errors.Problem`s in the file's order.

pydantic stops at a model's fields and does not try its rules across fields while one of them is wrong. So that a user
sees all mistakes at once, a spec is checked in rounds: what was found wrong is set aside (its default, or the field's
example, takes its place), and the next round tells what else is wrong, as long as it does not hang on what was set
aside.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from bfp import words
from bfp.errors import Problem
from bfp.specs.document import Document, Path, dotted_path, flow, holds, resolve, value_at
from bfp.specs.fields import PATTERNS_IN_WORDS, Misfit

ROUNDS = 6
LISTED_FIELDS = 18  # a message lists a group's fields when it has no more than these

Model = TypeVar("Model", bound=BaseModel)


class Finding(NamedTuple):
    """One mistake: where, what would be right, and the other paths that it hangs on."""

    path: Path
    expected: str
    others: tuple[Path, ...] = ()
    missing: bool = False
    meant: Path = ()  # what cannot be judged either: the field that an unknown one was meant to be, a group of no form


class Checked(NamedTuple):
    """spec is None where there are problems."""

    spec: Any
    problems: list[Problem]


def check(document: Document, model: type[BaseModel], context: object) -> Checked:
    """The document as the model, or everything that is wrong with it."""
    value = copy.deepcopy(document.value)
    findings: list[Finding] = []
    aside: set[Path] = set(document.unread)
    for path in document.unread:
        _set_aside(value, path, model)
    for _ in range(ROUNDS):
        try:
            spec = model.model_validate(value, context=context)
        except ValidationError as error:
            found = list(_findings(error, value, model, toml=document.toml))
        else:
            return Checked(None if findings or document.problems else spec, _in_order(findings, document))
        fresh = [
            finding for finding in found if not any(_related(path, aside) for path in (finding.path, *finding.others))
        ]
        findings += _without_renamed(fresh)
        before = copy.deepcopy(value)
        for finding in found:
            aside |= _set_aside(value, finding.path, model) | ({finding.meant} - {()})
        if value == before:
            break
    return Checked(None, _in_order(findings, document))


def kind_problem(document: Document, kinds: dict[str, Any]) -> Problem:
    """What is wrong with a spec whose `kind` names none."""
    value = document.value
    if not isinstance(value, dict):
        found = "the file is empty" if value is None else "a spec is a group of fields, one `name: value` a line"
        return Problem(None, "", None, f"{found}; `bfp init KIND` writes one with every field")
    names = ", ".join(kinds)
    if "kind" not in value:
        return Problem(None, "kind", None, f"missing; one of {names}")
    return document_problem(document, Finding(("kind",), f"one of {names}{_nearest(value['kind'], kinds)}"))


def document_problem(document: Document, finding: Finding) -> Problem:
    """A finding with its line; a missing field has that of the group that it is missing from."""
    at = finding.path[:-1] if finding.missing else finding.path
    mark = document.marks.get(at)
    assigned = any(finding.path[:depth] in document.assigned for depth in range(1, len(finding.path) + 1))
    found = None if finding.missing else document.shown(finding.path)
    expected = finding.expected + " (given by --set)" * assigned
    return Problem(mark.line if mark else None, dotted_path(finding.path), found, expected)


# from pydantic's errors to findings ----------------------------------------------------------------------------------


def _findings(error: ValidationError, value: Any, model: type[BaseModel], *, toml: bool) -> Iterator[Finding]:
    found: dict[Path, list[Finding]] = {}
    empty: set[Path] = set()
    for entry in error.errors(include_url=False):
        for finding in _translate(dict(entry), value, model, toml=toml):
            found.setdefault(finding.path, []).append(finding)
            if entry["input"] is None and entry["type"] != "extra_forbidden":
                empty.add(finding.path)
    for path, findings in found.items():
        # Each member of a union complains on its own: what fails deeper inside fitted the container, and tells more.
        deeper = any(other[: len(path)] == path and len(other) > len(path) for other in found)
        if deeper and all(_is_container(finding.expected) for finding in findings):
            continue
        expected = ", or ".join(dict.fromkeys(finding.expected for finding in findings))
        yield findings[0]._replace(expected=f"no value (null); expected {expected}" if path in empty else expected)


def _translate(entry: dict[str, Any], value: Any, model: type[BaseModel], *, toml: bool) -> Iterator[Finding]:
    kind, context = entry["type"], entry.get("ctx", {})
    path = _path_in_document(entry["loc"], value, kind)
    if kind == "value_error" and isinstance(context["error"], Misfit):
        for clash in context["error"].clashes:
            inside = _path_of(clash.field)
            yield Finding((*path, *inside), clash.expected, tuple((*path, *_path_of(other)) for other in clash.others))
    elif kind == "missing":
        yield _missing(path, value, model)
    elif kind == "extra_forbidden":
        yield _unknown(path, value, model)
    elif kind.startswith("union_tag"):
        tag = context["discriminator"].strip("'")
        names = _tags_at(path, tag, value, model)
        near = _nearest(context.get("tag"), names)
        missing = kind == "union_tag_not_found"
        expected = f"missing; one of {', '.join(names)}" if missing else f"one of {', '.join(names)}{near}"
        yield Finding((*path, tag), expected, missing=missing, meant=path)
    elif kind in ("dict_type", "model_type", "model_attributes_type"):
        yield Finding(path, f"{_GROUP}{_group_shown(path, value, model, toml=toml)}")
    else:
        yield Finding(path, _in_words(kind, context, entry["input"], entry["msg"], toml=toml))


_LIST, _GROUP, _TEXT = "a list: [a, b]", "a group of fields: ", "text"


def _is_container(expected: str) -> bool:
    return expected in (_LIST, _TEXT) or expected.startswith(_GROUP)


def _group_shown(path: Path, value: Any, model: type[BaseModel], *, toml: bool) -> str:
    """How a group is written there: the field's own example where it has one."""
    field = _fields_at(path[:-1], value, model).get(str(path[-1])) if path else None
    example = next((shown for shown in (field.examples or [] if field else []) if isinstance(shown, dict)), None)
    if toml:
        return words.toml(example) if example else "{name = value}"
    return flow(example) if example else "{name: value}"


def _in_words(kind: str, context: dict[str, Any], found: Any, message: str, *, toml: bool) -> str:
    """What pydantic expected, in the words of somebody who writes YAML or TOML."""
    match kind:
        case "string_type":
            if isinstance(found, dict | list) or found is None:
                return _TEXT
            # TOML has no number with leading zeros
            zeros = ", with its leading zeros, which a number has lost" if type(found) is int and not toml else ""
            return f"text; put it in quotes{zeros}: '{_plain(found)}'"
        case "int_type" | "int_from_float" | "int_parsing":
            return "a whole number" + _number_hint(found)
        case "float_type" | "float_parsing":
            return "a number" + _number_hint(found)
        case "finite_number":
            return "a finite number"
        case "bool_type" | "bool_parsing":
            return "true or false"
        case "list_type" | "tuple_type":
            return _LIST
        case "greater_than":
            return f"greater than {_plain(context['gt'])}"
        case "greater_than_equal":
            return f"at least {_plain(context['ge'])}"
        case "less_than":
            return f"less than {_plain(context['lt'])}"
        case "less_than_equal":
            return f"at most {_plain(context['le'])}"
        case "literal_error":
            names = re.findall(r"'([^']*)'", context["expected"])
            return f"one of {', '.join(names)}{_nearest(found, names)}"
        case "string_pattern_mismatch":
            return PATTERNS_IN_WORDS[context["pattern"]]
        case "string_too_short":
            return "must not be empty"
        case "string_too_long":
            return f"at most {context['max_length']} characters"
        case "too_short":
            return f"give at least {_count(context['min_length'])}"
        case "too_long":
            return f"give {_count(context['max_length'])}, not {context['actual_length']}"
        case "value_error":
            return str(context["error"])
    return message[:1].lower() + message[1:]


def _missing(path: Path, value: Any, model: type[BaseModel]) -> Finding:
    if isinstance(path[-1], int):
        return Finding(path[:-1], f"too short: value {path[-1] + 1} is missing")
    field = _fields_at(path[:-1], value, model).get(path[-1])
    meaning = field.description if field is not None else None
    return Finding(path, f"missing{': ' + meaning if meaning else ''}", missing=True)


def _unknown(path: Path, value: Any, model: type[BaseModel]) -> Finding:
    name = str(path[-1])
    here = list(_fields_at(path[:-1], value, model))
    for form in _forms_at(path[:-1], value, model):
        if name in _named(form) and name not in here:
            tag, (allowed,) = next((tag, get_args(field.annotation)) for tag, field in _tags(form).items())
            return Finding(path, f"no such field here; it goes with {tag}: {allowed}")
    if near := difflib.get_close_matches(name, here, n=1, cutoff=0.6):
        return Finding(path, f"no such field; the nearest is {near[0]}", meant=(*path[:-1], near[0]))
    asked = re.sub(r"\[[0-9]+\]", "", dotted_path(path))
    elsewhere = [known for known in _all_fields(model) if known.rpartition(".")[2] == name and known != asked]
    if elsewhere:
        return Finding(path, f"no such field here; there is {' and '.join(elsewhere)}")
    return Finding(
        path, "no such field" + (f"; the fields here are {', '.join(here)}" if len(here) <= LISTED_FIELDS else "")
    )


def _without_renamed(findings: list[Finding]) -> list[Finding]:
    """A required field that is missing because its name is misspelt is one mistake, not two."""
    meant = {finding.meant for finding in findings if finding.meant}
    return [finding for finding in findings if not (finding.missing and finding.path in meant)]


def _path_in_document(loc: tuple[str | int, ...], value: Any, kind: str) -> Path:
    """pydantic's location without the names of union members and the like, which are no part of the document."""
    path: list[str | int] = []
    for part in loc:
        if holds(value, (part,)):
            value = value_at(value, (part,))
        elif not (kind == "missing" and part == loc[-1]):
            continue
        path.append(part)
    return tuple(path)


# setting aside -------------------------------------------------------------------------------------------------------


def _set_aside(value: Any, path: Path, model: type[BaseModel]) -> set[Path]:
    """Put the default or the example of the field in the place of what is wrong; the paths that now stand for nothing.

    Edits `value`, the working copy of the document.
    """
    while path and isinstance(path[-1], int):
        if replaced := _mend_item(value, path, model):
            return replaced
        path = path[:-1]
    if not path:
        return set()
    *above, name = path
    holder = value_at(value, tuple(above)) if holds(value, tuple(above)) else None
    if not isinstance(holder, dict):
        return set()
    fields = _fields_at(tuple(above), value, model)
    field = fields.get(str(name))
    if field is None:
        holder.pop(name, None)
        if not fields and not holder:
            return _set_aside(value, tuple(above), model) | {path}
        return {path}
    if field.is_required() and field.examples:
        holder[name] = copy.deepcopy(field.examples[0])
    elif field.is_required() and get_origin(field.annotation) is Literal:
        holder[name] = get_args(field.annotation)[0]
    else:
        holder.pop(name, None)
    return {path}


def _mend_item(value: Any, path: Path, model: type[BaseModel]) -> set[Path]:
    """Replace a group in a list by the example, keeping what both have: its name still counts among the others."""
    item = value_at(value, path) if holds(value, path) else None  # what a finding speaks of may have been replaced
    field = _fields_at(path[:-2], value, model).get(str(path[-2])) if len(path) > 1 else None
    listed = field.examples[0] if field is not None and field.examples else None
    if not (isinstance(item, dict) and isinstance(listed, list) and isinstance(listed[0], dict)):
        return set()
    example = listed[0]
    kept = {name: item[name] for name in example if name in item}
    value_at(value, path[:-1])[path[-1]] = example | kept
    return {(*path, name) for name in {*item, *example} - kept.keys()}


def _related(path: Path, aside: set[Path]) -> bool:
    return any(path[: len(other)] == other or other[: len(path)] == path for other in aside if other and path)


def _in_order(findings: list[Finding], document: Document) -> list[Problem]:
    last = (1 << 30, 0)

    def place(finding: Finding) -> tuple[int, int]:
        for depth in range(len(finding.path), 0, -1):
            if mark := document.marks.get(finding.path[:depth]):
                return mark
        return last

    problems = [document_problem(document, finding) for finding in sorted(dict.fromkeys(findings), key=place)]
    return sorted([*document.problems, *problems], key=lambda problem: problem.line or last[0])


# the models, walked along a path -------------------------------------------------------------------------------------


def _fields_at(path: Path, value: Any, model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields, by the names that people write, of the group that a path leads to; {} where it is no model's."""
    forms = _forms_at(path, value, model)
    group = value_at(value, path) if holds(value, path) else None
    chosen = [form for form in forms if _fits_tags(form, group)]
    return {name: field for form in chosen or forms for name, field in _named(form).items()}


def _forms_at(path: Path, value: Any, model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that the group at a path may be of: several where a tag chooses."""
    models, name_is_free = [model], False
    for part in path:
        if name_is_free or isinstance(part, int):
            name_is_free = False
            continue
        fields = [field for outer in models if (field := _named(outer).get(part)) is not None]
        models = [inner for field in fields for inner in models_in(field)]
        name_is_free = any(get_origin(field.annotation) is dict for field in fields)
    return models


def _tags_at(path: Path, tag: str, value: Any, model: type[BaseModel]) -> list[str]:
    """The names that a group's forms go by."""
    while isinstance(path[-1], int):
        path = path[:-1]
    field = _fields_at(path[:-1], value, model)[str(path[-1])]
    return [name for form in models_in(field) for name in get_args(_named(form)[tag].annotation)]


def models_in(field: FieldInfo | None) -> list[type[BaseModel]]:
    """The models that a field's value may hold, in a union, a list or a dict too."""

    def walk(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for argument in get_args(annotation):
            yield from walk(argument)

    return [] if field is None else list(walk(field.annotation))


def _named(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _fits_tags(model: type[BaseModel], value: Any) -> bool:
    return isinstance(value, dict) and all(
        value[name] in get_args(field.annotation) if name in value else not field.is_required()
        for name, field in _tags(model).items()
    )


def _tags(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of one value only, which tell the forms of a group apart."""
    return {
        name: field
        for name, field in _named(model).items()
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
    }


def _all_fields(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in _named(model).items():
        yield above + name
        for inner in models_in(field):
            yield from _all_fields(inner, f"{above}{name}.")


# words ---------------------------------------------------------------------------------------------------------------


def _path_of(dotted: str) -> Path:
    parts = re.findall(r"\[([0-9]+)\]|([^.\[\]]+)", dotted)
    return tuple(int(item) if item else key for item, key in parts)


def _nearest(found: Any, names: Any) -> str:
    near = difflib.get_close_matches(str(found), [str(name) for name in names], n=1, cutoff=0.5)
    return f"; the nearest is {near[0]}" if near else ""


def _number_hint(found: Any) -> str:
    if not isinstance(found, str):
        return ""
    if not isinstance(resolve(found), str):
        return ", without quotes"
    digits = found.replace("_", "").replace(",", "")
    return f"; write {digits}" if digits.isdigit() else ""


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(number: int) -> str:
    return "one" if number == 1 else str(number)
