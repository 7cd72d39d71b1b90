#!/usr/bin/env python3
"""Imports a CSV file through a longshore server, with nothing but Python's standard library (3.8 or later).

    import.py --table trips trips.csv
    import.py --server https://imports.example.com --table sales.trips --max-rejects 100 --rejects bad.csv trips.csv

What it does is told in docs/api-python.md: create under an idempotency key, upload as a stream, follow by polling, list
the rejects. Texts go to stderr, the finished import goes to stdout as one line of JSON. Exit codes are those of
`longshore import`: 0 succeeded, 1 failed, 2 usage, 3 succeeded with rejects.
"""

import argparse
import datetime
import http.client
import json
import os
import random
import sys
import time
import urllib.parse
import uuid

API_TIMEOUT = 30  # seconds that the API may be silent
UPLOAD_TIMEOUT = 120  # seconds that the storage may be silent
PATIENCE = 300  # seconds for which a server that is away is asked again
UPLOAD_TRIES = 6
AGAIN = {408, 429, 502, 503, 504}  # answers of the moment: the same request may be sent again
LISTED = 100  # rejects that are printed; the file of rejects has all of them


class Failure(Exception):
    """What ends the program with exit code 1."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def send(method, url, headers, body=None, timeout=API_TIMEOUT):
    """Sends one request over a connection of its own. The answer is not read yet; whoever calls closes it."""
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=timeout, blocksize=256 * 1024)
    target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    try:
        connection.request(method, target, body=body, headers={**headers, "connection": "close"})
    except (BrokenPipeError, ConnectionResetError):
        pass  # Who refuses an upload need not read it to the end; the answer says why.
    return connection.getresponse()


class Api:
    """A server. Every call here may be sent again, so a server that is away only costs time."""

    def __init__(self, server):
        self.server = server.rstrip("/")

    def call(self, method, path, headers=None, body=None, read=None):
        """Status, headers and body of an answer. `read` takes the answer of a success in place of the body."""
        data = None if body is None else json.dumps(body).encode()
        headers = dict(headers or {}, **({"content-type": "application/json"} if data else {}))
        began, pause = time.monotonic(), 0.5
        while True:
            try:
                with send(method, self.server + path, headers, data) as answer:
                    if answer.status not in AGAIN:
                        taken = read(answer) if read and answer.status == 200 else answer.read()
                        return answer.status, answer.headers, taken
                    why, wait = f"{answer.status} {answer.reason}", seconds(answer.headers.get("retry-after"))
            except (OSError, http.client.HTTPException) as error:
                why, wait = str(error) or type(error).__name__, None
            if time.monotonic() - began > PATIENCE:
                raise Failure(f"no answer from {self.server}: {why}")
            wait = wait or pause * random.uniform(0.5, 1)
            say(f"{self.server} is away ({why}); trying again in {wait:.1f} s")
            time.sleep(wait)
            pause = min(pause * 2, 10)

    def json(self, method, path, headers=None, body=None, wanted=(200, 201, 202)):
        """The JSON of an answer that has to be a success."""
        status, _, text = self.call(method, path, headers, body)
        if status not in wanted:
            raise Failure(problem(status, text))
        return json.loads(text)


def seconds(text):
    """`Retry-After` in seconds; it may be a date, which is not worth reading."""
    return float(text) if text and text.isdigit() else None


def problem(status, text):
    """A problem document (RFC 9457) as one text."""
    try:
        document = json.loads(text)
        faults = [f"{fault['pointer']}: {fault['detail']}" for fault in document.get("errors", [])]
        # The detail tells of one fault by itself.
        return "\n  ".join([f"{status}: {document['detail']}"] + (faults if len(faults) > 1 else []))
    except (ValueError, KeyError, TypeError):
        return f"{status}: {text[:200]!r}"


class Counted:
    """A file on its way up."""

    def __init__(self, file, size):
        self.file, self.size, self.sent, self.told = file, size, 0, time.monotonic()

    def read(self, size=-1):
        block = self.file.read(size)
        self.sent += len(block)
        if block and time.monotonic() - self.told > 2:
            self.told = time.monotonic()
            say(f"uploading: {100 * self.sent // self.size} %")
        return block


def create(api, key, arguments, size):
    """The import and its presigned URL. The key makes a repeated call harmless, after a lost answer, too."""
    limit = None if arguments.max_rejects == "none" else int(arguments.max_rejects)
    request = {
        "destination": {"table": arguments.table},
        "file": {"name": os.path.basename(arguments.file), "size": size},
        "on_error": {"max_rejects": limit},
    }
    return api.json("POST", "/v1/imports", {"idempotency-key": key}, request)


def put(upload, path, size):
    """One upload: the status, or None where the connection broke."""
    with open(path, "rb") as file:
        try:
            # Exactly the headers that were signed. The length is among them, since it was declared.
            body = Counted(file, size) if size else b""
            with send(upload["method"], upload["url"], upload["headers"], body, UPLOAD_TIMEOUT) as answer:
                answer.read()
                return answer.status
        except (OSError, http.client.HTTPException) as error:
            say(f"the upload broke off: {error or type(error).__name__}")  # never the URL: it is a secret
            return None


def upload(api, created, path, size):
    """Uploads until the storage has the file."""
    way = created.get("upload")
    if way is None:
        say("the file was uploaded before")
        return
    for tried in range(UPLOAD_TRIES):
        status = put(way, path, size)
        if status in (200, 201, 204):
            return
        if status == 412:
            say("the file is there already")  # an earlier try arrived, its answer did not
            return
        if status is not None and status != 403 and status < 500 and status not in AGAIN:
            raise Failure(f"the storage refused the upload: {status}")
        time.sleep(min(2**tried, 30) * random.uniform(0.2, 0.5))
        expires_at = datetime.datetime.fromisoformat(way["expires_at"].replace("Z", "+00:00"))
        if status == 403 or expires_at < datetime.datetime.now(datetime.timezone.utc):
            say("asking for a fresh URL")
            status, _, text = api.call("POST", f"/v1/imports/{created['id']}/upload")
            if status == 409:  # it awaits no file any more
                return
            if status != 200:
                raise Failure(problem(status, text))
            way = json.loads(text)["upload"]
    raise Failure(f"the storage did not take the file in {UPLOAD_TRIES} tries")


def follow(api, identifier):
    """Polls until the import is done. An answer that has not changed is a `304` without a body."""
    etag, current, shown = None, None, None
    while True:
        headers = {"if-none-match": etag} if etag else {}
        status, answered, text = api.call("GET", f"/v1/imports/{identifier}", headers)
        if status == 200:
            current, etag = json.loads(text), answered.get("etag")
        elif status != 304:
            raise Failure(problem(status, text))
        progress = current["progress"]
        line = f"{current['state']}: {progress['percent']} %, {progress['rows_read']} rows, {progress['rows_rejected']} rejected"
        if line != shown:
            say(line)
            shown = line
        if current["done"]:
            return current
        time.sleep(seconds(answered.get("retry-after")) or 1)


def list_rejects(api, identifier):
    """Prints the first rejects, page by page."""
    listed, cursor = 0, ""
    while listed < LISTED:
        page = api.json("GET", f"/v1/imports/{identifier}/rejects?limit=50{cursor}")
        for reject in page["items"]:
            say(f"row {reject['row']} (line {reject['line']}): {reject['reason']} {reject['detail']}")
        listed += len(page["items"])
        if page["next_cursor"] is None:
            return
        cursor = "&cursor=" + urllib.parse.quote(page["next_cursor"])


def save_rejects(api, identifier, path):
    """Downloads the file of rejects, beside its place first: a download that broke off leaves nothing there."""

    def read(answer):
        with open(path + ".part", "wb") as file:
            while True:
                block = answer.read(64 * 1024)
                if not block:
                    return None
                file.write(block)

    status, _, text = api.call("GET", f"/v1/imports/{identifier}/rejects", {"accept": "text/csv"}, read=read)
    if status != 200:
        raise Failure(problem(status, text))
    os.replace(path + ".part", path)
    say(f"the rejected rows are in {path}, to be mended and imported again")


def run(arguments):
    size = os.path.getsize(arguments.file)
    api = Api(arguments.server)
    created = create(api, arguments.key, arguments, size)
    identifier = created["id"]
    say(f"import {identifier}")
    upload(api, created, arguments.file, size)
    # Storages that send events need no such call, and it does no harm there.
    api.call("POST", f"/v1/imports/{identifier}/complete")
    done = follow(api, identifier)
    rejected = done["progress"]["rows_rejected"]
    if rejected:
        list_rejects(api, identifier)
        save_rejects(api, identifier, arguments.rejects or arguments.file + ".rejects.csv")
    print(json.dumps(done))
    if done["state"] != "succeeded":
        say(f"{done['state']}: {(done['error'] or {}).get('detail', 'no reason was given')}")
        return 1
    say(f"{done['progress']['rows_loaded']} rows loaded, {rejected} rejected")
    return 3 if rejected else 0


def main():
    parser = argparse.ArgumentParser(description="Imports a CSV file through a longshore server.")
    parser.add_argument("file", help="the CSV file")
    parser.add_argument("--table", required=True, help="the destination table, may be schema.table")
    parser.add_argument("--server", default=os.environ.get("LONGSHORE_SERVER") or "http://127.0.0.1:8080")
    parser.add_argument("--max-rejects", default="0", help="rows that may be rejected before it fails, or 'none'; 0")
    parser.add_argument("--key", default=str(uuid.uuid4()), help="idempotency key; the same one goes on with the same import")
    parser.add_argument("--rejects", help="where the file of rejects goes; FILE.rejects.csv")
    arguments = parser.parse_args()
    if arguments.max_rejects != "none" and not arguments.max_rejects.isdigit():
        parser.error("--max-rejects takes a number or 'none'")
    if not os.path.isfile(arguments.file):
        parser.error(f"there is no file {arguments.file}")
    try:
        return run(arguments)
    except (Failure, OSError) as error:
        say(f"import.py: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
