"""Complete listings and single documents of one MLflow deployment, page after page."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.answers import (
    NO_TOKEN,
    UnbelievableError,
    answered,
    doubted,
    object_of,
)
from mlflow_exim_plugin.host.api.sifting import NOT_LIKE_ITS_KIND, Malformed, sifted
from mlflow_exim_plugin.host.api.together import AT_ONCE, listed_of_each
from mlflow_exim_plugin.host.documents import (
    experiment_document,
    model_version_document,
    registered_model_document,
    run_document,
)
from mlflow_exim_plugin.host.errors import raise_for_status, translated
from mlflow_exim_plugin.host.open.absent import is_refused
from mlflow_exim_plugin.options import ALL_IDS, within_ids
from mlflow_exim_plugin.schema.documents import sorted_entries
from mlflow_exim_plugin.schema.lineage import RUN_ID_TAGS
from mlflow_exim_plugin.schema.objects import IS_NUMBER, Failure, Kind, by_number, key_values
from mlflow_exim_plugin.schema.provenance import ORIGIN, searches
from mlflow_exim_plugin.schema.runs import PARENT, RunHeader

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.schema.runs import Listed

__all__ = ["PROMPT_TAG", "Reader", "pages"]

PROMPT_TAG = "mlflow.prompt.is_prompt"
_IS_PROMPT = f"tags.`{PROMPT_TAG}` = 'true'"
_PAGE = 1000
_MOST_RUNS = 50_000
"""So many runs any server gives in one page."""


class Reader:
    """Reads documents from a ``Host``; every listing follows its page tokens to the end.

    Args:
        host: The deployment.

    Attributes:
        host: Likewise.
        has_registry: Whether it was once told which registered models there are.
        unread: Runs that a listing has and that cannot be read.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.unread: list[Failure] = []
        self._latest: dict[str, set[int]] = {}
        self.has_registry = False

    def experiments(self) -> list[dict[str, Any]]:
        """Return every experiment, deleted ones included, by number.

        Raises:
            ServerError: One cannot be read.
        """
        found = []
        for experiment in self.found_experiments():
            if isinstance(experiment, Failure):
                raise ServerError(experiment.reason)
            found.append(experiment)
        return sorted(found, key=lambda document: by_number(document["experiment_id"]))

    def found_experiments(self) -> Iterator[dict[str, Any] | Failure]:
        """Yield every experiment in any order, deleted ones included, or why it cannot be read.

        Raises:
            ServerError: None can.
        """
        from mlflow.entities import ViewType

        def page(token: str | None) -> Any:
            search = self.host.tracking.search_experiments
            return sifted(
                lambda: search(view_type=ViewType.ALL, max_results=_PAGE, page_token=token),
                self.host,
                "experiments",
                {"view_type": "ALL", "max_results": _PAGE, "page_token": token or ""},
            )

        some = False
        names: dict[str, str] = {}
        doing = "listing the experiments"
        try:
            with translated(doing):
                if self.host.generation.lists_experiments:
                    for listed in pages(self._page_of_list):
                        yield self._listed_experiment(listed)
                    return
                for experiment in pages(page):
                    some = True
                    yield _of_its_own_id(self._sound_experiment(experiment), names)
        except ServerError as error:
            if not some:
                raise
            yield Failure(Kind.EXPERIMENT, "all", error.message)

    def _page_of_list(self, token: str | None) -> Any:
        """Return a page of the experiments of a server before 1.28, which has made one at least."""
        from mlflow.store.entities import PagedList

        more = [("page_token", token)] if token else []
        endpoint = self.host.generation.experiments
        answer = self.host.get_json(endpoint, [("view_type", "ALL"), *more]) or {}
        listed = answer.get("experiments")
        if not isinstance(listed, list):
            raise UnbelievableError("what comes is no listing")
        return PagedList(listed, answer.get("next_page_token") or None)

    def _listed_experiment(self, listed: Any) -> dict[str, Any] | Failure:
        try:
            document = listed | {"experiment_id": str(listed["experiment_id"])}
            document.setdefault("lifecycle_stage", "active")  # before 0.8 none was deleted
            document["tags"] = sorted_entries(key_values(listed.get("tags")))
            for name in ("creation_time", "last_update_time"):
                if name in listed:
                    document[name] = int(listed[name])
        except NOT_LIKE_ITS_KIND as error:
            return Failure(Kind.EXPERIMENT, "one without an id", f"it is malformed: {error}")
        return dict(document)

    def owners_without(self, unread: set[str], among: Iterable[str] | None = None) -> set[str]:
        """Return the ids of experiments that are gone or unread, and that something belongs to.

        Args:
            unread: Those that cannot be read.
            among: All of those that something belongs to; they are looked for without it.
        """
        del unread, among
        return set()  # nobody tells but a database

    def _sound_experiment(self, listed: Any) -> dict[str, Any] | Failure:
        """Return an experiment of a listing; one that is malformed there is read by itself."""
        if isinstance(listed, Malformed):
            identity, reason = listed.id, listed.reason
        else:
            identity = str(listed.experiment_id)
            reason = f"it is malformed: its id is {identity!r}"
            try:
                if IS_NUMBER.fullmatch(identity) and listed.name:
                    return experiment_document(listed)
            except NOT_LIKE_ITS_KIND as error:
                reason = f"it is malformed: {error}"
        if not IS_NUMBER.fullmatch(identity):
            return Failure(Kind.EXPERIMENT, identity or "one without an id", reason)
        return self._experiment(identity)

    def experiment(self, identity: str) -> dict[str, Any]:
        """Return one experiment.

        Raises:
            ServerError: It cannot be read.
        """
        found = self._experiment(identity)
        if isinstance(found, Failure):
            raise ServerError(found.reason)
        return found

    def _experiment(self, identity: str) -> dict[str, Any] | Failure:
        """Return one experiment, or why it cannot be read."""
        try:
            with translated(f"reading experiment {identity}"):
                document = experiment_document(self.host.tracking.get_experiment(identity))
                if (found := document["experiment_id"]) != identity:
                    raise UnbelievableError(f"what comes is experiment {found!r}")
                return document
        except ServerError as error:
            return Failure(Kind.EXPERIMENT, identity, error.message)

    def runs(self, experiment_id: str, filter_string: str = "") -> dict[str, RunHeader]:
        """Return the headers of an experiment's runs that match, deleted ones included.

        One that is malformed in the listing is read by itself; where that does not help it is
        added to ``unread``.
        """
        return self._runs_of_some([experiment_id], filter_string)[experiment_id]

    def runs_of_each(
        self,
        experiment_ids: list[str],
        filter_string: str = "",
        ids: tuple[str, str] = ALL_IDS,
    ) -> Iterator[Listed]:
        """Yield the same of many experiments, or why their runs cannot be listed.

        Args:
            experiment_ids: The experiments.
            filter_string: In MLflow's search language.
            ids: The first run id, and the one before which it ends, see ``SelectionPart``.
        """
        return listed_of_each(
            experiment_ids,
            lambda some: self._runs_within(some, filter_string, ids),
            1 if self.host.generation.lists_experiments else AT_ONCE,
        )

    def _runs_within(
        self, experiment_ids: list[str], filter_string: str, ids: tuple[str, str]
    ) -> dict[str, dict[str, RunHeader]]:
        found = self._runs_of_some(experiment_ids, filter_string)
        return {e: within_ids(runs, ids) for e, runs in found.items()} if any(ids) else found

    def _runs_of_some(
        self, experiment_ids: list[str], filter_string: str
    ) -> dict[str, dict[str, RunHeader]]:
        """Return the runs of experiments; of several only where the listing is sound."""
        found: dict[str, dict[str, RunHeader]] = {e: {} for e in experiment_ids}
        with translated(f"listing the runs of experiment {', '.join(experiment_ids[:3])}"):
            for run in self._found_runs(experiment_ids, filter_string):
                header = _listed_header(run)
                if header is not None and header.experiment_id in found:
                    found[header.experiment_id][header.run_id] = header
                elif len(experiment_ids) > 1:
                    raise UnbelievableError("a run is malformed")
                else:
                    self._take_alone(run, found[experiment_ids[0]], experiment_ids[0])
        return found

    def _take_alone(self, listed: Any, found: dict[str, RunHeader], experiment_id: str) -> None:
        """Read a run that is malformed in a listing."""
        header = self._header(listed, experiment_id)
        if isinstance(header, RunHeader):
            found[header.run_id] = header
        else:
            self.unread.append(header)

    def _header(self, listed: Any, experiment_id: str) -> RunHeader | Failure:
        if isinstance(listed, Malformed):
            identity, reason = listed.id, listed.reason
        else:
            identity, reason = str(listed.info.run_id or ""), "it is malformed: it has no id"
        if identity:
            try:
                header = RunHeader.of(self.run(identity))
                if header.experiment_id == experiment_id:
                    return header
                reason = f"it says that it is of experiment {header.experiment_id}"
            except ServerError as error:
                reason = error.message
        return Failure(Kind.RUN, identity or f"one of experiment {experiment_id}", reason)

    def run_tags(
        self, experiment_ids: list[str], filter_string: str
    ) -> Iterator[tuple[Any, dict[str, str]]]:
        """Yield RunInfo and tags of the runs that match, deleted ones included."""
        for start in range(0, len(experiment_ids), _PAGE):
            with translated("searching runs"):
                for run in self._search_runs(experiment_ids[start : start + _PAGE], filter_string):
                    yield run.info, run.data.tags

    def run_documents(self, experiment_id: str) -> Iterator[dict[str, Any]]:
        """Yield the runs of an experiment, deleted ones included, without their model inputs."""
        with translated(f"searching the runs of experiment {experiment_id}"):
            yield from map(run_document, self._search_runs([experiment_id], ""))

    def made_models(self, experiment_id: str) -> set[str]:
        """Return the logged models that runs of an experiment made, deleted ones included."""
        with translated(f"searching the runs of experiment {experiment_id}"):
            return {
                str(made.model_id)
                for run in self._search_runs([experiment_id], "")
                for made in getattr(run.outputs, "model_outputs", None) or ()
            }

    def _search_runs(self, experiment_ids: list[str], filter_string: str) -> Iterator[Any]:
        """Yield MLflow's runs that match, deleted ones included.

        Raises:
            UnbelievableError: One is malformed.
        """
        for run in self._found_runs(experiment_ids, filter_string):
            if isinstance(run, Malformed):
                raise UnbelievableError(f"run {run.id}: {run.reason}")
            yield run

    def _found_runs(self, experiment_ids: list[str], filter_string: str) -> Iterator[Any]:
        """Yield MLflow's runs that match, deleted and malformed ones included.

        Pages are ordered by start time: new runs come last, so that an offset that the server
        counts from does not move over a run that was there from the start.
        """
        from mlflow.entities import ViewType

        order = ["attributes.start_time ASC"]
        # The first servers gave one page and no way to the next.
        lists = self.host.generation.lists_experiments
        most = _MOST_RUNS if lists else _PAGE

        def page(token: str | None) -> Any:
            search = self.host.tracking.search_runs
            body = {
                "experiment_ids": experiment_ids,
                "filter": filter_string,
                "run_view_type": "ALL",
                "max_results": most,
                "order_by": order,
                "page_token": token or "",
            }
            return sifted(
                lambda: search(experiment_ids, filter_string, ViewType.ALL, most, order, token),
                self.host,
                "runs",
                body,
            )

        some = False
        try:
            for run in pages(page):
                some = True
                yield run
        except UnbelievableError as error:
            if some or not lists:
                raise
            named = list(self._runs_in(experiment_ids, error))
            if named and filter_string:
                raise  # which of them match, nobody says
            yield from named

    def _runs_in(self, experiment_ids: list[str], error: Exception) -> Iterator[Malformed]:
        """Yield the runs that an experiment of a server up to 1.0 names, to be read one by one.

        One bad run is enough there for a search to fail, or it gave none and refuses no question.

        Raises:
            Exception: ``error``, where no more is known that way.
        """
        for experiment_id in experiment_ids:
            endpoint = f"{self.host.generation.api}/experiments/get"
            found = self.host.get_json(endpoint, [("experiment_id", experiment_id)]) or {}
            listed = found.get("runs") or []
            if "experiment" not in found or not (listed or isinstance(error, UnbelievableError)):
                raise error
            reason = f"their search failed: {error}"
            yield from (Malformed(_id_of(info), reason) for info in listed)
            if listed and "lifecycle_stage" in found["experiment"]:
                yield from self._deleted_in(experiment_id, reason)

    def _deleted_in(self, experiment_id: str, reason: str) -> Iterator[Malformed]:
        """Yield the deleted runs of an experiment of such a server, which names the others."""
        doing = "searching deleted runs"

        def search(experiment_id: str, **more: str) -> list[dict[str, Any]]:
            body = {
                "experiment_ids": [experiment_id],
                "run_view_type": "DELETED_ONLY",
                "max_results": _MOST_RUNS,
                **more,
            }
            runs = self.host.generation.runs
            with self.host.call("POST", runs, doing=doing, body=body) as response:
                raise_for_status(response)
                return object_of(response.content).get("runs") or []

        try:
            with translated(doing):
                ask = partial(search, experiment_id)
                # Some refuse such an id, others such a filter.
                listed = answered(ask) or doubted(ask, partial(search, NO_TOKEN, filter=NO_TOKEN))
        except ServerError as error:
            yield Malformed("", f"deleted runs cannot be listed: {error.message}")
            return
        yield from (Malformed(_id_of(run["info"]), reason) for run in listed)

    def run(self, run_id: str) -> dict[str, Any]:
        """Return one run; only this call knows its model inputs, searches leave them out."""
        with translated(f"reading run {run_id}"):
            document = run_document(self.host.tracking.get_run(run_id))
            if (found := document["info"]["run_id"]) != run_id:
                raise UnbelievableError(f"what comes is run {found!r}")
        return document

    def marked(
        self, experiment_ids: list[str], key: str, condition: str
    ) -> Iterator[tuple[Any, dict[str, str]]]:
        """Yield info and tags of the runs whose provenance tag fulfils a condition."""
        for search in searches(key, condition):
            yield from self.run_tags(experiment_ids, search)

    def copies(self, run_id: str, experiment_ids: list[str]) -> list[str]:
        """Return the run of this id, if it is there, and the runs whose tags name it."""
        found: dict[str, None] = {}
        for condition in (
            f"attributes.run_id = '{run_id}'",
            *searches(ORIGIN, f"LIKE '%{run_id}%'"),
            *(s for key in RUN_ID_TAGS for s in searches(key, f"= '{run_id}'")),
        ):
            for info, _ in self.run_tags(experiment_ids, condition):
                found[str(info.run_id)] = None
        return list(found)

    def registered_models(self) -> tuple[list[str], list[str]]:
        """Return the names of all registered models and those of all prompts, each sorted."""
        prompts: set[str] | None
        try:
            prompts = {*self._registered(_IS_PROMPT)}
        except ServerError as error:
            if not (self.host.generation.lists_experiments and is_refused(error)):
                raise
            prompts = None  # it cannot be asked for them, and lists them with the others
        # Servers hide the prompts from whoever does not ask for them; the first ones did not.
        models = self._registered(None)
        if prompts is None:
            prompts = {name for name, is_prompt in models.items() if is_prompt}
        return sorted(models.keys() - prompts), sorted(prompts)

    def _registered(self, filter_string: str | None) -> dict[str, bool]:
        """Return the names that match, and of each whether its tags make it a prompt."""

        def search(token: str | None) -> Any:
            found = self.host.registry.search_registered_models(
                filter_string=filter_string, max_results=_PAGE, order_by=None, page_token=token
            )
            self.has_registry = True
            return found

        with translated("listing the registered models"):
            return {str(model.name): _is_prompt(model) for model in pages(search)}

    def registered_model(self, name: str) -> dict[str, Any]:
        """Return one registered model with its aliases."""
        with translated(f"reading registered model {name!r}"):
            model = self.host.registry.get_registered_model(name)
            document = registered_model_document(model)
            self._latest[name] = {int(version.version) for version in model.latest_versions or ()}
            if (found := document.get("name")) != name:
                raise UnbelievableError(f"what comes is {found!r}")
        return document

    def model_versions(
        self, name: str, aliases: dict[str, int], kind: Kind = Kind.REGISTERED_MODEL
    ) -> list[dict[str, Any]]:
        """Return every version of a registered model or prompt, by number."""
        of_version: dict[int, list[str]] = {}
        for alias, number in aliases.items():
            of_version.setdefault(number, []).append(alias)
        with translated(f"listing the versions of {name!r}"):
            found = self._listed_versions(name, kind)
            if kind is Kind.PROMPT:
                found |= self._unlisted_versions(name, found)
            else:
                unlisted = {*aliases.values(), *self._latest.get(name, ())} - found.keys()
                if there := self._there(name, sorted(unlisted)):
                    numbers = ", ".join(map(str, there))
                    raise UnbelievableError(f"it leaves out {numbers}, which is there")
            return [
                model_version_document(found[number], of_version.get(number, []))
                for number in sorted(found)
            ]

    def _name_filter(self, name: str) -> str:
        """Return what asks for one name; empty where it cannot be asked for."""
        if "'" not in name:
            return f"name = '{name}'"
        # The first servers knew one kind of quotation marks.
        knows_others = not self.host.generation.lists_experiments
        return f'name = "{name}"' if knows_others and '"' not in name else ""

    def _listed_versions(self, name: str, kind: Kind) -> dict[int, Any]:
        """Return what a search gives; the first servers could read less of a question."""
        search = self.host.registry.search_model_versions
        named = self._name_filter(name)
        whole = " AND ".join(filter(None, [named, _IS_PROMPT if kind is Kind.PROMPT else ""]))
        questions = list(dict.fromkeys([whole, named, ""]))
        for question in questions if self.host.generation.lists_experiments else [whole]:
            try:
                with translated(f"listing the versions of {name!r}"):
                    listed = pages(partial(search, question, _PAGE, None))
                    return {int(v.version): v for v in listed if v.name == name}
            except ServerError as error:
                if question == "" or not is_refused(error):
                    raise
        return {}

    def found_versions(
        self, name: str, aliases: dict[str, int], kind: Kind
    ) -> list[dict[str, Any] | Failure]:
        """Return the same, and a failure for each that cannot be read if others can."""
        return [*self.model_versions(name, aliases, kind)]

    def _unlisted_versions(self, name: str, listed: Container[int]) -> dict[int, Any]:
        """Return the versions of a prompt that no search gives: those without the prompts' tag."""
        model = self.host.registry.get_registered_model(name)
        highest = max((int(version.version) for version in model.latest_versions), default=0)
        return self._there(name, [n for n in range(1, highest + 1) if n not in listed])

    def _there(self, name: str, numbers: list[int]) -> dict[int, Any]:
        """Return those of some versions that are there."""
        found = {}
        for number in numbers:
            try:
                found[number] = self.host.registry.get_model_version(name, str(number))
            except Exception as error:
                if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                    raise
        return found

    def download_uri(self, name: str, version: int) -> str:
        """Return where a model version's files really are."""
        with translated(f"locating the files of {name!r} version {version}"):
            return str(
                self.host.registry.get_model_version_download_uri(name=name, version=str(version))
            )


