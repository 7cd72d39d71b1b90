//! Clients that never stop: imports of all sorts, one after the other, over an API that may be away at any moment; and the
//! oracle that knows what each has to add.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::api::{Api, assert_failed, assert_succeeded, assert_tiles, id_of};
use super::data::{columns, source};
use super::postgres::Database;
use super::{unique, until_within};

/// A table with a primary key that all lanes import into.
pub const KEYED: &str = "keyed";

/// How long one import may take while everything around it fails.
const PATIENCE: Duration = Duration::from_secs(400);

/// What is loaded, and how much of it.
pub struct Load<'a> {
    pub api: Api,
    pub database: &'a Database,
    pub seed: u64,
    /// Rows of a file, at least and at most.
    pub rows: (u64, u64),
    /// Until when imports are made.
    pub going: AtomicBool,
    pub made: Mutex<Made>,
}

/// What was made so far.
#[derive(Debug, Default, Clone)]
pub struct Made {
    pub succeeded: u64,
    pub failed: u64,
    pub cancelled: u64,
    /// Rows that have to be in the destination, and that were found there.
    pub expected: u64,
    pub found: u64,
    /// Rows that were missing, and that were too many.
    pub lost: u64,
    pub repeated: u64,
    /// What each place held when its import had ended: a condition on a table, and its fingerprint.
    places: Vec<(String, Vec<Option<String>>)>,
}

/// One import, as it was asked for.
struct Asked {
    id: String,
    /// Where its rows are, and nobody else's.
    place: String,
    table: String,
    good: Vec<u8>,
    bad: Vec<u64>,
    size: u64,
    fails: bool,
}

impl<'a> Load<'a> {
    pub async fn new(api: &Api, database: &'a Database, seed: u64, rows: (u64, u64)) -> Self {
        let keyed =
            format!("CREATE TABLE {KEYED} (id bigint PRIMARY KEY, name text NOT NULL, note text, amount bigint)");
        database.run(&keyed).await;
        let (going, made) = (AtomicBool::new(true), Mutex::default());
        Self { api: api.clone(), database, seed, rows, going, made }
    }

    /// Makes imports until it is told to stop; the last one is brought to its end.
    pub async fn lane(&self, lane: u64) {
        let mut random = StdRng::seed_from_u64(self.seed ^ (lane + 1));
        let mut number = 0;
        while self.going.load(Ordering::SeqCst) {
            self.import(&mut random, lane, number).await;
            number += 1;
        }
    }

    pub fn stop(&self) {
        self.going.store(false, Ordering::SeqCst);
    }

