//! The bodies of a request and its response, as hyper sees them. They report to [`Activity`] when they end, and whether
//! they are complete.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use http_body_util::combinators::Fuse;
use hyper::body::{Frame, Incoming, SizeHint};

use crate::api::http::activity::Activity;
use crate::api::http::admission::HeldBytes;

/// Size of the parts that hyper is given. hyper buffers no more than one part, so the rest stays in the body and is
/// counted as held until the body is dropped.
const CHUNK_BYTES: usize = 64 << 10;

pub struct AnswerBody {
    inner: Body,
    /// The unread part of the latest chunk of `inner`.
    rest: Bytes,
    has_ended: bool,
    has_failed: bool,
    /// hyper sends no body, for example in response to HEAD.
    is_left_out: bool,
    activity: Activity,
    _held: Option<Arc<HeldBytes>>,
}

impl AnswerBody {
    pub fn of(response: Response, is_left_out: bool, activity: Activity) -> Response<Self> {
        let (mut parts, inner) = response.into_parts();
        let held = parts.extensions.remove::<Arc<HeldBytes>>();
        let rest = Bytes::new();
        let body = Self { inner, rest, has_ended: false, has_failed: false, is_left_out, activity, _held: held };
        Response::from_parts(parts, body)
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            if self.has_ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
                None => {
                    self.has_ended = true;
                    return Poll::Ready(None);
                }
                Some(Err(error)) => {
                    (self.has_ended, self.has_failed) = (true, true);
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
            }
        }
        let length = self.rest.len().min(CHUNK_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && !self.has_failed && (self.has_ended || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, rest) = (self.inner.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.activity.answer_body_ended(self.is_left_out || self.is_end_stream());
    }
}

/// Makes a streamed body safe to poll after its end, as the compression layer does.
pub fn fused(body: Body) -> Body {
    Body::new(Fuse::new(body))
}

/// A request body that reports when all of it has arrived.
pub struct RequestBody {
    inner: Incoming,
    activity: Activity,
}

impl RequestBody {
    pub fn of(inner: Incoming, activity: &Activity) -> Body {
        if inner.is_end_stream() {
            return Body::empty();
        }
        Body::new(Self { inner, activity: activity.clone() })
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || (polled.is_ready() && self.inner.is_end_stream()) {
            self.activity.request_completed();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
