//! How soon an import moves on once the last fault is mended. Measured and printed; no test asks for less.

use std::time::Instant;

use super::postgres::Database;
use super::until;

/// Where an import is by the control database: its state, its attempt and how many chunks are done.
pub async fn progress(control: &Database, id: &str) -> String {
    let sql = format!(
        "SELECT state || ', attempt ' || attempt || ', chunks ' || (SELECT count(*) FROM longshore_chunks c \
                WHERE c.import_id = i.id AND c.attempt = i.attempt AND c.state = 'done') \
         FROM longshore_imports i WHERE id = '{id}'"
    );
    control.one(&sql).await
}

/// Called when the last fault was mended: waits until the import moves on, and prints how long that took.
pub async fn moves_on(control: &Database, what: &str, id: &str) {
    let mended = Instant::now();
    let before = progress(control, id).await;
    if ["succeeded", "failed", "cancelled"].iter().any(|state| before.starts_with(state)) {
        println!("{what}: {before} already");
        return;
    }
    let now = until(&format!("{id} moves on from {before}"), async || {
        let now = progress(control, id).await;
        (now != before).then_some(now)
    })
    .await;
    println!("recovered in {:.1} s: {what}: {before} -> {now}", mended.elapsed().as_secs_f64());
}
