//! Reads request bodies. Checks the media type, encoding, size, compressed data, JSON and U+0000, in this order.

use std::fmt;
use std::io::Read;
use std::time::Instant;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use crate::domain::refusal::Refusal;

use crate::api::http::admission::{Client, TooManyHeld};

/// Maximum length of a body after decompression.
const BYTES_MAX: usize = 102_400;
/// Maximum length before decompression. Data that cannot be compressed grows slightly.
const COMPRESSED_BYTES_MAX: usize = 2 * BYTES_MAX;
/// The first bits of a brotli stream with a large window, an extension that RFC 7932 declares invalid.
const LARGE_WINDOW: u8 = 0b001_0001;
const LARGE_WINDOW_MASK: u8 = 0b111_1111;
/// Maximum number of concurrent decoders. Each may fill a window of 16 MiB and keep a processor busy.
static DECODERS: Semaphore = Semaphore::const_new(4);
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Returns the JSON of a body; `{}` if there is none.
pub async fn read(headers: &HeaderMap, body: Body, deadline: Instant, client: &Client) -> Result<Value, Refusal> {
    let empty = Value::Object(serde_json::Map::new());
    let length = headers.get(header::CONTENT_LENGTH).map(|value| value.as_bytes());
    let is_chunked = headers.contains_key(header::TRANSFER_ENCODING);
    if !is_chunked && length.is_none_or(|length| length.iter().all(|digit| *digit == b'0')) {
        return Ok(empty);
    }
    let encoding = encoding(headers)?;
    let declared: Option<usize> = length.and_then(|length| std::str::from_utf8(length).ok()?.parse().ok());
    let bytes_max = if matches!(encoding, Encoding::Identity) { BYTES_MAX } else { COMPRESSED_BYTES_MAX };
    if declared.is_some_and(|length| length > bytes_max) {
        return Err(Refusal::BodyTooLarge);
    }
    // Counted until the body is parsed, because a slow client decides how long that takes.
    let held = client.hold(declared.unwrap_or(bytes_max));
    let _held = held.map_err(|TooManyHeld| Refusal::TooManyBytesHeld)?;
    let collected = Limited::new(body, bytes_max).collect();
    let bytes = match tokio::time::timeout_at(deadline.into(), collected).await {
        Err(_) => return Err(Refusal::BodyTimeout),
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Refusal::BodyTooLarge),
        // The client disconnected or framed the body incorrectly.
        Ok(Err(_)) => return Err(Refusal::MalformedJson),
    };
    if bytes.is_empty() {
        return Ok(empty);
    }
    if matches!(encoding, Encoding::Identity) {
        return parse(&bytes);
    }
    let decompressed = tokio::time::timeout_at(deadline.into(), decompress_apart(encoding, bytes)).await;
    parse(&decompressed.unwrap_or(Err(Refusal::BodyTimeout))?)
}

/// The JSON of a body that has arrived as a whole.
pub fn decode(headers: &HeaderMap, bytes: &[u8]) -> Result<Value, Refusal> {
    match encoding(headers)? {
        Encoding::Identity => parse(bytes),
        encoding => parse(&decompress(encoding, bytes)?),
    }
}

#[derive(Clone, Copy)]
enum Encoding {
    Identity,
    Gzip,
    Deflate,
    Brotli,
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    // Nearly all clients send this, and parsing allocates.
    if value == Some("application/json") {
        return Ok(());
    }
    let media: Option<mime::Mime> = value.and_then(|value| value.parse().ok());
    let media = media.filter(|media| media.essence_str() == "application/json").ok_or(Refusal::MediaType)?;
    match media.get_param(mime::CHARSET) {
        Some(charset) if !["utf-8", "utf8"].iter().any(|utf_8| charset.as_str().eq_ignore_ascii_case(utf_8)) => {
            Err(Refusal::Charset)
        }
        _ => Ok(()),
    }
}

/// Checks the media type first.
fn encoding(headers: &HeaderMap) -> Result<Encoding, Refusal> {
    check_media_type(headers)?;
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    let Some(value) = values.next() else { return Ok(Encoding::Identity) };
    if values.next().is_some() {
        return Err(Refusal::Encoding);
    }
    match value.to_str().unwrap_or("?").trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(Encoding::Identity),
        "gzip" => Ok(Encoding::Gzip),
        "deflate" => Ok(Encoding::Deflate),
        "br" => Ok(Encoding::Brotli),
        _ => Err(Refusal::Encoding),
    }
}

