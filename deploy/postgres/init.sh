#!/bin/bash
# Run once by the image of PostgreSQL, when its volume is empty: a role for longshore that is no superuser, and a database
# of its own. longshore makes its tables itself.
set -euo pipefail

psql --set=ON_ERROR_STOP=1 --no-psqlrc --username "${POSTGRES_USER:-postgres}" --dbname "${POSTGRES_DB:-postgres}" <<'SQL'
\getenv password DATABASE_PASSWORD
CREATE ROLE longshore LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
CREATE DATABASE longshore OWNER longshore;
REVOKE CONNECT ON DATABASE longshore FROM PUBLIC;
SQL
