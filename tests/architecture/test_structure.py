"""The shape of the package: layers, sizes, the tree of errors."""

from __future__ import annotations

import ast
import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from mlflow_exim_plugin import errors
from mlflow_exim_plugin.errors import EximError

if TYPE_CHECKING:
    from collections.abc import Iterator

Node = TypeVar("Node", bound=ast.AST)
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mlflow_exim_plugin"
MAXIMUM_LINES = 600
MAXIMUM_PARAMETERS = 8
MAXIMUM_MODULES = 15
MODULES = sorted(PACKAGE.rglob("*.py"))

# Class, parent, code, exit code. Scripts rely on these: lines may be added, never changed.
ERROR_TREE = """
EximError                Exception            other               1
UsageError               EximError            usage               2
PartialTransferError     EximError            partial             3
NotFoundError            EximError            not_found           4
InvalidArchiveError      EximError            invalid_archive     5
TruncatedArchiveError    InvalidArchiveError  truncated_archive   5
DigestMismatchError      InvalidArchiveError  digest_mismatch     5
UnsafePathError          InvalidArchiveError  unsafe_path         5
SignatureError EximError signature 6
UnsupportedFormatError   EximError            unsupported_format  7
ConflictError            EximError            conflict            8
ArchiveExistsError       ConflictError        archive_exists      8
ServerError              EximError            server              9
ServerLostError          EximError            server_lost         9
StoreError               EximError            store               9
ReplacedError            StoreError           replaced            9
EngineError              EximError            engine              9
MissingDependencyError   EximError            missing_dependency  1
"""


def error_classes(root: type[EximError] = EximError) -> Iterator[type[EximError]]:
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


def test_modules_import_only_from_the_layers_below() -> None:
    lint_imports = Path(sys.executable).parent / "lint-imports"

    done = subprocess.run(
        [lint_imports, "--no-cache"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_a_module_is_not_two_modules(module: Path) -> None:
    assert len(module.read_text(encoding="utf-8").splitlines()) < MAXIMUM_LINES


def test_a_folder_is_not_two_folders() -> None:
    modules = Counter(path.parent for path in MODULES if path.name != "__init__.py")

    assert [str(f) for f, count in modules.items() if count > MAXIMUM_MODULES] == []


def test_nothing_that_a_test_left_is_kept() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run([git, "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    kept = [Path(name) for name in listed.stdout.splitlines()]
    assert [str(path) for path in kept if path.suffix in {".db", ".log", ".pid"}] == []


def nodes(kind: type[Node]) -> Iterator[tuple[Path, Node]]:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kind):
                yield path, node


def test_no_function_has_more_parameters_than_anybody_can_remember() -> None:
    many = []
    for path, function in nodes(ast.FunctionDef):
        given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        own = [a for a in given if a.arg not in {"self", "cls"}]
        if len(own) > MAXIMUM_PARAMETERS:
            many.append(f"{path.relative_to(ROOT)} {function.name}: {len(own)}")
    assert many == []


def test_no_two_classes_have_one_name() -> None:
    found: dict[str, list[str]] = {}
    for path, cls in nodes(ast.ClassDef):
        found.setdefault(cls.name.lstrip("_"), []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


# What takes something away at a deployment and stands outside of host/removal: sinks call it for
# what comes deleted, and for what they made themselves.
REMOVES = {
    "host/api/logged_models.py": {"delete_logged_model"},
    "host/api/writing.py": {
        "delete_experiment",
        "delete_run",
        "delete_model_version",
        "delete_model_version_tag",
    },
    "storage/file_servers/hadoop.py": {"delete_file"},  # one that it is to replace, or did not end
    "sinks/server/registry/models.py": {"delete_version", "delete_version_tag"},
}


def test_only_one_module_takes_anything_away_at_a_deployment() -> None:
    removal = PACKAGE / "host" / "removal"
    found: dict[str, set[str]] = {}
    for path, called in nodes(ast.Attribute):
        name = called.attr
        if (
            name.startswith(("delete_", "_hard_delete", "drop_table"))
            and removal not in path.parents
        ):
            found.setdefault(path.relative_to(PACKAGE).as_posix(), set()).add(name)
    found.pop("sinks/server/workspace.py")  # whether an experiment is to be deleted in the end
    assert found == REMOVES
    for path, imported in nodes(ast.ImportFrom):
        names = {alias.name for alias in imported.names}
        assert removal in path.parents or "delete" not in names, path
        if (imported.module or "").startswith("mlflow_exim_plugin.host.removal"):
            allowed = (removal, PACKAGE / "operations" / "retention")
            assert any(folder in path.parents for folder in allowed), path


def test_error_tree() -> None:
    pinned = {tuple(line.split()) for line in ERROR_TREE.strip().splitlines()}

    assert {
        (cls.__name__, cls.__bases__[0].__name__, cls.code.value, str(cls.exit_code.value))
        for cls in error_classes()
        if cls.__module__ == errors.__name__
    } == pinned
    assert {name for name in errors.__all__ if name.endswith("Error")} == {
        name for name, *_ in pinned
    }


@pytest.mark.parametrize("cls", list(error_classes()), ids=lambda cls: cls.__name__)
def test_errors_survive_pickling(cls: type[EximError]) -> None:
    """Pools hand errors from one process to another."""
    error = cls("the message", "the hint")
    error.__dict__["findings"] = ("E001",)

    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes

    assert type(back) is cls
    assert (str(back), back.message, back.hint) == ("the message", "the message", "the hint")
    assert (back.code, back.exit_code) == (cls.code, cls.exit_code)
    assert back.__dict__["findings"] == ("E001",)
