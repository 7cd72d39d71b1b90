"""The cases: each answers rows of the table of docs/performance.md."""

import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import peers
from cluster import CACHE, WORKERS, Cluster, Failed, Server, free_port, load, run, sql, timed
from data import COLUMNS, create, file_of, fill_file_cache, parts_of

TARGET = pathlib.Path(os.environ.get("BENCH_TARGET", "."))
CASES = {}
ONLY_COPY = False
FULL_CACHE = False


def case(function):
    """A case is called as its function is, with hyphens."""
    CASES[function.__name__.replace("_", "-")] = function
    return function


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def row(what, figure, unit, goal, met, **more):
    """One line of the table."""
    return {"what": what, "figure": figure, "unit": unit, "goal": goal, "met": met} | more


def request(kind):
    return json.dumps({"columns": [{"name": name, "type": type_} for name, type_, _ in COLUMNS[kind]]})


def fingerprint(table):
    """Column types, count, and a hash that does not depend on the order of the rows."""
    return sql(
        "select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum)"
        f" from pg_attribute where attrelid = '{table}'::regclass and attnum > 0 and not attisdropped",
        f"select count(*), sum(hashtextextended(t::text, 0)) from {table} t",
    )


class Contest:
    """Contenders that take turns; every run is kept."""

    def __init__(self, name):
        self.name = name
        self.seconds = {}
        self.missing = {}

    def turn(self, contender, work):
        if FULL_CACHE:
            fill_file_cache()
        try:
            taken = work()
        except Failed as failed:
            self.missing[contender] = str(failed)
            say(f"{self.name}: {contender}: {failed}")
            return
        self.seconds.setdefault(contender, []).append(taken)
        say(f"{self.name}: {contender} {taken:.2f} s")

    def median(self, contender):
        if contender not in self.seconds:
            raise Failed(f"{self.name}: {contender} was not measured: {self.missing.get(contender)}")
        return statistics.median(self.seconds[contender])

    def medians(self):
        return {contender: statistics.median(runs) for contender, runs in self.seconds.items()}


def imported(cluster, path, kind, table="imported"):
    """Seconds from the upload's end to the import's."""
    told = cluster.load("--count", 1, "--concurrency", 1, "--file", path, "--table", table, "--request", request(kind))
    return told["milliseconds"]["load"]["max"] / 1000


def new_table(cluster, path, kind):
    sql(peers.DROP_ALL, "checkpoint")
    return imported(cluster, path, kind)


def check_same(theirs):
    mine = fingerprint("imported")
    if mine != theirs:
        raise Failed(f"the tables differ: {mine} and {theirs}")


def against_copy(name, kind, size, runs, goal, others=()):
    """An import into a new table beside \\copy and others."""
    path = file_of(kind, size)
    contest = Contest(name)
    with Cluster() as cluster:
        for turn in range(runs):
            contest.turn("\\copy", lambda: peers.psql(path, kind))
            theirs = fingerprint("copied") if turn == 0 else None
            contest.turn("longshore", lambda: new_table(cluster, path, kind))
            if theirs:
                check_same(theirs)
            for other in others if turn < 2 and not ONLY_COPY else ():
                contest.turn(other.__name__, lambda: other(path, kind)[0])
        # What one import spends, and what \copy does, by who spends it; uploads are in it.
        spent = {}
        for who, work in (("longshore", lambda: new_table(cluster, path, kind)), ("\\copy", lambda: peers.psql(path, kind))):
            before = cluster.spent()
            work()
            after = cluster.spent()
            spent[who] = {part: round(after[part] - before[part], 2) for part in before}
        peak = cluster.worker.peak_mib()
    ratio = contest.median("\\copy") / contest.median("longshore")
    megabytes = path.stat().st_size / 1e6
    return [
        row(f"{name}, into a new table", ratio, "x \\copy", f">= {goal}", ratio >= goal, seconds=contest.seconds,
            medians=contest.medians(), missing=contest.missing, core_seconds=spent, worker_peak_mib=peak,
            megabytes_per_second=megabytes / contest.median("longshore"))
    ]


@case
def lineitem_200mb(runs):
    return against_copy("lineitem 200 MB", "lineitem", 200_000_000, runs or 5, 1.6, (peers.pgloader, peers.duckdb, peers.polars))


@case
def lineitem_1gb(runs):
    return against_copy("lineitem 1 GB", "lineitem", 1_000_000_000, runs or 3, 1.6)


