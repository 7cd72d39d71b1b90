//! The bucket, and its notification: what `prepare` makes where it is missing. Talks to the server with the `minio` crate.
//!
//! `PutBucketNotification` replaces the whole configuration, so it is read, merged and written, and read again: somebody
//! else may write between. A server that cannot do it is reported, and never stops the start: the sweep finds objects too.

use std::time::Duration;

use minio::s3::client::{MinioClient, MinioClientBuilder};
use minio::s3::creds::StaticProvider;
use minio::s3::error::{Error, NetworkError, S3ServerError, ValidationErr};
use minio::s3::http::BaseUrl;
use minio::s3::response_traits::HasS3Fields;
use minio::s3::types::{NotificationConfig, PrefixFilterRule, QueueConfig, Region, S3Api};
use tracing::{debug, info, warn};

use super::s3::{causes, chain};
use super::{ObjectError, S3Config};

/// One call of the `minio` crate, which knows no time-outs.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the configuration is merged and written when others write it too.
const MERGES: u32 = 5;
const MERGE_PAUSE: Duration = Duration::from_millis(100);
const EVENTS: &str = "s3:ObjectCreated:*";

/// Makes the bucket where it is missing, and the notification where one is asked for. A bucket that is `there` needs no
/// right to make one, nor to look at it.
pub(super) async fn prepare(config: &S3Config, endpoint: &str, there: bool) -> Result<(), ObjectError> {
    let server = Server::new(config, endpoint)?;
    if !there {
        server.create_bucket().await?;
    }
    let Some(arn) = &config.notification_arn else { return Ok(()) };
    match server.ensure_notification(arn).await {
        Ok(()) => {}
        Err(ObjectError::Unavailable { endpoint, reason }) => {
            return Err(ObjectError::Unavailable { endpoint, reason });
        }
        Err(error) => warn!(
            bucket = config.bucket,
            arn,
            %error,
            "the bucket's notification could not be set: imports start by the complete call or the sweep; set it by \
             hand, or unset LONGSHORE_S3_NOTIFICATION_ARN"
        ),
    }
    Ok(())
}

struct Server<'a> {
    config: &'a S3Config,
    endpoint: &'a str,
    client: MinioClient,
    region: Region,
}

impl<'a> Server<'a> {
    fn new(config: &'a S3Config, endpoint: &'a str) -> Result<Self, ObjectError> {
        let refused = |error: &dyn std::fmt::Display| ObjectError::Refused {
            endpoint: endpoint.to_owned(),
            reason: format!("the bucket cannot be looked at: {error}"),
        };
        let base: BaseUrl = endpoint.parse().map_err(|error: ValidationErr| refused(&error))?;
        let provider = StaticProvider::new(&config.access_key_id, config.secret_access_key.expose(), None);
        let client = MinioClientBuilder::new(base).provider(Some(provider)).build().map_err(|error| refused(&error))?;
        let region = Region::new(config.region.clone()).map_err(|error| refused(&error))?;
        Ok(Self { config, endpoint, client, region })
    }

    async fn create_bucket(&self) -> Result<(), ObjectError> {
        let create =
            self.client.create_bucket(&self.config.bucket).map_err(|error| self.error("create", error.into()))?;
        match self.call("create the bucket", create.region(self.region.clone()).build().send()).await {
            Ok(_) => info!(bucket = self.config.bucket, "bucket created"),
            // Another node may have been faster; whatever the server calls that, the bucket is there.
            Err(error) => match self.bucket_exists().await {
                Ok(true) => debug!(bucket = self.config.bucket, "another node created the bucket"),
                _ => return Err(error),
            },
        }
        Ok(())
    }

    async fn bucket_exists(&self) -> Result<bool, ObjectError> {
        let what = "look at the bucket";
        let exists = self.client.bucket_exists(&self.config.bucket).map_err(|error| self.error(what, error.into()))?;
        Ok(self.call(what, exists.region(Some(self.region.clone())).build().send()).await?.exists())
    }

