//! How the console is served: from the binary, under a strict policy, with tags; and the way to it from `/`.

use agentpay_billing::domain::audit_log::Operation;

use crate::support::{Client, Service};

use super::GUARDED;

const HTML: (&str, &str) = ("accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8");

/// The files that the page and its scripts name.
async fn named_files(client: &Client) -> Vec<String> {
    let mut found =
        vec!["/console/main.js".to_owned(), "/console/console.css".to_owned(), "/console/icon.svg".to_owned()];
    let mut at = 0;
    while at < found.len() {
        let text = client.get(&found[at]).await.text;
        for rest in text.split("from \"").skip(1) {
            let name = rest.split('"').next().expect("a name").to_owned();
            if name.starts_with("/console/") && !found.contains(&name) {
                found.push(name);
            }
        }
        at += 1;
    }
    found
}

#[tokio::test]
async fn the_page_has_a_strict_policy_and_loads_nothing_from_elsewhere() {
    let service = Service::start(GUARDED).await;
    let client = service.client();
    let page = client.get("/console").await;
    assert_eq!((page.status, page.header("content-type").as_str()), (200, "text/html; charset=utf-8"));
    assert_eq!(
        page.header("content-security-policy"),
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    );
    assert_eq!(client.get("/console/").await.text, page.text);
    let files = named_files(&client).await;
    assert_eq!(files.len(), 12, "{files:?}");
    let mut texts = vec![page.text];
    for path in &files {
        let file = client.get(path).await;
        assert_eq!(file.status, 200, "{path}");
        texts.push(file.text);
    }
    for text in &texts {
        // No inline script or style, no HTML from text, no storage.
        for absent in [
            "<script>",
            " style=",
            "<style",
            " onclick=\"",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "eval(",
            "Storage",
            "cookie =",
            "https://",
        ] {
            assert!(!text.contains(absent), "{absent} in {text}");
        }
        assert!(text.matches("http://").count() == text.matches("http://www.w3.org/2000/svg").count(), "{text}");
    }
}

#[tokio::test]
async fn files_have_tags_and_unknown_ones_are_404() {
    let service = Service::start(GUARDED).await;
    let client = service.client();
    for path in ["/console", "/console/main.js", "/console/console.css"] {
        let file = client.get(path).await;
        assert_eq!(file.header("cache-control"), "no-cache", "{path}");
        let known = client.with("if-none-match", &file.header("etag")).get(path).await;
        assert_eq!((known.status, known.text.as_str()), (304, ""), "{path}");
        assert!(!file.header("content-security-policy").contains("unsafe"), "{path}");
    }
    for path in ["/console/index.html", "/console/nothing.js", "/console/console/main.js", "/console/..%2fdocs.css"] {
        let (status, code, message) = client.get(path).await.error();
        assert_eq!((status, code.as_str(), message), (404, "not_found", format!("No route for GET {path}")));
    }
    assert_eq!(client.send("POST", "/console", None).await.header("allow"), "GET, HEAD, OPTIONS");
}

/// HTTP contract, section 2.1.
#[tokio::test]
async fn a_browser_is_led_from_the_root_to_the_console_and_other_clients_get_404() {
    let service = Service::start(GUARDED).await;
    let client = service.client().without_redirects();
    for method in ["GET", "HEAD"] {
        let led = client.with(HTML.0, HTML.1).send(method, "/?x=1", None).await;
        assert_eq!((led.status, led.header("location").as_str(), led.text.as_str()), (303, "/console", ""));
        assert_eq!((led.header("vary").as_str(), led.header("cache-control").as_str()), ("Accept", "no-store"));
    }
    for (method, client) in [
        ("GET", client.clone()),
        ("GET", client.with("accept", "*/*")),
        ("GET", client.with("accept", "application/json")),
        ("POST", client.with(HTML.0, HTML.1)),
    ] {
        let (status, code, message) = client.send(method, "/", None).await.error();
        assert_eq!((status, code.as_str(), message), (404, "not_found", format!("No route for {method} /")));
    }
    // Other unknown paths are 404 for browsers, too.
    assert_eq!(client.with(HTML.0, HTML.1).get("/nowhere").await.status, 404);
}

#[tokio::test]
async fn the_filter_of_the_audit_log_offers_every_operation() {
    let service = Service::start(GUARDED).await;
    let page = service.client().get("/console").await.text;
    let (_, select) = page.split_once(r#"<select id="audit-operation""#).expect("the filter");
    let (select, _) = select.split_once("</select>").expect("its end");
    let mut offered: Vec<_> = select.split("<option>").skip(1).map(|rest| rest.split('<').next()).collect();
    let mut known: Vec<_> = Operation::ALL.map(|operation| Some(operation.as_str())).to_vec();
    offered.sort_unstable();
    known.sort_unstable();
    assert_eq!(offered, known);
}
