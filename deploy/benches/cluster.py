"""The processes that are measured: one API and one worker of longshore beside the servers, and what each of them spends."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

BINARY = os.environ.get("BENCH_BINARY", "")
CACHE = pathlib.Path(os.environ.get("BENCH_CACHE", "."))
# The program's own default, unless told otherwise.
WORKERS = int(os.environ.get("LONGSHORE_WORKERS", os.cpu_count() or 1))
ADMIN_URL = os.environ.get("LONGSHORE_TEST_POSTGRES_URL", "")
DATABASE = "longshore_bench"
URL = ADMIN_URL.rsplit("/", 1)[0] + "/" + DATABASE
TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 60


class Failed(Exception):
    """What could not be measured, and why."""


def run(command, **options):
    """Runs a command to its end; what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-10:])
        raise Failed(f"{command[0]} ended with {done.returncode}: {tail}")
    return done.stdout


def timed(command, **options):
    """Seconds that a command takes."""
    started = time.monotonic()
    run(command, **options)
    return time.monotonic() - started


def sql(*statements, url=URL):
    command = ["psql", url, "-XqAt", "-v", "ON_ERROR_STOP=1"]
    for statement in statements:
        command += ["-c", statement]
    return run(command).strip()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def cores_used(pids):
    """Core-seconds that processes spent so far, with those of their children that ended."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += sum(int(field) for field in fields[11:15])
    return total / TICKS


def processes():
    """Parent and command line of every process."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                found[int(entry.name)] = (parent, (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


def listener(program, url):
    """The process of a server, which was started with its port on the command line."""
    port = url.rsplit(":", 1)[1].split("/")[0]
    for pid, (_, command) in processes().items():
        if os.path.basename(command.split(" ")[0]) == program and re.search(rf"\b{port}\b", command):
            return pid
    raise Failed(f"the process of {program} at port {port} was not found")


class Server:
    """A longshore process."""

    def __init__(self, role, folder, settings):
        self.port = free_port()
        self.log = folder / f"{role}.log"
        self.role = role
        # Nothing else named LONGSHORE_* may be there: an unknown setting stops the start.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGSHORE_")}
        environment |= {"LONGSHORE_LISTEN": f"127.0.0.1:{self.port}", "LONGSHORE_DATA_DIR": str(folder / role)} | settings
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([BINARY, role], env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.url = f"http://127.0.0.1:{self.port}"

    def wait_ready(self):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError, urllib.error.URLError):
                if urllib.request.urlopen(f"{self.url}/readyz", timeout=5).status == 200:
                    return
            time.sleep(0.05)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        raise Failed(f"longshore {self.role} is not ready; the end of its log:\n{tail}")

    def peak_mib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def load(server, *arguments):
    """`longshore load`, whose JSON is its last line."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGSHORE_")}
    printed = run([BINARY, "load", "--server", server.url, "--json", *map(str, arguments)], env=environment)
    return json.loads(printed.strip().splitlines()[-1])


class Cluster:
    """One API and one worker over a fresh database."""

    def __init__(self, **settings):
        self.settings = settings

    def __enter__(self):
        test = {name.removeprefix("LONGSHORE_TEST_"): value for name, value in os.environ.items()}
        sql(f"drop database if exists {DATABASE} with (force)", f"create database {DATABASE}", url=ADMIN_URL)
        settings = {
            "LONGSHORE_DATABASE_URL": URL,
            "LONGSHORE_NATS_URL": test["NATS_URL"],
            "LONGSHORE_S3_ENDPOINT": test["S3_ENDPOINT"],
            "LONGSHORE_S3_BUCKET": "imports",
            "LONGSHORE_S3_ACCESS_KEY_ID": test["S3_ACCESS_KEY_ID"],
            "LONGSHORE_S3_SECRET_ACCESS_KEY": test["S3_SECRET_ACCESS_KEY"],
            "LONGSHORE_S3_NOTIFICATION_ARN": test["S3_NOTIFICATION_ARN"],
            "LONGSHORE_WORKERS": str(WORKERS),
        } | {f"LONGSHORE_{name.upper()}": str(value) for name, value in self.settings.items()}
        self.folder = tempfile.TemporaryDirectory(prefix="longshore-bench.")
        self.servers = []
        try:
            for role in ("api", "worker"):
                self.servers.append(Server(role, pathlib.Path(self.folder.name), settings))
            for server in self.servers:
                server.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        self.api, self.worker = self.servers
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.stop()
        self.folder.cleanup()

    def load(self, *arguments):
        return load(self.api, *arguments)

    def ask(self, method, path, body=None):
        """The API's JSON answer."""
        content = None if body is None else json.dumps(body).encode()
        wanted = urllib.request.Request(self.api.url + path, content, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(wanted, timeout=30) as answer:
            return json.load(answer)

    def spent(self):
        """Core-seconds so far, by who spent them."""
        master = listener("postgres", ADMIN_URL)
        backends = [pid for pid, (parent, _) in processes().items() if parent == master]
        groups = {
            "PostgreSQL": [master, *backends],
            "longshore worker": [self.worker.process.pid],
            "longshore api": [self.api.process.pid],
            "MinIO": [listener("minio", os.environ["LONGSHORE_TEST_S3_ENDPOINT"])],
            "NATS": [listener("nats-server", os.environ["LONGSHORE_TEST_NATS_URL"])],
        }
        return {name: cores_used(pids) for name, pids in groups.items()}
