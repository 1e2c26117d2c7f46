//! The audit log.

use std::time::Instant;

use sqlx::PgConnection;

use crate::domain::audit_log::Entry;
use crate::domain::refusal::Refusal;
use crate::store::audit_log::{self, AuditCursor, Filter};

use super::page::Page;
use super::reader::Reader;

/// Changes, newest first.
pub async fn list(
    reader: &Reader,
    filter: &Filter,
    before: AuditCursor,
    limit: i64,
    deadline: Instant,
) -> Result<Page<(AuditCursor, Entry)>, Refusal> {
    let read = async |connection: &mut PgConnection| audit_log::list(connection, filter, before, limit + 1).await;
    Ok(Page::of(reader.read(deadline, read).await?, limit))
}
