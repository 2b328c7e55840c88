"""Every trace of an experiment, once; one that breaks any page it is on takes no other with it.

A server answers a page as a whole: one assessment that it cannot read is an internal error for 500
traces. So what fails is asked for again in halves of its time, down to a millisecond, and there
without assessments or without the one trace.
"""

from __future__ import annotations

import re
import string
import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.api.together import AT_ONCE, asked_of_each
from mlflow_exim_plugin.host.traces.search import Query, TraceSearch
from mlflow_exim_plugin.schema.objects import SOURCE_RUN, Failure, Kind, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mlflow_exim_plugin.host.api.together import Mapped

__all__ = ["TraceListing", "prompt_clause", "run_clause"]

_LATE_MS = 3_600_000
_SWEEPS = 3
_FIRST_MS, _LAST_MS = -(2**62), 2**62
"""No trace starts outside, and a sum of both fits every database."""
_MOST_NAMED = 100
_ID_CHARACTERS = string.digits + "abcdeftr-" + "ghijklmnopqsuvwxyz" + string.ascii_uppercase + ".:/"
"""What ids consist of, in the order in which a search for one tries them."""
_ID_LENGTH = 50
_USUAL_ID = re.compile(r"tr-[0-9a-f]{32}")


@dataclass
class _Trouble:
    """What one listing could not read.

    Attributes:
        left: How many more moments and traces it may search for.
        without: Filters that leave out what it found: no later page fails of it.
    """

    left: int
    without: list[str] = field(default_factory=list)


