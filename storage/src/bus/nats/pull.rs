//! Pulling: what is there at once, else the next one as soon as it comes.
//!
//! A plain `fetch` would wait for a full batch. This one asks twice: with `no_wait` for all that is there, and only where
//! that is nothing, for one message until the wait is over; what arrived with it is then asked for at once.

use std::time::Duration;

use async_nats::StatusCode;
use async_nats::jetstream::Message;
use futures::stream::StreamExt;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::CALL_TIMEOUT;
use super::jetstream::{Fault, JetStream, Queue};

/// How long one request waits at the server, so that one that got lost is soon followed by another.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How long the server's last word may take after a wait.
const GRACE: Duration = Duration::from_secs(2);
/// The pause after an answer that would come again at once.
const PAUSE: Duration = Duration::from_millis(250);

/// The body of a pull request (ADR-13).
#[derive(Serialize)]
struct Request {
    batch: usize,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_wait: bool,
    /// Nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
}

impl JetStream {
    /// At most `most` messages; none after `wait`, or a little earlier.
    pub(super) async fn pull(&self, queue: Queue, most: usize, wait: Duration) -> Result<Vec<Message>, Fault> {
        if most == 0 {
            return Ok(Vec::new());
        }
        let there = self.ask(queue, most, None).await?;
        if !there.is_empty() || wait.is_zero() {
            return Ok(there);
        }
        let mut messages = self.ask(queue, 1, Some(wait.min(LONGEST_WAIT))).await?;
        if !messages.is_empty() && most > 1 {
            match self.ask(queue, most - 1, None).await {
                Ok(more) => messages.extend(more),
                Err(fault) => debug!(reason = fault.reason(), "the rest of a batch comes later"),
            }
        }
        Ok(messages)
    }

    async fn ask(&self, queue: Queue, most: usize, wait: Option<Duration>) -> Result<Vec<Message>, Fault> {
        let mut reconnected = self.reconnected.clone();
        reconnected.mark_unchanged();
        let deadline = Instant::now() + wait.map_or(CALL_TIMEOUT, |wait| wait + GRACE);
        let inbox = self.client.new_inbox();
        let send = async {
            let answers = self.client.subscribe(inbox.clone()).await.map_err(|error| other(queue, &error))?;
            let (stream, consumer) = (self.stream(queue), self.consumer(queue));
            let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
            let expires = wait.map(|wait| u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
            let request = Request { batch: most, no_wait: wait.is_none(), expires };
            let body = serde_json::to_vec(&request).map_err(|error| other(queue, &error))?;
            let sent = self.client.publish_with_reply(subject, inbox, body.into()).await;
            sent.map_err(|error| other(queue, &error))?;
            Ok(answers)
        };
        let mut answers = match timeout_at(deadline, send).await {
            Ok(answers) => answers?,
            Err(_) => return Err(Fault::Other(format!("a request for {} could not be sent", queue.name()))),
        };

        let mut messages = Vec::new();
        while messages.len() < most {
            let answer = tokio::select! {
                answer = timeout_at(deadline, answers.next()) => answer,
                // The server forgot our request.
                Ok(()) = reconnected.changed() => return Ok(messages),
            };
            let message = match answer {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(_) if !messages.is_empty() => break,
                Err(_) => return Err(Fault::Other(format!("no answer to a request for {}", queue.name()))),
            };
            let description = message.description.as_deref().unwrap_or_default();
            match message.status {
                None | Some(StatusCode::OK) => messages.push(Message { message, context: self.context.clone() }),
                Some(StatusCode::IDLE_HEARTBEAT) => {}
                Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => break,
                Some(_) if !messages.is_empty() => break,
                Some(StatusCode::NO_RESPONDERS) => {
                    return Err(Fault::Missing(format!("nobody answers for {}", self.stream(queue))));
                }
                Some(status) if description.to_ascii_lowercase().contains("consumer deleted") => {
                    return Err(Fault::Missing(format!("{status} {description}")));
                }
                Some(status) => {
                    debug!(stream = queue.name(), %status, description, "a pull ended early");
                    tokio::time::sleep(PAUSE).await;
                    break;
                }
            }
        }
        Ok(messages)
    }
}

fn other(queue: Queue, error: &dyn std::fmt::Display) -> Fault {
    Fault::Other(format!("a request for {} failed: {error}", queue.name()))
}
