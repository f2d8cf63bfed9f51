//! What carries the bytes: TCP with Noise and Yamux, and QUIC where it is built in. Both prove the other end's Ed25519
//! identity before anything else is said.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    PeerId, Transport as _,
    core::{muxing::StreamMuxerBox, transport::Boxed, upgrade},
    identity::Keypair,
    noise, tcp, yamux,
};
use tokio::time::{Sleep, sleep};

use crate::settings::StartError;

/// Connecting and proving who one is, together.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams of one connection: questions both ways, gossip, identify, ping.
const MAX_STREAMS: u32 = 128;
/// Bytes that a QUIC peer may send ahead of our reading, on one stream and on all of a connection.
const QUIC_STREAM_WINDOW: usize = 1024 * 1024;
const QUIC_CONNECTION_WINDOW: usize = crate::MAX_ASK_BYTES;

/// Both transports. A TCP peer that takes no byte for `patience` is given up.
pub(crate) fn transport(
    key: &Keypair,
    patience: Duration,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, StartError> {
    let setup = |error: noise::Error| StartError::Setup(error.to_string());
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .map(move |stream, _| Impatient::new(stream, patience))
        .upgrade(upgrade::Version::V1Lazy)
        .authenticate(noise::Config::new(key).map_err(setup)?)
        .multiplex(yamux())
        .timeout(HANDSHAKE_TIMEOUT)
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
    let quic = libp2p::quic::tokio::Transport::new(quic(key))
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
    let both = tcp.or_transport(quic).map(|either, _| either.into_inner());
    Ok(both.boxed())
}

fn yamux() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(usize::try_from(MAX_STREAMS).unwrap_or(usize::MAX));
    config
}

fn quic(key: &Keypair) -> libp2p::quic::Config {
    let window = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    let mut config = libp2p::quic::Config::new(key);
    config.handshake_timeout = HANDSHAKE_TIMEOUT;
    config.max_concurrent_stream_limit = MAX_STREAMS;
    config.max_stream_data = window(QUIC_STREAM_WINDOW);
    config.max_connection_data = window(QUIC_CONNECTION_WINDOW);
    config
}

/// A stream that fails when the other end takes nothing for too long. Without it, a connection to somebody
/// who has stopped to read could not even be closed, because closing waits for what is left to be written.
struct Impatient<S> {
    stream: S,
    patience: Duration,
    /// Runs while a write can't go on.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    fn new(stream: S, patience: Duration) -> Self {
        Self {
            stream,
            patience,
            stalled: None,
        }
    }

    fn judge(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the peer takes nothing",
        )))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, data);
        self.judge(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, data);
        self.judge(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

#[cfg(test)]
mod tests {
    use futures::AsyncWriteExt as _;

    use super::*;

    /// Takes a byte at a time, each after a pause; without a pause, nothing ever.
    struct Mouth {
        pause: Option<Duration>,
        chewing: Option<Pin<Box<Sleep>>>,
    }

    impl Mouth {
        fn new(pause: Option<Duration>) -> Self {
            let chewing = pause.map(|pause| Box::pin(sleep(pause)));
            Self { pause, chewing }
        }
    }

    impl AsyncWrite for Mouth {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            let (Some(pause), Some(chewing)) = (self.pause, &mut self.chewing) else {
                return Poll::Pending;
            };
            ready!(chewing.as_mut().poll(context));
            self.chewing = Some(Box::pin(sleep(pause)));
            Poll::Ready(Ok(1))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_write_that_nobody_takes_fails_and_a_slow_one_does_not() {
        let patience = Duration::from_millis(200);
        let mut stream = Impatient::new(Mouth::new(None), patience);
        let error = stream.write_all(&[0; 9]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let slow = Mouth::new(Some(patience / 8));
        let mut stream = Impatient::new(slow, patience);
        stream.write_all(&[0; 16]).await.unwrap();
    }
}
