"""``README.txt`` of an archive: what it says to whoever has nothing but the archive."""

from __future__ import annotations

from mlflow_exim_plugin.schema.envelope import FORMAT, FORMAT_VERSION

__all__ = ["README"]

README = f"""\
This is an archive of an MLflow server: {FORMAT}, version {FORMAT_VERSION}.
Everything in it can be read without the program that wrote it.

CHECK IT, here, where it was extracted. It is a BagIt 1.0 bag (RFC 8493):

    sha256sum -c --quiet tagmanifest-sha256.txt manifest-sha256.txt

The SHA-256 of tagmanifest-sha256.txt is the root of the archive: it stands for
every byte of every file here. Compare it with what you were given elsewhere.

WHERE THINGS ARE
    log/*.json                      who packed what, from where, step by step
    data/archive.json               what was packed, when, of what; what failed
    data/experiments/ID/
        experiment.json
        runs/ID/run.json            parameters, tags, last metrics, inputs
        runs/ID/artifacts/          its files
        metrics/part-*.parquet      all metric rows: run, key, step, time, value
        logged_models/ID/           logged_model.json, artifacts/
        traces/                     traces-, spans-, assessments-*.parquet,
                                    attachments/
        scorers/, issues/, ...      a JSON document each
    data/models/NAME/               model.json, versions/N/version.json
    data/prompts/NAME/              the same for prompts
    data/datasets/, gateway/, ...   a JSON document each
    data/workspaces/NAME/           the same tree for another workspace

HOW TO READ THEM
A JSON document has three parts: "mlflow" is what MLflow's REST API says of the
object, "info" what the archive adds (digests, the list of its files), "system"
is who packed it. Times are milliseconds since 1970 UTC, nanoseconds where the
name ends in _ns. In names of files !XX is a byte of UTF-8 in hex; the full name
is in the document. Any reader of Parquet reads the tables:

    jq .mlflow.run.data.params data/experiments/*/runs/*/run.json
    duckdb -c "FROM 'data/experiments/*/metrics/*.parquet'"

A model is a file here. Loading one may run code: load none you do not trust.

The format is specified in spec/v1/archive.md of mlflow-exim-plugin.
"""
"""The text, ASCII, in lines of at most 80 characters."""
