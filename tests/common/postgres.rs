//! A PostgreSQL database of a test's own.

use std::process::Command;

use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Row as _, ValueRef as _};

use super::{server_setting, unique, until};

/// A database; it is dropped with the test.
pub struct Database {
    pub url: String,
    pub pool: PgPool,
    admin_url: String,
    name: String,
    /// Whether it is dropped with this.
    owned: bool,
}

impl Database {
    /// A new one on the test server.
    pub async fn new() -> Self {
        Self::on(&server_setting("LONGSHORE_TEST_POSTGRES_URL")).await
    }

    /// A new one on any server.
    pub async fn on(admin_url: &str) -> Self {
        let name = unique("longshore_e2e_");
        psql(admin_url, &format!("CREATE DATABASE {name}"));
        let mut url = url::Url::parse(admin_url).unwrap();
        url.set_path(&name);
        let pool = PgPoolOptions::new().max_connections(4).connect_lazy(url.as_str()).unwrap();
        Self { url: url.to_string(), pool, admin_url: admin_url.to_owned(), name, owned: true }
    }

    /// More connections to the same database.
    pub fn again(&self) -> Self {
        let pool = PgPoolOptions::new().max_connections(4).connect_lazy(&self.url).unwrap();
        let (url, admin_url, name) = (self.url.clone(), self.admin_url.clone(), self.name.clone());
        Self { url, pool, admin_url, name, owned: false }
    }

    /// The same database on another server.
    pub fn follow(&mut self, admin_url: &str) {
        let mut url = url::Url::parse(admin_url).unwrap();
        url.set_path(&self.name);
        self.pool = PgPoolOptions::new().max_connections(4).connect_lazy(url.as_str()).unwrap();
        (self.url, self.admin_url) = (url.to_string(), admin_url.to_owned());
    }

    pub async fn run(&self, sql: &str) {
        let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Rows, each cell as text.
    pub async fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let rows = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(&self.pool).await;
        cells(&rows.unwrap_or_else(|error| panic!("{sql}: {error}")))
    }

    /// The same from a server that may be away: then it answers nothing.
    pub async fn try_rows(&self, sql: &str) -> Option<Vec<Vec<Option<String>>>> {
        let rows = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(&self.pool).await;
        rows.ok().map(|rows| cells(&rows))
    }

    /// One cell as text.
    pub async fn one(&self, sql: &str) -> String {
        self.rows(sql).await[0][0].clone().unwrap_or_default()
    }

    pub async fn has_table(&self, name: &str) -> bool {
        self.one(&format!("SELECT count(*) FROM pg_class WHERE relname = '{name}'")).await != "0"
    }

    /// PostgreSQL's own reader loads a file: the oracle.
    pub async fn copy_in(&self, table: &str, csv: &[u8]) {
        self.try_copy_in(table, csv).await.unwrap_or_else(|| panic!("the file was not copied into {table}"));
    }

    /// The same into a server that may be away: then it answers nothing.
    pub async fn try_copy_in(&self, table: &str, csv: &[u8]) -> Option<()> {
        let mut connection = self.pool.acquire().await.ok()?;
        let statement = format!("COPY {table} FROM STDIN (FORMAT csv, HEADER)");
        let mut copy = connection.copy_in_raw(&statement).await.ok()?;
        copy.send(csv).await.ok()?;
        copy.finish().await.ok()?;
        Some(())
    }

    /// What `COPY … TO STDOUT` gives.
    pub async fn copy_out(&self, statement: &str) -> Vec<u8> {
        use futures::TryStreamExt as _;
        let mut connection = self.pool.acquire().await.unwrap();
        let blocks: Vec<_> = connection.copy_out_raw(statement).await.unwrap().try_collect().await.unwrap();
        blocks.iter().flat_map(|block| block.iter().copied()).collect()
    }

    /// Count, distinct ids and an order-free hash of whole rows.
    pub async fn fingerprint(&self, table: &str) -> Vec<Option<String>> {
        let sql = format!(
            "SELECT count(*), count(DISTINCT id), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {table} t"
        );
        self.rows(&sql).await.remove(0)
    }

