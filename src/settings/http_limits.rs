//! Every limit of the HTTP layer in bytes and time, with its reason. docs/operations.md shows them to operators.
//! They are one value, so that a test can make them small.

use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// How long a head may take from its first byte: HEADERS_TIMEOUT_MS.
    pub head_timeout: Duration,
    /// How long a connection may wait for its next request: KEEPALIVE_TIMEOUT_MS. Longer than the minute that proxies
    /// keep their connections, or a proxy sends a request into a connection that closes.
    pub keepalive_timeout: Duration,
    /// Longest request head, target included. Cookies and tokens of browsers stay below it.
    pub head_bytes_max: usize,
    /// Open connections of one address: a whole office, or a load test. Each may hold a head.
    pub connections_per_address_max: usize,
    /// Open connections in all: with half a head each they hold 256 MiB.
    pub connections_max: usize,
    /// What is held for clients of one address: bodies on their way in, and answers on their way out. An answer may be
    /// longer if nothing else is held for its address.
    pub held_bytes_per_address_max: usize,
    /// The same in all.
    pub held_bytes_max: usize,
    /// What one request or answer may hold uncounted: about what the buffers of its socket hold as well.
    pub uncounted_bytes_max: usize,
    /// How long an answer may take from its first byte, however short it is: pauses of a client are no fault.
    pub answer_grace: Duration,
    /// What an answer must be read at beyond that, over the whole: a phone does ten times as much.
    pub answer_bytes_per_second_min: u64,
    /// How long a connection that refused a request body reads on, so that the refusal is not lost: a client that sends
    /// all before it reads would be told "connection reset" instead.
    pub linger: Duration,
    /// How long such a client may be silent.
    pub linger_silence: Duration,
    /// How much of its body is discarded.
    pub linger_bytes_max: u64,
    /// Connections beyond the limits that are told so at one time; others are closed without a word.
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
    /// Behind a proxy all clients come from its address, so only the totals hold. The proxy limits each client.
    pub fn behind_proxy(self) -> Self {
        Self {
            connections_per_address_max: self.connections_max,
            held_bytes_per_address_max: self.held_bytes_max,
            ..self
        }
    }

    /// How long an answer of so many bytes may take.
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
