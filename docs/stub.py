"""Types of the public names with every option as a keyword: ``mlflow_exim_plugin/__init__.pyi``.

The functions take groups of options, and each option by its own name too (``options.flat``), which
no signature in the code says. ``python docs/generate.py`` writes it.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import mlflow_exim_plugin
from mlflow_exim_plugin.options import flat_fields

if TYPE_CHECKING:
    from collections.abc import Callable

_HEAD = '''\
"""Made by docs/stub.py: the public names and every keyword that they take."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

'''


def stub() -> str:
    """Return the text of the stub."""
    imports, functions = [], []
    for name in sorted(vars(mlflow_exim_plugin)["__all__"]):
        found = getattr(mlflow_exim_plugin, name)
        if inspect.isfunction(found) and hasattr(found, "__wrapped__"):
            functions.append(_signature(found))
        elif name == "__version__":
            imports.append("from mlflow_exim_plugin.version import __version__ as __version__")
        else:
            imports.append(f"from {found.__module__} import {name} as {name}")
    return _HEAD + "\n".join(sorted(imports)) + "\n\n" + "".join(functions)


def _signature(function: Callable[..., Any]) -> str:
    lines = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and "    *,\n" not in lines:
            lines.append("    *,\n")
        default = "" if parameter.default is parameter.empty else " = ..."
        lines.append(f"    {name}: {parameter.annotation}{default},\n")
    for keyword, (_, of) in flat_fields(function).items():
        lines.append(f"    {keyword}: {_type_of(of.type)} = ...,\n")
    returned = inspect.signature(function).return_annotation
    return f"def {function.__name__}(\n{''.join(lines)}) -> {returned}: ...\n"


def _type_of(annotation: Any) -> str:
    """Return what a keyword takes: text for a choice as well, and one for several."""
    plain = str(annotation).replace("OnConflict", "OnConflict | str")
    return plain.replace("tuple[str, ...]", "str | Sequence[str]")
