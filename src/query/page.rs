//! Parts of lists: of those with a cursor, and of those with numbered pages.

use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::refusal::Refusal;

/// Most items of a list that is read without `page`: at most 30 MB.
const UNPAGED_MAX: i64 = 100_000;

/// The first rows of a list.
#[derive(Debug)]
pub struct Page<T> {
    pub rows: Vec<T>,
    pub has_more: bool,
}

impl<T> Page<T> {
    /// The first `limit` of `rows`, which were read with a limit of one more.
    pub fn of(mut rows: Vec<T>, limit: i64) -> Self {
        let has_more = rows.len() as i64 > limit;
        rows.truncate(limit as usize);
        Self { rows, has_more }
    }

    /// The row that the next page follows; none on the last page.
    pub fn last_if_more(&self) -> Option<&T> {
        self.rows.last().filter(|_| self.has_more)
    }
}

/// Which part of a list `limit` and `page` ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub limit: i64,
    /// From 1; none if the request does not page.
    pub page: Option<i64>,
}

// What a paged list says of itself. No doc comment: it would describe every schema that this is a part of.
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

    /// The limit of a list that is whole without `page`: one item more than it may have.
    pub fn limit_if_paged(&self) -> i64 {
        if self.page.is_some() { self.limit } else { UNPAGED_MAX + 1 }
    }

    /// Refuses a list that was read so and is too long. Without its end it would look whole.
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
