"""The files that are measured with, made once, and what their tables look like."""

import os
import pathlib
import subprocess

from cluster import CACHE, Failed, run

HERE = pathlib.Path(__file__).resolve().parent
MADE_UP = pathlib.Path(os.environ.get("BENCH_TARGET", ".")) / "release/examples/made_up"

# name, the type in the request, the type in PostgreSQL
LINEITEM = [
    ("l_orderkey", "int64", "bigint"),
    ("l_partkey", "int64", "bigint"),
    ("l_suppkey", "int64", "bigint"),
    ("l_linenumber", "int64", "bigint"),
    ("l_quantity", "decimal(15,2)", "numeric(15,2)"),
    ("l_extendedprice", "decimal(15,2)", "numeric(15,2)"),
    ("l_discount", "decimal(15,2)", "numeric(15,2)"),
    ("l_tax", "decimal(15,2)", "numeric(15,2)"),
    ("l_returnflag", "text", "text"),
    ("l_linestatus", "text", "text"),
    ("l_shipdate", "date", "date"),
    ("l_commitdate", "date", "date"),
    ("l_receiptdate", "date", "date"),
    ("l_shipinstruct", "text", "text"),
    ("l_shipmode", "text", "text"),
    ("l_comment", "text", "text"),
]
_WIDE = [
    ("int64", "bigint"),
    ("decimal(15,2)", "numeric(15,2)"),
    ("date", "date"),
    ("timestamp", "timestamp"),
    ("bool", "boolean"),
    ("text", "text"),
]
WIDE = [(f"c{column}", *_WIDE[column % 6]) for column in range(60)]
QUOTED = [("id", "int64", "bigint"), ("title", "text", "text"), ("body", "text", "text")]
COLUMNS = {"lineitem": LINEITEM, "wide": WIDE, "quoted": QUOTED}


def file_of(kind, size):
    """The path of a file of about so many bytes; `made-lineitem` is what the bench of the parser reads."""
    if kind == "lineitem":
        return pathlib.Path(run([str(HERE.parent / "lineitem"), str(size)]).strip())
    path = CACHE / f"{kind}-{size}.csv"
    kind = kind.removeprefix("made-")
    if not path.exists():
        making = path.with_suffix(".making")
        with making.open("wb") as out:
            if subprocess.run([str(MADE_UP), kind, str(size)], stdout=out, check=False).returncode != 0:
                raise Failed(f"{MADE_UP} made no {path.name}")
        making.rename(path)
    return path


def parts_of(kind, size, count):
    """As many files of about so many bytes, cut from one another's followers: each with the header."""
    folder = CACHE / f"{kind}-{count}x{size}"
    if not folder.exists():
        making = folder.with_suffix(".making")
        making.mkdir(exist_ok=True)
        with file_of(kind, 200_000_000).open("rb") as source:
            header = source.readline()
            for number in range(count):
                rows = source.read(size - len(header)) + source.readline()
                (making / f"{number}.csv").write_bytes(header + rows)
        making.rename(folder)
    return sorted(folder.iterdir())


def fill_file_cache():
    """Goes through a file of most of the memory, which is made once."""
    path = CACHE / "file-cache.fill"
    step = 4 << 20
    steps = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 85 // 100 // step
    if not path.exists() or path.stat().st_size < steps * step:
        zeros = bytes(step)
        with path.open("wb", buffering=0) as out:
            for _ in range(steps):
                out.write(zeros)
        return
    room = bytearray(step)
    with path.open("rb", buffering=0) as source:
        while source.readinto(room):
            pass


def create(table, kind):
    """The statement that makes a table of a kind."""
    types = ", ".join(f"{name} {postgres}" for name, _, postgres in COLUMNS[kind])
    return f"create table {table} ({types})"
