# Everyday recipes. `just` alone lists them.

# Lists the recipes
default:
    @just --list

# Imports the example into SQLite, all in one process
demo:
    cargo run --release -- import examples/trips.csv --table trips

# Everything in one process, with its data in ./longshore-data
serve:
    cargo run --release -- serve

# All tests, with the servers that they need
test *ARGS:
    deploy/servers test {{ARGS}}

# Only the tests that need no server
unit:
    cargo test --release -p longshore-domain -p longshore-parse -p longshore-actors -p longshore-api

# Compose file, Dockerfiles, units and configuration, as far as that goes without a container engine
validate:
    deploy/validate

# Everything that a change has to pass
ci:
    .ci/run

# Formats and lints
lint:
    cargo fmt --all
    cargo clippy --workspace --all-targets -- -D warnings

# Everything that docs/performance.md promises, measured beside its peers; `just bench CASE…` some of it
bench *CASES:
    deploy/bench {{CASES}}

# The ways to publish, measured (docs/protocol.md)
bench-publish:
    deploy/servers run -- deploy/bench-publish

# A million rejects: bad cells, and keys that are there already; fewer that COPY itself refuses (docs/csv.md)
bench-rejects:
    deploy/servers run -- deploy/bench-rejects cell
    deploy/servers run -- deploy/bench-rejects key
    deploy/servers run -- deploy/bench-rejects copy 10000

# PostgreSQL, NATS, MinIO and versitygw for a try by hand; `deploy/servers stop DIR` ends them
servers:
    deploy/servers start

# The cluster under load with random faults: `just chaos SECONDS=3600`, `KILLS=1000`, `SEED=7`, `FAULTS=kill-worker,wipe-nats` (docs/reliability.md)
chaos *SETTINGS:
    deploy/servers run -- deploy/chaos {{SETTINGS}}

# SIGKILL at every step of the protocol, so many times each
kill-at-every-step KILLS="50":
    deploy/servers run -- env KILLS={{KILLS}} cargo test --release --workspace --test failpoints -- --nocapture