def flame(file, kind="lineitem"):
    """A flame graph of a worker while it imports 200 MB, as SVG (perf, inferno)."""
    path = file_of(kind, 200_000_000)
    inferno = CACHE / "inferno" / "bin"
    with Cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        new_table(cluster, path, kind)
        recorded = pathlib.Path(folder) / "perf.data"
        perf = subprocess.Popen(["perf", "record", "-q", "-F", "499", "--call-graph", "dwarf,16384", "-o", recorded, "-p", str(cluster.worker.process.pid)])
        taken = new_table(cluster, path, kind)
        perf.send_signal(signal.SIGINT)
        perf.wait()
        script = run(["perf", "script", "-i", recorded, "--no-inline"])
    folded = run([inferno / "inferno-collapse-perf"], input=script)
    title = f"A worker of longshore imports 200 MB of {kind}, sampled 499 times a second"
    file.write_text(run([inferno / "inferno-flamegraph", "--title", title, "--minwidth", "0.3", "--hash"], input=folded))
    say(f"{file}: an import of {taken:.2f} s while it was watched")


@case
def wide(runs):
    return against_copy("wide 200 MB", "wide", 200_000_000, runs or 5, 1.8, (peers.duckdb, peers.polars))


@case
def quoted(runs):
    return against_copy("quoted 200 MB", "quoted", 200_000_000, runs or 5, 1.8, (peers.duckdb, peers.polars))


@case
def existing_table(runs):
    """Into a table that has rows."""
    return [into_existing("200 MB", 200_000_000, runs or 5), into_existing("1 GB", 1_000_000_000, runs or 3)]


def into_existing(size, length, runs):
    path = file_of("lineitem", length)
    first = file_of("lineitem", 20_000_000)
    contest = Contest(f"lineitem {size}, existing table")

    def filled(table):
        sql(peers.DROP_ALL, create(table, "lineitem"))
        peers.copy_into(first, table)
        sql("checkpoint")

    def copied():
        filled("copied")
        return peers.copy_into(path, "copied")

    def added(cluster):
        filled("imported")
        return imported(cluster, path, "lineitem")

    with Cluster() as cluster:
        for turn in range(runs):
            contest.turn("\\copy", copied)
            theirs = fingerprint("copied") if turn == 0 else None
            contest.turn("longshore", lambda: added(cluster))
            if theirs:
                check_same(theirs)
    ratio = contest.median("\\copy") / contest.median("longshore")
    return row(contest.name, ratio, "x \\copy", ">= 1.2", ratio >= 1.2, seconds=contest.seconds, medians=contest.medians())


@case
def sqlite(runs):
    """Embedded: one process, its own storage, SQLite."""
    path = file_of("lineitem", 200_000_000)
    contest = Contest("SQLite")
    columns = ", ".join(f"{name} {'INTEGER' if kind == 'int64' else 'TEXT'}" for name, kind, _ in COLUMNS["lineitem"])

    def shell(folder):
        file = pathlib.Path(folder) / "shell.sqlite"
        file.unlink(missing_ok=True)
        script = f"create table lineitem ({columns});\n.import --csv --skip 1 '{path}' lineitem\n"
        return timed(["sqlite3", str(file)], input=script)

    def bare():
        return float(run([str(TARGET / "release/examples/sqlite_inserts"), str(path)]).split()[0])

    def service(folder):
        settings = {"LONGSHORE_S3_LISTEN": f"127.0.0.1:{free_port()}"}
        server = Server("serve", pathlib.Path(folder), settings)
        try:
            server.wait_ready()
            told = load(server, "--count", 1, "--concurrency", 1, "--file", path, "--table", "lineitem", "--request", request("lineitem"))
        finally:
            server.stop()
            shutil.rmtree(pathlib.Path(folder) / "serve", ignore_errors=True)
        uploads.append(told["milliseconds"]["upload"]["max"] / 1000)
        return told["milliseconds"]["load"]["max"] / 1000

    uploads = []
    with tempfile.TemporaryDirectory(prefix="longshore-bench.", dir=CACHE) as folder:
        for _ in range(runs or 5):
            contest.turn("sqlite3 .import", lambda: shell(folder))
            contest.turn("longshore", lambda: service(folder))
            contest.turn("bare inserts", bare)
    ours = contest.median("longshore")
    faster, bound = contest.median("sqlite3 .import") / ours, ours / contest.median("bare inserts")
    more = {"seconds": contest.seconds, "medians": contest.medians(), "upload_seconds": statistics.median(uploads)}
    return [
        row("SQLite, lineitem 200 MB, embedded", faster, "x sqlite3 .import", ">= 1.5", faster >= 1.5, **more),
        row("the same, beside bare bound inserts (WAL, FULL)", bound, "x their time", "<= 1.5", bound <= 1.5),
    ]


