"""Archives whose digests are right and whose content is not what this package would have written.

Each starts from a good archive, of which one to three members are bent in a way that a seed
chooses. What is bent is told, so that whoever unpacks it knows which objects must come unhurt.
"""

from __future__ import annotations

import copy
import io
import json
import random
import re
import tarfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from mlflow_exim_plugin.schema.canonical import content_digest
from mlflow_exim_plugin.schema.metric_rows import MetricsDigest, RunRows
from samples.forging import Forgery, TarMember, tar_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Crafted", "craft", "members_of"]

LEFT_OUT = re.compile(
    r"data/(experiments/(1|3|4|6|9|11|12|13|14|15|16|17|18|19|2[0-3])/|workspaces/"
    r"|(models|prompts)/(?!agent|starts at two|chat))"
)
"""What many archives in a row can do without: more of the same."""
GENERATED = {"bagit.txt", "bag-info.txt", "manifest-sha256.txt", "tagmanifest-sha256.txt"}


def members_of(archive: Path) -> dict[str, bytes]:
    """Return a part of an archive of everything, by path, without what ``Forgery`` makes anew."""
    members: dict[str, bytes] = {}
    with (
        archive.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream,
        tarfile.open(fileobj=io.BufferedReader(stream), mode="r|") as tar,
    ):
        for member in tar:
            path = member.name.partition("/")[2]
            if member.islnk():
                members[path] = members[member.linkname.partition("/")[2]]
            elif (content := tar.extractfile(member)) is not None and path not in GENERATED:
                members[path] = content.read()
    kept = {path: content for path, content in members.items() if not LEFT_OUT.match(path)}
    summary = json.loads(kept["data/archive.json"])
    listing = summary["mlflow"]
    listing.pop("workspaces")
    listing["experiments"] = [
        e
        for e in listing["experiments"]
        if f"data/experiments/{e['experiment_id']}/experiment.json" in kept
    ]
    for kind in ("models", "prompts"):
        listing[kind] = [n for n in listing[kind] if f"data/{kind}/{n}/model.json" in kept]
    kept["data/archive.json"] = json.dumps(summary).encode()
    return kept


