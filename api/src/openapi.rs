//! `GET /openapi.json`: the API as OpenAPI 3.1. Paths come from the handlers that are routed, schemas from the types that are
//! answered; what a request may hold is checked against the document by a fuzzer (`tests/openapi.rs`).

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::schema::{AdditionalProperties, AnyOfBuilder};
use utoipa::openapi::{OpenApi as Document, RefOr, Schema};
use utoipa::{IntoResponses, OpenApi};

use longshore_domain::{CreateRequest, Problem};

use crate::ApiState;

/// What stands above the paths.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "longshore",
        description = "Imports CSV files from object storage into a database: ask for an import, upload its file to the \
                       presigned URL, follow it until `done`. Errors are problem details (RFC 9457).",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "imports", description = "Create, read, list"),
        (name = "actions", description = "What a client does with its import"),
        (name = "parts", description = "Chunks, rejects, events"),
        (name = "service", description = "For operators"),
    ),
    components(schemas(CreateRequest)),
)]
pub struct Api;

/// The objects of a create request.
const REQUESTS: [&str; 7] =
    ["CreateRequest", "Destination", "FileInfo", "GivenFormat", "Column", "OnError", "UploadWish"];

/// What the types of a whole document cannot say themselves.
pub(crate) fn complete(mut document: Document) -> Document {
    let Some(components) = &mut document.components else { return document };
    // Requests hold what is listed and nothing else.
    for name in REQUESTS {
        if let Some(RefOr::T(Schema::Object(object))) = components.schemas.get_mut(name) {
            object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
        }
    }
    // What was found is a whole form of what can be given: both fit.
    if let Some(RefOr::T(schema)) = components.schemas.get_mut("ShownFormat")
        && let Schema::OneOf(one) = schema
    {
        let any = one.items.drain(..).fold(AnyOfBuilder::new(), AnyOfBuilder::item);
        *schema = any.description(one.description.take()).into();
    }
    document
}

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident $status:literal $text:literal;)*) => {
        $(
            $(#[$doc])*
            #[derive(IntoResponses)]
            #[response(status = $status, description = $text, content_type = "application/problem+json")]
            #[allow(dead_code, reason = "it only stands for the answer in the document")]
            pub struct $name(#[to_schema] Problem);
        )*
    };
}

problems! {
    /// A `400`.
    BadRequest 400 "The request is not valid; `errors` names each fault";
    /// A `403`.
    ForeignOrigin 403 "A browser sent this for a page of an origin that is not allowed";
    /// A `404`.
    NotFound 404 "There is no such import";
    /// A `408`.
    RequestTimeout 408 "The body did not arrive in time";
    /// A `409`.
    WrongState 409 "The import's state forbids the call, or its file is not there";
    /// A `413`.
    TooLarge 413 "The body is larger than 2 MiB";
    /// A `422`.
    KeyReused 422 "The idempotency key was used for another request";
    /// A `503`.
    Unavailable 503 "A dependency is away; `Retry-After` says when to come back";
}

/// `GET /openapi.json`
#[utoipa::path(get, path = "/openapi.json", tag = "service", responses((status = OK, description = "This document", content_type = "application/json", body = serde_json::Value)))]
pub async fn document(State(state): State<ApiState>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], state.document.clone()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_document_is_completed() {
        let (_, document) = crate::routes().split_for_parts();
        let document = serde_json::to_value(complete(document)).unwrap();
        let schemas = &document["components"]["schemas"];
        for name in REQUESTS {
            assert_eq!(schemas[name]["additionalProperties"], false, "{name}");
        }
        assert_eq!(schemas["ShownFormat"]["anyOf"].as_array().map(Vec::len), Some(2), "{}", schemas["ShownFormat"]);
        assert_eq!(document["openapi"], "3.1.0");
        assert!(document["paths"]["/v1/imports/{id}/events"]["get"].is_object());
    }
}