def criterion(bench, pattern):
    """MB/s of criterion's medians, by benchmark."""
    environment = os.environ | {"CARGO_TARGET_DIR": str(TARGET)}
    run(["cargo", "bench", "--quiet", "--workspace", "--bench", bench, "--", pattern], env=environment)
    found = {}
    for estimates in (TARGET / "criterion").glob("*/*/new/estimates.json"):
        described = json.loads((estimates.parent / "benchmark.json").read_text())
        nanoseconds = json.loads(estimates.read_text())["median"]["point_estimate"]
        found[described["full_id"]] = described["throughput"]["Bytes"] / nanoseconds * 1000
    return found


@case
def parse(_runs):
    """From bytes in memory, one thread."""
    ours = criterion("parse", "")
    rows = []
    for kind in ("lineitem", "wide", "quoted"):
        theirs = peers.polars_parse(file_of(kind if kind != "lineitem" else "made-lineitem", 8 << 20), kind)
        mine = ours[f"{kind}/parse"]
        rows.append(row(f"parse alone, {kind}, one thread", mine / theirs, "x polars", ">= 1", mine >= theirs,
                        megabytes_per_second={"longshore": mine, "polars": theirs}))
    slowest = min(ours[f"{kind}/scan"] for kind in ("lineitem", "wide", "quoted"))
    rows.append(row("planning scan, slowest of three files", slowest / 1000, "GB/s", ">= 2", slowest >= 2000,
                    megabytes_per_second=ours))
    return rows


@case
def encode(_runs):
    ours = criterion("encode", "binary")
    figures = {name: figure for name, figure in ours.items() if name.endswith("/binary")}
    return [row("encode for COPY, lineitem, one thread", figures["lineitem/binary"] / 1000, "GB/s of CSV", "", None,
                megabytes_per_second=figures)]


def put_in_parts(cluster, path, kind, table):
    """Seconds from `complete` to the import's end, of a file that is too large for one PUT: uploaded in parts."""
    import minio

    body = {"destination": {"table": table}} | json.loads(request(kind))
    created = cluster.ask("POST", "/v1/imports", body)
    secure, _, endpoint = os.environ["LONGSHORE_TEST_S3_ENDPOINT"].partition("://")
    keys = (os.environ["LONGSHORE_TEST_S3_ACCESS_KEY_ID"], os.environ["LONGSHORE_TEST_S3_SECRET_ACCESS_KEY"])
    client = minio.Minio(endpoint, *keys, secure=secure == "https")
    source = created["source"]
    client.fput_object(source["bucket"], source["key"], str(path), content_type="text/csv", part_size=256 << 20)
    started = time.monotonic()
    where = f"/v1/imports/{created['id']}"
    cluster.ask("POST", f"{where}/complete", {})
    while not (told := cluster.ask("GET", where))["done"]:
        time.sleep(0.05)
    taken = time.monotonic() - started
    client.remove_object(source["bucket"], source["key"])
    if told["state"] != "succeeded":
        raise Failed(f"the import {told['state']}: {told['error']}")
    return taken


@case
def size(_runs):
    """100 MB and 10 GB: memory, and what a row costs, beside \\copy."""
    figures = {}
    for megabytes in (100, 10_000):
        path = file_of("lineitem", megabytes * 1_000_000)
        with Cluster() as cluster:
            taken = []
            for _ in range(5 if megabytes == 100 else 1):
                sql("drop table if exists imported", "checkpoint")
                taken.append(put_in_parts(cluster, path, "lineitem", "imported"))
            peak, rows = cluster.worker.peak_mib(), int(sql("select count(*) from imported"))
            sql("drop table imported", "checkpoint")
            copies = [peers.psql(path, "lineitem") for _ in range(len(taken))]
            sql("drop table copied")
        figures[megabytes] = {"seconds": statistics.median(taken), "copy_seconds": statistics.median(copies), "rows": rows, "worker_peak_mib": peak}
        say(f"lineitem {megabytes} MB: {figures[megabytes]}")

    def growth(of):
        return figures[10_000][of] / figures[10_000]["rows"] * figures[100]["rows"] / figures[100][of]

    ours, theirs = growth("seconds"), growth("copy_seconds")
    peak = max(told["worker_peak_mib"] for told in figures.values())
    most = 8 * WORKERS * 6 + 100
    return [
        row(f"time of a row at 10 GB (of \\copy: {theirs:.2f}x)", ours, "x that at 100 MB", "<= 1.1", ours <= 1.1, figures=figures),
        row("memory of a worker, 100 MB to 10 GB", peak, "MiB", f"<= {most}", peak <= most, figures=figures),
    ]


