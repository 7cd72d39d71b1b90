//! NATS: reached, JetStream there, streams and consumers as the service makes them.

use longshore_storage::bus::nats::NatsConfig;
use longshore_storage::bus::nats::inspect::{Duties, NatsFacts, inspect};
use serde_json::json;

use super::Role;
use super::report::Check;
use crate::settings::Settings;

/// The checks, and the server's version where it answered.
pub async fn check(settings: &Settings, role: Role) -> (Vec<Check>, Option<String>) {
    let Some(url) = &settings.nats_url else {
        let why = "LONGSHORE_NATS_URL is not set: the bus is in the process";
        return (vec![Check::skipped("nats", why), Check::skipped("streams", why)], None);
    };
    let config = NatsConfig::new(url.expose(), &settings.nats_events_subject);
    let facts = match inspect(&config, Duties { works: role.works() }).await {
        Ok(facts) => facts,
        Err(error) => {
            let advice = "check LONGSHORE_NATS_URL: its host, port and credentials, and that NATS runs there";
            let nats = Check::fail("nats", format!("{} cannot be used: {}", error.endpoint, error.reason), advice);
            return (vec![nats, Check::skipped("streams", "NATS cannot be reached")], None);
        }
    };
    let place = format!("NATS {} at {}", facts.version, facts.endpoint);
    let nats = match &facts.jetstream {
        Ok(()) if facts.refusals.is_empty() => Check::ok("nats", format!("{place}, with JetStream")),
        Ok(()) => refused(&facts, &place, role),
        Err(_) if !facts.refusals.is_empty() => refused(&facts, &place, role),
        Err(reason) => {
            let advice = "start NATS with JetStream (jetstream in its configuration, or --jetstream), and enable it for the \
                          account of LONGSHORE_NATS_URL";
            Check::fail("nats", format!("{place}: {reason}"), advice)
        }
    };
    let nats = nats.with("version", facts.version.clone());
    (vec![nats, streams(&facts, role)], Some(facts.version))
}

fn refused(facts: &NatsFacts, place: &str, role: Role) -> Check {
    let detail = format!("{place} does not permit: {}", facts.refusals.join("; "));
    let mut advice =
        "grant these subjects to the user of LONGSHORE_NATS_URL (deploy/nats/nats.conf has them by role)".to_owned();
    if role == Role::Serve {
        advice += "; of an API or a worker alone: longshore doctor --role api, or worker";
    }
    Check::fail("nats", detail, advice)
}

fn streams(facts: &NatsFacts, role: Role) -> Check {
    if facts.jetstream.is_err() {
        return Check::skipped("streams", "JetStream cannot be reached");
    }
    let missing: Vec<&str> = facts.streams.iter().filter_map(|stream| stream.missing.as_deref()).collect();
    let unseen: Vec<&str> = facts.streams.iter().filter_map(|stream| stream.unseen.as_deref()).collect();
    let differs: Vec<&str> = facts.streams.iter().flat_map(|stream| &stream.differs).map(String::as_str).collect();
    let counts: Vec<String> = facts
        .streams
        .iter()
        .filter(|stream| stream.missing.is_none() && stream.unseen.is_none())
        .map(|stream| format!("{}: {} waiting, {} unanswered", stream.name, stream.pending, stream.unanswered))
        .collect();
    let check = if !differs.is_empty() {
        let advice =
            "set them as said, or delete the stream or consumer: the service makes it anew, and nothing is lost";
        Check::fail("streams", differs.join("; "), advice)
    } else if !missing.is_empty() {
        let advice = match role {
            Role::Api => "start a worker: it makes them; an API waits for that",
            Role::Serve | Role::Worker => "start the service: it makes them, if its NATS user may",
        };
        Check::warn("streams", missing.join("; "), advice)
    } else if !unseen.is_empty() {
        Check::warn("streams", unseen.join("; "), "grant what nats names above")
    } else {
        Check::ok("streams", counts.join("; "))
    };
    let measured = facts.streams.iter().map(|stream| {
        json!({"stream": stream.name, "consumer": stream.consumer, "messages": stream.messages,
               "waiting": stream.pending, "unanswered": stream.unanswered, "missing": stream.missing})
    });
    check.with("streams", measured.collect::<Vec<_>>())
}