class Crafted:
    """An archive that is being bent.

    Args:
        members: Of a good one.
        seed: Chooses how.
        bait: A folder outside of any target, with a file ``private``.

    Attributes:
        touched: Paths of the members that were bent.
        done: How, for people.
        named: Texts that were written where an id may have stood.
    """

    def __init__(self, members: dict[str, bytes], seed: int, bait: Path) -> None:
        self.members = dict(members)
        self.chance = random.Random(seed)
        self.touched: set[str] = set()
        self.done: list[str] = []
        self.named: set[str] = set()
        self._forged: dict[str, Any] = {}
        self._values: list[Any] = [
            *(
                None,
                "",
                0,
                -1,
                7,
                1.5,
                True,
                [],
                {},
                [None],
                {"a": 1},
                2**31,
                2**63,
                2**70,
                -(2**63),
            ),
            *(
                "x" * 100_000,
                "\x00",
                "\u202e\u2028",
                "\ud800",
                "\uff11",
                "01",
                "NaN",
                "1e400",
                "%s",
            ),
            *("../" * 8 + "stolen", f"{bait}/stolen", f"file://{bait}/private", f"{bait}/private"),
            *(
                "..\\..\\stolen",
                "C:\\stolen",
                "a/../../../../stolen",
                "%2e%2e/%2e%2e/stolen",
                "CON",
            ),
            *("mlflow-artifacts:/../../stolen", "runs:/x/../../y", "models:/none/1", "s3://b/k"),
            *("deleted", "ACTIVE", "'; DROP TABLE runs; --", "0", "999999", "f" * 32, "a/b"),
            _nested(90),
        ]

    def data(self) -> bytes:
        """Return the archive's bytes."""
        payload = {p: d for p, d in self.members.items() if p.startswith("data/")}
        tags = {p: d for p, d in self.members.items() if not p.startswith("data/")}
        return Forgery(payload, tags=tags, **self._forged).data()

    def bend(self) -> None:
        """Bend one more member."""
        ways = (self._document, self._document, self._document, self._table, self._table)
        way = self.chance.choice((*ways, self._member, self._artifact, self._summary, self._tar))
        way()

    def _document(self) -> None:
        path = self._any(r"data/(?!archive\.json)(?!.*/artifacts/).*\.json")
        document = json.loads(self.members[path])
        part = self.chance.choice(("mlflow", "mlflow", "mlflow", "info"))
        places = list(_places(document[part]))
        holder, key = self.chance.choice(places)
        what = self.chance.choice((self._other, self._other, self._less, self._twice, self._more))
        said = what(holder, key, path)
        self._tell(path, f"{part} {key!r}: {said}")
        self._put(path, document)

    def _other(self, holder: Any, key: Any, path: str) -> str:
        value = copy.deepcopy(self.chance.choice(self._values))
        if self.chance.random() < 0.3:  # what another of its kind has there
            other = json.loads(self.members[self._any(_kind_of(path))])
            fitting = [h[k] for h, k in _places(other["mlflow"]) if k == key]
            value = self.chance.choice(fitting) if fitting else value
        holder[key] = value
        if isinstance(value, str):
            self.named.add(value)
        return repr(value)[:80]

    def _less(self, holder: Any, key: Any, _: str) -> str:
        del holder[key]
        return "gone"

    def _twice(self, holder: Any, key: Any, _: str) -> str:
        value = holder[key]
        if isinstance(holder, list):
            holder.append(copy.deepcopy(value))
        elif isinstance(value, list) and value:
            value.append(copy.deepcopy(self.chance.choice(value)))
        else:
            holder[f"{key}_"] = value
        return "twice"

    def _more(self, holder: Any, _: Any, __: str) -> str:
        value = copy.deepcopy(self.chance.choice(self._values))
        if isinstance(holder, dict):
            holder["x_unknown"] = value
        else:
            holder.insert(0, value)
        return f"and {value!r:.80}"

    def _artifact(self) -> None:
        """Bend what an object says of one of its files."""
        having = [
            path
            for path, data in self.members.items()
            if re.fullmatch(r"data/.*\.json", path) and b'"artifacts"' in data
        ]
        path = self.chance.choice(sorted(having))
        document = json.loads(self.members[path])
        listed = document["info"].get("artifacts")
        if not listed:
            return
        entry = self.chance.choice(listed)
        if self.chance.random() < 0.2:
            listed.append(copy.deepcopy(entry))
            self._tell(path, "a file twice")
        else:
            key = self.chance.choice(("path", "path", "path", "member", "size_bytes", "sha256"))
            entry[key] = self.chance.choice(
                [v for v in self._values if isinstance(v, str)] if key == "path" else self._values
            )
            self._tell(path, f"a file's {key}: {entry[key]!r:.80}")
        self._put(path, document)

    def _summary(self) -> None:
        path = "data/archive.json"
        document = json.loads(self.members[path])
        holder, key = self.chance.choice(list(_places(document)))
        what = self.chance.choice((self._other, self._less, self._twice))
        self._tell(path, f"{key!r}: {what(holder, key, path)}")
        self._put(path, document)

    def _member(self) -> None:
        path = self._any(r"data/.*")
        how = self.chance.choice(("gone", "bytes", "another's", "a list", "copied", "a stranger"))
        content = self.members[path]
        if how == "gone":
            del self.members[path]
        elif how == "bytes":
            self.members[path] = self.chance.choice((b"", b"\xff", b"{", content[:-9], b"[" * 9999))
        elif how == "another's":
            other = self._any(_kind_of(path))
            self.members[path] = self.members[other]
            self._tell(other, f"what {path} says too")
        elif how == "a list":
            self.members[path] = self.chance.choice((b"[]", b"null", b"7", b'{"mlflow": []}'))
        elif how == "copied":
            to = re.sub(r"[^/]+(?=/[^/]*$)", "copied", path)
            self.members[to] = content
            how = f"also {to}"
        else:
            self.members[f"data/unknown/{self.chance.random()}.json"] = content
        self._tell(path, how)

    def _table(self) -> None:
        """Bend a Parquet file; the digests of metric rows are made right again."""
        path = self._any(r"data/.*\.parquet")
        table = pq.read_table(io.BytesIO(self.members[path]))
        column = self.chance.choice(table.column_names)
        at = table.column_names.index(column)
        kind = table.schema.field(column).type
        how = self.chance.choice(
            (
                "gone",
                "text",
                "null",
                "twice",
                "none",
                "other",
                "renamed",
                "more",
                "reversed",
                "huge",
            )
        )
        with suppress(pa.ArrowException):
            if how == "gone":
                table = table.drop_columns([column])
            elif how == "text":
                table = table.set_column(at, column, pa.array(["x"] * len(table)))
            elif how == "null":
                table = table.set_column(at, column, pa.nulls(len(table), kind))
            elif how == "twice":
                table = pa.concat_tables([table, table.slice(0, 1)])
            elif how == "none":
                table = table.slice(0, 0)
            elif how == "renamed":
                table = table.rename_columns(
                    ["x_unknown" if name == column else name for name in table.column_names]
                )
            elif how == "more":
                table = table.append_column("x_unknown", pa.array(["x"] * len(table)))
            elif how == "reversed":
                table = table.take(list(range(len(table)))[::-1])
            else:
                fitting = [v for v in self._values if _fits(v, kind)]
                values = table.column(column).to_pylist()
                values[self.chance.randrange(len(values))] = self.chance.choice(fitting or [None])
                table = table.set_column(at, column, pa.array(values, kind))
        sink = io.BytesIO()
        pq.write_table(table, sink)
        self.members[path] = sink.getvalue()
        self._tell(path, f"column {column}: {how}")
        if "/metrics/" in path:
            self._right_digests(path, table)

    def _right_digests(self, path: str, table: pa.Table) -> None:
        folder = path[: path.index("metrics/")]
        for member in [m for m in self.members if re.fullmatch(f"{folder}runs/[^/]*/run.json", m)]:
            document = json.loads(self.members[member])
            metrics = document["info"].get("metrics")
            if not metrics or [part["member"] for part in metrics["parts"]] != [path]:
                continue
            digest, first = MetricsDigest(), metrics["parts"][0]["first_row"]
            with suppress(Exception):  # what is no table of metrics has none
                run_id = document["mlflow"]["run"]["info"]["run_id"]
                rows = table.slice(first, metrics["rows"])
                for row in range(len(rows)):
                    digest.update(RunRows.of(run_id, rows.slice(row, 1)))
                metrics["digest"] = digest.hexdigest()
                self._put(member, document)

    def _tar(self) -> None:
        path = self._any(r"data/.*")
        link = tar_header(f"sample/{path}", type=tarfile.SYMTYPE, linkname="../../../../etc/passwd")
        instead = {
            "a link": TarMember(path, b"", link),
            "a header of another": TarMember(path, self.members[path], tar_header("../x")),
            "a folder": TarMember(path, b"", tar_header(path, type=tarfile.DIRTYPE)),
            "twice": None,
        }
        how = self.chance.choice(sorted(instead))

        def members(listed: list[TarMember]) -> list[TarMember]:
            if how == "twice":
                return [*listed, *(m for m in listed if m.path == path)]
            return [instead[how] or m if m.path == path else m for m in listed]

        self._forged["members"] = members
        self._tell(path, f"in the tar stream: {how}")

    def _any(self, pattern: str) -> str:
        """Choose a member: first one of its kind, or there would be nothing but runs."""
        kinds: dict[str, list[str]] = {}
        for path in sorted(self.members):
            if re.fullmatch(pattern, path):
                kinds.setdefault(_kind_of(path), []).append(path)
        return self.chance.choice(self.chance.choice(sorted(kinds.items()))[1])

    def _put(self, path: str, document: dict[str, Any]) -> None:
        with suppress(Exception):  # of what is no document there is none
            info = document["info"]
            listed = [(a["path"], a["size_bytes"], a["sha256"]) for a in info.get("artifacts", ())]
            info["content_digest"] = content_digest(
                document["mlflow"], info.get("metrics", {}).get("digest"), listed
            )
        self.members[path] = json.dumps(document, indent=2).encode()

    def _tell(self, path: str, how: str) -> None:
        self.touched.add(path)
        self.done.append(f"{path} {how}")


