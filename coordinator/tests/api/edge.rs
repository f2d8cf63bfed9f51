//! What never reaches a resource: malformed bodies, unknown routes, too much of anything.

use axum::{
    body::Body,
    http::{Method, Request, header},
};
use coordinator::api::{self, PerAddress};
use protocol::api::MAX_REQUEST_BYTES;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use crate::setting::{RATE, Setting, call, from, get, post};

const PATH: &str = "/v1/operations";

fn at_rate(requests_per_second: u32) -> PerAddress {
    PerAddress {
        requests_per_second,
        ..RATE
    }
}

#[tokio::test]
async fn a_body_that_is_not_the_json_expected_is_refused_with_the_place_of_the_fault() {
    let setting = Setting::new();
    let transfer = r#"{"type":"transfer","sender":0,"nonce":1,"amount_sat":1,"fee_sat":1,
        "recipient":"x","last_valid":1,"signature":"00""#;
    for (body, status, code, detail) in [
        (String::new(), 400, "malformed_body", "EOF"),
        ("{".to_owned(), 400, "malformed_body", "line 1"),
        (format!("{transfer}}}x"), 400, "malformed_body", "trailing"),
        (
            format!(r#"{{"recipient":{}"#, "[".repeat(10_000)),
            400,
            "malformed_body",
            "recursion",
        ),
        ("[]".to_owned(), 422, "invalid_body", "missing field"),
        (r#"{"type":"mint"}"#.to_owned(), 422, "invalid_body", "mint"),
        (
            r#"{"type":"transfer"}"#.to_owned(),
            422,
            "invalid_body",
            "missing field",
        ),
        (
            format!(r#"{transfer},"surprise":1}}"#),
            422,
            "invalid_body",
            "surprise",
        ),
        (
            format!("{transfer}}}").replace("\"amount_sat\":1", "\"amount_sat\":-1"),
            422,
            "invalid_body",
            "-1",
        ),
        (
            format!("{transfer}}}").replace("\"amount_sat\":1", "\"amount_sat\":1.5"),
            422,
            "invalid_body",
            "1.5",
        ),
    ] {
        let answer = call(&setting.router, post(PATH, body.clone())).await;
        answer.problem(status, code);
        let text = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(text.contains(detail), "{body}: {text}");
    }
    let unknown = r#"{"account":"x","refund_key":"y","surprise":1}"#;
    let answer = call(&setting.router, post("/v1/deposit-addresses", unknown)).await;
    answer.problem(422, "invalid_body");
}

#[tokio::test]
async fn a_body_must_say_that_it_is_json_and_be_small() {
    let setting = Setting::new();
    let bare = Request::post(PATH).body(Body::from("{}")).unwrap();
    call(&setting.router, bare)
        .await
        .problem(415, "unsupported_media_type");
    let form = Request::post(PATH)
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Body::from("a=b"))
        .unwrap();
    call(&setting.router, form)
        .await
        .problem(415, "unsupported_media_type");

    let fits = call(&setting.router, post(PATH, " ".repeat(MAX_REQUEST_BYTES))).await;
    fits.problem(400, "malformed_body");
    let large = call(
        &setting.router,
        post(PATH, " ".repeat(MAX_REQUEST_BYTES + 1)),
    )
    .await;
    large.problem(413, "body_too_large");
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_not_waited_for() {
    let setting = Setting::new();
    let never = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    call(&setting.router, post(PATH, never))
        .await
        .problem(408, "body_timeout");
}

#[tokio::test]
async fn an_unknown_route_and_a_wrong_method_are_problem_documents() {
    let setting = Setting::new();
    for path in [
        "/",
        "/v1",
        "/v2/vault",
        "/v1/vault/",
        "/v1/batches/1/proofs",
        "/docs/nothing.js",
    ] {
        setting.get(path).await.problem(404, "not_found");
    }
    for (method, path, allowed) in [
        (Method::GET, "/v1/operations", "POST"),
        (Method::DELETE, "/v1/vault", "GET"),
        (Method::POST, "/v1/batches/1", "GET"),
        (Method::PUT, "/healthz", "GET"),
    ] {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Body::empty())
            .unwrap();
        let answer = call(&setting.router, request).await;
        answer.problem(405, "method_not_allowed");
        assert!(
            answer.headers[header::ALLOW]
                .to_str()
                .unwrap()
                .contains(allowed),
            "{path}"
        );
    }
}

#[tokio::test]
async fn query_parameters_are_known_and_in_range() {
    let setting = Setting::new();
    for path in ["/v1/deposits", "/v1/batches"] {
        for query in [
            "limit=0",
            "limit=101",
            "limit=-1",
            "limit=x",
            "surprise=1",
            "after=x",
        ] {
            setting
                .get(&format!("{path}?{query}"))
                .await
                .problem(400, "invalid_query");
        }
        setting.get(&format!("{path}?limit=100")).await.ok();
    }
    setting
        .get("/v1/batches?account=x")
        .await
        .problem(400, "invalid_query");
}

#[tokio::test]
async fn one_address_can_use_up_its_own_rate_only() {
    let setting = Setting::new();
    let router = api::router(setting.reader.clone(), at_rate(5), Vec::new());
    let greedy = || from(get("/healthz"), "192.0.2.1:1");
    let mut passed = 0;
    let refused = loop {
        let answer = call(&router, greedy()).await;
        if !answer.status.is_success() {
            break answer;
        }
        passed += 1;
        assert!(passed < 1_000, "no limit");
    };
    refused.problem(429, "rate_limited");
    assert_eq!(refused.headers[header::RETRY_AFTER], "1");
    // Two seconds' worth, and what came back while the loop ran.
    assert!(passed >= 10, "{passed}");
    let mut again = 0;
    while call(&router, from(get("/healthz"), "192.0.2.1:2"))
        .await
        .status
        .is_success()
    {
        again += 1;
        assert!(again < 1_000, "another port has another rate");
    }
    assert!(
        call(&router, from(get("/healthz"), "192.0.2.2:1"))
            .await
            .status
            .is_success()
    );
}

/// The first line of the answer to a request, from a real connection.
async fn first_line(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = vec![0; 4096];
    let read = stream.read(&mut bytes).await.unwrap();
    String::from_utf8_lossy(&bytes[..read])
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn the_server_answers_connections_and_ends_when_it_is_told() {
    let setting = Setting::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let router = api::router(setting.reader.clone(), at_rate(1), Vec::new());
    let server = tokio::spawn(api::serve(listener, router, shutdown.clone()));

    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut answered = 0;
    loop {
        let line = first_line(&mut stream, request).await;
        if line != "HTTP/1.1 200 OK" {
            assert_eq!(line, "HTTP/1.1 429 Too Many Requests");
            break;
        }
        answered += 1;
        assert!(answered < 1_000, "no limit");
    }
    assert!(answered >= 2, "{answered}");
    shutdown.cancel();
    server.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}