def _of_its_own_id(
    found: dict[str, Any] | Failure, names: dict[str, str]
) -> dict[str, Any] | Failure:
    """Return an experiment, or why it is none where another one came with its id before."""
    if isinstance(found, Failure):
        return found
    name, identity = str(found["name"]), str(found["experiment_id"])
    if (other := names.setdefault(identity, name)) == name:
        return found
    return Failure(Kind.EXPERIMENT, name, f"it comes with the id {identity} of {other!r}")


def pages(page: Callable[[str | None], Any]) -> Iterator[Any]:
    """Yield everything that a listing gives, page after page.

    Raises:
        UnbelievableError: A page says that more follows, and what follows was there before.
    """
    token: str | None = None
    seen: set[object] = set()
    was_empty = False
    while True:
        found = page(token)
        if found:
            if (outline := (len(found), _outline(found[0]), _outline(found[-1]))) in seen:
                raise UnbelievableError("its pages go on for ever and bring nothing new")
            seen.add(outline)
        yield from found
        following = getattr(found, "token", None)
        if not following:
            return
        if was_empty and not found:
            raise UnbelievableError("its pages go on for ever and are empty")
        token, was_empty = following, not found


def _listed_header(listed: Any) -> RunHeader | None:
    """Return what a listing says of a run, None where it is malformed."""
    if isinstance(listed, Malformed) or not listed.info.run_id:
        return None
    info = listed.info
    return RunHeader(
        str(info.run_id),
        str(info.experiment_id),
        info.lifecycle_stage,
        info.start_time or 0,
        listed.data.tags.get(PARENT),
    )


def _id_of(info: dict[str, Any]) -> str:
    return str(info.get("run_id") or info.get("run_uuid") or "")


def _is_prompt(model: Any) -> bool:
    # The entity's own ``tags`` leave this one out.
    return any((tag.key, tag.value) == (PROMPT_TAG, "true") for tag in model.to_proto().tags)


def _outline(item: Any) -> int:
    """Return what tells an object from the others of its listing."""
    return hash(str(item.to_proto()) if hasattr(item, "to_proto") else repr(item))
