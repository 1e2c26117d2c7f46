//! Query parameters and cursors. Values are read leniently (HTTP contract, section 2.8).

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use url::form_urlencoded;

use crate::domain::refusal::Refusal;
use crate::query::page::Slice;

use super::cursors::Cursor;

/// Maximum number of pairs that are read; the rest is ignored.
const PAIRS_MAX: usize = 1000;

#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().take(PAIRS_MAX).collect())
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    pub fn has_nul(&self) -> bool {
        self.0.iter().any(|(_, value)| value.contains('\0'))
    }

    fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// A text parameter. A repeated one counts as absent.
    pub fn text(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(own, _)| own == name).map(|(_, value)| value.as_str());
        let value = values.next()?;
        values.next().is_none().then_some(value)
    }

    /// A bounded integer: the first value, truncated and clamped. The default if it is not a number.
    pub fn bounded(&self, name: &str, default: i64, min: i64, max: i64) -> i64 {
        let value = self.first(name).and_then(number);
        // A clamped double fits, because all bounds are far below 2^53.
        value.map_or(default, |value| value.trunc().clamp(min as f64, max as f64) as i64)
    }

    /// An integer filter. `None` if it is not an integer.
    pub fn integer(&self, name: &str) -> Option<i64> {
        let value = self.text(name).and_then(number)?;
        (value.fract() == 0.0).then_some(value as i64)
    }

    /// The part of a list that `limit` and `page` select.
    pub fn slice(&self, limit_default: i64, limit_max: i64) -> Slice {
        let is_paged = self.first("page").is_some_and(|page| !page.is_empty());
        Slice {
            limit: self.bounded("limit", limit_default, 1, limit_max),
            page: is_paged.then(|| self.bounded("page", 1, 1, 1 << 40)),
        }
    }

    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.text(name)? {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    /// The decoded cursor, or `None` if none was sent.
    pub fn cursor(&self) -> Result<Option<String>, Refusal> {
        let Some(text) = self.text("cursor") else { return Ok(None) };
        let decoded = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        decoded.filter(|text| !text.is_empty() && !text.contains('\0')).map(Some).ok_or(Refusal::CursorMalformed)
    }

    /// The position in the cursor, or `None` if none was sent.
    pub fn cursor_of<C: Cursor>(&self) -> Result<Option<C>, Refusal> {
        self.cursor()?.as_deref().map(C::parse).transpose()
    }
}

pub fn encode_cursor(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

/// A page of a fixed list of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub range: Range<usize>,
    pub next_cursor: Option<String>,
}

/// At most `limit` of `names`, beginning after the name in the cursor.
pub fn page_of_names(names: &[&str], cursor: Option<&str>, limit: usize) -> Result<Page, Refusal> {
    let start = match cursor {
        None => 0,
        Some(after) => names.iter().position(|name| *name == after).ok_or(Refusal::CursorExpired)? + 1,
    };
    let end = (start + limit).min(names.len());
    let next_cursor = (end < names.len()).then(|| encode_cursor(names[end - 1]));
    Ok(Page { range: start..end, next_cursor })
}

/// A decimal with optional sign, fraction and exponent.
fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    text.parse::<f64>().ok().filter(|value| is_decimal && value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_truncated_and_clamped() {
        let read = |value: &str| Query::parse(&format!("limit={value}")).bounded("limit", 50, 1, 100);
        for value in ["abc", "NaN", "Infinity", "0x10", "1e999", "", "%20"] {
            assert_eq!(read(value), 50, "{value}");
        }
        for (value, expected) in [("0", 1), ("-5", 1), ("250", 100), ("3.7", 3), ("1e2", 100), ("%2B7", 7)] {
            assert_eq!(read(value), expected, "{value}");
        }
        assert_eq!(Query::parse("a=1&a=2").text("a"), None);
        assert_eq!(Query::parse("a=x+y%21").text("a"), Some("x y!"));
        // An invalid escape is literal text, and a byte that is not UTF-8 becomes U+FFFD.
        assert_eq!(Query::parse("&&a=%zz%f&").text("a"), Some("%zz%f"));
        assert_eq!(Query::parse("a=%ff=").text("a"), Some("\u{fffd}="));
        assert_eq!(Query::parse("a").text("a"), Some(""));
        assert_eq!(Query::parse("p=1.5").integer("p"), None);
        assert_eq!(Query::parse("p=1e2").integer("p"), Some(100));
    }

    #[test]
    fn a_list_is_paged_when_the_first_page_parameter_says_something() {
        let read = |text: &str| Query::parse(text).slice(200, 1000);
        for text in ["", "page=", "page=&page=2", "p=2"] {
            assert_eq!(read(text), Slice { limit: 200, page: None }, "{text}");
        }
        for (text, page) in [("page=2&page=3", 2), ("page=x", 1), ("page=0", 1), ("page=%20", 1), ("page=2.9", 2)] {
            assert_eq!(read(text), Slice { limit: 200, page: Some(page) }, "{text}");
        }
    }
}
