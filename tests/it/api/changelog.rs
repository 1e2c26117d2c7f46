//! HTTP contract, section 16.4: the changelog.

use crate::support::Service;

#[tokio::test]
async fn the_changelog_tells_the_releases() {
    let service = Service::start(&[]).await;
    let answer = service.client().get("/api/v1/changelog?x=1").await;
    assert!(answer.text.starts_with(r#"{"entries":[{"version":""#), "{}", answer.text);
    let newest = &answer.json()["entries"][0];
    assert_eq!(newest["version"], env!("CARGO_PKG_VERSION"));
    let members: Vec<String> = newest.as_object().expect("an entry").keys().cloned().collect();
    assert_eq!(members, ["version", "date", "notes"]);
    assert_eq!(newest["date"].as_str().map(str::len), Some(10));
    assert!(newest["notes"].as_array().is_some_and(|notes| notes.iter().all(|note| note.is_string())));
}
