"""Params, tags and descriptions: as much of each as a deployment takes."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.answers import is_no_answer
from mlflow_exim_plugin.schema.objects import Failure, Loss
from mlflow_exim_plugin.schema.provenance import without_dots

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.kinds import Kind
    from mlflow_exim_plugin.options import Writing
    from mlflow_exim_plugin.schema.objects import ModelVersion, RegisteredModel
    from mlflow_exim_plugin.schema.report import Report

    Owner = ModelVersion | RegisteredModel

__all__ = ["LONGEST_TEXTS", "RegistryTags", "TextWriter", "is_beginning"]

_Made = TypeVar("_Made")
_Given = TypeVar("_Given", bound="tuple[object, ...]")
LONGEST_TEXTS = (8000, 6000, 5000, 500, 250)
"""What one MLflow or another holds of a param or tag."""
_CHARACTERS = 5000
"""What MLflow's databases hold of most tags and descriptions of registered models."""


class TextWriter:
    """Puts texts that were refused together.

    Args:
        host: The deployment.
        options: Whether texts may be cut.
    """

    def __init__(self, host: Host, options: Writing) -> None:
        self._host = host
        self._is_strict = options.is_strict

    def put_together(
        self,
        kind: Kind,
        owner: str,
        texts: dict[str, str],
        together: Callable[[dict[str, str]], Mapping[str, ServerError]],
        alone: Callable[[str, str], None],
        report: Report,
    ) -> tuple[set[str], bool]:
        """Put texts at once, and those that are refused so once more, each by itself.

        Args:
            kind: What they are.
            owner: Id of what they belong to.
            texts: They, by key.
            together: Puts them and returns those that were refused.
            alone: Puts one.
            report: Told of those of which the target takes nothing.

        Returns:
            Keys of those of which it takes nothing, and whether there is no more to be had. What is
            cut is seen when it is read back.

        Raises:
            ServerLostError: It does not answer any more.
        """
        refused = together(texts) if texts else {}
        again = {key: texts[key] for key in refused}
        taken, whole = self.put(kind, owner, again, alone, report)
        return refused.keys() - taken.keys(), whole

    def put(
        self,
        kind: Kind,
        owner: str,
        texts: Mapping[str, str],
        put: Callable[[str, str], None],
        report: Report,
    ) -> tuple[dict[str, str], bool]:
        """Put texts.

        Args:
            kind: What they are.
            owner: Id of what they belong to.
            texts: They, by key.
            put: Puts one.
            report: Told of those of which the target takes nothing.

        Returns:
            What it took of each, and whether there is no more to be had.

        Raises:
            ServerLostError: It does not answer any more.
        """
        taken: dict[str, str] = {}
        whole = True
        for key, text in texts.items():
            error = self._put(key, text, put, taken)
            if error is None:
                continue
            if self._host.refused(error) and not self._is_strict:
                what = f"the target refuses it: {error.message}"
                report.lost(Loss(kind, f"{owner}/{key}", what))
            else:
                report.failed(Failure(kind, f"{owner}/{key}", error.message))
                whole = False
        return taken, whole

    def _put(
        self, key: str, text: str, put: Callable[[str, str], None], taken: dict[str, str]
    ) -> ServerError | None:
        """Put a text as it is or, where it may be cut, without its end; return the last refusal."""
        shorter = [] if self._is_strict else [most for most in LONGEST_TEXTS if most < len(text)]
        last: ServerError | None = None
        for most in [len(text), *shorter]:
            try:
                put(key, text[:most])
            except ServerError as error:
                last = error
            else:
                taken[key] = text[:most]
                return None
        return last


class RegistryTags:
    """Gives tags to what is made in one registry.

    Args:
        is_strict: Whether what is too long is refused with all that it belongs to.
    """

    def __init__(self, *, is_strict: bool) -> None:
        self._is_strict = is_strict
        self._refuses_dots = False

    def name_of(self, key: str) -> str:
        """Return what a provenance tag is called in this registry."""
        return without_dots(key) if self._refuses_dots else key

    def made(
        self,
        item: Owner,
        create: Callable[[dict[str, str], str | None], _Made],
        set_tag: Callable[[_Made, str, str], None],
        own: dict[str, str],
        provenance: dict[str, str],
        report: Report,
        *,
        text: str | None = None,
    ) -> _Made:
        """Make an object with its tags; one that is refused costs no more than itself.

        Args:
            item: What it is a copy of.
            create: Makes it with some tags and a description.
            set_tag: Gives what was made one tag more.
            own: Its own tags.
            provenance: Tags without which it would not be known again.
            report: Told of the tags that the registry refuses.
            text: Its description.

        Raises:
            ServerError: The registry refuses it whatever its tags are.
        """
        plain = {without_dots(key): value for key, value in provenance.items()}
        tried = [plain] if self._refuses_dots else [own | provenance, provenance, plain]
        attempts = [(tags, text) for tags in tried]
        if self._is_strict and _is_long(text, *own.values()):
            attempts = attempts[:1]
        elif _is_long(text):
            attempts += [(tags, str(text)[:_CHARACTERS]) for tags in tried]
        made, (tags, taken) = _first(attempts, create)
        self._refuses_dots |= tags == plain != provenance
        if taken != text:
            report.lost(Loss(item.kind, item.id, _kept("its description", str(text))))
        for key in sorted(own.keys() - tags.keys()):
            self.put(item, partial(set_tag, made, key), f"tag {key}", own[key], report)
        return made

    def put(
        self, item: Owner, send: Callable[[str], None], what: str, value: str, report: Report
    ) -> bool:
        """Set one text: what of it is refused is named, and its beginning is kept where it can be.

        Args:
            item: What has the text at the source.
            send: Sets it.
            what: What it is called in the report.
            value: The text.
            report: Told of what is refused.

        Returns:
            Whether the registry took some of it.

        Raises:
            ServerLostError: The registry does not answer any more.
        """
        attempts = [(value,)]
        if _is_long(value) and not self._is_strict:
            attempts.append((value[:_CHARACTERS],))
        try:
            _, (taken,) = _first(attempts, send)
        except ServerError as error:
            report.lost(Loss(item.kind, item.id, f"its {what}: {error.message}"))
            return False
        if taken != value:
            report.lost(Loss(item.kind, item.id, _kept(what, value)))
        return True


def is_beginning(there: str, text: str) -> bool:
    """Whether a target has all of a text, or as much of it as one MLflow or another holds."""
    return there == text or (len(there) in LONGEST_TEXTS and text.startswith(there))


def _is_long(*texts: str | None) -> bool:
    return any(len(text or "") > _CHARACTERS for text in texts)


def _kept(what: str, value: str) -> str:
    return f"{what}: the target keeps {_CHARACTERS} of {len(value)} characters"


def _first(attempts: list[_Given], create: Callable[..., _Made]) -> tuple[_Made, _Given]:
    """Return what the first that is not refused gave, and it; raises what refused the first.

    Nothing is tried after an answer that is none: what was asked for may have been done.
    """
    given, *others = attempts
    try:
        return create(*given), given
    except ServerError as error:
        refusal = error
    if others and not is_no_answer(refusal):
        with suppress(ServerError):
            return _first(others, create)
    raise refusal
