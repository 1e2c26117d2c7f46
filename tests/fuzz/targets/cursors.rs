//! Cursors: what is printed is parsed to itself, encoded or not.

use std::fmt::Debug;

use agentpay_billing::api::request::cursors::{AuditPosition, Cursor, DeliveryCursor, EventCursor};
use agentpay_billing::api::request::query::{Query, encode_cursor, page_of_names};
use agentpay_billing::domain::cell::CellId;
use agentpay_billing::domain::refusal::Refusal;
use agentpay_billing::domain::timestamp::{StoredMoment, Timestamp};
use agentpay_billing::store::api_keys::ApiKeyCursor;
use agentpay_billing::store::audit_log::AuditCursor;
use agentpay_billing::store::settlements::SettlementCursor;
use agentpay_billing::store::webhooks::WebhookCursor;

const NAMES: [&str; 3] = ["database", "events", "webhooks"];

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // As the client sends it.
    let sent = Query::parse(&format!("cursor={text}"));
    if let Ok(Some(decoded)) = sent.cursor() {
        assert!(!decoded.is_empty() && !decoded.contains('\0'));
        every_kind(&decoded);
    }
    every_kind(text);
    let page = page_of_names(&NAMES, Some(text), 1);
    assert_eq!(page.is_ok(), NAMES.contains(&text));

    // As it is stored: a moment, a number and a name.
    if let [moment @ .., _, _, _, _] = data
        && let Some(moment) = moment.first_chunk::<8>()
    {
        let ms = i64::from_le_bytes(*moment) & (i64::MAX >> 10);
        let number = i64::from_le_bytes(*moment).rotate_left(17);
        let created_at = StoredMoment::from(Timestamp::from_ms(ms));
        let name = String::from_utf8_lossy(&data[8..]).replace('\0', "");
        let entry = AuditCursor { changed_at: created_at, audit_id: number };
        stays(&AuditPosition { entry, cell: CellId::parse(&name) });
        stays(&SettlementCursor { settled_at: created_at, list_position: number, id: name.clone() });
        if !name.is_empty() {
            stays(&ApiKeyCursor { created_at, prefix: name.clone() });
            stays(&WebhookCursor { created_at, id: name });
        }
        stays(&DeliveryCursor(number));
        // An event id has 48 bits of milliseconds.
        let recorded_at = Timestamp::from_ms(ms & ((1 << 48) - 1));
        stays(&EventCursor { recorded_at, position: number & i64::MAX });
    }
}

fn every_kind(text: &str) {
    parsed::<ApiKeyCursor>(text);
    parsed::<AuditPosition>(text);
    parsed::<DeliveryCursor>(text);
    parsed::<EventCursor>(text);
    parsed::<SettlementCursor>(text);
    parsed::<WebhookCursor>(text);
}

fn parsed<C: Cursor + Debug + PartialEq>(text: &str) {
    match C::parse(text) {
        Ok(cursor) => {
            if !text.contains('\0') {
                stays(&cursor);
            }
        }
        Err(refusal) => assert!(matches!(refusal, Refusal::CursorMalformed | Refusal::CursorExpired), "{refusal:?}"),
    }
}

fn stays<C: Cursor + Debug + PartialEq>(cursor: &C) {
    let text = cursor.to_text();
    assert_eq!(C::parse(&text).as_ref(), Ok(cursor), "{text}");
    let sent = Query::parse(&format!("cursor={}", encode_cursor(&text)));
    assert_eq!(sent.cursor_of::<C>().as_ref().ok().and_then(Option::as_ref), Some(cursor), "{text}");
}
