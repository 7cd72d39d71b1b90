"""What a user could pick instead. Each loads a file into a new table of the same types, and answers the seconds it took."""

import os
import shutil
import sys
import time

from cluster import URL, Failed, run, sql, timed
from data import COLUMNS, create


# Of every run, none stays for the next: autovacuum would look at its new rows in the other's time.
DROP_ALL = "drop table if exists copied, imported, loaded, ducked, polared"


def fresh(table, kind):
    sql(DROP_ALL, create(table, kind), "checkpoint")


def psql(path, kind, table="copied"):
    fresh(table, kind)
    return copy_into(path, table)


def copy_into(path, table):
    return timed(["psql", URL, "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", f"\\copy {table} from '{path}' (format csv, header)"])


def pgloader(path, kind):
    if not shutil.which("pgloader"):
        raise Failed("pgloader is not installed")
    fresh("loaded", kind)
    names = ", ".join(name for name, _, _ in COLUMNS[kind])
    script = path.parent / "bench.load"
    script.write_text(
        f"LOAD CSV FROM '{path}' ({names}) INTO {URL} TARGET TABLE public.loaded ({names})\n"
        "WITH skip header = 1, fields optionally enclosed by '\"', fields terminated by ',', workers = 2, concurrency = 1;\n"
    )
    taken = timed(["pgloader", "--quiet", str(script)], env=os.environ | {"HOME": str(path.parent)})
    return taken, "loaded"


def duckdb(path, kind):
    fresh("ducked", kind)
    names = {name: {"int64": "BIGINT", "text": "VARCHAR", "bool": "BOOLEAN"}.get(type_, type_.upper()) for name, type_, _ in COLUMNS[kind]}
    program = (
        "import sys, duckdb\n"
        "from duckdb_extensions import import_extension\n"
        "import_extension('postgres_scanner')\n"
        "path, url, columns = sys.argv[1], sys.argv[2], eval(sys.argv[3])\n"
        "duckdb.sql('load postgres_scanner')\n"
        "duckdb.sql(f\"attach '{url}' as target (type postgres)\")\n"
        "duckdb.sql(f\"insert into target.public.ducked select * from read_csv('{path}', header=true, columns={columns})\")\n"
    )
    return timed([sys.executable, "-c", program, str(path), URL, repr(names)]), "ducked"


def polars(path, kind):
    fresh("polared", kind)
    program = (
        "import sys, polars as pl, re\n"
        "path, url, columns = sys.argv[1], sys.argv[2], eval(sys.argv[3])\n"
        "frame = pl.read_csv(path, schema=columns)\n"
        "frame.write_database('polared', url, engine='adbc', if_table_exists='append')\n"
    )
    types = {"int64": "pl.Int64", "decimal(15,2)": "pl.Decimal(15, 2)", "date": "pl.Date", "timestamp": "pl.Datetime", "bool": "pl.Boolean", "text": "pl.String"}
    columns = "{" + ", ".join(f"'{name}': {types[type_]}" for name, type_, _ in COLUMNS[kind]) + "}"
    # All cores, as a user would.
    environment = {name: value for name, value in os.environ.items() if name != "POLARS_MAX_THREADS"}
    return timed([sys.executable, "-c", program, str(path), URL, columns], env=environment), "polared"


def polars_parse(path, kind, runs=7):
    """MB/s of polars' own reader from memory, one thread, the same types: the best of some runs."""
    import io

    import polars as pl

    types = {"int64": pl.Int64, "decimal(15,2)": pl.Decimal(15, 2), "date": pl.Date, "timestamp": pl.Datetime, "bool": pl.Boolean, "text": pl.String}
    schema = {name: types[type_] for name, type_, _ in COLUMNS[kind]}
    text = path.read_bytes()
    best = None
    for _ in range(runs):
        started = time.monotonic()
        frame = pl.read_csv(io.BytesIO(text), schema=schema)
        taken = time.monotonic() - started
        if frame.height == 0:
            raise Failed("polars read nothing")
        best = taken if best is None else min(best, taken)
    return len(text) / 1e6 / best
