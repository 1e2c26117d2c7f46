//! Normalisation of browser origins.

use hyper::Uri;

/// `scheme://host[:port]` in lower case without a default port. `None` if it is not an http(s) origin.
pub fn normalise(text: &str) -> Option<String> {
    let text = text.trim();
    // The parser drops a fragment, and treats an empty query or port as absent.
    if text.contains(['?', '#', '@', '\\']) {
        return None;
    }
    let uri: Uri = text.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let default_port = match scheme.as_str() {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let authority = uri.authority()?;
    if uri.path() != "/" || authority.host().is_empty() {
        return None;
    }
    let host = authority.host().to_ascii_lowercase();
    let port: u16 = match authority.as_str().get(host.len()..)? {
        "" => default_port,
        port => port.strip_prefix(':')?.parse().ok()?,
    };
    Some(if port == default_port { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{port}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_in_one_spelling() {
        for (text, expected) in [
            ("https://Example.COM", Some("https://example.com")),
            (" HTTPS://example.com:443/ ", Some("https://example.com")),
            ("http://example.com:80", Some("http://example.com")),
            ("http://example.com:443", Some("http://example.com:443")),
            ("http://[::1]:3000", Some("http://[::1]:3000")),
            ("ftp://example.com", None),
            ("https://example.com/path", None),
            ("https://example.com//", None),
            ("https://example.com?q", None),
            ("https://example.com/#f", None),
            ("https://user@example.com", None),
            ("https://example.com:", None),
            ("https://example.com:99999", None),
            ("example.com", None),
            ("null", None),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(normalise(text).as_deref(), expected, "{text}");
        }
    }
}