/// Decompresses on a blocking thread: a few bytes can keep a decoder busy for as long as thousands of requests take.
async fn decompress_apart(encoding: Encoding, bytes: Bytes) -> Result<Vec<u8>, Refusal> {
    let turn = Semaphore::acquire(&DECODERS).await.map_err(|_| Refusal::Internal)?;
    let decompress = move || {
        let _turn = turn;
        decompress(encoding, &bytes)
    };
    tokio::task::spawn_blocking(decompress).await.unwrap_or(Err(Refusal::Internal))
}

fn decompress(encoding: Encoding, bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
    match encoding {
        Encoding::Identity => Ok(bytes.to_vec()),
        Encoding::Gzip => read_bounded(flate2::read::MultiGzDecoder::new(bytes)),
        // RFC 9110 defines `deflate` as the zlib format. Some clients send a bare deflate stream.
        Encoding::Deflate if bytes.first().is_some_and(|first| first & 15 == 8) => {
            read_bounded(flate2::read::ZlibDecoder::new(bytes))
        }
        Encoding::Deflate => read_bounded(flate2::read::DeflateDecoder::new(bytes)),
        // The decoder would allocate the whole window, up to 1 GiB. RFC 7932 allows at most 16 MiB.
        Encoding::Brotli if bytes.first().is_some_and(|first| first & LARGE_WINDOW_MASK == LARGE_WINDOW) => {
            Err(Refusal::Decompression)
        }
        Encoding::Brotli => read_bounded(brotli_decompressor::Decompressor::new(bytes, 4096)),
    }
}

fn read_bounded(reader: impl Read) -> Result<Vec<u8>, Refusal> {
    let mut text = Vec::new();
    reader.take(BYTES_MAX as u64 + 1).read_to_end(&mut text).map_err(|_| Refusal::Decompression)?;
    if text.len() > BYTES_MAX { Err(Refusal::BodyTooLarge) } else { Ok(text) }
}

fn parse(text: &[u8]) -> Result<Value, Refusal> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = reader.deserialize_any(Outermost).map_err(|_| Refusal::MalformedJson)?;
    reader.end().map_err(|_| Refusal::MalformedJson)?;
    if has_nul(&value) { Err(Refusal::NulCharacter) } else { Ok(value) }
}

/// Reads an object or an array, and its values one by one. serde_json accepts at most 127 levels of nesting in one
/// value, and bodies may have 128.
struct Outermost;

impl<'de> Visitor<'de> for Outermost {
    type Value = Value;

    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str("an object or an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(item) = items.next_element()? {
            values.push(inner(item)?);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut values = serde_json::Map::new();
        while let Some((name, value)) = members.next_entry()? {
            values.insert(name, inner(value)?);
        }
        Ok(Value::Object(values))
    }
}

fn inner<E: Error>(text: &RawValue) -> Result<Value, E> {
    serde_json::from_str(text.get()).map_err(E::custom)
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(members) => members.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_objects_and_arrays_within_bounds_are_read() {
        assert!(parse(br#"{"a":[1,2.5e3,"x"]}"#).is_ok());
        assert!(parse(b"\xef\xbb\xbf{}").is_ok() && parse(b"\xef\xbb\xbf\xef\xbb\xbf{}").is_err());
        for text in ["", " ", "1", "\"a\"", "null", "{", "{}x", "[1e999]", r#"["\ud800"]"#, "{'a':1}"] {
            assert_eq!(parse(text.as_bytes()), Err(Refusal::MalformedJson), "{text}");
        }
        assert_eq!(parse(b"[\"\xff\"]"), Err(Refusal::MalformedJson));
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(128).as_bytes()).is_ok());
        for depth in [129, 50_000] {
            assert_eq!(parse(nested(depth).as_bytes()), Err(Refusal::MalformedJson));
        }
        // Members keep their order. Of two with one name, the last value counts, at the position of the first. Both are
        // validated.
        let members = parse(br#"{"b":1,"a":[{"d":1,"c":{}}],"b":-0}"#).expect("JSON");
        assert_eq!(members.to_string(), r#"{"b":-0.0,"a":[{"d":1,"c":{}}]}"#);
        assert_eq!(parse(br#"{"a":1e999,"a":1}"#), Err(Refusal::MalformedJson));
        assert_eq!(parse(br#"{"a":"\u0000"}"#), Err(Refusal::NulCharacter));
        assert_eq!(parse(br#"{"\u0000":1}"#), Err(Refusal::NulCharacter));
    }
}