    async fn ensure_notification(&self, arn: &str) -> Result<(), ObjectError> {
        for merge in 0..MERGES {
            let mut rules = self.notification().await?;
            if rules.queue_config_list.iter().flatten().any(|rule| covers(rule, arn, &self.config.events_prefix)) {
                debug!(bucket = self.config.bucket, arn, "the bucket's notification is set");
                return Ok(());
            }
            if merge > 0 {
                tokio::time::sleep(MERGE_PAUSE * merge).await;
            }
            let kept = rule_count(&rules);
            escape(&mut rules);
            rules.queue_config_list.get_or_insert_default().push(QueueConfig {
                events: vec![EVENTS.to_owned()],
                id: None,
                prefix_filter_rule: Some(PrefixFilterRule { value: escaped(&self.config.events_prefix) }),
                suffix_filter_rule: None,
                queue: escaped(arn),
            });
            let what = "set the bucket's notification";
            let put = self
                .client
                .put_bucket_notification(&self.config.bucket)
                .map_err(|error| self.error(what, error.into()))?;
            let put = put.region(self.region.clone()).notification_config(rules).build();
            self.call(what, put.send()).await?;
            info!(bucket = self.config.bucket, arn, kept, "added a rule to the bucket's notification");
        }
        Err(self.refused("the bucket's notification is gone each time it was set: is someone else setting it too?"))
    }

    /// The rules that are there. Only what can be written back unchanged is taken.
    async fn notification(&self) -> Result<NotificationConfig, ObjectError> {
        let what = "read the bucket's notification";
        let get =
            self.client.get_bucket_notification(&self.config.bucket).map_err(|error| self.error(what, error.into()))?;
        let response = self.call(what, get.region(Some(self.region.clone())).build().send()).await?;
        let raw = String::from_utf8_lossy(response.body());
        // The crate takes `Prefix`, as AWS spells it, for a suffix, and drops what it does not know.
        if ["<Name>Prefix</Name>", "<Name>Suffix</Name>", "EventBridgeConfiguration"]
            .iter()
            .any(|odd| raw.contains(odd))
        {
            return Err(self.refused("the bucket has notification rules that would not survive being written back"));
        }
        response.config().map_err(|error| self.error(what, error.into()))
    }

    async fn call<T>(&self, what: &str, call: impl Future<Output = Result<T, Error>>) -> Result<T, ObjectError> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(answer) => answer.map_err(|error| self.error(what, error)),
            Err(_) => Err(self.unavailable(format!("no answer within {CALL_TIMEOUT:?} to the wish to {what}"))),
        }
    }

    fn error(&self, what: &str, error: Error) -> ObjectError {
        match error {
            Error::S3Server(S3ServerError::S3Error(error)) => {
                let code = error.code().to_string();
                let reason =
                    format!("it does not let us {what} ({code}): {}", error.message().as_deref().unwrap_or("-"));
                let passing = ["slowdown", "internalerror", "serviceunavailable", "servernotinitialized", "busy"];
                if passing.iter().any(|passing| code.to_ascii_lowercase().contains(passing)) {
                    self.unavailable(reason)
                } else {
                    self.refused(&reason)
                }
            }
            Error::S3Server(S3ServerError::HttpError(status, _))
            | Error::S3Server(S3ServerError::InvalidServerResponse { http_status_code: status, .. })
            | Error::Network(NetworkError::ServerError(status)) => {
                let reason = format!("it does not let us {what} (HTTP {status})");
                if status >= 500 && status != 501 { self.unavailable(reason) } else { self.refused(&reason) }
            }
            Error::Network(NetworkError::ReqwestError(error)) | Error::Validation(ValidationErr::HttpError(error)) => {
                self.unavailable(causes(error))
            }
            Error::DriveIo(error) => self.unavailable(chain(&error)),
            Error::Validation(error) => self.refused(&format!("cannot {what}: {error}")),
        }
    }

    fn unavailable(&self, reason: String) -> ObjectError {
        ObjectError::Unavailable { endpoint: self.endpoint.to_owned(), reason }
    }

    fn refused(&self, reason: &str) -> ObjectError {
        ObjectError::Refused { endpoint: self.endpoint.to_owned(), reason: reason.to_owned() }
    }
}