    /// One import, from the request to the end, with a cancel or a retry.
    async fn import(&self, random: &mut StdRng, lane: u64, number: u64) {
        let asked = self.ask(random, lane, number).await;
        let path = format!("/v1/imports/{}", asked.id);
        if random.random_bool(0.5) {
            self.post(&format!("{path}/complete"), &json!({}), &[202]).await;
        }
        let cancelled = random.random_bool(0.15);
        if cancelled {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..2_000))).await;
            // Too late is an answer, too.
            self.post(&format!("{path}/cancel"), &json!({}), &[202, 409]).await;
        }
        let mut import = self.ended(&asked.id).await;
        if asked.fails && import["state"] == "failed" && random.random_bool(0.3) {
            self.post(&format!("{path}/retry"), &json!({}), &[202]).await;
            import = self.ended(&asked.id).await;
        }
        match import["state"].as_str() {
            Some("cancelled") if cancelled => self.made.lock().unwrap().cancelled += 1,
            Some("failed") if asked.fails => {
                assert_failed(&import, "too-many-rejects");
                self.made.lock().unwrap().failed += 1;
            }
            _ => {
                assert_succeeded(&import);
                assert!(!asked.fails, "{import}");
                self.assert_counts(&asked, &import).await;
                self.made.lock().unwrap().succeeded += 1;
            }
        }
        self.compare(&asked, import["state"] == "succeeded").await;
    }

    /// Creates an import and uploads its file.
    async fn ask(&self, random: &mut StdRng, lane: u64, number: u64) -> Asked {
        let first_id = (lane as i64 * 100_000 + number as i64) * 1_000_000 + 1;
        let rows = random.random_range(self.rows.0..self.rows.1);
        let keyed = random.random_bool(0.5);
        let (rejects, fails) = (random.random_bool(0.5), random.random_bool(0.15));
        let made = source(random.random(), rows, first_id, if rejects { 100 } else { 0 });
        let (mut csv, mut bad) = (made.csv, made.bad);
        if keyed && rejects {
            // Keys that the file holds already, far behind: the first ones stay.
            for (row, (id, ..)) in (rows + 1..).zip(&made.rows[..50]) {
                csv.extend_from_slice(format!("{id},again,,1\n").as_bytes());
                bad.push(row);
            }
        }
        let fails = fails && !bad.is_empty();
        let table = if keyed { KEYED.to_owned() } else { format!("fresh_{lane}_{number}") };
        let request = json!({
            "destination": {"table": table},
            "columns": columns(),
            "on_error": {"max_rejects": if rejects && !fails { Value::Null } else { json!(0) }},
        });
        let created = self.create(&request, &unique("key-")).await;
        let size = csv.len() as u64;
        // An upload that arrived is refused the second time.
        until_within(PATIENCE, "the storage takes the file", async || {
            let status = self.upload(&created, csv.clone()).await?;
            (status == 200 || status == 412).then_some(())
        })
        .await;
        let place = format!("{table} t WHERE id BETWEEN {first_id} AND {}", first_id + 999_999);
        Asked { id: id_of(&created), place, table, good: made.good_csv, bad, size, fails }
    }

    async fn create(&self, request: &Value, key: &str) -> Value {
        until_within(PATIENCE, "an import is granted", async || {
            let url = format!("{}/v1/imports", self.api.base);
            let answer = self.api.http.post(url).header("idempotency-key", key).json(request).send().await.ok()?;
            let status = answer.status().as_u16();
            let value: Value = answer.json().await.ok()?;
            assert!([200, 201, 503].contains(&status), "{status}: {value}");
            (status < 300).then_some(value)
        })
        .await
    }

    async fn upload(&self, created: &Value, csv: Vec<u8>) -> Option<u16> {
        let upload = &created["upload"];
        let mut request = self.api.http.put(upload["url"].as_str()?).body(csv);
        for (name, value) in upload["headers"].as_object()? {
            request = request.header(name, value.as_str()?);
        }
        Some(request.send().await.ok()?.status().as_u16())
    }

    /// A POST that is repeated while the API is away.
    async fn post(&self, path: &str, body: &Value, accepted: &[u16]) {
        until_within(PATIENCE, &format!("POST {path} is answered"), async || {
            let answer = self.api.http.post(format!("{}{path}", self.api.base)).json(body).send().await.ok()?;
            let status = answer.status().as_u16();
            let value: Value = answer.json().await.ok()?;
            assert!(accepted.contains(&status) || status == 503, "{path}: {status}: {value}");
            accepted.contains(&status).then_some(())
        })
        .await;
    }

    /// A GET that is repeated while the API is away.
    async fn get(&self, path: &str) -> Value {
        until_within(PATIENCE, &format!("GET {path} is answered"), async || {
            let answer = self.api.http.get(format!("{}{path}", self.api.base)).send().await.ok()?;
            let status = answer.status();
            let value: Value = answer.json().await.ok()?;
            assert!(status == 200 || status == 503, "{path}: {status}: {value}");
            (status == 200).then_some(value)
        })
        .await
    }

    async fn ended(&self, id: &str) -> Value {
        until_within(PATIENCE, &format!("import {id} ends"), async || {
            let import = self.get(&format!("/v1/imports/{id}")).await;
            (import["done"] == true).then_some(import)
        })
        .await
    }

    /// All pages of a listing.
    async fn all(&self, path: &str) -> Vec<Value> {
        let (mut items, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("{path}?limit=1000{cursor}")).await;
            items.extend(page["items"].as_array().unwrap().iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return items,
            }
        }
    }

    /// What the API says of an import that succeeded.
    async fn assert_counts(&self, asked: &Asked, import: &Value) {
        let rejects = self.all(&format!("/v1/imports/{}/rejects", asked.id)).await;
        let rows: Vec<u64> = rejects.iter().map(|reject| reject["row"].as_u64().unwrap()).collect();
        assert_eq!(rows, asked.bad, "{} (SEED={})", asked.id, self.seed);
        let chunks = self.all(&format!("/v1/imports/{}/chunks", asked.id)).await;
        let rows = assert_tiles(&chunks, asked.size);
        assert_eq!(import["progress"]["rows_read"], rows, "{import}");
        assert_eq!(import["progress"]["rows_rejected"], asked.bad.len(), "{import}");
    }

    /// Compares the place of an import with its file, read by PostgreSQL itself into a table that outlives a crash.
    async fn compare(&self, asked: &Asked, added: bool) {
        let oracle = unique("oracle_");
        let make = format!("CREATE TABLE {oracle} (id bigint, name text, note text, amount bigint)");
        let differ = format!(
            "SELECT (SELECT count(*) FROM {oracle}), (SELECT count(*) FROM {place}), \
             (SELECT count(*) FROM (SELECT * FROM {oracle} EXCEPT ALL SELECT t.* FROM {place}) missing), \
             (SELECT count(*) FROM (SELECT t.* FROM {place} EXCEPT ALL SELECT * FROM {oracle}) too_many)",
            place = asked.place,
        );
        let exists = until_within(PATIENCE, "the destination is looked at", async || {
            let found = self.database.try_rows(&format!("SELECT to_regclass('{}')", asked.table)).await?;
            Some(found[0][0].is_some())
        })
        .await;
        if !exists {
            assert!(!added, "{} succeeded, and {} is not there", asked.id, asked.table);
            return;
        }
        let found = until_within(PATIENCE, "the destination is compared", async || {
            self.database.try_rows(&format!("DROP TABLE IF EXISTS {oracle}; {make}")).await?;
            if added {
                self.database.try_copy_in(&oracle, &asked.good).await?;
            }
            self.database.try_rows(&differ).await
        })
        .await;
        let [expected, found, lost, repeated] =
            [0, 1, 2, 3].map(|cell| found[0][cell].as_deref().unwrap().parse::<u64>().unwrap());
        until_within(PATIENCE, "the oracle is dropped", async || {
            self.database.try_rows(&format!("DROP TABLE IF EXISTS {oracle}")).await
        })
        .await;
        let print =
            until_within(PATIENCE, "the destination is read", async || self.fingerprint(&asked.place).await).await;
        let mut made = self.made.lock().unwrap();
        made.expected += expected;
        made.found += found;
        made.lost += lost;
        made.repeated += repeated;
        made.places.push((asked.place.clone(), print));
        let wrong = lost + repeated;
        assert_eq!(wrong, 0, "{}: {lost} rows are lost, {repeated} too many (SEED={})", asked.id, self.seed);
    }

    /// Count, distinct ids and an order-free hash of the rows at a place.
    async fn fingerprint(&self, place: &str) -> Option<Vec<Option<String>>> {
        let sql = format!(
            "SELECT count(*), count(DISTINCT id), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {place}"
        );
        Some(self.database.try_rows(&sql).await?.remove(0))
    }

    /// Fails where a place changed behind its import's end, and where anything was left behind.
    pub async fn assert_final(&self) -> Made {
        let made = self.made.lock().unwrap().clone();
        for (place, print) in &made.places {
            assert_eq!(self.fingerprint(place).await.as_ref(), Some(print), "{place} (SEED={})", self.seed);
        }
        let keyed = self.database.one(&format!("SELECT count(*) FROM {KEYED}")).await.parse::<u64>().unwrap();
        let in_places = made.places.iter().filter(|(place, _)| place.starts_with(KEYED));
        let counted: u64 = in_places.map(|(_, print)| print[0].as_deref().unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(keyed, counted, "rows of nobody's (SEED={})", self.seed);
        self.database.assert_tidy().await;
        let ended = "SELECT count(*) FROM longshore_imports WHERE state NOT IN ('succeeded', 'failed', 'cancelled')";
        assert_eq!(self.database.one(ended).await, "0", "an import did not end");
        let imports = self.database.one("SELECT count(*) FROM longshore_imports").await;
        assert_eq!(imports, (made.succeeded + made.failed + made.cancelled).to_string(), "an import of nobody's");
        made
    }
}
