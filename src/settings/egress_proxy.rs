//! The egress proxy for webhooks.

use std::fmt;

use url::Url;

use super::environment::Environment;
use super::error::SettingsError;

/// The proxy of all webhook attempts. Its URL may contain a password.
#[derive(Clone, PartialEq, Eq)]
pub struct EgressProxy(Url);

impl EgressProxy {
    /// The URL may contain a password, so errors do not repeat it.
    pub(super) fn read(env: &Environment<'_>) -> Result<Option<Self>, SettingsError> {
        let Some(text) = env.secret_url("WEBHOOK_PROXY")? else { return Ok(None) };
        let refused = || SettingsError("WEBHOOK_PROXY must be the URL of an HTTP proxy: http://host:port".to_owned());
        Self::parse(&text).map(Some).ok_or_else(refused)
    }

    /// `None` unless `text` is the URL of an HTTP proxy without path and query.
    pub fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text).ok()?;
        let is_http = matches!(url.scheme(), "http" | "https") && url.host().is_some();
        let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        (is_http && is_bare).then_some(Self(url))
    }

    pub fn url(&self) -> &Url {
        &self.0
    }
}

impl fmt::Debug for EgressProxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "EgressProxy({:?})", self.0.host_str().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_an_http_url_whose_password_is_not_printed() {
        for text in ["http://proxy.internal:3128", "https://user:secret@proxy/", "http://10.0.0.7:3128"] {
            let proxy = EgressProxy::parse(text).expect(text);
            assert!(!format!("{proxy:?}").contains("secret"), "{proxy:?}");
        }
        for text in ["proxy:3128", "socks5://proxy", "http://", "http://proxy/path", "http://proxy?x", ""] {
            assert!(EgressProxy::parse(text).is_none(), "{text}");
        }
    }
}
