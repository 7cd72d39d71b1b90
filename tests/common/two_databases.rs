//! A cluster whose control database and destination are two servers, each behind a proxy of the test; and what imports
//! on it must have come to.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::api::{Api, assert_succeeded, id_of};
use super::cluster::{Cluster, Options};
use super::data::HEADER;
use super::pg_proxy::PgProxy;
use super::postgres::Database;
use super::process::settings;
use super::recovery::moves_on;
use super::servers::PostgresServer;
use super::until;

/// A row that stands in an existing table before anything is imported.
pub const BEFORE: &str = "-1,there before,,0\n";

/// One of the two servers, and its database. Fields are dropped in this order.
pub struct Side {
    pub proxy: PgProxy,
    pub database: Database,
    pub server: PostgresServer,
    pub folder: TempDir,
}

impl Side {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = PostgresServer::start(folder.path());
        Self::over(server, folder).await
    }

    /// Over a server that runs.
    pub async fn over(server: PostgresServer, folder: TempDir) -> Self {
        let database = Database::on(&server.url()).await;
        Self { proxy: PgProxy::start(server.port).await, database, server, folder }
    }
}

/// All of it.
pub struct TwoDatabases {
    pub cluster: Cluster,
    pub control: Side,
    pub destination: Side,
}

impl TwoDatabases {
    pub async fn start(options: Options<'_>) -> Self {
        let (control, destination) = tokio::join!(Side::start(), Side::start());
        Self::over(control, destination, options).await
    }

    pub async fn over(control: Side, destination: Side, mut options: Options<'_>) -> Self {
        options.more.extend(settings([
            ("DATABASE_URL", &control.proxy.url(&control.database.url)),
            ("DESTINATION_URL", &destination.proxy.url(&destination.database.url)),
        ]));
        Self::over_network(control, destination, options).await
    }

    /// The nodes reach both servers at URLs that are set in `options`.
    pub async fn over_network(control: Side, destination: Side, mut options: Options<'_>) -> Self {
        options.more.extend(settings([("LOG", "info,longshore_actors=debug")]));
        Self { cluster: Cluster::start(&options).await, control, destination }
    }

    /// Another server, which has the same database, takes the destination's place.
    pub fn take_over(&mut self, server: PostgresServer, folder: TempDir) {
        let side = &mut self.destination;
        side.proxy.lead_to(server.port);
        side.database.follow(&server.url());
        side.server = server;
        side.folder = folder;
    }

    pub fn api(&self) -> &Api {
        &self.cluster.api
    }

    /// An import that is uploaded and started; the id. Asks again while the API has no database.
    pub async fn begin(&self, request: &Value, csv: &[u8]) -> String {
        let id = self.upload(request, csv).await;
        self.act(&id, "complete").await;
        id
    }

    /// An import that is uploaded; the id.
    pub async fn upload(&self, request: &Value, csv: &[u8]) -> String {
        let (_, created) = post(self.api(), "/v1/imports", request).await;
        assert_eq!(self.api().put(&created, csv).await, 200);
        id_of(&created)
    }

    /// `complete`, `cancel` or `retry`, until there is an answer: its status.
    pub async fn act(&self, id: &str, action: &str) -> u16 {
        post(self.api(), &format!("/v1/imports/{id}/{action}"), &json!({})).await.0
    }

    /// A new table's request, or one into a table that is there already and holds [`BEFORE`].
    pub async fn request(&self, table: &str, existing: bool) -> Value {
        if existing {
            let database = &self.destination.database;
            database.run(&format!("CREATE TABLE {table} (id bigint, name text, note text, amount bigint)")).await;
            database.copy_in(table, format!("{HEADER}{BEFORE}").as_bytes()).await;
        }
        json!({"destination": {"table": table}})
    }

    /// Called when the last fault was mended: prints how long it takes until an import moves on.
    pub async fn moves_on(&self, what: &str, id: &str) {
        moves_on(&self.control.database, what, id).await;
    }

    /// Fails unless an import succeeds with exactly its rows.
    pub async fn assert_exact(&self, id: &str, table: &str, existing: bool, csv: &[u8]) -> Value {
        let import = self.api().done(id).await;
        assert_succeeded(&import);
        let before = format!("{HEADER}{BEFORE}");
        let files: &[&[u8]] = if existing { &[before.as_bytes(), csv] } else { &[csv] };
        self.destination.database.assert_holds(table, files).await;
        import
    }

    /// Fails unless an import left nothing: no new table, and an existing one as it was.
    pub async fn assert_untouched(&self, table: &str, existing: bool) {
        if existing {
            let before = format!("{HEADER}{BEFORE}");
            self.destination.database.assert_holds(table, &[before.as_bytes()]).await;
        } else {
            assert!(!self.destination.database.has_table(table).await, "{table} is there");
        }
    }

    /// Fails where anything stayed behind, a session in a transaction among it, or a node panicked.
    pub async fn assert_tidy(&self) {
        let database = &self.destination.database;
        database.assert_tidy().await;
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'longshore/%'";
        until("no session of an import is left", async || (database.one(sql).await == "0").then_some(())).await;
        self.cluster.assert_clean_logs();
    }
}

/// A POST that is repeated while it is answered by a 503; status and answer.
pub async fn post(api: &Api, path: &str, body: &Value) -> (u16, Value) {
    until(&format!("POST {path} is answered"), async || {
        let (status, answer) = api.post(path, body).await;
        assert!(status == 503 || status.as_u16() < 500, "POST {path}: {status}: {answer}");
        (status != 503).then_some((status.as_u16(), answer))
    })
    .await
}
