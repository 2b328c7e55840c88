"""Tags and texts of registered models and versions, also where a registry refuses one of them."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.schema.objects import Loss
from mlflow_exim_plugin.schema.provenance import without_dots

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.schema.objects import ModelVersion, RegisteredModel
    from mlflow_exim_plugin.schema.report import Report

    Owner = ModelVersion | RegisteredModel

__all__ = ["RegistryTags"]

_Made = TypeVar("_Made")
_Given = TypeVar("_Given", bound="tuple[object, ...]")
_CHARACTERS = 5000
"""What MLflow's databases hold of most tags and descriptions."""


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
            self._set(item, partial(set_tag, made, key), key, own[key], report)
        return made

    def _set(
        self, item: Owner, send: Callable[[str], None], key: str, value: str, report: Report
    ) -> None:
        """Set one tag: what of it is refused is named, and its beginning is kept where that can be.

        Raises:
            ServerLostError: The registry does not answer any more.
        """
        attempts = [(value,)]
        if _is_long(value) and not self._is_strict:
            attempts.append((value[:_CHARACTERS],))
        try:
            _, (taken,) = _first(attempts, send)
        except ServerError as error:
            report.lost(Loss(item.kind, item.id, f"its tag {key}: {error.message}"))
        else:
            if taken != value:
                report.lost(Loss(item.kind, item.id, _kept(f"tag {key}", value)))


def _is_long(*texts: str | None) -> bool:
    return any(len(text or "") > _CHARACTERS for text in texts)


def _kept(what: str, value: str) -> str:
    return f"{what}: the target keeps {_CHARACTERS} of {len(value)} characters"


def _first(attempts: list[_Given], create: Callable[..., _Made]) -> tuple[_Made, _Given]:
    """Return what the first that is not refused gave, and it; raises what refused the first."""
    given, *others = attempts
    try:
        return create(*given), given
    except ServerError as error:
        refusal = error
    if others:
        with suppress(ServerError):
            return _first(others, create)
    raise refusal
