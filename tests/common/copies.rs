//! Copies of what nodes tell each other over NATS, to tell it again: many times, in another order, much later.

use std::sync::{Arc, Mutex, PoisonError};

use async_nats::jetstream;
use bytes::Bytes;
use futures::StreamExt as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use super::servers::Nats;
use super::until;

/// The streams of jobs.
const JOBS: [&str; 2] = ["LONGSHORE_IMPORTS", "LONGSHORE_CHUNKS"];

/// A message.
#[derive(Clone, Debug)]
pub struct Copy {
    pub subject: String,
    pub body: Bytes,
}

/// Somebody who listens, and can repeat what it heard. It does not hear itself.
pub struct Copies {
    client: async_nats::Client,
    heard: Arc<Mutex<Vec<Copy>>>,
    listener: tokio::task::JoinHandle<()>,
}

impl Copies {
    /// Hears all jobs, reports and changes from now on.
    pub async fn of(nats: &Nats) -> Self {
        let client = async_nats::ConnectOptions::new().no_echo().connect(nats.url()).await.unwrap();
        let subjects = ["longshore.jobs.>", "longshore.reports.>", "longshore.changes.>"];
        let subscribed = futures::future::try_join_all(subjects.map(|subject| client.subscribe(subject)));
        let mut messages = futures::stream::select_all(subscribed.await.unwrap());
        client.flush().await.unwrap();
        let heard = Arc::<Mutex<Vec<Copy>>>::default();
        let list = Arc::clone(&heard);
        let listener = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                let copy = Copy { subject: message.subject.to_string(), body: message.payload };
                list.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
            }
        });
        Self { client, heard, listener }
    }

    /// All that was heard so far.
    pub fn heard(&self) -> Vec<Copy> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells all of it so many times again, shuffled.
    pub async fn repeat(&self, copies: &[Copy], times: usize, random: &mut StdRng) {
        let mut all: Vec<&Copy> = std::iter::repeat_n(copies, times).flatten().collect();
        all.shuffle(random);
        for copy in all {
            self.client.publish(copy.subject.clone(), copy.body.clone()).await.unwrap();
        }
        self.client.flush().await.unwrap();
    }

    /// One message, as anybody may send it.
    pub async fn tell(&self, subject: &str, body: impl Into<Bytes>) {
        self.client.publish(subject.to_owned(), body.into()).await.unwrap();
        self.client.flush().await.unwrap();
    }

    /// Every job that waits is lost; how many were.
    pub async fn drop_jobs(&self) -> u64 {
        let context = jetstream::new(self.client.clone());
        let mut dropped = 0;
        for stream in JOBS {
            dropped += context.get_stream(stream).await.unwrap().purge().await.unwrap().purged;
        }
        dropped
    }

    /// Waits until every job was taken and answered for.
    pub async fn jobs_are_done(&self) {
        let context = jetstream::new(self.client.clone());
        for stream in JOBS {
            until(&format!("{stream} is empty"), async || {
                let mut stream = context.get_stream(stream).await.ok()?;
                (stream.info().await.ok()?.state.messages == 0).then_some(())
            })
            .await;
        }
    }

    /// Waits until every storage event was taken and answered for.
    pub async fn events_are_done(&self) {
        let context = jetstream::new(self.client.clone());
        until("the events are taken", async || {
            let stream = context.get_stream("LONGSHORE_EVENTS").await.ok()?;
            let mut intake: jetstream::consumer::PullConsumer = stream.get_consumer("longshore-intake").await.ok()?;
            let info = intake.info().await.ok()?;
            (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
        })
        .await;
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.listener.abort();
    }
}
