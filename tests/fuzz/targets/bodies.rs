//! Bodies: what is decoded is bounded, without U+0000, and the same however it was compressed.

use std::io::Write;

use agentpay_billing::api::request::body::decode;
use agentpay_billing::domain::refusal::Refusal;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use serde_json::Value;

const DEPTH_MAX: usize = 128;

pub fn run(data: &[u8]) {
    let [choice, bytes @ ..] = data else { return };
    match choice % 6 {
        0 => plain(bytes),
        1 => check(&decode(&headers("gzip"), bytes)),
        2 => check(&decode(&headers("deflate"), bytes)),
        3 => check(&decode(&headers("br"), bytes)),
        4 => compressed(bytes),
        _ => any_headers(bytes),
    }
}

fn headers(encoding: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
    headers
}

fn plain(bytes: &[u8]) {
    let decoded = decode(&headers("identity"), bytes);
    check(&decoded);
    if let Ok(value) = &decoded {
        let again = serde_json::to_vec(value).expect("JSON");
        assert_eq!(&decode(&headers(""), &again).expect("the same body"), value);
    }
}

fn compressed(bytes: &[u8]) {
    let plain = decode(&headers("identity"), bytes);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).expect("memory");
    assert_eq!(decode(&headers("gzip"), &gzip.finish().expect("memory")), plain);
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
    zlib.write_all(bytes).expect("memory");
    assert_eq!(decode(&headers("deflate"), &zlib.finish().expect("memory")), plain);
    let mut bare = DeflateEncoder::new(Vec::new(), Compression::fast());
    bare.write_all(bytes).expect("memory");
    let bare = bare.finish().expect("memory");
    // A bare stream that begins like the zlib format is taken for it.
    if bare.first().is_some_and(|first| first & 15 != 8) {
        assert_eq!(decode(&headers("deflate"), &bare), plain);
    }
}

/// The first two lines are headers.
fn any_headers(bytes: &[u8]) {
    let mut lines = bytes.splitn(3, |byte| *byte == b'\n');
    let mut headers = HeaderMap::new();
    for name in [CONTENT_TYPE, CONTENT_ENCODING] {
        if let Some(Ok(value)) = lines.next().map(HeaderValue::from_bytes) {
            headers.append(name, value);
        }
    }
    check(&decode(&headers, lines.next().unwrap_or_default()));
}

fn check(decoded: &Result<Value, Refusal>) {
    match decoded {
        Ok(value) => {
            assert!(value.is_object() || value.is_array());
            check_value(value, 1);
        }
        Err(refusal) => {
            let status = refusal.status_and_code().0;
            assert!([400, 413, 415].contains(&status), "{refusal:?}");
        }
    }
}

fn check_value(value: &Value, depth: usize) {
    match value {
        Value::Array(items) => {
            assert!(depth <= DEPTH_MAX);
            items.iter().for_each(|item| check_value(item, depth + 1));
        }
        Value::Object(members) => {
            assert!(depth <= DEPTH_MAX);
            members.iter().for_each(|(name, value)| {
                assert!(!name.contains('\0'));
                check_value(value, depth + 1);
            });
        }
        Value::String(text) => assert!(!text.contains('\0')),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
