//! Scans of large files over core NATS: a request that one member of a group answers. Nothing keeps it: an owner that hears
//! nothing scans by itself.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Client, Request, Subject};
use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use tracing::debug;

use longshore_parse::ScannedBlock;

use super::NatsBus;
use crate::bus::{BusError, ScanAnswer, ScanCall, ScanJob};

/// The group of all workers.
const GROUP: &str = "longshore-workers";

pub(super) async fn ask(bus: &NatsBus, job: &ScanJob, wait: Duration) -> Result<Option<Vec<ScannedBlock>>, BusError> {
    let body = serde_json::to_vec(job).map_err(|error| bus.error(error.to_string()))?;
    let request = Request::new().payload(body.into()).timeout(Some(wait));
    match bus.client.send_request(bus.scans.clone(), request).await {
        Ok(answer) => {
            let blocks = serde_json::from_slice(&answer.payload);
            blocks.map(Some).map_err(|error| bus.error(format!("an answer to a scan cannot be read: {error}")))
        }
        Err(error) if error.kind() == RequestErrorKind::NoResponders => Ok(None),
        Err(error) => Err(bus.error(error.to_string())),
    }
}

pub(super) async fn calls(bus: &NatsBus) -> Result<BoxStream<'static, ScanCall>, BusError> {
    let subscriber = bus.listen(bus.scans.clone(), Some(GROUP)).await?;
    let (client, endpoint) = (bus.client.clone(), bus.jetstream.endpoint().to_owned());
    let calls = subscriber.filter_map(move |message| {
        let call = match (serde_json::from_slice(&message.payload), message.reply) {
            (Ok(job), Some(inbox)) => {
                let answer = Inbox { client: client.clone(), endpoint: endpoint.clone(), inbox };
                Some(ScanCall { job, answer: Box::new(answer) })
            }
            (Ok(_), None) => None,
            (Err(error), _) => {
                debug!(%error, "passed over a message that is no scan job");
                None
            }
        };
        std::future::ready(call)
    });
    Ok(calls.boxed())
}

/// Where the owner waits.
struct Inbox {
    client: Client,
    endpoint: String,
    inbox: Subject,
}

#[async_trait]
impl ScanAnswer for Inbox {
    async fn send(&self, blocks: &[ScannedBlock]) -> Result<(), BusError> {
        let error = |reason: String| BusError { endpoint: self.endpoint.clone(), reason };
        let body = serde_json::to_vec(blocks).map_err(|why| error(why.to_string()))?;
        self.client.publish(self.inbox.clone(), body.into()).await.map_err(|why| error(why.to_string()))
    }
}
