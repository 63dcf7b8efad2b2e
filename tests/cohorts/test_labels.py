from collections.abc import Iterator, Mapping

from bfp.cohorts.labels import Labels
from bfp.cohorts.sessions import Key


class Counting(Mapping[Key, Mapping[str, str]]):
    """Rows of a table that count how often all of them are gone through."""

    def __init__(self, rows: dict[Key, Mapping[str, str]]) -> None:
        self.passes = 0
        self._rows = rows

    def __getitem__(self, key: Key) -> Mapping[str, str]:
        return self._rows[key]

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __iter__(self) -> Iterator[Key]:
        self.passes += 1
        return iter(self._rows)


def test_asking_for_every_session_goes_through_the_rows_once() -> None:
    for cohort in ("", "c"):
        rows = Counting({Key(cohort, str(number), ""): {"age": str(number)} for number in range(100)})
        labels = Labels(rows)
        found = [labels.of(Key("c", str(number), "a")) for number in range(100)]
        assert found == [{"age": str(number)} for number in range(100)]
        assert rows.passes <= 1
