//! The fingerprint of a request: SHA-256 of the RFC 8785 form of `[method, route, parameters, body]`. The order of
//! members, whitespace and the notation of numbers do not matter. Everything else does.

use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

use super::money::SAFE_MAX;

/// 32 bytes of SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// `route` is the pattern of the route, such as `/api/v1/services/:serviceId/disable`. `parameters` are the decoded
    /// path parameters. `body` is the parsed body, `{}` if there is none.
    pub fn of(method: &str, route: &str, parameters: &[(&str, &str)], body: &Value) -> Self {
        let mut text = Vec::with_capacity(256);
        text.push(b'[');
        write_text(&mut text, method);
        text.push(b',');
        write_text(&mut text, route);
        text.push(b',');
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))).collect();
        write_object(&mut text, &parameters);
        text.push(b',');
        write_value(&mut text, body);
        text.push(b']');
        Self(Sha256::digest(&text).into())
    }
}

/// The RFC 8785 form of a value.
pub fn canonical(value: &Value) -> Vec<u8> {
    let mut text = Vec::new();
    write_value(&mut text, value);
    text
}

/// RFC 8785, section 3.2. The depth of `value` is bounded by the body reader.
fn write_value(text: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => text.extend_from_slice(b"null"),
        Value::Bool(true) => text.extend_from_slice(b"true"),
        Value::Bool(false) => text.extend_from_slice(b"false"),
        Value::Number(number) => write_number(text, number),
        Value::String(string) => write_text(text, string),
        Value::Array(items) => {
            text.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(b',');
                }
                write_value(text, item);
            }
            text.push(b']');
        }
        Value::Object(members) => write_object(text, members),
    }
}

/// Members are sorted by the UTF-16 code units of their names (section 3.2.3). UTF-8 bytes have another order.
fn write_object(text: &mut Vec<u8>, members: &Map<String, Value>) {
    let mut sorted: Vec<_> = members.iter().collect();
    sorted.sort_by(|(left, _), (right, _)| left.encode_utf16().cmp(right.encode_utf16()));
    text.push(b'{');
    for (index, (name, value)) in sorted.into_iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        write_text(text, name);
        text.push(b':');
        write_value(text, value);
    }
    text.push(b'}');
}

/// Numbers are IEEE doubles in ECMAScript's notation (section 3.2.2.3): `5`, `5.0` and `5e0` are equal.
fn write_number(text: &mut Vec<u8>, number: &Number) {
    // An integer that a double holds exactly is written alike in both notations, and much faster as an integer.
    if let Some(integer) = number.as_i64().filter(|integer| integer.unsigned_abs() <= SAFE_MAX) {
        serde_json::to_writer(text, &integer).expect("writing to memory cannot fail");
        return;
    }
    // The parser yields only finite doubles and integers. An integer that is too long is rounded to a double.
    let double = number.as_f64().unwrap_or_default();
    text.extend_from_slice(ryu_js::Buffer::new().format(double).as_bytes());
}

/// serde_json escapes exactly what section 3.2.2.2 requires, in the same notation.
fn write_text(text: &mut Vec<u8>, string: &str) {
    serde_json::to_writer(text, string).expect("writing to memory cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(json: &str) -> String {
        String::from_utf8(super::canonical(&serde_json::from_str(json).expect("JSON"))).expect("UTF-8")
    }

    /// HTTP contract, section 21.1.
    #[test]
    fn fingerprints_are_those_of_the_test_vectors() {
        let body = serde_json::from_str(r#"{"serviceId":"svc-1","requests":5.0,"agent":"agent-1"}"#);
        assert_eq!(
            hex::encode(Fingerprint::of("POST", "/api/v1/usage", &[], &body.expect("JSON")).0),
            "b56d72d27c9cfe7056efd112b7060d998b99ddf4ff3a3db5002dab6376dc676a"
        );
        let empty = Value::Object(Map::new());
        assert_eq!(
            hex::encode(
                Fingerprint::of("POST", "/api/v1/services/:serviceId/disable", &[("serviceId", "svc-1")], &empty).0
            ),
            "6070df2c799433d7bf70f463a9bc792a2232ce5868aaa7e1f744426a2791a819"
        );
        assert_eq!(
            hex::encode(
                Fingerprint::of(
                    "DELETE",
                    "/api/v1/usage/:agent/:serviceId",
                    &[("agent", "agent-1"), ("serviceId", "svc-1")],
                    &empty
                )
                .0
            ),
            "d5a0fd1f38a99b96890027c88a7631b0fab5b9f7f2a8137df71b7ecc594d5326"
        );
    }

    #[test]
    fn the_example_of_rfc_8785_section_3_2() {
        let json = r#"{
            "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
            "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
            "literals": [null, true, false]
        }"#;
        assert_eq!(
            canonical(json),
            concat!(
                r#"{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"#,
                r#""string":"€$\u000f\nA'B\"\\\\\"/"}"#
            )
        );
    }

    #[test]
    fn names_sort_by_utf_16_code_units() {
        // RFC 8785, section 3.2.3: the emoji's surrogates sort before U+FB33.
        let json = r#"{"\u20ac":1,"\r":2,"\ufb33":3,"1":4,"\ud83d\ude00":5,"\u0080":6,"\u00f6":7}"#;
        assert_eq!(canonical(json), "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"ö\":7,\"€\":1,\"😀\":5,\"\u{fb33}\":3}");
    }

    #[test]
    fn numbers_are_doubles() {
        assert_eq!(
            canonical("[-0, 0.0, 1e21, 1e20, 9007199254740993, 18446744073709551616, 5e-324, 1.7976931348623157e308]"),
            "[0,0,1e+21,100000000000000000000,9007199254740992,18446744073709552000,5e-324,1.7976931348623157e+308]"
        );
    }
}
