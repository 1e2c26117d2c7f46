//! Idempotency keys: an accepted key is visible ASCII of a bounded length, and its quoted form is the same key.

use agentpay_billing::domain::names::{AgentId, IDEMPOTENCY_KEY_MAX, IdempotencyKey, ServiceId};

pub fn run(data: &[u8]) {
    if let Ok(Some(key)) = IdempotencyKey::parse(data) {
        let text = key.as_str();
        assert!((1..=IDEMPOTENCY_KEY_MAX).contains(&text.len()));
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
        let quoted = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        assert_eq!(IdempotencyKey::parse(quoted.as_bytes()), Ok(Some(key.clone())));
        assert_eq!(IdempotencyKey::literal(text.to_owned()).as_ref(), Ok(&key));
        // Raw text is the same key, unless it begins like a quoted one.
        if !text.starts_with('"') {
            assert_eq!(IdempotencyKey::parse(text.as_bytes()), Ok(Some(key)));
        }
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    for (is_new, is_stored) in [
        (AgentId::parse(text).is_some(), AgentId::parse_existing(text).is_some()),
        (ServiceId::parse(text).is_some(), ServiceId::parse_existing(text).is_some()),
    ] {
        // A new id needs no escape in a path, and is not taken for another path.
        assert!(is_stored || !is_new);
        assert!(!is_new || !text.is_empty() && !matches!(text, "." | "..") && !text.contains(['/', '%', '?', '#']));
    }
}
