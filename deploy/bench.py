"""The measuring half of `deploy/bench`, which starts it with the servers running. Standard library only."""

import http.client
import json
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse

RUNS = int(os.environ.get("RUNS", "3"))
FILE = pathlib.Path(os.environ["BENCH_FILE"])
BINARY = os.environ["BENCH_BINARY"]
ONLY = os.environ.get("BENCH_ONLY", "")
DATABASE = "longshore_bench"
ADMIN_URL = os.environ["LONGSHORE_TEST_POSTGRES_URL"]
URL = ADMIN_URL.rsplit("/", 1)[0] + "/" + DATABASE
POLL_SECONDS = 0.02
START_SECONDS = 60
STALL_SECONDS = 120  # an import whose progress stands still for so long has failed

# name, the type in the request, the type in PostgreSQL
COLUMNS = [
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


def fail(message):
    sys.exit(f"bench: {message}")


def sql(*statements, url=URL):
    command = ["psql", url, "-XqAt", "-v", "ON_ERROR_STOP=1"]
    for statement in statements:
        command += ["-c", statement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        fail(f"psql: {done.stderr.strip()} ({statements})")
    return done.stdout.strip()


def fingerprint(table):
    """Column names and types, count, and a hash that does not depend on the order of the rows."""
    columns = sql(
        "select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum)"
        f" from pg_attribute where attrelid = '{table}'::regclass and attnum > 0 and not attisdropped"
    )
    rows = sql(f"select count(*), sum(hashtextextended(t::text, 0)) from {table} t")
    return columns, rows


def run_copy():
    types = ", ".join(f"{name} {postgres}" for name, _, postgres in COLUMNS)
    sql("drop table if exists copied", f"create table copied ({types})", "checkpoint")
    started = time.monotonic()
    sql(f"\\copy copied from '{FILE}' (format csv, header)")
    return time.monotonic() - started


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Role:
    """A running `longshore api` or `longshore worker`."""

    def __init__(self, role, folder):
        self.role = role
        self.port = free_port()
        self.log = folder / f"{role}.log"
        test = {name.removeprefix("LONGSHORE_TEST_"): value for name, value in os.environ.items()}
        # Nothing else named LONGSHORE_* may be there: an unknown setting stops the start.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGSHORE_")}
        environment |= {
            "LONGSHORE_LISTEN": f"127.0.0.1:{self.port}",
            "LONGSHORE_DATA_DIR": str(folder / role),
            "LONGSHORE_DATABASE_URL": URL,
            "LONGSHORE_NATS_URL": test["NATS_URL"],
            "LONGSHORE_S3_ENDPOINT": test["S3_ENDPOINT"],
            "LONGSHORE_S3_BUCKET": "imports",
            "LONGSHORE_S3_ACCESS_KEY_ID": test["S3_ACCESS_KEY_ID"],
            "LONGSHORE_S3_SECRET_ACCESS_KEY": test["S3_SECRET_ACCESS_KEY"],
            "LONGSHORE_S3_NOTIFICATION_ARN": test["S3_NOTIFICATION_ARN"],
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [BINARY, role], env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def fail(self, message):
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        fail(f"longshore {self.role}: {message}; the end of its log:\n{tail}")

    def request(self, method, path, body=None, connection=None):
        connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"content-type": "application/json"} if body is not None else {}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        return response.status, response.read()

    def wait_ready(self):
        deadline = time.monotonic() + START_SECONDS
        answer = "no answer"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                self.fail(f"ended with {self.process.returncode}")
            try:
                answer = self.request("GET", "/readyz")
                if answer[0] == 200:
                    return
            except OSError as error:
                answer = error
            time.sleep(0.05)
        self.fail(f"not ready after {START_SECONDS} s ({answer})")

    def peak_mib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def run_longshore(api):
    """Seconds of the upload, and from its end to `succeeded`."""
    sql("drop table if exists imported", "checkpoint")
    status, body = api.request(
        "POST",
        "/v1/imports",
        {
            "destination": {"table": "imported"},
            "file": {"name": FILE.name, "content_type": "text/csv", "size": FILE.stat().st_size},
            "columns": [{"name": name, "type": kind} for name, kind, _ in COLUMNS],
        },
    )
    if status != 201:
        api.fail(f"POST /v1/imports answered {status}: {body.decode(errors='replace')}")
    created = json.loads(body)
    upload = created["upload"]
    command = ["curl", "--silent", "--show-error", "--fail-with-body", "--request", upload["method"], "--upload-file", str(FILE)]
    for name, value in upload["headers"].items():
        if name.lower() != "content-length":  # curl's own
            command += ["--header", f"{name}: {value}"]
    started = time.monotonic()
    done = subprocess.run([*command, upload["url"]], capture_output=True, text=True, check=False)
    uploaded = time.monotonic()
    if done.returncode != 0:
        fail(f"the upload failed: {done.stderr}{done.stdout}")

    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=30)
    progress, moved = None, time.monotonic()
    while True:
        status, body = api.request("GET", f"/v1/imports/{created['id']}", connection=connection)
        now = time.monotonic()
        if status != 200:
            api.fail(f"GET answered {status}: {body.decode(errors='replace')}")
        resource = json.loads(body)
        if resource["done"]:
            break
        current = (resource["state"], resource["progress"]["bytes_done"], resource["progress"]["chunks_total"])
        if current != progress:
            progress, moved = current, now
        if now - moved > STALL_SECONDS:
            api.fail(f"the import stands still: {json.dumps(resource)}")
        time.sleep(POLL_SECONDS)
    if resource["state"] != "succeeded":
        api.fail(f"the import ended as {json.dumps(resource)}")
    return uploaded - started, now - uploaded, resource


def main():
    sql(f"drop database if exists {DATABASE}", url=ADMIN_URL)
    sql(f"create database {DATABASE}", url=ADMIN_URL)
    load = os.getloadavg()[0]
    print(f"{FILE.name}: {FILE.stat().st_size:,} bytes; {os.cpu_count()} cores, load {load:.2f}", file=sys.stderr)

    copies, uploads, imports = [], [], []
    roles = []
    with tempfile.TemporaryDirectory(prefix="longshore-bench.") as folder:
        try:
            if ONLY != "copy":
                roles = [Role(role, pathlib.Path(folder)) for role in ("api", "worker")]
                for role in roles:
                    role.wait_ready()
            expected = None
            for run in range(1, RUNS + 1):
                if ONLY != "longshore":
                    copies.append(run_copy())
                    print(f"run {run}: \\copy {copies[-1]:.2f} s", file=sys.stderr)
                    expected = expected or fingerprint("copied")
                if ONLY != "copy":
                    upload, seconds, resource = run_longshore(roles[0])
                    uploads.append(upload)
                    imports.append(seconds)
                    print(
                        f"run {run}: upload {upload:.2f} s, import {seconds:.2f} s (trigger {resource['trigger']},"
                        f" attempt {resource['attempt']}, {resource['progress']['chunks_total']} chunks)",
                        file=sys.stderr,
                    )
                    found = fingerprint("imported")
                    if expected and found != expected:
                        fail(f"the tables differ:\n  \\copy     {expected}\n  longshore {found}")
                    loaded = resource["progress"]["rows_loaded"]
                    if str(loaded) != found[1].split("|")[0]:
                        fail(f"the import says {loaded} rows, the table has {found[1]}")
            peaks = {role.role: role.peak_mib() for role in roles}
        finally:
            for role in roles:
                role.stop()

    megabytes = FILE.stat().st_size / 1e6
    print(f"\n{megabytes:.0f} MB of lineitem into a new table, medians of {RUNS} alternating runs, {os.cpu_count()} cores\n")
    print("| what                                  | median s |  MB/s | runs                     |")
    print("| ------------------------------------- | -------- | ----- | ------------------------ |")
    for what, seconds in (
        ("psql \\copy", copies),
        ("longshore: from the upload's end", imports),
        ("longshore: the upload", uploads),
        ("longshore: upload and import", [sum(both) for both in zip(uploads, imports)]),
    ):
        if seconds:
            median = statistics.median(seconds)
            each = " ".join(f"{value:.2f}" for value in seconds)
            print(f"| {what:37} | {median:8.2f} | {megabytes / median:5.0f} | {each:24} |")
    if copies and imports:
        print(f"\nlongshore is {statistics.median(copies) / statistics.median(imports):.2f}x as fast as \\copy; the rows are identical")
    for role, mib in peaks.items():
        print(f"peak memory of longshore {role}: {mib:.0f} MiB")


main()
