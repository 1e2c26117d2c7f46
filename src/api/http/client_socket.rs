//! The socket of one client, between hyper and TCP. It does three things that hyper does not: it replaces hyper's own
//! error responses with the error envelope, it discards what a refused client still sends before the connection closes,
//! and it resets the connection if a response breaks off, because over HTTP/1.0 an orderly end would look complete.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::domain::refusal::Refusal;

use crate::api::http::activity::{Activity, State};
use crate::api::http::refused_head;
use crate::settings::http_limits::HttpLimits;

/// Maximum number of unsent bytes in the kernel's buffer. They are held for the client, too.
const UNSENT_BYTES: u32 = 128 << 10;

pub struct ClientSocket {
    stream: TcpStream,
    activity: Activity,
    limits: HttpLimits,
    /// The unsent part of the response that replaces hyper's.
    refusal: Option<Bytes>,
    resets_when_closed: bool,
    is_shut: bool,
}

impl ClientSocket {
    pub fn new(stream: TcpStream, activity: Activity, limits: HttpLimits) -> Self {
        let _ = stream.set_nodelay(true);
        #[cfg(target_os = "linux")]
        let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES);
        Self { stream, activity, limits, refusal: None, resets_when_closed: false, is_shut: false }
    }

    /// While a response without a marked end is being sent, the end of the process must also reset the connection.
    fn set_reset_when_closed(&mut self, resets: bool) {
        if self.resets_when_closed != resets {
            let linger = resets.then_some(Duration::ZERO);
            // Fails only if the connection is already broken.
            let _ = SockRef::from(&self.stream).set_linger(linger);
            self.resets_when_closed = resets;
        }
    }

    /// Whether hyper writes the response to a head that it cannot read. That response has only a status, so another one
    /// takes its place.
    fn replaces(&mut self, head: &[u8]) -> bool {
        if !matches!(self.activity.state(), State::Idle { .. } | State::Head { .. }) {
            return false;
        }
        let refusal = refused_head::answer(head);
        self.activity.answer_began(Some(refusal.len() as u64), true);
        self.activity.answer_body_ended(true);
        self.refusal = Some(refusal);
        true
    }

    /// Responds to a head for which hyper wrote no response.
    pub async fn refuse(&mut self, refusal: Refusal) {
        refused_head::send(&mut self.stream, &refused_head::unanswered(refusal)).await;
    }

    fn poll_refusal(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.refusal.as_mut().filter(|rest| !rest.is_empty()) {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
            rest.advance(sent);
        }
        self.refusal = None;
        Poll::Ready(Ok(()))
    }

    /// Discards what the client sends, until it stops or has sent too much.
    fn poll_discard(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut space = [0; 16 << 10];
        loop {
            let mut buffer = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer));
            let bytes = buffer.filled().len();
            if read.is_err() || bytes == 0 || self.activity.discarded(bytes) > self.limits.linger_bytes_max {
                return Poll::Ready(());
            }
        }
    }

    fn wrote(&mut self, polled: &Poll<io::Result<usize>>, context: &mut Context<'_>) {
        match polled {
            Poll::Ready(Ok(bytes)) => self.activity.sent(*bytes),
            Poll::Ready(Err(_)) => {}
            // The client may not read before it has sent everything.
            Poll::Pending if self.activity.may_discard() => self.discard_while_answering(context),
            Poll::Pending => {}
        }
    }

    fn discard_while_answering(&mut self, context: &mut Context<'_>) {
        let mut space = [0; 16 << 10];
        let mut buffer = ReadBuf::new(&mut space);
        while let Poll::Ready(Ok(())) = Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
            if buffer.filled().is_empty() {
                return;
            }
            buffer.clear();
        }
    }
}

impl Drop for ClientSocket {
    fn drop(&mut self) {
        if self.activity.is_answer_under_way() {
            self.set_reset_when_closed(true);
        }
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.received();
        }
        polled
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.replaces(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let streams = self.activity.is_streaming();
        self.set_reset_when_closed(streams);
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(&polled, context);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.replaces(slices.first().map_or(&[], |first| first)) {
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        let streams = self.activity.is_streaming();
        self.set_reset_when_closed(streams);
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.wrote(&polled, context);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper calls it when it has nothing more to write.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refusal(context))?;
        if self.activity.flushed() {
            self.set_reset_when_closed(false);
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refusal(context))?;
        if !self.is_shut {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.is_shut = true;
        }
        if !self.activity.is_request_complete() {
            self.activity.linger_began();
            ready!(self.poll_discard(context));
        }
        Poll::Ready(Ok(()))
    }
}
