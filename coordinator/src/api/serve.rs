//! Connections: accepted within bounds, closed when a request's head does not arrive in time, and
//! given time to finish on shutdown. HTTP/1.1 only; TLS is a reverse proxy's job.

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo, response::Response};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::{
    limit::{Connections, MAX_CONNECTIONS, MAX_CONNECTIONS_PER_CLIENT, Slot, client},
    metrics,
    slow::Impatient,
};

/// Longest time between two requests of a connection, and for the head of one to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest head of a request in bytes.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// A client that takes nothing of an answer for so long is dropped.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time that open requests have to finish on shutdown.
const GRACE: Duration = Duration::from_secs(5);
/// Pause after the system had no file or memory for a connection.
const PAUSE: Duration = Duration::from_millis(200);
/// Pause between two clean-ups of the metrics.
const UPKEEP: Duration = Duration::from_secs(10);

/// Serves until `shutdown`, then waits a bounded time for requests in work.
///
/// # Errors
/// A listener that can't accept any more.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let connections = Arc::new(Connections::new(
        MAX_CONNECTIONS,
        MAX_CONNECTIONS_PER_CLIENT,
    ));
    let mut open = JoinSet::new();
    let mut upkeep = tokio::time::interval(UPKEEP);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = upkeep.tick() => metrics::upkeep(),
            Some(_) = open.join_next(), if !open.is_empty() => {}
            accepted = listener.accept(), if open.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, peer)) => {
                    if let Some(slot) = connections.open(client(peer.ip())) {
                        open.spawn(answer(stream, peer, router.clone(), shutdown.clone(), slot));
                    }
                }
                Err(error) if is_passing(&error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            },
        }
    }
    drop(listener);
    // Connections are aborted with the set when the time is over.
    let _ = tokio::time::timeout(GRACE, async { while open.join_next().await.is_some() {} }).await;
    Ok(())
}

/// Errors of one connection, and lack of files or memory, pass (accept(2)).
fn is_passing(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    let is_connections = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::OutOfMemory
    );
    is_connections || matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

async fn answer(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    shutdown: CancellationToken,
    _slot: Slot,
) {
    // Without it small answers may wait for the client's acknowledgement; it is no more than slower.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        let router = router.clone();
        async move {
            Ok::<Response, Infallible>(
                router
                    .oneshot(request)
                    .await
                    .unwrap_or_else(|never| match never {}),
            )
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(Impatient::new(stream, PATIENCE)), service);
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "a connection broke");
    }
}
