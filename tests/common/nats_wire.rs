//! A NATS client of a few lines, for what a client library hides: what exactly the server refuses.

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::DEADLINE;

/// A connection.
pub struct Wire {
    stream: BufReader<TcpStream>,
    subscriptions: u32,
}

impl Wire {
    /// Connects; what the server says where it lets nobody in.
    pub async fn connect(port: u16, credentials: Option<(&str, &str)>) -> Result<Self, String> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut wire = Self { stream: BufReader::new(stream), subscriptions: 0 };
        let mut hello = serde_json::json!({"verbose": false, "pedantic": false, "protocol": 1, "lang": "test",
                                           "version": "0", "headers": true, "no_responders": true});
        if let Some((user, password)) = credentials {
            hello["user"] = user.into();
            hello["pass"] = password.into();
        }
        match wire.ask(&format!("CONNECT {hello}\r\n")).await {
            None => Ok(wire),
            Some(error) => Err(error),
        }
    }

    /// Publishes nothing to a subject; the refusal, where it is one.
    pub async fn publish(&mut self, subject: &str) -> Option<String> {
        self.ask(&format!("PUB {subject} 0\r\n\r\n")).await
    }

    /// Subscribes; the refusal, where it is one.
    pub async fn subscribe(&mut self, subject: &str) -> Option<String> {
        self.subscriptions += 1;
        self.ask(&format!("SUB {subject} {}\r\n", self.subscriptions)).await
    }

    /// Sends, and reads until the server has dealt with it: the `-ERR` that came before its PONG.
    async fn ask(&mut self, lines: &str) -> Option<String> {
        let all = format!("{lines}PING\r\n");
        self.stream.get_mut().write_all(all.as_bytes()).await.unwrap();
        let mut error = None;
        loop {
            let mut line = String::new();
            let read = timeout(DEADLINE, self.stream.read_line(&mut line)).await.expect("NATS answers");
            if read.unwrap_or(0) == 0 {
                return Some(error.unwrap_or_else(|| "the server hung up".to_owned()));
            }
            match line.trim_end() {
                "PONG" => return error,
                "PING" => self.stream.get_mut().write_all(b"PONG\r\n").await.unwrap(),
                said => {
                    if let Some(refusal) = said.strip_prefix("-ERR ") {
                        error = Some(refusal.trim_matches('\'').to_owned());
                    }
                }
            }
        }
    }
}
