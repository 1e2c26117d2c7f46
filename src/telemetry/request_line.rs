//! Formats the request line as JSON. It is most of the log, and the general formatter takes ten times as long. The
//! format is that of `tracing-subscriber`.

use std::cell::RefCell;
use std::io::Write;
use std::time::Duration;

use opentelemetry::TraceId;
use time::OffsetDateTime;
use time::format_description::StaticFormatDescription;
use time::macros::format_description;

/// RFC 3339 up to the second.
const RFC_3339_SECOND: StaticFormatDescription = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");

/// The content of the line.
#[derive(Clone, Copy, Debug)]
pub struct RequestLine<'a> {
    pub request_id: &'a str,
    pub method: &'a str,
    /// Without query and API keys.
    pub path: &'a str,
    pub status: u16,
    pub took: Milliseconds,
    /// None while traces are off.
    pub trace_id: Option<TraceId>,
}

/// A duration as it is shown: in milliseconds, rounded to tenths.
#[derive(Clone, Copy, Debug)]
pub struct Milliseconds {
    tenths: u64,
}

impl Milliseconds {
    pub fn of(duration: Duration) -> Self {
        Self { tenths: u64::try_from((duration.as_micros() + 50) / 100).unwrap_or(u64::MAX) }
    }

    pub fn tenths(self) -> u64 {
        self.tenths
    }

    /// With one decimal.
    pub fn write(self, text: &mut Vec<u8>) {
        write_integer(text, self.tenths / 10);
        text.extend([b'.', b'0' + (self.tenths % 10) as u8]);
    }
}

impl RequestLine<'_> {
    pub fn to_json(self, now: OffsetDateTime) -> Vec<u8> {
        let mut line = Vec::with_capacity(320);
        line.extend(br#"{"timestamp":""#);
        write_timestamp(&mut line, now);
        line.extend(br#"","level":"INFO","fields":{"message":"request completed","requestId":"#);
        write_text(&mut line, self.request_id);
        line.extend(br#","method":"#);
        write_text(&mut line, self.method);
        line.extend(br#","path":"#);
        write_text(&mut line, self.path);
        line.extend(br#","status":"#);
        write_integer(&mut line, self.status.into());
        line.extend(br#","durationMs":"#);
        self.took.write(&mut line);
        if let Some(trace_id) = self.trace_id {
            let _ = write!(line, r#","traceId":"{trace_id}""#);
        }
        line.extend(br#"},"target":"agentpay_billing::api::request::pipeline"}"#);
        line.push(b'\n');
        line
    }
}

/// Quotes and escapes `text`.
fn write_text(line: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(line, text).expect("text is written to memory");
}

/// Without the machinery of `fmt`, which takes ten times as long.
fn write_integer(text: &mut Vec<u8>, integer: u64) {
    serde_json::to_writer(text, &integer).expect("a number is written to memory");
}

/// RFC 3339 in UTC with microseconds. The part up to the second is formatted once a second.
fn write_timestamp(line: &mut Vec<u8>, now: OffsetDateTime) {
    thread_local! {
        static SECOND: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
    }
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != now.unix_timestamp() {
            *second = now.unix_timestamp();
            *text = now.format(RFC_3339_SECOND).expect("a year has four digits");
        }
        line.extend(text.as_bytes());
    });
    let _ = write!(line, ".{:06}Z", now.microsecond());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_line_has_the_shape_of_all_others() {
        let trace_id = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128;
        let line = RequestLine {
            request_id: "r \"1\"",
            method: "POST",
            path: "/api/v1/usage",
            status: 201,
            took: Milliseconds::of(Duration::from_micros(123_449)),
            trace_id: Some(trace_id.into()),
        };
        let now = OffsetDateTime::from_unix_timestamp_nanos(1_767_225_600_000_042_000).expect("a moment");
        let text = line.to_json(now);
        assert_eq!(text.last(), Some(&b'\n'));
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&text).expect("JSON"),
            json!({
                "timestamp": "2026-01-01T00:00:00.000042Z",
                "level": "INFO",
                "fields": {
                    "message": "request completed",
                    "requestId": "r \"1\"",
                    "method": "POST",
                    "path": "/api/v1/usage",
                    "status": 201,
                    "durationMs": 123.4,
                    "traceId": "4bf92f3577b34da6a3ce929d0e0e4736"
                },
                "target": "agentpay_billing::api::request::pipeline"
            })
        );
    }
}
