//! The proxies in front of the service, and the header that they write.

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
