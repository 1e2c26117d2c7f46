//! An HTTP client for tests.

use std::net::SocketAddr;

use serde_json::{Value, json};

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    headers: Vec<(String, String)>,
}

/// A response. Two are equal if their status and body are.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub replayed: bool,
    pub text: String,
    pub headers: reqwest::header::HeaderMap,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("JSON: {}", self.text))
    }

    /// The values of a header, joined; empty if there is none.
    pub fn header(&self, name: &str) -> String {
        let values = self.headers.get_all(name).iter().map(|value| value.to_str().expect("text"));
        values.collect::<Vec<_>>().join(", ")
    }

    /// Status, code and message of an error.
    pub fn error(&self) -> (u16, String, String) {
        let body = self.json();
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        assert_eq!(body["requestId"], self.headers["x-request-id"].to_str().expect("an id"), "{body}");
        (self.status, text("error"), text("message"))
    }

    pub fn same(&self, other: &Answer) -> bool {
        self.status == other.status && self.text == other.text
    }
}

/// A response with a binary body.
pub struct Bytes {
    pub headers: reqwest::header::HeaderMap,
    pub body: Vec<u8>,
}

pub fn usage(agent: &str, service: &str, requests: i64) -> Value {
    json!({ "agent": agent, "serviceId": service, "requests": requests })
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        // All tests use plain HTTP. Installing a second provider fails, which does not matter.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { http: reqwest::Client::new(), base: format!("http://{address}"), headers: Vec::new() }
    }

    /// A copy of this client that sends one more header.
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name.to_owned(), value.to_owned()));
        client
    }

    /// A copy of this client that shows redirects instead of following them.
    pub fn without_redirects(&self) -> Self {
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().expect("a client");
        Self { http, ..self.clone() }
    }

    /// The value of a header that it sends.
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone())
    }

    pub fn key(&self, key: &str) -> Self {
        self.with("idempotency-key", key)
    }

    pub async fn try_send(&self, method: &str, path: &str, body: Option<Vec<u8>>) -> Result<Answer, reqwest::Error> {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("method");
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Some(body) = body {
            if !self.headers.iter().any(|(name, _)| name == "content-type") {
                request = request.header("content-type", "application/json");
            }
            request = request.body(body);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let replayed = headers.get("idempotency-replayed").is_some_and(|value| value == "true");
        Ok(Answer { status, replayed, text: String::from_utf8_lossy(&response.bytes().await?).into_owned(), headers })
    }

    /// A GET with a binary response.
    pub async fn get_bytes(&self, path: &str) -> Bytes {
        let mut request = self.http.get(format!("{}{path}", self.base));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let response = request.send().await.expect("an answer");
        Bytes { headers: response.headers().clone(), body: response.bytes().await.expect("a body").to_vec() }
    }

    pub async fn send(&self, method: &str, path: &str, body: Option<&str>) -> Answer {
        self.try_send(method, path, body.map(|body| body.as_bytes().to_vec())).await.expect("an answer")
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, Some(&body.to_string())).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None).await
    }
}
