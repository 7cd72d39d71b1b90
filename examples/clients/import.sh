#!/bin/sh
# Imports a CSV file through a longshore server, with curl (7.71 or later) and the tools that every system has.
#
#     import.sh --table trips trips.csv
#     import.sh --server https://imports.example.com --table sales.trips --max-rejects 100 --rejects bad.csv trips.csv
#
# What it does is told in docs/api-curl.md: create under an idempotency key, upload as a stream, follow by polling, list the
# rejects. Texts go to stderr, the finished import goes to stdout as one line of JSON. Exit codes are those of
# `longshore import`: 0 succeeded, 1 failed, 2 usage, 3 succeeded with rejects.
#
# There is no jq on many machines. The API writes JSON without spaces, and a quote inside of a text is always escaped, so
# `"name":"` is found nowhere but at a name.
set -eu

API_TIMEOUT=30   # seconds until the API has to answer
PATIENCE=300     # seconds for which a server that is away is asked again
SILENCE=120      # seconds without a byte after which an upload is given up
UPLOAD_TRIES=6
LISTED=100       # rejects that are printed; the file of rejects has all of them

say() { printf '%s\n' "$*" >&2; }
fail() { say "import.sh: $*"; exit 1; }
usage() {
    say "import.sh: $1"
    say 'usage: import.sh --table TABLE [--server URL] [--max-rejects N|none] [--key KEY] [--rejects FILE] FILE'
    exit 2
}

# Of JSON on stdin: a text, as it is escaped; a number, true, false or null.
text_of() { tr -d '\n' | sed -nE 's/.*"'"$1"'":"(([^"\\]|\\.)*)".*/\1/p'; }
value_of() { tr -d '\n' | sed -nE 's/.*"'"$1"'":([a-z0-9.]+).*/\1/p'; }
# The last value of a header; curl writes those of every try.
header_of() { tr '[:upper:]' '[:lower:]' <"$work/headers" | tr -d '\r' | sed -n 's/^'"$1"': *//p' | tail -n 1; }
quoted() { printf '"%s"' "$(printf '%s' "$1" | tr -d '[:cntrl:]' | sed 's/\\/\\\\/g; s/"/\\"/g')"; }

# api METHOD PATH [curl's options…]: sets $status, $work/answer and $work/headers. Every call here may be sent again, so curl
# does that where the server is away, with the pause that `Retry-After` asks for.
api() {
    method=$1 path=$2
    shift 2
    : >"$work/headers"
    status=$(curl --no-progress-meter --request "$method" --max-time "$API_TIMEOUT" \
        --retry 1000 --retry-max-time "$PATIENCE" --retry-connrefused --retry-all-errors \
        --dump-header "$work/headers" --output "$work/answer" --write-out '%{http_code}' "$@" "$server$path") ||
        fail "no answer from $server"
}

# A problem document (RFC 9457) as one text.
problem() {
    faults=$(tr -d '\n' <"$work/answer" | sed -nE 's/.*"errors":(\[.*\]).*/ \1/p')
    detail=$(tr -d '\n' <"$work/answer" | sed 's/"errors":\[.*//' | text_of detail)
    printf '%s: %s%s' "$status" "${detail:-$(head -c 200 "$work/answer")}" "$faults"
}

# The import and its presigned URL. The key makes a repeated call harmless, after a lost answer, too.
create() {
    body='{"destination":{"table":'$(quoted "$table")'},"file":{"name":'$(quoted "${file##*/}")',"size":'$size'},"on_error":{"max_rejects":'$limit'}}'
    api POST /v1/imports --header 'content-type: application/json' --header "idempotency-key: $key" --data-binary "$body"
    case $status in
    200 | 201) ;;
    *) fail "$(problem)" ;;
    esac
    id=$(text_of id <"$work/answer")
    read_upload
}

# Where to upload to, as options for curl in a file: a presigned URL is a secret, and other users see a command's arguments.
# These are exactly the headers that were signed, but for the length, which curl takes from the file.
read_upload() {
    url=$(text_of url <"$work/answer")
    printf 'url = "%s"\n' "$url" >"$work/upload"
    sed -nE 's/.*"headers":\{([^}]*)\}.*/\1/p' "$work/answer" | sed 's/","/"\
"/g' | sed -nE 's/^"([^"]*)":"(([^"\\]|\\.)*)"$/header = "\1: \2"/p' | sed '/^header = "content-length:/d' >>"$work/upload"
}

