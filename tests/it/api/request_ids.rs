//! HTTP contract, section 2.5: request ids, sent and generated.

use serde_json::json;

use crate::support::Service;

const USAGE: &str = "/api/v1/usage";

#[tokio::test]
async fn an_id_of_1_to_200_printable_characters_is_echoed_and_any_other_is_replaced() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for path in ["/health", "/nowhere"] {
        for id in ["a", "~ !", "with blanks, and ~signs!", &"x".repeat(200)] {
            assert_eq!(client.with("x-request-id", id).get(path).await.header("x-request-id"), id);
        }
        for id in ["", "é", &"x".repeat(201)] {
            let generated = client.with("x-request-id", id).get(path).await.header("x-request-id");
            let uuid = uuid::Uuid::parse_str(&generated).expect(&generated);
            assert_eq!((uuid.get_version_num(), uuid.to_string()), (4, generated));
        }
    }
    let refused = client.with("x-request-id", "my id").get("/nowhere").await;
    assert_eq!(refused.json()["requestId"], "my id");
}

#[tokio::test]
async fn a_replay_repeats_the_first_id_in_its_body_and_its_own_in_the_header() {
    let service = Service::start(&[]).await;
    let keyed = service.client().key("k");
    let first = keyed.with("x-request-id", "first").post(USAGE, &json!({})).await;
    let again = keyed.with("x-request-id", "again").post(USAGE, &json!({})).await;
    assert_eq!((again.replayed, again.header("x-request-id").as_str()), (true, "again"));
    assert_eq!((&again.json()["requestId"], again.text), (&json!("first"), first.text));
}