/// Whether a rule already brings us what we need: every upload is one PUT.
fn covers(rule: &QueueConfig, arn: &str, prefix: &str) -> bool {
    rule.queue == arn
        && rule.suffix_filter_rule.is_none()
        && rule.prefix_filter_rule.as_ref().is_none_or(|rule| prefix.starts_with(&rule.value))
        && rule.events.iter().any(|event| event == EVENTS || event == "s3:ObjectCreated:Put")
}

fn rule_count(rules: &NotificationConfig) -> usize {
    rules.queue_config_list.iter().flatten().count()
        + rules.topic_config_list.iter().flatten().count()
        + rules.cloud_func_config_list.iter().flatten().count()
}

/// The crate reads entities but writes values as they are.
fn escape(rules: &mut NotificationConfig) {
    for rule in rules.queue_config_list.iter_mut().flatten() {
        escape_value(&mut rule.queue);
        escape_filter(&mut rule.id, rule.prefix_filter_rule.as_mut().map(|rule| &mut rule.value));
        escape_filter(&mut None, rule.suffix_filter_rule.as_mut().map(|rule| &mut rule.value));
    }
    for rule in rules.topic_config_list.iter_mut().flatten() {
        escape_value(&mut rule.topic);
        escape_filter(&mut rule.id, rule.prefix_filter_rule.as_mut().map(|rule| &mut rule.value));
        escape_filter(&mut None, rule.suffix_filter_rule.as_mut().map(|rule| &mut rule.value));
    }
    for rule in rules.cloud_func_config_list.iter_mut().flatten() {
        escape_value(&mut rule.cloud_func);
        escape_filter(&mut rule.id, rule.prefix_filter_rule.as_mut().map(|rule| &mut rule.value));
        escape_filter(&mut None, rule.suffix_filter_rule.as_mut().map(|rule| &mut rule.value));
    }
}

fn escape_filter(id: &mut Option<String>, filter: Option<&mut String>) {
    if let Some(id) = id {
        escape_value(id);
    }
    if let Some(filter) = filter {
        escape_value(filter);
    }
}

fn escape_value(value: &mut String) {
    *value = escaped(value);
}

fn escaped(value: &str) -> String {
    value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(events: &[&str], prefix: Option<&str>, queue: &str) -> QueueConfig {
        QueueConfig {
            events: events.iter().map(|&event| event.to_owned()).collect(),
            id: None,
            prefix_filter_rule: prefix.map(|value| PrefixFilterRule { value: value.to_owned() }),
            suffix_filter_rule: None,
            queue: queue.to_owned(),
        }
    }

    #[test]
    fn a_wider_rule_is_good_enough() {
        for prefix in [None, Some("imp"), Some("imports/")] {
            assert!(covers(&rule(&[EVENTS], prefix, "arn"), "arn", "imports/"));
        }
        assert!(covers(&rule(&["s3:ObjectCreated:Put"], None, "arn"), "arn", "imports/"));
    }

    #[test]
    fn another_rule_is_not() {
        assert!(!covers(&rule(&[EVENTS], Some("imports/2024/"), "arn"), "arn", "imports/"));
        assert!(!covers(&rule(&[EVENTS], None, "other"), "arn", "imports/"));
        assert!(!covers(&rule(&["s3:ObjectRemoved:*"], None, "arn"), "arn", "imports/"));
    }

    #[test]
    fn rules_of_others_keep_their_odd_characters() {
        let mut rules = NotificationConfig {
            queue_config_list: Some(vec![rule(&[EVENTS], Some("a&b<c>"), "arn")]),
            ..Default::default()
        };
        escape(&mut rules);
        assert!(rules.to_xml().contains("<Value>a&amp;b&lt;c&gt;</Value>"));
    }
}
