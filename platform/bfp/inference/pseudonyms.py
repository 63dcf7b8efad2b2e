"""Names that tell nobody who a session is: what a run writes with `privacy.identifiers: hash`.

Subjects, sessions and files are replaced by a keyed hash (BLAKE2b), so the same key gives the same name in every run
and whoever has no key cannot try names until one fits. The key comes from the environment and stands nowhere. A cohort
keeps the name that its spec gives it. Sentences (a rejected scan's detail, a warning, the cause of a failure) are kept
where they name neither the session nor a file of it, and say else that something was withheld.

The seam is the driver's: workers read the scans under their true names, and nothing that they return is kept, logged
or drawn before it went through here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace

from bfp.cohorts.sessions import Key, LeftOut, Session
from bfp.errors import InputError
from bfp.inference.outcomes import Outcome

WITHHELD = "withheld, since it names the session or a file (privacy.identifiers: hash)"
SHORTEST_KEY = 16  # characters


class Pseudonyms:
    """With one key. Raises InputError where it is so short that it can be guessed."""

    def __init__(self, key: str, *, variable: str) -> None:
        if len(key) < SHORTEST_KEY:
            raise InputError(
                f"privacy.identifiers: hash: the environment variable {variable} holds {len(key)} characters, at least "
                f"{SHORTEST_KEY} are needed; set it to a secret of your own, and keep it: another key gives other names"
            )
        self._key = hashlib.blake2b(key.encode()).digest()  # BLAKE2 takes a key of 64 bytes at the most

    def of(self, *names: str) -> str:
        """24 hexadecimal digits. names: in an order that says what they are."""
        told = "".join(f"{len(name)}:{name}" for name in names)  # ("a", "bc") is not ("ab", "c")
        return hashlib.blake2b(told.encode(), key=self._key, digest_size=12).hexdigest()

    def key(self, key: Key) -> Key:
        """A subject's name is the same at all visits; what has no name keeps none."""
        subject = self.of("subject", key.cohort, key.subject) if key.subject else ""
        session = self.of("session", key.cohort, key.subject, key.session) if key.session else ""
        return Key(key.cohort, subject, session)

    def outcome(self, outcome: Outcome, session: Session) -> Outcome:
        row = outcome.row
        if row is not None:
            row = {
                **row,
                **self.key(session.key)._asdict(),
                "scans": [self.of("file", uri) for uri in row["scans"]],
                "warnings": [sentence(text, session) for text in row["warnings"]],
            }
        return replace(outcome, row=row, left_out=[self.left_out(each) for each in outcome.left_out])

    def left_out(self, row: LeftOut) -> LeftOut:
        detail = _unless_named(row.detail, row.key, [row.uri])
        return replace(row, key=self.key(row.key), uri=self.of("file", row.uri), detail=detail)


def sentence(text: str, session: Session) -> str:
    """The text, or that it was withheld."""
    files = [file for scan in (*session.scans, *session.spares) for file in scan.files]
    files += [file for label_map in session.label_maps for file in label_map.files]
    return _unless_named(text, session.key, [file.place.uri for file in files])


def _unless_named(text: str, key: Key, uris: Iterable[str]) -> str:
    """The text, unless a label of the session, the path of a file or its name stands in it."""
    names = {key.subject, key.session}
    for uri in uris:
        file = uri.rpartition("/")[2]
        names |= {uri, file, file.partition(".")[0]}
    named = any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names - {""})
    return WITHHELD if named else text