@case
def small_latency(runs):
    """A file of 1 MB on an idle cluster."""
    path = file_of("lineitem", 1_000_000)
    count = (runs or 5) * 40
    with Cluster() as cluster:
        cluster.load("--count", 10, "--concurrency", 1, "--file", path, "--request", request("lineitem"))
        told = cluster.load("--count", count, "--concurrency", 1, "--file", path, "--request", request("lineitem"))
        sql(create("copied", "lineitem"))
        copies = [peers.copy_into(path, "copied") for _ in range(count // 4)]
    copy = statistics.median(copies) * 1000
    times = told["milliseconds"]["load"]
    tail = times["p99"] / times["p50"]
    return [
        row("1 MB, upload's end to succeeded, median", times["p50"], "ms", f"<= {copy + 50:.0f} (\\copy + 50)", times["p50"] <= copy + 50,
            milliseconds=told["milliseconds"], copy_milliseconds=copy),
        row("the same, p99", tail, "x the median", "<= 3", tail <= 3),
    ]


@case
def many_small(_runs):
    """1,000 files of 100 KB, 16 in flight, and two shell loops of psql over the same."""
    files = parts_of("lineitem", 100_000, 1_000)
    size = files[0]
    rates = {}
    with Cluster() as cluster:
        told = cluster.load("--count", len(files), "--concurrency", 16, "--file", size, "--request", request("lineitem"))
        rates["longshore, a new table each"] = told["per_second"]
        sql(create("added", "lineitem"))
        told = cluster.load("--count", len(files), "--concurrency", 16, "--file", size, "--request", request("lineitem"), "--table", "added")
        rates["longshore, one table"] = told["per_second"]
        sql(create("copied", "lineitem"))
        for what, statement in (("one table", ""), ("a new table each", create("copied_$name", "lineitem") + ";")):
            table = "copied_$name" if statement else "copied"
            loops = []
            started = time.monotonic()
            for half in (files[::2], files[1::2]):
                script = 'for file; do name=$(basename "$file" .csv); psql "$URL" -XqAt -v ON_ERROR_STOP=1 '
                if statement:
                    script += f'-c "{statement}" '
                script += f"-c \"\\\\copy {table} from '$file' (format csv, header)\" || exit 1; done"
                loops.append(subprocess.Popen(["sh", "-c", script, "loop", *map(str, half)], env=os.environ | {"URL": peers.URL}))
            if any(loop.wait() for loop in loops):
                raise Failed("a loop of psql failed")
            rates[f"two loops of psql, {what}"] = len(files) / (time.monotonic() - started)
    ratios = {what: rates[f"longshore, {what}"] / rates[f"two loops of psql, {what}"] for what in ("one table", "a new table each")}
    return [row(f"1,000 imports of 100 KB, 16 in flight, {what}", ratio, "x two loops of psql", ">= 1", ratio >= 1, per_second=rates)
            for what, ratio in ratios.items()]


def pgbench(*arguments):
    tps = re.search(r"tps = ([\d.]+)", run(["pgbench", "-n", "-c", "16", "-j", "2", "-T", "5", *arguments, peers.URL]))
    return float(tps[1])


def wrk(url, *arguments):
    """Answers a second, asked for by a client that costs as little as pgbench does."""
    told = run(["wrk", "-t", "2", "-c", "16", "-d", "5s", *arguments, url])
    if "Non-2xx" in told or "Socket errors" in told:
        raise Failed(f"wrk: {told}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1])


@case
def api(runs):
    """Requests a second, 16 clients, beside pgbench's with as many."""
    if not shutil.which("pgbench"):
        os.environ["PATH"] += ":" + os.environ["LONGSHORE_TEST_PG_BIN"]
    if not shutil.which("wrk"):
        raise Failed("wrk is not installed")
    rates = {}
    # Nobody uploads what is created here: the sweep would look for it.
    with Cluster(sweep_interval="1h") as cluster, tempfile.TemporaryDirectory() as folder:
        run(["pgbench", "-i", "-q", "-s", "10", peers.URL])
        sql("create table singles (id bigserial primary key, at timestamptz not null default now(), what text not null, body text not null)")
        singles, post = pathlib.Path(folder) / "singles.sql", pathlib.Path(folder) / "post.lua"
        singles.write_text("\\set what random(1, 1000000)\ninsert into singles (what, body) values (:what, repeat('x', 500));\n")
        wanted = {"destination": {"table": "wanted"}, "file": {"name": "a.csv", "size": 1000}}
        post.write_text(f"wrk.method = 'POST'\nwrk.headers['content-type'] = 'application/json'\nwrk.body = '{json.dumps(wanted)}'\n")
        imports = f"{cluster.api.url}/v1/imports"
        status = f"{imports}/{cluster.ask('POST', '/v1/imports', wanted)['id']}"
        sides = {
            "pgbench -S": lambda: pgbench("-S"),
            "status": lambda: wrk(status),
            "status, longshore load": lambda: cluster.load("--what", "status", "--count", 40_000, "--concurrency", 16)["per_second"],
            "pgbench, INSERT": lambda: pgbench("-f", singles),
            "create": lambda: wrk(imports, "-s", post),
            "create, longshore load": lambda: cluster.load("--what", "create", "--count", 5_000, "--concurrency", 16)["per_second"],
        }
        for _ in range(runs or 3):
            for side, measure in sides.items():
                rates.setdefault(side, []).append(measure())
                say(f"api: {side}: {rates[side][-1]:.0f} a second")
    medians = {side: statistics.median(each) for side, each in rates.items()}
    create_ratio, status_ratio = medians["create"] / medians["pgbench, INSERT"], medians["status"] / medians["pgbench -S"]
    return [
        row("API: creates, 16 clients", create_ratio, "x pgbench's INSERTs", ">= 0.6", create_ratio >= 0.6, per_second=rates, medians=medians),
        row("API: GET of a status, 16 clients", status_ratio, "x pgbench -S", ">= 0.6", status_ratio >= 0.6, per_second=rates, medians=medians),
    ]


# Many chunks: what no worker shares (the fence, staging, publish: some 65 round trips) is little beside them.
CHUNK = 16_384


@case
def slow_destination(_runs):
    """A destination behind a proxy that takes its time: 1 worker and 8."""
    proxy, control = free_port(), free_port()
    program = pathlib.Path(os.environ["LONGSHORE_TEST_SERVERS_BIN"]) / "toxiproxy-server"
    toxiproxy = subprocess.Popen([str(program), "-host", "127.0.0.1", "-port", str(control)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(path, body):
        wanted = urllib.request.Request(f"http://127.0.0.1:{control}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
        return urllib.request.urlopen(wanted, timeout=10).read()

    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                server = peers.URL.split("@")[1].split("/")[0]
                ask("/proxies", {"name": "destination", "listen": f"127.0.0.1:{proxy}", "upstream": server, "enabled": True})
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise Failed("toxiproxy does not answer") from None
                time.sleep(0.05)
        ask("/proxies/destination/toxics", {"name": "slow", "type": "latency", "stream": "downstream", "attributes": {"latency": 25}})
        figures = {}
        path = file_of("lineitem", 20_000_000)
        url = peers.URL.replace(server, f"127.0.0.1:{proxy}")
        for workers in (1, 8):
            with Cluster(workers=workers, destination_url=url, chunk_size=CHUNK) as cluster:
                figures[workers] = new_table(cluster, path, "lineitem")
                say(f"slow destination, {workers} workers: {figures[workers]:.1f} s")
    finally:
        toxiproxy.terminate()
        toxiproxy.wait()
    chunks = path.stat().st_size / CHUNK
    ratio = figures[1] / figures[8]
    return [row(f"slow destination ({figures[1] / chunks * 1000:.0f} ms a chunk), 8 workers", ratio, "x one", ">= 7.5", ratio >= 7.5, seconds=figures)]


def measure(names, runs):
    """Rows of the named cases, or of all; what failed is a row too."""
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise Failed(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    for name in names or CASES:
        say(f"{name}: {(CASES[name].__doc__ or name).strip()}")
        try:
            yield from ({"case": name} | found for found in CASES[name](runs))
        except Failed as failed:
            say(f"{name}: {failed}")
            yield {"case": name} | row(name, None, "", "", False, error=str(failed))
