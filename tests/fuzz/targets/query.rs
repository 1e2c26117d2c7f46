//! Query parameters: numbers within their bounds, and the same for another encoding of the same parameters.

use agentpay_billing::api::request::query::Query;
use url::form_urlencoded::{Serializer, parse};

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let query = Query::parse(&text);
    let mut encoded = Serializer::new(String::new());
    // Those that are read.
    encoded.extend_pairs(parse(text.as_bytes()).take(1000));
    let again = Query::parse(&encoded.finish());
    assert!(query.names().eq(again.names()));
    assert_eq!(query.has_nul(), again.has_nul());
    for name in query.names().take(8).chain(["limit", "page", "since", "cursor"]) {
        let (min, max) = (-1, 1 << 40);
        let number = query.bounded(name, 7, min, max);
        assert!((min..=max).contains(&number), "{name}: {number}");
        assert_eq!(number, again.bounded(name, 7, min, max));
        let slice = query.slice(25, 1000);
        assert!((1..=1000).contains(&slice.limit) && slice.page.is_none_or(|page| page >= 1) && slice.offset() >= 0);
        assert_eq!((query.text(name), query.flag(name)), (again.text(name), again.flag(name)));
        // An integer filter that is within the bounds is the bounded number.
        if let Some(integer) = query.integer(name) {
            assert_eq!(again.integer(name), Some(integer));
            assert_eq!(number, integer.clamp(min, max));
        }
    }
    assert_eq!(query.cursor(), again.cursor());
}