    /// Fails unless `table` holds exactly the rows of these files, read by PostgreSQL itself.
    pub async fn assert_holds(&self, table: &str, files: &[&[u8]]) {
        let oracle = unique("oracle_");
        self.run(&format!("CREATE TABLE {oracle} AS SELECT * FROM {table} LIMIT 0")).await;
        for file in files {
            self.copy_in(&oracle, file).await;
        }
        let (found, wanted) = (self.fingerprint(table).await, self.fingerprint(&oracle).await);
        if found != wanted {
            let differ = format!(
                "(SELECT 'missing' AS how, id::text FROM (SELECT * FROM {oracle} EXCEPT ALL SELECT * FROM {table}) m LIMIT 10) \
                 UNION ALL (SELECT 'too many', id::text FROM (SELECT * FROM {table} EXCEPT ALL SELECT * FROM {oracle}) m LIMIT 10)"
            );
            panic!("{table}: {found:?}, wanted {wanted:?}: {:?}", self.rows(&differ).await);
        }
        self.run(&format!("DROP TABLE {oracle}")).await;
    }

    /// A transaction that locks something until it is dropped: whoever needs it waits, and is seen to.
    pub async fn lock(&self, statement: &str) -> sqlx::Transaction<'static, sqlx::Postgres> {
        let mut transaction = self.pool.begin().await.unwrap();
        let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *transaction).await;
        done.unwrap_or_else(|error| panic!("{statement}: {error}"));
        transaction
    }

    /// No chunk behind this row is committed before the lock that is answered is let go.
    pub async fn hold_chunks_behind(&self, row: u64) -> sqlx::Transaction<'static, sqlx::Postgres> {
        self.run(&format!(
            "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NEW; END $$; \
             CREATE TRIGGER late BEFORE INSERT ON longshore_ledger FOR EACH ROW \
             WHEN (NEW.first_row > {row}) EXECUTE FUNCTION late()"
        ))
        .await;
        self.lock("SELECT pg_advisory_xact_lock(1)").await
    }

    /// The one staging table, quoted, as soon as it is there.
    pub async fn staging_table(&self) -> String {
        let sql = "SELECT relname::text FROM pg_class WHERE relname LIKE 'longshore\\_staging\\_%' AND relkind = 'r'";
        until("there is a staging table", async || {
            self.rows(sql).await.first().map(|row| format!("\"{}\"", row[0].as_ref().unwrap()))
        })
        .await
    }

    /// How many transactions of an import are open in the destination.
    pub async fn sessions_of(&self, import: &str) -> u64 {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND application_name LIKE 'longshore/{import}/%'"
        );
        self.one(&sql).await.parse().unwrap()
    }

    /// Fails where anything but fences and rejects stayed behind.
    pub async fn assert_tidy(&self) {
        let staging =
            self.rows("SELECT relname::text FROM pg_class WHERE relname LIKE 'longshore\\_staging\\_%'").await;
        assert!(staging.is_empty(), "staging tables stayed: {staging:?}");
        let ledger = self.rows("SELECT import::text, chunk FROM longshore_ledger LIMIT 5").await;
        assert!(ledger.is_empty(), "ledger rows stayed: {ledger:?}");
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        // Processes of the test may still be connected. A server of the test's own may be gone already.
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let _ = command(&self.admin_url, &drop).output();
    }
}

/// Each cell as text.
fn cells(rows: &[sqlx::postgres::PgRow]) -> Vec<Vec<Option<String>>> {
    let cell = |row: &sqlx::postgres::PgRow, i| {
        let value = row.try_get_raw(i).unwrap();
        (!value.is_null()).then(|| value.as_str().unwrap().to_owned())
    };
    rows.iter().map(|row| (0..row.len()).map(|i| cell(row, i)).collect()).collect()
}

fn command(url: &str, sql: &str) -> Command {
    let mut command = Command::new(format!("{}/psql", server_setting("LONGSHORE_TEST_PG_BIN")));
    command.args([url, "-XAtqc", sql]);
    command
}

fn psql(url: &str, sql: &str) {
    let output = command(url, sql).output().unwrap();
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
}