class TraceListing:
    """Lists traces of a ``Host`` without their spans.

    Args:
        search: The deployment's search.
        most_named: How many moments and traces that fail one listing searches for; each takes some
            hundred calls.
    """

    def __init__(self, search: TraceSearch, *, most_named: int = _MOST_NAMED) -> None:
        self._search = search
        self._most_named = most_named

    def traces(
        self, experiment_id: str, clauses: Iterable[str] = ("",)
    ) -> Iterator[list[Trace] | Failure]:
        """Yield traces of an experiment, each once, oldest first, and what cannot be listed.

        What came late is asked for again at the end.

        Args:
            experiment_id: The experiment.
            clauses: Filters in MLflow's search language, of which a trace meets one.
        """
        seen: set[int | str] = set()
        trouble = _Trouble(self._most_named)
        for clause in clauses:
            query = Query((experiment_id,), clause)
            began_ms = time.time_ns() // 1_000_000
            newest_ms: int | None = None
            for found in self._new(query, seen, trouble):
                if not isinstance(found, Failure):
                    newest_ms = found[-1].info["request_time_ms"]
                yield found
            if newest_ms is None:
                continue
            late = query.within(min(newest_ms, began_ms) - _LATE_MS, None)
            for _ in range(_SWEEPS if trouble.left else 0):
                some = False
                for found in self._new(late, seen, trouble):
                    some |= not isinstance(found, Failure)
                    yield found
                if not some:
                    break

    def all(self, experiment_id: str, clause: str = "") -> Iterator[Trace]:
        """Yield the same traces where none may be missing.

        Raises:
            ServerError: One cannot be listed.
        """
        for found in self.traces(experiment_id, (clause,)):
            if isinstance(found, Failure):
                raise ServerError(found.reason)
            yield from found

    def having(self, experiment_ids: list[str]) -> dict[str, ServerError | None]:
        """Return those of some experiments that may have a trace, be it one that cannot be listed.

        Many are asked for at once, and again in halves where some of them have one.

        Returns:
            Why an experiment cannot be told of, None for one that has a trace, by id.
        """
        found: dict[str, ServerError | None] = {}
        unknown = [
            experiment_ids[start : start + AT_ONCE]
            for start in range(0, len(experiment_ids), AT_ONCE)
        ]
        while unknown:
            asked = unknown.pop()
            why = None
            try:
                if not self._any(Query(tuple(asked))):
                    continue
            except ServerError as error:
                why = error
            if len(asked) == 1:
                found[asked[0]] = why
            else:
                half = len(asked) // 2
                unknown += [asked[half:], asked[:half]]
        return found

    def _any(self, query: Query) -> bool:
        try:
            return self._search.any(query)
        except ServerError:
            self._require_answer(query)
            return True

    def linked_to(
        self, experiment_ids: list[str], run_ids: list[str], mapped: Mapped = map
    ) -> Iterator[tuple[str, list[str | Failure]]]:
        """Yield runs, each with the traces that someone linked to it and that do not come from it.

        Servers answer a filter for a trace's own run with the linked ones too.

        Args:
            experiment_ids: Where the traces are.
            run_ids: The runs.
            mapped: Asks about many.
        """

        def is_link(trace: Trace, run_id: str) -> bool:
            return bool(trace.info["trace_metadata"].get(SOURCE_RUN) != run_id)

        return self._linked(experiment_ids, run_ids, run_clause, is_link, mapped)

    def using(
        self, experiment_ids: list[str], versions: list[str], mapped: Mapped = map
    ) -> Iterator[tuple[str, list[str | Failure]]]:
        """Yield versions of prompts, each a ``NAME/NUMBER``, with the traces linked to them."""
        return self._linked(experiment_ids, versions, prompt_clause, lambda *_: True, mapped)

    def _linked(
        self,
        experiment_ids: list[str],
        names: list[str],
        clause: Callable[[str], str],
        is_link: Callable[[Trace, str], bool],
        mapped: Mapped,
    ) -> Iterator[tuple[str, list[str | Failure]]]:
        query = Query(tuple(experiment_ids), is_doubted=False)

        def failed(name: str, reason: str) -> Failure:
            kind = "run" if clause is run_clause else "prompt"
            return Failure(Kind.TRACE, f"links to {kind} {name}", reason)

        def ask(name: str) -> list[str | Failure] | None:
            found: list[str | Failure] = []
            some = False
            for listed in self._new(query.where(clause(name)), set(), _Trouble(self._most_named)):
                some = True
                if isinstance(listed, Failure):
                    found.append(failed(name, listed.reason))
                else:  # ids alone: all answers are kept until the last one is there
                    found += [trace.id for trace in listed if is_link(trace, name)]
            return found if some else None

        refused = partial(self._search.require_refusal, query)
        for name, links in asked_of_each(names, ask, refused, mapped):
            if isinstance(links, ServerError):
                yield name, [failed(name, links.message)]
            else:
                yield name, links or []

    def _new(
        self, query: Query, seen: set[int | str], trouble: _Trouble
    ) -> Iterator[list[Trace] | Failure]:
        """Yield what was not seen before."""
        try:
            for found in self._narrowing(query.where(*trouble.without), trouble):
                if isinstance(found, Failure):
                    yield found
                    continue
                new = {key: t for t in found if (key := _compact(t.id)) not in seen}
                seen.update(new)
                if new:
                    yield list(new.values())
        except ServerError as error:
            yield Failure(Kind.TRACE, _place(query), error.message)

    def _narrowing(self, query: Query, trouble: _Trouble) -> Iterator[list[Trace] | Failure]:
        """Yield the traces of a query; from where a page fails on, in halves of the time.

        Raises:
            ServerError: The deployment lists no traces at all.
        """
        since_ms = _FIRST_MS if query.since_ms is None else query.since_ms
        until_ms = _LAST_MS if query.until_ms is None else query.until_ms
        try:
            for page in self._search.pages(query):
                yield page
                if isinstance(page, Failure):
                    continue
                since_ms = page[-1].info["request_time_ms"]
        except ServerError as error:
            if query.is_patient:
                self._require_answer(query, error)
            reason = error.message
        else:
            return
        if not trouble.left:
            where = f"{_place(query)} from {_time(since_ms)} to {_time(until_ms)}"
            yield Failure(Kind.TRACE, where, f"{reason}; too many others fail to narrow it down")
        elif since_ms < until_ms:
            middle_ms = (since_ms + until_ms) // 2
            hasty = replace(query, is_patient=False)
            yield from self._narrowing(hasty.within(since_ms, middle_ms), trouble)
            yield from self._narrowing(hasty.within(middle_ms + 1, until_ms), trouble)
        elif query.is_patient:
            yield from self._moment(query, reason, trouble)
        else:  # perhaps it was busy
            yield from self._narrowing(replace(query, is_patient=True), trouble)

    def _moment(
        self, query: Query, reason: str, trouble: _Trouble
    ) -> Iterator[list[Trace] | Failure]:
        """Yield the traces of one millisecond, which cannot be listed together."""
        while trouble.left:
            trouble.left -= 1
            try:
                for page in self._search.bare_pages(query):
                    yield [self._whole(trace, trouble) for trace in page]
            except ServerError as error:
                reason = error.message
            else:
                return
            found = self._first_failing(query)
            if found is None:
                break
            trouble.without.append(f"request_id != '{found}'")
            query = query.where(trouble.without[-1])
            yield Failure(Kind.TRACE, found, reason)
        trouble.without.append(f"timestamp_ms != {query.since_ms}")
        yield Failure(Kind.TRACE, f"{_place(query)} at {_time(query.since_ms or 0)}", reason)

    def _whole(self, bare: Trace, trouble: _Trouble) -> Trace:
        try:
            return self._search.one(bare)
        except ServerError as error:
            trouble.without.append(f"request_id != '{bare.id}'")
            what = f"its {self._search.bare_lacks} cannot be read: {error.message}"
            bare.issues += (Failure(Kind.ASSESSMENT, bare.id, what),)
            return bare

    def _first_failing(self, query: Query) -> str | None:
        """Return the id of a trace that cannot even be listed bare, character by character.

        A page that fails names nobody; but whether there is a failing trace whose id starts with
        some text can be asked.
        """
        hasty = replace(query, is_patient=False)
        if self._fails(hasty, "request_id LIKE '!%'"):
            return None  # a server that cannot be asked by id
        known = ""
        while len(known) < _ID_LENGTH:
            for character in _ID_CHARACTERS:
                if self._fails(hasty, f"request_id LIKE '{known}{character}%'"):
                    known += character
                    break
            else:
                break
        return known if known and self._fails(hasty, f"request_id = '{known}'") else None

    def _fails(self, query: Query, clause: str) -> bool:
        try:
            for _ in self._search.bare_pages(query.where(clause)):
                pass
        except ServerError:
            return True
        return False

    def _require_answer(self, query: Query, because: ServerError | None = None) -> None:
        """Ask for traces of a time that has none: a deployment that fails there lists none.

        Raises:
            ServerError: It fails.
        """
        try:
            self._search.any(replace(query, is_patient=False).within(_FIRST_MS, _FIRST_MS))
        except ServerError as error:
            raise because or error from error


def run_clause(run_id: str) -> str:
    """Return the filter for the traces of a run, linked ones included."""
    return f"request_metadata.`{SOURCE_RUN}` = '{run_id}'"


def prompt_clause(version: str) -> str:
    """Return the filter for the traces that are linked to a version of a prompt."""
    return f'prompt = "{version}"' if "'" in version else f"prompt = '{version}'"


def _compact(trace_id: str) -> int | str:
    """Return a trace's id in less memory: a million of them are kept."""
    return int(trace_id[3:], 16) if _USUAL_ID.fullmatch(trace_id) else trace_id


def _place(query: Query) -> str:
    return f"experiment {', '.join(query.experiment_ids[:3])}"


def _time(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, timezone.utc).isoformat(" ", "milliseconds")
    except (ValueError, OverflowError, OSError):  # a year that Python does not have
        return f"{time_ms} ms"
