"""What a contributor and CI run: ``nox`` for the usual, ``nox -l`` for the list."""

from __future__ import annotations

from pathlib import Path

import nox

AUDITORS = ("cyclonedx-bom>=5", "pip-audit>=2.7")
"""In an environment of their own: they are not what is looked at."""

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "types", "tests"]

# The MLflow versions that the plugin is tried in, with the pins each needs to live.
MLFLOW = {
    "2.22": ["-r", "tests/servers_requirements/2.22.5.txt"],
    "3.1": ["-r", "tests/servers_requirements/3.1.4.txt"],
    "latest": ["mlflow<4"],
}


@nox.session
def lint(session: nox.Session) -> None:
    """Style and layers."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Static types."""
    session.install("-e", ".[dev]")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The site, with every link and anchor checked."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict", "--site-dir", session.create_tmp())


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """The default test run."""
    session.install("-e", ".[test]")
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session
def fast(session: nox.Session) -> None:
    """What needs no server, no database and no network: in a minute or two."""
    session.install("-e", ".[test]")
    folders = ["architecture", "conformance", "contract", "property", "unit"]
    tests = [f"tests/{folder}" for folder in folders]
    session.run("pytest", "-n", "2", "-m", "not integration", *tests, *session.posargs)


@nox.session
@nox.parametrize("version", list(MLFLOW), ids=list(MLFLOW))
def mlflow(session: nox.Session, version: str) -> None:
    """The plugin inside an old or the newest MLflow."""
    session.install("-e", ".[test]", *MLFLOW[version])
    tests = ["tests/compat", "tests/integration/test_plugin.py"]
    session.run("pytest", "-n", "2", *tests, *session.posargs)


@nox.session
def generations(session: nox.Session) -> None:
    """Servers, folders and exports of every generation, each in an environment of its own."""
    session.install("-e", ".[test]", "mlflow==3.17.*")
    files = ("test_first_servers", "test_old_folders", "test_real_exports")
    tests = [
        *(f"tests/compat/{name}.py" for name in files),
        "tests/integration/test_old_targets.py",
    ]
    chosen = ["-m", "generations or not generations"]
    session.run("pytest", "-n", "2", *tests, *chosen, *session.posargs)
    others = [option for path in tests for option in ("--ignore", path)]
    session.run("pytest", "-n", "2", "-m", "generations", *others, *session.posargs)


@nox.session
def exhaustive(session: nox.Session) -> None:
    """What the default run tries in one way, in all of them."""
    session.install("-e", ".[test]", "mlflow==3.17.*")
    session.run("pytest", "-n", "2", "-m", "exhaustive", *session.posargs)


@nox.session
def engines(session: nox.Session) -> None:
    """A set packed by Dask, Ray and Spark, each on this machine; Spark needs Java."""
    session.install("-e", ".[test,dask,ray,spark]", "mlflow==3.17.*")
    session.run("pytest", "tests/integration/test_scale_out.py", *session.posargs)


@nox.session(venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The oldest dependencies that pyproject.toml allows."""
    session.install("--resolution", "lowest-direct", "-e", ".[test]", "sqlalchemy<2.1")
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session(venv_backend="uv")
def lock(session: nox.Session) -> None:
    """Write .ci/requirements.txt anew: what CI installs, for every Python, with digests."""
    extras = [option for extra in ("test", "dev", "docs") for option in ("--extra", extra)]
    how = ["--universal", "--python-version", "3.10", "--generate-hashes", "--no-header"]
    where = ["pyproject.toml", "-o", ".ci/requirements.txt"]
    session.run("uv", "pip", "compile", "-q", "--upgrade", *how, *extras, *where, *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Known weaknesses of what a user installs, and a bill of materials: sbom.json."""
    extras = "azure,gcs,http,mysql,obstore,postgres,progress,s3,sftp,sign,webdav"
    session.install(f".[{extras}]")
    python = str(Path(session.virtualenv.bin) / "python")
    tools = session.create_tmp()
    session.run("uv", "venv", "-q", "--clear", f"{tools}/tools", external=True)
    session.run("uv", "pip", "install", "-q", "-p", f"{tools}/tools", *AUDITORS, external=True)
    session.run(
        f"{tools}/tools/bin/cyclonedx-py", "environment", python, "-o", "sbom.json", external=True
    )
    frozen = session.run("uv", "pip", "freeze", "-p", python, external=True, silent=True)
    requirements = Path(tools) / "installed.txt"
    lines = [line for line in str(frozen).splitlines() if "==" in line]
    requirements.write_text("\n".join(lines) + "\n", "utf-8")
    command = ["-r", str(requirements), "--no-deps", "--disable-pip", "--strict", *session.posargs]
    session.run(f"{tools}/tools/bin/pip-audit", *command, external=True)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure; each prints its ratios to the floors."""
    session.install("-e", ".[test]")
    for file in sorted(Path("tests/benchmarks").glob("bench_*.py")):
        session.run("python", "-m", f"tests.benchmarks.{file.stem}")
