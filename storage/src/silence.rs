//! Connections to PostgreSQL that stay open and never answer again, as when the server's machine vanished and another one took
//! its name: nothing ends them, and the driver would wait for the kernel, which may take a quarter of an hour.
//!
//! A pool asks each connection for a sign of life before it hands it out and when it takes it back, and every call has a limit.
//! Where one runs out, the connections that were made before are not trusted any more: those at rest are closed, and calls
//! that were under way get a moment to answer. How long COPY and publish take depends on the data; for these the server is
//! asked over another connection whether it still knows the session (`destination::postgres::session`).

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgPoolOptions};
use sqlx::{Connection as _, Error};
use tokio::sync::watch;
use tokio::time::Instant;

/// How long an answer may take that costs the server nothing.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// A connection that answered so recently is not asked again.
const FRESH: Duration = Duration::from_millis(500);

/// When connections were seen to be silent last. Clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Silence {
    seen: watch::Sender<Option<Instant>>,
}

impl Silence {
    pub(crate) fn new() -> Self {
        Self { seen: watch::Sender::new(None) }
    }

    /// Connections that were made before this moment are not trusted.
    pub(crate) fn note(&self) {
        self.seen.send_replace(Some(Instant::now()));
    }

    /// Whether a connection of this age is not trusted.
    fn covers(&self, age: Duration) -> bool {
        self.seen.borrow().is_some_and(|seen| age > seen.elapsed())
    }

    /// Awaits work that answers within `limit` where the server lives: `None` where it does not, and soon where other
    /// connections were found to be silent meanwhile. Silence is noted before the work is dropped, so that the pool asks its
    /// connection for nothing.
    pub(crate) async fn answered<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        let begun = Instant::now();
        let gives_up = async {
            let mut seen = self.seen.subscribe();
            let noticed = seen.wait_for(|seen| seen.is_some_and(|seen| seen > begun));
            if tokio::time::timeout(limit, noticed).await.is_ok() {
                tokio::time::sleep(SIGN_OF_LIFE).await;
            }
            self.note();
        };
        tokio::select! {
            biased;
            answer = work => Some(answer),
            () = gives_up => None,
        }
    }

    /// A pool that closes what is silent.
    pub(crate) fn watch(&self, options: PgPoolOptions) -> PgPoolOptions {
        let (before, after) = (self.clone(), self.clone());
        options
            .test_before_acquire(false)
            .before_acquire(move |connection, known| {
                let silence = before.clone();
                Box::pin(async move {
                    if known.idle_for > FRESH || silence.covers(known.age) {
                        silence.ask(connection, known.age).await?;
                    }
                    Ok(true)
                })
            })
            // The pool asks by itself besides, without a limit.
            .after_release(move |connection, known| {
                let silence = after.clone();
                Box::pin(async move {
                    silence.ask(connection, known.age).await?;
                    Ok(true)
                })
            })
    }

    /// A sign of life; an error closes the connection, without a word to the server.
    async fn ask(&self, connection: &mut PgConnection, age: Duration) -> Result<(), Error> {
        if self.covers(age) {
            return Err(Error::Protocol("made before others fell silent".to_owned()));
        }
        match tokio::time::timeout(SIGN_OF_LIFE, connection.ping()).await {
            Ok(answer) => answer,
            Err(_) => {
                self.note();
                Err(Error::Protocol(format!("silent for {SIGN_OF_LIFE:?}")))
            }
        }
    }
}
