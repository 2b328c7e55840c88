"""Tags of registered models and versions, also where a registry refuses one of them, or any dot."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from mlflow_exim_plugin.errors import ServerError, ServerLostError
from mlflow_exim_plugin.schema.objects import Loss
from mlflow_exim_plugin.schema.provenance import without_dots
from mlflow_exim_plugin.sinks.server.target import attempt

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.schema.objects import ModelVersion, RegisteredModel
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["RegistryTags"]

_Made = TypeVar("_Made")


class RegistryTags:
    """Gives tags to what is made in one registry."""

    def __init__(self) -> None:
        self._refuses_dots = False

    def name_of(self, key: str) -> str:
        """Return what a provenance tag is called in this registry."""
        return without_dots(key) if self._refuses_dots else key

    def made(
        self,
        item: RegisteredModel | ModelVersion,
        create: Callable[[dict[str, str]], _Made],
        set_tag: Callable[[_Made, str, str], None],
        own: dict[str, str],
        provenance: dict[str, str],
        report: Report,
    ) -> _Made:
        """Make a model or version with its tags; one that is refused costs no more than itself.

        Args:
            item: What it is a copy of.
            create: Makes it with some tags.
            set_tag: Gives what was made one tag more.
            own: Its own tags.
            provenance: Tags without which it would not be known again.
            report: Told of the tags that the registry refuses.

        Raises:
            ServerError: The registry refuses it whatever its tags are.
        """
        plain = {without_dots(key): value for key, value in provenance.items()}
        attempts = [plain] if self._refuses_dots else [own | provenance, provenance, plain]
        made, tags = _first(attempts, create)
        self._refuses_dots |= tags is plain
        for key in sorted(own.keys() - tags.keys()):
            attempt(
                partial(set_tag, made, key, own[key]),
                Loss(item.kind, item.id, f"its tag {key}"),
                report,
            )
        return made


def _first(
    attempts: list[dict[str, str]], create: Callable[[dict[str, str]], _Made]
) -> tuple[_Made, dict[str, str]]:
    """Return what the first tags that are not refused gave; raises what refused the first."""
    tags, *others = attempts
    try:
        return create(tags), tags
    except ServerLostError:
        raise
    except ServerError as refusal:
        if not others:
            raise
        try:
            return _first(others, create)
        except ServerLostError:
            raise
        except ServerError:
            raise refusal from None