# Uploads until the storage has the file.
upload() {
    if [ -z "$url" ]; then
        say 'the file was uploaded before'
        return
    fi
    tried=0 pause=1
    while [ "$tried" -lt "$UPLOAD_TRIES" ]; do
        tried=$((tried + 1))
        # A URL and its headers are read from the file; the body is streamed from the disk.
        stored=$(curl "$meter" --config "$work/upload" --upload-file "$file" --connect-timeout 10 \
            --speed-limit 1 --speed-time "$SILENCE" --output /dev/null --write-out '%{http_code}') ||
            say 'the upload broke off'
        case $stored in
        200 | 201 | 204) return ;;
        412)
            say 'the file is there already' # an earlier try arrived, its answer did not
            return
            ;;
        403)
            say 'asking for a fresh URL'
            api POST "/v1/imports/$id/upload"
            case $status in
            200) read_upload ;;
            409) return ;; # it awaits no file any more
            *) fail "$(problem)" ;;
            esac
            ;;
        000 | 408 | 429 | 5??) ;;
        *) fail "the storage refused the upload: $stored" ;;
        esac
        sleep "$pause"
        pause=$((pause * 2))
    done
    fail "the storage did not take the file in $UPLOAD_TRIES tries"
}

# Polls until the import is done; leaves it in $work/import. An answer that has not changed is a `304` without a body.
follow() {
    etag='' shown=''
    while :; do
        api GET "/v1/imports/$id" --header "if-none-match: $etag"
        case $status in
        200) mv "$work/answer" "$work/import" ;;
        304) ;;
        *) fail "$(problem)" ;;
        esac
        etag=$(header_of etag)
        line="$(text_of state <"$work/import"): $(value_of percent <"$work/import") %, $(value_of rows_read <"$work/import") rows, $(value_of rows_rejected <"$work/import") rejected"
        if [ "$line" != "$shown" ]; then say "$line"; fi
        shown=$line
        if [ "$(value_of 'done' <"$work/import")" = true ]; then return; fi
        wait=$(header_of retry-after)
        sleep "${wait:-1}"
    done
}

# Prints the first rejects, page by page.
list_rejects() {
    listed=0 cursor=''
    while [ "$listed" -lt "$LISTED" ]; do
        api GET "/v1/imports/$id/rejects?limit=50$cursor"
        if [ "$status" != 200 ]; then fail "$(problem)"; fi
        tr -d '\n' <"$work/answer" | sed 's/},{"\([a-z_]*\)":/}\
{"\1":/g' >"$work/items"
        while IFS= read -r item || [ -n "$item" ]; do
            reason=$(printf '%s' "$item" | text_of reason)
            if [ -z "$reason" ]; then continue; fi
            say "row $(printf '%s' "$item" | value_of row) (line $(printf '%s' "$item" | value_of line)): $reason $(printf '%s' "$item" | text_of detail)"
        done <"$work/items"
        listed=$((listed + 50))
        next=$(text_of next_cursor <"$work/answer")
        if [ -z "$next" ]; then return; fi
        cursor="&cursor=$next"
    done
}

# Downloads the file of rejects. A download that broke off leaves nothing in its place.
save_rejects() {
    api GET "/v1/imports/$id/rejects" --header 'accept: text/csv'
    if [ "$status" != 200 ]; then fail "$(problem)"; fi
    mv "$work/answer" "$rejects"
    say "the rejected rows are in $rejects, to be mended and imported again"
}

file='' table='' limit=0 key='' rejects=''
server=${LONGSHORE_SERVER:-http://127.0.0.1:8080}
while [ $# -gt 0 ]; do
    case $1 in
    --table | --server | --max-rejects | --key | --rejects)
        [ $# -ge 2 ] || usage "$1 needs a value"
        case $1 in
        --table) table=$2 ;;
        --server) server=$2 ;;
        --max-rejects) limit=$2 ;;
        --key) key=$2 ;;
        --rejects) rejects=$2 ;;
        esac
        shift 2
        ;;
    -*) usage "there is no option $1" ;;
    *)
        [ -z "$file" ] || usage 'one file at a time'
        file=$1
        shift
        ;;
    esac
done
if [ -z "$file" ] || [ -z "$table" ]; then usage 'a file and --table are needed'; fi
[ -f "$file" ] || usage "there is no file $file"
case $limit in
none) limit=null ;;
'' | *[!0-9]*) usage "--max-rejects takes a number or 'none'" ;;
esac
server=${server%/}
size=$(wc -c <"$file" | tr -d ' ')
key=${key:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')} # the same key goes on with the same import
rejects=${rejects:-$file.rejects.csv}
if [ -t 2 ]; then meter=--progress-bar; else meter=--no-progress-meter; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

create
say "import $id"
upload
# Storages that send events need no such call, and it does no harm there.
api POST "/v1/imports/$id/complete"
follow
state=$(text_of state <"$work/import")
rejected=$(value_of rows_rejected <"$work/import")
if [ "$rejected" -gt 0 ]; then
    list_rejects
    save_rejects
fi
cat "$work/import"
echo
if [ "$state" != succeeded ]; then
    detail=$(text_of detail <"$work/import")
    say "$state: ${detail:-no reason was given}"
    exit 1
fi
say "$(value_of rows_loaded <"$work/import") rows loaded, $rejected rejected"
if [ "$rejected" -gt 0 ]; then exit 3; fi
