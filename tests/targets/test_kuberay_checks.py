"""Who doctor says that we are, by the answers of API servers newer than the one that tests have."""

from __future__ import annotations

from typing import Any

import pytest

from bfp.targets.kube_api import Refused
from bfp.targets.kuberay_checks import _who


class Answers:
    """An API server with one answer."""

    def __init__(self, answer: dict[str, Any] | Refused) -> None:
        self._answer = answer

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if isinstance(self._answer, Refused):
            raise self._answer
        return self._answer


@pytest.mark.parametrize(
    ("answer", "verdict", "told"),
    [
        ({"status": {"userInfo": {"username": "alice"}}}, "ok", "alice"),
        ({"status": {"userInfo": {"username": "system:anonymous"}}}, "fail", "nobody: "),
        (Refused(401, "Unauthorized", "Unauthorized"), "fail", "nobody: "),
        (Refused(403, "Forbidden", 'User "system:anonymous" cannot create resource'), "fail", "nobody: "),
        (
            Refused(403, "Forbidden", 'User "alice" cannot create resource'),
            "ok",
            "the API server takes our credentials",
        ),
        (
            Refused(404, "NotFound", "the server could not find the requested resource"),
            "ok",
            "the API server takes our",
        ),
    ],
)
def test_nobody_is_not_taken_for_somebody(answer: Any, verdict: str, told: str) -> None:
    found = _who(Answers(answer))  # type: ignore[arg-type]
    assert (found.point, found.verdict) == ("who we are", verdict)
    assert found.text.startswith(told)
