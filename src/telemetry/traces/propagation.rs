//! W3C Trace Context: the headers `traceparent` and `tracestate` as the parent of a span, and a span as these headers.

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceFlags};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use reqwest::header::HeaderMap;

use crate::domain::trace_context::{TRACESTATE_MAX, TraceContext};

struct Fields<'a> {
    traceparent: &'a str,
    tracestate: &'a str,
}

impl Extractor for Fields<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        match name {
            "traceparent" => Some(self.traceparent),
            "tracestate" => Some(self.tracestate),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// The span of the caller. Empty if the request names none, or more than one.
pub fn parent_of_request(headers: &HeaderMap) -> Context {
    let values = |name| headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let mut traceparents = values("traceparent");
    match (traceparents.next(), traceparents.next()) {
        (Some(traceparent), None) => {
            let tracestate = values("tracestate").collect::<Vec<_>>().join(",");
            // Each copy of a span copies it, and spans wait in a queue.
            let tracestate = if tracestate.len() <= TRACESTATE_MAX { tracestate } else { String::new() };
            parent(&Fields { traceparent, tracestate: &tracestate })
        }
        _ => Context::new(),
    }
}

/// The span that an event was caused by. Empty if it has none.
pub fn parent_of_delivery(cause: Option<&TraceContext>) -> Context {
    let Some(TraceContext { traceparent, tracestate }) = cause else { return Context::new() };
    parent(&Fields { traceparent, tracestate: tracestate.as_deref().unwrap_or_default() })
}

fn parent(fields: &Fields<'_>) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), fields)
}

pub fn context_of(span: &SpanContext) -> TraceContext {
    let flags = span.trace_flags() & TraceFlags::SAMPLED;
    let tracestate = span.trace_state().header();
    TraceContext {
        traceparent: format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id()),
        tracestate: Some(tracestate).filter(|tracestate| (1..=TRACESTATE_MAX).contains(&tracestate.len())),
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TraceContextExt;
    use reqwest::header::HeaderValue;

    use super::*;

    const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn received(pairs: &[(&'static str, &'static str)]) -> TraceContext {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        context_of(parent_of_request(&headers).span().span_context())
    }

    fn is_parent(context: &TraceContext) -> bool {
        !context.traceparent.starts_with("00-00000000000000000000000000000000")
    }

    #[test]
    fn what_a_caller_sends_comes_out_again() {
        let unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        for traceparent in [TRACEPARENT, unsampled] {
            let context = received(&[("traceparent", traceparent), ("tracestate", "a=1,b=2"), ("tracestate", "c=3")]);
            let expected =
                TraceContext { traceparent: traceparent.to_owned(), tracestate: Some("a=1,b=2,c=3".to_owned()) };
            assert_eq!(context, expected);
            assert_eq!(context_of(parent_of_delivery(Some(&context)).span().span_context()), expected);
        }
    }

    #[test]
    fn what_is_not_valid_is_no_parent() {
        for pairs in [
            [].as_slice(),
            &[("tracestate", "a=1")],
            &[("traceparent", "")],
            &[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01")],
            &[("traceparent", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")],
            &[("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)],
        ] {
            assert!(!is_parent(&received(pairs)), "{pairs:?}");
        }
        assert!(is_parent(&received(&[("traceparent", TRACEPARENT), ("tracestate", "not a list")])));
    }

    #[test]
    fn a_tracestate_that_is_too_long_is_left_out() {
        // The parser leaves out values of more than 256 characters.
        let member = |number| format!("k{number}={}", "x".repeat(TRACESTATE_MAX / 3));
        let long = [1, 2, 3].map(member).join(",");
        let tracestate = |context: &Context| context.span().span_context().trace_state().header();
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", HeaderValue::from_static(TRACEPARENT));
        headers.insert("tracestate", HeaderValue::from_str(&long).expect("a value"));
        assert_eq!(tracestate(&parent_of_request(&headers)), "");
        // Of a row that something else wrote.
        let stored = TraceContext { traceparent: TRACEPARENT.to_owned(), tracestate: Some(long.clone()) };
        let parent = parent_of_delivery(Some(&stored));
        assert_eq!(tracestate(&parent), long);
        assert_eq!(context_of(parent.span().span_context()).tracestate, None);
    }
}
