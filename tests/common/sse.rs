//! A client of Server-Sent Events, as a browser reads them.

use std::time::Duration;

use serde_json::Value;

use super::DEADLINE;
use super::api::Api;

/// One event, or a comment where it has no data.
#[derive(Debug, Default, Clone)]
pub struct Event {
    pub id: String,
    pub name: String,
    pub data: String,
    pub comment: bool,
}

impl Event {
    /// The resource that it carries.
    pub fn import(&self) -> Value {
        assert_eq!(self.name, "import", "{self:?}");
        serde_json::from_str(&self.data).unwrap()
    }
}

/// An open stream.
pub struct Events {
    response: reqwest::Response,
    read: Vec<u8>,
}

impl Events {
    /// Opens it, which has to succeed.
    pub async fn open(api: &Api, id: &str, last: Option<&str>) -> Self {
        let response = Self::request(api, id, last).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, read: Vec::new() }
    }

    /// Whatever the answer is.
    pub async fn request(api: &Api, id: &str, last: Option<&str>) -> reqwest::Response {
        // No time-out: a stream is open for as long as it takes.
        let http = reqwest::Client::new();
        let mut request =
            http.get(format!("{}/v1/imports/{id}/events", api.base)).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        request.send().await.unwrap()
    }

    /// The next event or comment; `None` behind the last.
    pub async fn next(&mut self) -> Option<Event> {
        self.next_within(DEADLINE).await
    }

    async fn next_within(&mut self, deadline: Duration) -> Option<Event> {
        let next = async {
            loop {
                if let Some(end) = self.read.windows(2).position(|two| two == b"\n\n") {
                    let block: Vec<u8> = self.read.drain(..end + 2).collect();
                    return Some(parse(std::str::from_utf8(&block).unwrap()));
                }
                match self.response.chunk().await {
                    Ok(Some(block)) => self.read.extend_from_slice(&block),
                    // A node that is killed breaks the connection.
                    Ok(None) | Err(_) => return None,
                }
            }
        };
        tokio::time::timeout(deadline, next).await.unwrap_or_else(|_| panic!("no event within {deadline:?}"))
    }

    /// The next import that is told of.
    pub async fn next_import(&mut self) -> Option<(String, Value)> {
        loop {
            let event = self.next().await?;
            if !event.comment {
                return Some((event.id.clone(), event.import()));
            }
        }
    }

    /// All to the end of the stream.
    pub async fn rest(&mut self) -> Vec<(String, Value)> {
        let mut all = Vec::new();
        while let Some(event) = self.next_import().await {
            all.push(event);
        }
        all
    }
}

fn parse(block: &str) -> Event {
    let mut event = Event { comment: true, ..Event::default() };
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => event.id = value.to_owned(),
            "event" => event.name = value.to_owned(),
            "data" => {
                event.data.push_str(value);
                event.comment = false;
            }
            _ => {}
        }
    }
    event
}
