//! The API's description, made from the code, and a page that shows it.

use std::sync::Arc;

use axum::response::{Html, Response};
use axum::{Extension, Json, Router};
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{self, Content, RefOr};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::Caller;
use crate::app::App;
use crate::error::{Details, Failure};
use crate::{accounts, console, health, send, threads};

/// What no path says of itself.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "wa-backfill",
        description = "Errors are JSON. Documents are shown as they are in the store, with times as ISO 8601."
    ),
    components(schemas(Failure, Details))
)]
struct Whole;

/// Every path with what it answers, and the description of them all.
pub(crate) fn routes() -> (Router<App>, openapi::OpenApi) {
    let (router, mut api) = OpenApiRouter::with_openapi(Whole::openapi())
        .merge(health::routes())
        .merge(accounts::routes())
        .merge(send::routes())
        .merge(threads::routes())
        .merge(console::routes())
        .routes(routes!(description))
        .routes(routes!(docs_page))
        .routes(routes!(docs_script))
        .split_for_parts();
    complete(&mut api);
    (router, api)
}

/// Adds what many paths have in common.
fn complete(api: &mut openapi::OpenApi) {
    let components = api.components.get_or_insert_default();
    for name in ["admin", "firebase"] {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        components.add_security_scheme(name, scheme);
    }
    let paths = api.paths.paths.values_mut();
    let operations = paths.flat_map(|path| [&mut path.get, &mut path.post, &mut path.delete]);
    for operation in operations.flatten() {
        let open = operation.tags.iter().flatten().any(|tag| tag == "open");
        let common = match (&operation.security, open) {
            (_, true) => &[][..],
            (Some(_), false) => &OF_ALL[..],
            (None, false) => &OF_ALL[OF_CREDENTIALS..],
        };
        let responses = &mut operation.responses.responses;
        for (status, about) in common {
            let about = openapi::Response::builder().description(*about).build();
            responses.entry((*status).to_owned()).or_insert(about.into());
        }
        let failed = responses.iter_mut().filter(|(status, _)| !status.starts_with(['2', '3']));
        for (_, response) in failed {
            if let RefOr::T(response) = response
                && response.content.is_empty()
            {
                let failure = openapi::Ref::from_schema_name("Failure");
                response
                    .content
                    .insert("application/json".into(), Content::new(Some(failure)).into());
            }
        }
    }
}

/// What all paths may answer besides; the first ones only those that need credentials.
const OF_ALL: [(&str, &str); 4] = [
    ("401", "`unauthorized`: no credentials, or wrong ones"),
    ("403", "`forbidden`: these credentials do not allow it; `csrf` for a browser's"),
    ("429", "`rate_limited`: too many requests; `Retry-After` says when to come back"),
    ("default", "`store_unavailable`, `timeout`, `internal`: it could not be done now"),
];
const OF_CREDENTIALS: usize = 2;

/// This description.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "documentation",
    security(("firebase" = []), ("admin" = [])),
    responses((status = 200, description = "An OpenAPI document", body = Object))
)]
async fn description(
    _: Caller,
    Extension(api): Extension<Arc<openapi::OpenApi>>,
) -> Json<Arc<openapi::OpenApi>> {
    Json(api)
}

/// The same for people.
#[utoipa::path(
    get,
    path = "/docs",
    tag = "documentation",
    responses((status = 200, description = "A page", body = String, content_type = "text/html"))
)]
async fn docs_page() -> Html<&'static str> {
    Html(include_str!("../assets/docs.html"))
}

/// The script of the page.
#[utoipa::path(
    get,
    path = "/docs.js",
    tag = "documentation",
    responses((status = 200, description = "A script", body = String, content_type = "text/javascript"))
)]
async fn docs_script() -> Response {
    console::script(include_str!("../assets/docs.js"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_described() {
        let (router, api) = routes();
        // What a router knows shows only in its debug output: `RouteId(3): "/ready"`.
        let router = format!("{router:?}");
        let routed: BTreeSet<&str> = router
            .split("RouteId(")
            .filter_map(|part| part.split_once("): \"")?.1.split_once('"'))
            .map(|(path, _)| path)
            .filter(|path| path.starts_with('/') && !path.contains("__private__axum"))
            .collect();
        let described: BTreeSet<&str> = api.paths.paths.keys().map(String::as_str).collect();
        assert_eq!(routed, described);
    }
    #[test]
    fn operations_have_names_of_their_own() {
        let (_, mut api) = routes();
        let paths = api.paths.paths.values_mut();
        let all = paths.flat_map(|path| [&mut path.get, &mut path.post, &mut path.delete]);
        let names: Vec<String> =
            all.flatten().map(|operation| operation.operation_id.take().unwrap()).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
    }
}
