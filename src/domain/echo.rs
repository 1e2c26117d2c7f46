//! What a message repeats of what a client sent.

use std::fmt;

/// A message repeats at most this many characters of what the client sent. Valid ids are repeated in full.
const ECHO_MAX: usize = 64;

/// Text that the client sent, truncated: a refusal may be stored, so its size must not depend on the request.
pub struct Echo<'a>(pub &'a str);

impl fmt::Display for Echo<'_> {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(ECHO_MAX) {
            Some((end, _)) => write!(text, "{}…", &self.0[..end]),
            None => text.write_str(self.0),
        }
    }
}
