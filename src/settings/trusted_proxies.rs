//! The proxies in front of the service, and what they say of the client.

/// The header that the trusted proxies write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedHeader {
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
    /// `X-Forwarded-For` where a request has it, else `Forwarded`: a client cannot override the header that nearly all
    /// proxies write with the other one.
    Either,
}

/// What proxies that are trusted say.
#[derive(Clone, Copy, Debug)]
pub struct TrustedProxies {
    /// How many there are. 0: the peer is the client.
    pub hops: usize,
    pub header: ForwardedHeader,
}
