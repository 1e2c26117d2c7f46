//! Pages of lists, by cursor or by number.

use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::refusal::Refusal;

/// Maximum length of a list without `page`: at most 30 MB.
const UNPAGED_MAX: i64 = 100_000;

/// The first rows of a list, and whether there are more.
#[derive(Debug)]
pub struct Page<T> {
    pub rows: Vec<T>,
    pub has_more: bool,
}

impl<T> Page<T> {
    /// Keeps the first `limit` of `rows`, which were read with a limit of one more.
    pub fn of(mut rows: Vec<T>, limit: i64) -> Self {
        let has_more = rows.len() as i64 > limit;
        rows.truncate(limit as usize);
        Self { rows, has_more }
    }

    /// The last row, as the cursor of the next page. `None` on the last page.
    pub fn last_if_more(&self) -> Option<&T> {
        self.rows.last().filter(|_| self.has_more)
    }
}

/// The part of a list that `limit` and `page` select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub limit: i64,
    /// Starts at 1. `None` if the request has no `page`.
    pub page: Option<i64>,
}

// The last members of a paged list. Not a doc comment, because that would describe every schema that contains this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pages {
    page: i64,
    page_count: i64,
}

impl Slice {
    pub fn offset(&self) -> i64 {
        self.page.map_or(0, |page| (page - 1) * self.limit)
    }

    /// The number of rows to read. Without `page`, one more than is allowed.
    pub fn limit_if_paged(&self) -> i64 {
        if self.page.is_some() { self.limit } else { UNPAGED_MAX + 1 }
    }

    /// Refuses a list without `page` that is too long. A truncated list would look complete.
    pub fn check_length(&self, items: usize) -> Result<(), Refusal> {
        let is_too_long = self.page.is_none() && items as i64 > UNPAGED_MAX;
        if is_too_long { Err(Refusal::ListTooLong { items_max: UNPAGED_MAX }) } else { Ok(()) }
    }

    /// `count` is the length of the whole filtered list.
    pub fn pages(&self, count: i64) -> Option<Pages> {
        self.page.map(|page| Pages { page, page_count: ((count + self.limit - 1) / self.limit).max(1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_no_items_has_one_page() {
        let slice = |page| Slice { limit: 25, page };
        let third = slice(Some(3));
        assert_eq!((third.offset(), third.pages(51)), (50, Some(Pages { page: 3, page_count: 3 })));
        assert_eq!(third.pages(0), Some(Pages { page: 3, page_count: 1 }));
        assert_eq!(third.pages(50), Some(Pages { page: 3, page_count: 2 }));
        assert_eq!(slice(None).pages(51), None);
    }
}