def craft(members: dict[str, bytes], seed: int, bait: Path) -> Crafted:
    """Bend a good archive at one to three places; the same seed bends it alike."""
    crafted = Crafted(members, seed, bait)
    for _ in range(crafted.chance.choice((1, 1, 1, 2, 3))):
        crafted.bend()
    return crafted


def _kind_of(path: str) -> str:
    """Return a pattern of the paths of all members of a member's kind."""
    parts = path.split("/")
    known = {"data", "experiments", "runs", "logged_models", "traces", "models", "versions"}
    known |= {"prompts", "metrics", "artifacts", "datasets", "workspaces", "attachments"}
    *folders, name = (
        part if part in known or number == 1 else "[^/]+" for number, part in enumerate(parts)
    )
    if len(folders) > 1 and not re.fullmatch(r"[a-z_]+\.json", parts[-1]):
        name = "[^/]+" + re.escape(parts[-1][parts[-1].rfind(".") :] if "." in parts[-1] else "")
    elif re.fullmatch(r"[a-z_]+\.json", parts[-1]):
        name = re.escape(parts[-1])
    return "/".join([*folders, name])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield holder and key of every value in a document, which may be changed meanwhile."""
    pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, inner in pairs:
        yield value, key
        if isinstance(inner, (dict, list)) and inner:
            yield from _places(inner)


def _fits(value: Any, kind: pa.DataType) -> bool:
    if value == [None] and pa.types.is_map(kind):
        return False  # Arrow would end the process
    try:
        pa.array([value], kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False
    return True


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value
