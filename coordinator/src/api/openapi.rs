//! The OpenAPI document, made from the handlers and the problem codes of their routes, and the pages
//! that show it. The pages' files are part of the binary.

use std::{collections::BTreeMap, sync::LazyLock};

use axum::{Json, Router, routing::get};
use protocol::api::Problem;
use utoipa::{
    OpenApi as _,
    openapi::{
        ContentBuilder, InfoBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder,
        path::{Operation, PathItem},
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::{
    Route, Shared, accounts, admin, batches, blame, deposits, events, operations,
    problem::{self, Code, MEDIA_TYPE},
    routes as all_routes, status, vault,
};

const PATH: &str = "/openapi.json";

const ABOUT: &str = "Amounts are integers in sats, times are Unix milliseconds, hashes and keys are \
    lower-case hex (transaction ids in Bitcoin's display order). Nothing here has to be believed: \
    addresses, payments, proofs and reserves can be checked. Errors are RFC 9457 problem documents \
    with a stable `code`.";

#[derive(utoipa::OpenApi)]
#[openapi(paths(show, problem::explain), components(schemas(Problem)))]
struct Doc;

static DOCUMENT: LazyLock<OpenApi> = LazyLock::new(document);

fn document() -> OpenApi {
    let mut document = Doc::openapi();
    for part in [
        deposits::Doc::openapi(),
        accounts::Doc::openapi(),
        operations::Doc::openapi(),
        batches::Doc::openapi(),
        blame::Doc::openapi(),
        events::Doc::openapi(),
        admin::Doc::openapi(),
        vault::Doc::openapi(),
        status::Doc::openapi(),
    ] {
        document.merge(part);
    }
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(
        "admin_token",
        SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)),
    );
    document.info = InfoBuilder::new()
        .title("Drawbridge coordinator")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .build();
    for route in all_routes() {
        if let Some(item) = document.paths.paths.get_mut(route.path) {
            for operation in operations_of(item) {
                add_problems(operation, &route.problems);
            }
        }
    }
    document
}

fn operations_of(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [item.get.as_mut(), item.post.as_mut()]
        .into_iter()
        .flatten()
}

/// One response a status, which names the codes that come with it.
fn add_problems(operation: &mut Operation, codes: &[Code]) {
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes.iter().chain(Code::EVERYWHERE) {
        by_status.entry(code.status()).or_default().push(*code);
    }
    for (status, codes) in by_status {
        let lines: Vec<_> = codes
            .iter()
            .map(|code| format!("`{code}`: {}", code.title()))
            .collect();
        let response = problem_response(lines.join("; "));
        operation
            .responses
            .responses
            .insert(status.to_string(), RefOr::T(response));
    }
}

fn problem_response(description: String) -> Response {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .build();
    ResponseBuilder::new()
        .description(description)
        .content(MEDIA_TYPE, content)
        .build()
}

/// This description of the API.
#[utoipa::path(get, path = "/openapi.json", tag = "meta",
    responses((status = 200, description = "An OpenAPI 3.1 document", body = serde_json::Value)))]
async fn show() -> Json<&'static OpenApi> {
    Json(&DOCUMENT)
}

/// The pages for people.
pub(super) fn pages() -> Router<Shared> {
    // Without "none" the pages may ask a public validator about the document.
    SwaggerUi::new("/docs")
        .config(Config::from(PATH).validator_url("none"))
        .into()
}

/// The endpoints in here.
pub(super) fn routes() -> Vec<Route> {
    vec![Route::new(PATH, get(show), &[])]
}
