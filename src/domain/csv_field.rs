//! Fields of CSV files that people open in a spreadsheet.

use std::borrow::Cow;

/// Prevents a spreadsheet from reading a field as a formula.
pub fn guarded(field: &str) -> Cow<'_, str> {
    if field.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{field}").into() } else { field.into() }
}
