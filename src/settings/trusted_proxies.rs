//! The proxies in front of the service, and the header that they write.

use super::environment::{Environment, refuse};
use super::error::SettingsError;

/// The header that the trusted proxies write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedHeader {
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
    /// `X-Forwarded-For` if present, otherwise `Forwarded`. Nearly all proxies write the former, and a client cannot
    /// override it with the latter.
    Either,
}

/// The proxies that are trusted to report the client's address.
#[derive(Clone, Copy, Debug)]
pub struct TrustedProxies {
    /// Their number. 0: the peer is the client.
    pub hops: usize,
    pub header: ForwardedHeader,
}

impl TrustedProxies {
    pub(super) fn read(env: &Environment<'_>) -> Result<Self, SettingsError> {
        Ok(Self { hops: hops(env)?, header: header(env)? })
    }
}

fn hops(env: &Environment<'_>) -> Result<usize, SettingsError> {
    match env.text_or("TRUST_PROXY", "0").to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Ok(1),
        "false" | "no" | "off" => Ok(0),
        _ => env.int("TRUST_PROXY", 0, 0..=100).map(|hops| hops as usize),
    }
}

fn header(env: &Environment<'_>) -> Result<ForwardedHeader, SettingsError> {
    let Some(text) = env.text("FORWARDED_HEADER") else { return Ok(ForwardedHeader::Either) };
    match text.to_ascii_lowercase().as_str() {
        "x-forwarded-for" => Ok(ForwardedHeader::XForwardedFor),
        "forwarded" => Ok(ForwardedHeader::Forwarded),
        _ => Err(refuse("FORWARDED_HEADER", "x-forwarded-for or forwarded", &text)),
    }
}
