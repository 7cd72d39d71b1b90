//! The storage: which one the settings mean, its bucket, its notification. The upload itself is in `exchange`.

use std::net::SocketAddr;
use std::sync::Arc;

use longshore_storage::bus::in_process::InProcessBus;
use longshore_storage::objects::probe::{Greeting, NotificationRule};
use longshore_storage::objects::{
    EmbeddedConfig, EmbeddedStore, ObjectError, ObjectStore as _, S3Config, S3Store, Secret,
};

use super::Role;
use super::events::{Events, Told};
use super::exchange;
use super::reader;
use super::report::Check;
use super::service::{Owner, Scratch};
use crate::settings::{S3Settings, Settings};
use crate::wire::{reachable, running_embedded, s3_config};

/// What depends on the bucket, in the order of the report.
const BEHIND_BUCKET: [&str; 5] = ["notification", "upload", "reads", "cors", "events"];

/// What came of it.
pub struct Seen {
    pub checks: Vec<Check>,
    pub greeting: Option<Greeting>,
}

impl Seen {
    fn only(bucket: Check, why: &str) -> Self {
        let rest = BEHIND_BUCKET.map(|name| Check::skipped(name, why));
        Self { checks: std::iter::once(bucket).chain(rest).collect(), greeting: None }
    }
}

/// Checks the storage that the settings mean.
pub async fn check(settings: &Settings, role: Role, owner: &Owner, service_answers: bool) -> Seen {
    match (&settings.s3, owner) {
        (Some(s3), _) => server(settings, role, s3, service_answers).await,
        (None, Owner::Running) => match running_embedded(settings) {
            Ok(Some(s3)) => server(settings, role, &s3, service_answers).await,
            Ok(None) => {
                let why = "the embedded endpoint of the running service is on a port of its own choice: set LONGSHORE_S3_LISTEN";
                Seen::only(Check::skipped("bucket", why), "the embedded endpoint's address is not known")
            }
            Err(error) => {
                let advice = "run the doctor as the account that the service runs as, with its LONGSHORE_DATA_DIR";
                Seen::only(Check::fail("bucket", format!("{error:#}"), advice), "the bucket cannot be reached")
            }
        },
        (None, _) => embedded(settings).await,
    }
}

/// No service runs: an endpoint of the doctor's own, on the same file system, for the time of the check.
async fn embedded(settings: &Settings) -> Seen {
    let unusable = |reason: String| {
        let advice =
            "let LONGSHORE_DATA_DIR name a folder that this account may write to, on a file system with hard links";
        let bucket = Check::fail("bucket", format!("the embedded endpoint does not work there: {reason}"), advice);
        Seen::only(bucket, "the embedded endpoint does not work")
    };
    let scratch = match Scratch::new(&settings.data_dir) {
        Ok(scratch) => scratch,
        Err(error) => return unusable(error.to_string()),
    };
    let secret = Secret::new(uuid::Uuid::new_v4().simple().to_string());
    let config = EmbeddedConfig {
        root: scratch.path().join("s3"),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        public_endpoint: None,
        bucket: settings.s3_bucket.clone(),
        region: settings.s3_region.clone(),
        access_key_id: "doctor".to_owned(),
        secret_access_key: secret.clone(),
        cors_origins: settings.cors_origins.clone(),
    };
    let store = match EmbeddedStore::start(config, Arc::new(InProcessBus::new())).await {
        Ok(store) => store,
        Err(error) => return unusable(error.to_string()),
    };
    let s3 = S3Settings {
        endpoint: store.endpoint().clone(),
        access_key_id: "doctor".to_owned(),
        secret_access_key: secret,
        signer: None,
    };
    let config = S3Config { public_endpoint: s3.endpoint.clone(), ..s3_config(settings, &s3) };
    let mut checks = vec![Check::ok("bucket", "embedded: tried beside what the service keeps, since none runs")];
    match S3Store::new(config) {
        Ok(client) => {
            checks.push(Check::skipped("notification", "the embedded endpoint tells by itself"));
            let why = "no service runs whose embedded endpoint could tell of an upload".to_owned();
            checks.extend(exchange::check(settings, Role::Serve, &s3, client, Events::Skipped(why), None).await);
        }
        Err(error) => return unusable(error.to_string()),
    }
    store.shutdown().await;
    Seen { checks, greeting: None }
}

