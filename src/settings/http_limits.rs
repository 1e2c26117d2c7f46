//! The limits of the HTTP layer with their reasons. docs/operations.md lists them for operators. They are fields of one
//! value, so that tests can lower them.

use std::time::Duration;

use super::environment::Environment;
use super::error::SettingsError;

#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Maximum time for a request head from its first byte: HEADERS_TIMEOUT_MS.
    pub head_timeout: Duration,
    /// Maximum idle time of a connection: KEEPALIVE_TIMEOUT_MS. Longer than the 60 s for which proxies usually keep
    /// connections, so that a proxy does not send a request into a closing connection.
    pub keepalive_timeout: Duration,
    /// Maximum length of a request head, including the target. Enough for the cookies and tokens of browsers.
    pub head_bytes_max: usize,
    /// Maximum number of connections from one address, which may be an office or a load test. Each may buffer a head.
    pub connections_per_address_max: usize,
    /// Maximum number of connections in total: 256 MiB if each buffers a full head.
    pub connections_max: usize,
    /// Maximum number of bytes buffered for one address: request bodies and responses. A single response may be longer
    /// if nothing else is buffered for its address.
    pub held_bytes_per_address_max: usize,
    /// Maximum number of bytes buffered in total.
    pub held_bytes_max: usize,
    /// A request or a response up to this length is not counted. The buffers of its socket have a similar size.
    pub uncounted_bytes_max: usize,
    /// Minimum time that a client has to read a response, however short, because clients may pause.
    pub answer_grace: Duration,
    /// Minimum average rate beyond that time. A phone reads ten times as fast.
    pub answer_bytes_per_second_min: u64,
    /// How long a connection that refused a body reads on. A client that sends everything before it reads would
    /// otherwise see a connection reset instead of the refusal.
    pub linger: Duration,
    /// How long such a client may send nothing.
    pub linger_silence: Duration,
    /// Maximum number of bytes that are discarded.
    pub linger_bytes_max: u64,
    /// Maximum number of connections beyond the limits that get an error response at the same time. Further ones are
    /// closed at once.
    pub refusals_max: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(75),
            head_bytes_max: 64 << 10,
            connections_per_address_max: 1024,
            connections_max: 4096,
            held_bytes_per_address_max: 64 << 20,
            held_bytes_max: 256 << 20,
            uncounted_bytes_max: 16 << 10,
            answer_grace: Duration::from_secs(60),
            answer_bytes_per_second_min: 64_000,
            linger: Duration::from_secs(30),
            linger_silence: Duration::from_secs(5),
            linger_bytes_max: 32 << 20,
            refusals_max: 64,
        }
    }
}

impl HttpLimits {
    pub(super) fn read(env: &Environment<'_>, is_behind_proxy: bool) -> Result<Self, SettingsError> {
        let default = Self::default();
        let ms = |name, default| env.ms(name, default, 1..=3_600_000);
        let head_timeout = ms("HEADERS_TIMEOUT_MS", default.head_timeout)?;
        let keepalive_timeout = ms("KEEPALIVE_TIMEOUT_MS", default.keepalive_timeout)?;
        // Otherwise the timeout would end idle connections before KEEPALIVE_TIMEOUT_MS.
        if env.text("HEADERS_TIMEOUT_MS").is_some()
            && env.text("KEEPALIVE_TIMEOUT_MS").is_some()
            && head_timeout < keepalive_timeout
        {
            let text = "HEADERS_TIMEOUT_MS must be at least KEEPALIVE_TIMEOUT_MS where both are set, got";
            let (head_ms, keepalive_ms) = (head_timeout.as_millis(), keepalive_timeout.as_millis());
            return Err(SettingsError(format!("{text} {head_ms} and {keepalive_ms}")));
        }
        let limits = Self { head_timeout, keepalive_timeout, ..default };
        Ok(if is_behind_proxy { limits.behind_proxy() } else { limits })
    }

    /// Behind a proxy all clients have its address, so only the totals apply. The proxy limits each client.
    pub fn behind_proxy(self) -> Self {
        Self {
            connections_per_address_max: self.connections_max,
            held_bytes_per_address_max: self.held_bytes_max,
            ..self
        }
    }

    /// Time that a client has to read a response of `bytes`.
    pub fn answer_time(&self, bytes: u64) -> Duration {
        self.answer_grace + Duration::from_millis(bytes.saturating_mul(1000) / self.answer_bytes_per_second_min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_minute_and_the_time_of_a_slow_reader() {
        let limits = HttpLimits::default();
        assert_eq!(limits.answer_time(0), Duration::from_secs(60));
        assert_eq!(limits.answer_time(6_400_000), Duration::from_secs(160));
    }
}
