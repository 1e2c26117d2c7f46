//! The texts in cursors: where the page of a list ended. A client gets them encoded, and need not know what they say.

use uuid::Uuid;

use crate::domain::cell::CellId;
use crate::domain::event::{decode_event_id, event_id};
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::{StoredMoment, Timestamp};
use crate::store::api_keys::ApiKeyCursor;
use crate::store::audit_log::AuditCursor;
use crate::store::settlements::SettlementCursor;
use crate::store::webhooks::WebhookCursor;

/// A position in a list. Its text is parsed to the same position.
pub trait Cursor: Sized {
    fn to_text(&self) -> String;
    fn parse(text: &str) -> Result<Self, Refusal>;
}

impl Cursor for WebhookCursor {
    fn to_text(&self) -> String {
        format!("{}:{}", self.created_at, self.id)
    }

    fn parse(text: &str) -> Result<Self, Refusal> {
        let (created_at, id) = moment_and_name(text)?;
        Ok(Self { created_at, id })
    }
}

impl Cursor for ApiKeyCursor {
    fn to_text(&self) -> String {
        format!("{}:{}", self.created_at, self.prefix)
    }

    fn parse(text: &str) -> Result<Self, Refusal> {
        let (created_at, prefix) = moment_and_name(text)?;
        Ok(Self { created_at, prefix })
    }
}

/// An entry of the audit log, and its cell if there are several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditPosition {
    pub entry: AuditCursor,
    pub cell: Option<CellId>,
}

impl Cursor for AuditPosition {
    fn to_text(&self) -> String {
        let AuditCursor { changed_at, audit_id } = &self.entry;
        match &self.cell {
            None => format!("{changed_at}:{audit_id}"),
            Some(cell) => format!("{changed_at}:{audit_id}:{cell}"),
        }
    }

    fn parse(text: &str) -> Result<Self, Refusal> {
        let (changed_at, rest) = moment_and_name(text)?;
        let (audit_id, cell) = rest.split_once(':').map_or((rest.as_str(), None), |(id, cell)| (id, Some(cell)));
        let cell = cell.map(|cell| CellId::parse(cell).ok_or(Refusal::CursorMalformed)).transpose()?;
        Ok(Self { entry: AuditCursor { changed_at, audit_id: integer(audit_id)? }, cell })
    }
}

impl Cursor for SettlementCursor {
    fn to_text(&self) -> String {
        format!("{}:{}:{}", self.settled_at, self.list_position, self.id)
    }

    fn parse(text: &str) -> Result<Self, Refusal> {
        let (settled_at, rest) = moment_and_name(text)?;
        // Cursors of earlier versions have no id.
        let (list_position, id) = rest.split_once(':').unwrap_or((&rest, ""));
        Ok(Self { settled_at, list_position: integer(list_position)?, id: id.to_owned() })
    }
}

/// An event in the log: `<ts>:<id>`. A cursor of this form whose id is not that of an event is invalid or has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventCursor {
    pub recorded_at: Timestamp,
    pub position: i64,
}

impl Cursor for EventCursor {
    fn to_text(&self) -> String {
        format!("{}:{}", self.recorded_at.as_ms(), event_id(self.recorded_at, self.position))
    }

    fn parse(text: &str) -> Result<Self, Refusal> {
        let (ts, id) = text.split_once(':').ok_or(Refusal::CursorMalformed)?;
        let digits = ts.strip_prefix('-').unwrap_or(ts);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) || id.is_empty() {
            return Err(Refusal::CursorMalformed);
        }
        let event = Uuid::parse_str(id).ok().filter(|uuid| uuid.to_string() == id).and_then(decode_event_id);
        let event = event.filter(|(recorded_at, _)| recorded_at.as_ms().to_string() == ts);
        event.map(|(recorded_at, position)| Self { recorded_at, position }).ok_or(Refusal::CursorExpired)
    }
}

/// A delivery of a webhook: the position of its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryCursor(pub i64);

impl Cursor for DeliveryCursor {
    fn to_text(&self) -> String {
        self.0.to_string()
    }

    fn parse(text: &str) -> Result<Self, Refusal> {
        integer(text).map(Self)
    }
}

fn moment_and_name(text: &str) -> Result<(StoredMoment, String), Refusal> {
    let (moment, name) = text.split_once(':').filter(|(_, name)| !name.is_empty()).ok_or(Refusal::CursorMalformed)?;
    Ok((StoredMoment::parse(moment).ok_or(Refusal::CursorMalformed)?, name.to_owned()))
}

fn integer(text: &str) -> Result<i64, Refusal> {
    text.parse().map_err(|_| Refusal::CursorMalformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_of_events_is_a_moment_and_the_id_of_an_event() {
        let id = event_id(Timestamp::from_ms(7), 3);
        let cursor = EventCursor { recorded_at: Timestamp::from_ms(7), position: 3 };
        assert_eq!(cursor.to_text(), format!("7:{id}"));
        assert_eq!(EventCursor::parse(&format!("7:{id}")), Ok(cursor));
        for malformed in ["", "7", "7:", ":x", "x:y", "1.5:x", "-:x", &format!("{id}")] {
            assert_eq!(EventCursor::parse(malformed), Err(Refusal::CursorMalformed), "{malformed}");
        }
        // The digit 11 is `b`, which has an upper case.
        let shouted = event_id(Timestamp::from_ms(11), 3).to_string().to_uppercase();
        for unknown in ["7:x", "-7:x", "99999999999999999999:x", &format!("8:{id}"), &format!("11:{shouted}")] {
            assert_eq!(EventCursor::parse(unknown), Err(Refusal::CursorExpired), "{unknown}");
        }
    }

    #[test]
    fn a_cursor_of_settlements_may_have_no_id() {
        let cursor = SettlementCursor::parse("7.001:-3").expect("a cursor");
        assert_eq!((cursor.list_position, cursor.id.as_str()), (-3, ""));
        assert_eq!(SettlementCursor::parse(&cursor.to_text()), Ok(cursor));
        for malformed in ["", "7", "7:", "7:x", "-7:3", "7:3.0:x"] {
            assert_eq!(SettlementCursor::parse(malformed), Err(Refusal::CursorMalformed), "{malformed}");
        }
    }
}