/// A server, or the embedded endpoint of a running service as its clients see it.
async fn server(settings: &Settings, role: Role, s3: &S3Settings, service_answers: bool) -> Seen {
    let store = match S3Store::new(s3_config(settings, s3)) {
        Ok(store) => store,
        Err(error) => {
            let advice = "check LONGSHORE_S3_ENDPOINT and LONGSHORE_S3_PUBLIC_ENDPOINT";
            return Seen::only(Check::fail("bucket", error.to_string(), advice), "there is no address to ask");
        }
    };
    let (greeting, reached) = tokio::join!(store.greet(), store.check());
    let greeting = greeting.ok();
    if let Err(error) = reached {
        let mut seen = Seen::only(bucket_fails(settings, &error, greeting.as_ref()), "the bucket cannot be reached");
        seen.greeting = greeting;
        return seen;
    }
    let server = greeting.as_ref().and_then(|greeting| greeting.server.clone());
    let bucket = Check::ok("bucket", format!("{} is there", store.bucket())).with("server", server);
    if !role.signs() {
        let mut checks = vec![bucket, Check::skipped("notification", "a worker leaves it alone")];
        checks.extend(reader::check(&store).await);
        return Seen { checks, greeting };
    }
    let embedded = settings.s3.is_none();
    let (notification, told) = match (&settings.nats_url, embedded) {
        (_, true) => (Check::skipped("notification", "the embedded endpoint tells by itself"), Told::Surely),
        (None, false) => {
            let why = "LONGSHORE_NATS_URL is not set: a storage's events have nowhere to go";
            (Check::skipped("notification", why), Told::HardlyEver)
        }
        (Some(_), false) => notification(settings, store.notification().await),
    };
    let events = match &settings.nats_url {
        None => Events::Skipped("the bus is in the process: what the storage tells is not to be seen from here".into()),
        Some(_) => Events::Awaited(told),
    };
    let api = service_answers.then(|| format!("http://{}", reachable(settings.api_listen())));
    let mut checks = vec![bucket, notification];
    checks.extend(exchange::check(settings, role, s3, store, events, api).await);
    Seen { checks, greeting }
}

fn bucket_fails(settings: &Settings, error: &ObjectError, greeting: Option<&Greeting>) -> Check {
    let missing = greeting.is_some_and(|greeting| greeting.status == 404);
    let advice = match error {
        ObjectError::Unavailable { .. } => "check LONGSHORE_S3_ENDPOINT, and that the server runs there".to_owned(),
        _ if missing => format!(
            "start the service: it makes the bucket if its key may; or make it (mc mb ALIAS/{0}), or set LONGSHORE_S3_BUCKET",
            settings.s3_bucket
        ),
        _ => format!(
            "check LONGSHORE_S3_ACCESS_KEY_ID, LONGSHORE_S3_SECRET_ACCESS_KEY, LONGSHORE_S3_REGION, that {} is the bucket \
             (LONGSHORE_S3_BUCKET), and that the key may read in it",
            settings.s3_bucket
        ),
    };
    Check::fail("bucket", error.to_string(), advice)
}

type Rules = Result<Option<Vec<NotificationRule>>, ObjectError>;

/// What the bucket's notification says, and whether events have to come by it.
fn notification(settings: &Settings, rules: Rules) -> (Check, Told) {
    const NAME: &str = "notification";
    let bucket = &settings.s3_bucket;
    let arn = settings.s3_notification_arn.as_deref();
    let command = format!(
        "mc event add ALIAS/{bucket} {} --event put --prefix imports/",
        arn.unwrap_or("arn:minio:sqs::longshore:nats")
    );
    let rules = match (rules, arn) {
        (Ok(Some(rules)), _) => rules,
        (Ok(None), None) => {
            let detail =
                "this server has no notification of a bucket; it may send events by a setting of its own (see events)";
            return (Check::ok(NAME, detail), Told::HardlyEver);
        }
        (Ok(None), Some(_)) => {
            let advice = "unset LONGSHORE_S3_NOTIFICATION_ARN, and let the server send its events by a setting of its own \
                          (versitygw: --event-nats-url and --event-nats-topic)";
            return (Check::warn(NAME, "this server has no notification of a bucket", advice), Told::HardlyEver);
        }
        // The rights in deploy/ are such: an administrator has set it, and the key may not look.
        (Err(ObjectError::Refused { reason, .. }), _) if reason.contains("403") => {
            return (Check::skipped(NAME, "this key may not look at it, as deploy/ has it; see events"), Told::Perhaps);
        }
        (Err(error), _) => {
            let advice = "let the access key read it (s3:GetBucketNotification), or pass over this if events arrive";
            return (Check::warn(NAME, error.to_string(), advice), Told::Perhaps);
        }
    };
    let covering: Vec<&str> = rules.iter().filter(|rule| rule.covers).map(|rule| rule.target.as_str()).collect();
    let targets: Vec<&str> = rules.iter().map(|rule| rule.target.as_str()).collect();
    let found =
        if targets.is_empty() { "no rule is set".to_owned() } else { format!("rules go to {}", targets.join(", ")) };
    let check = match arn {
        Some(arn) if covering.contains(&arn) => Check::ok(NAME, format!("uploads under imports/ go to {arn}")),
        Some(arn) => Check::fail(
            NAME,
            format!(
                "no rule sends uploads under imports/ to {arn}, which LONGSHORE_S3_NOTIFICATION_ARN names; {found}"
            ),
            format!(
                "start the service, which sets it, or: {command}; the server has to know the target \
                 (MINIO_NOTIFY_NATS_ENABLE_<id>=on and its _ADDRESS and _SUBJECT)"
            ),
        ),
        None if !covering.is_empty() => {
            Check::ok(NAME, format!("uploads under imports/ go to {}", covering.join(", ")))
        }
        None => Check::warn(
            NAME,
            format!("no rule sends uploads under imports/ anywhere; {found}"),
            format!(
                "set LONGSHORE_S3_NOTIFICATION_ARN, or: {command}; without, imports start by the complete call or the sweep"
            ),
        ),
    };
    let told = if arn.is_some() || !covering.is_empty() { Told::Surely } else { Told::HardlyEver };
    (check.with("targets", targets), told)
}
