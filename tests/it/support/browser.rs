//! A headless Chromium that a test drives with the DevTools protocol. It speaks it over two pipes, so no library is needed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::oneshot;

use super::{LIMIT, wait_until};

/// The browser of this machine. Without one, tests print a message and pass, except in CI, where they must run.
pub fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found =
        std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name))).find(|file| file.is_file());
    if found.is_none() {
        let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!in_ci, "CI needs Chromium: install the package chromium");
        eprintln!("NOT TESTED: no Chromium is installed (package chromium)");
    }
    found
}

/// Options that every headless run needs.
pub const CHROMIUM_OPTIONS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
];

/// A new directory for the profile of a browser.
pub fn new_profile() -> PathBuf {
    std::env::temp_dir().join(format!("agentpay-chromium-{}", uuid::Uuid::new_v4()))
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Value>>>>;

/// Removes the profile of a browser that ended. Its last child processes may still write to the profile.
pub fn remove_profile(profile: &Path) {
    let began = std::time::Instant::now();
    while profile.exists() && began.elapsed() < LIMIT {
        let _ = std::fs::remove_dir_all(profile);
    }
}

/// A browser with one page.
pub struct Browser {
    input: tokio::sync::Mutex<ChildStdin>,
    waiting: Waiting,
    last_id: AtomicU64,
    session: String,
    profile: PathBuf,
    child: Child,
}

/// Collects what the page must not cause: violations of its policy, and errors that nothing handles.
const WATCH: &str = r#"
    window.problems = [];
    addEventListener("securitypolicyviolation", (event) => problems.push(`CSP: ${event.violatedDirective} ${event.blockedURI}`));
    addEventListener("error", (event) => problems.push(`error: ${event.message}`));
    addEventListener("unhandledrejection", (event) => problems.push(`rejection: ${event.reason}`));
"#;

impl Browser {
    /// `None` if this machine has no Chromium.
    pub async fn start() -> Option<Self> {
        let chromium = chromium()?;
        let profile = new_profile();
        // Chromium reads messages from descriptor 3 and writes them to descriptor 4.
        let mut child = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null"#])
            .arg(chromium)
            .args(CHROMIUM_OPTIONS)
            .args(["--hide-scrollbars", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .expect("Chromium starts");
        let input = tokio::sync::Mutex::new(child.stdin.take().expect("a pipe"));
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let waiting = Waiting::default();
        let answered = waiting.clone();
        tokio::spawn(async move {
            let mut message = Vec::new();
            while output.read_until(0, &mut message).await.is_ok_and(|length| length > 0) {
                let parsed: Value = serde_json::from_slice(&message[..message.len() - 1]).expect("a message");
                let id = parsed["id"].as_u64();
                if let Some(sender) = id.and_then(|id| answered.lock().expect("waiting").remove(&id)) {
                    let _ = sender.send(parsed);
                }
                message.clear();
            }
            // Dropping the senders tells waiting callers that Chromium ended.
            answered.lock().expect("waiting").clear();
        });
        let (last_id, session) = (AtomicU64::new(0), String::new());
        let mut browser = Self { input, waiting, last_id, session, profile, child };
        let target = browser.send("Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.send("Target.attachToTarget", attach).await;
        attached["sessionId"].as_str().expect("a session").clone_into(&mut browser.session);
        browser.send("Page.enable", json!({})).await;
        browser.send("Page.addScriptToEvaluateOnNewDocument", json!({ "source": WATCH })).await;
        Some(browser)
    }

    /// Sends a command of the protocol and returns its result.
    pub async fn send(&self, method: &str, params: Value) -> Value {
        let mut answer = self.try_send(method, params).await;
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].take()
    }

    async fn try_send(&self, method: &str, params: Value) -> Value {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if !self.session.is_empty() {
            message["sessionId"] = self.session.as_str().into();
        }
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().expect("waiting").insert(id, sender);
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.input.lock().await.write_all(&bytes).await.expect("Chromium reads");
        tokio::time::timeout(LIMIT, answer).await.expect("Chromium answers").expect("Chromium runs")
    }

    pub async fn open(&self, url: &str) {
        self.send("Page.navigate", json!({ "url": url })).await;
        self.until(&format!("location.href.startsWith({}) && document.readyState === 'complete'", json!(url))).await;
    }

    /// The value of an expression in the page.
    pub async fn value(&self, expression: &str) -> Value {
        let answer = self.evaluate(expression).await;
        assert!(answer["result"]["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["result"]["value"].clone()
    }

    async fn evaluate(&self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        self.try_send("Runtime.evaluate", params).await
    }

    /// Waits until an expression is true in the page.
    pub async fn until(&self, expression: &str) {
        let began = std::time::Instant::now();
        while self.evaluate(expression).await["result"]["result"]["value"] != true {
            if began.elapsed() > LIMIT {
                let text = self.evaluate("document.body.innerText").await;
                panic!("not within {LIMIT:?}: {expression}\n{}", text["result"]["result"]["value"]);
            }
            super::pause().await;
        }
    }

    /// Waits until an element has this text somewhere.
    pub async fn until_shown(&self, selector: &str, text: &str) {
        let (selector, text) = (json!(selector), json!(text));
        self.until(&format!("[...document.querySelectorAll({selector})].some((e) => e.innerText.includes({text}))"))
            .await;
    }

    /// Waits for a visible element with this selector, whose text or label is `name`, and clicks it.
    pub async fn click(&self, selector: &str, name: &str) {
        let find = format!(
            "[...document.querySelectorAll({})].find((e) => e.checkVisibility() && !e.disabled && \
             (e.getAttribute('aria-label') === {name} || e.textContent.trim() === {name}))",
            json!(selector),
            name = json!(name),
        );
        self.until(&format!("Boolean({find})")).await;
        // The focus first, as with a mouse.
        self.value(&format!("{{ const found = {find}; found.focus(); found.click(); }}")).await;
    }

    /// Sets the value of a field.
    pub async fn fill(&self, id: &str, value: &str) {
        self.value(&format!("document.getElementById({}).value = {}", json!(id), json!(value))).await;
    }

    /// Presses and releases a key, as a keyboard does.
    pub async fn press(&self, key: &str) {
        let (key, modifiers) = key.strip_prefix("Shift+").map_or((key, 0), |key| (key, 8));
        let (code, number, text) = match key {
            "Tab" => ("Tab", 9, ""),
            "Enter" => ("Enter", 13, "\r"),
            "Escape" => ("Escape", 27, ""),
            "Space" => ("Space", 32, " "),
            other => panic!("no code for {other}"),
        };
        let key = if key == "Space" { " " } else { key };
        let mut event = json!({ "key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers });
        event["type"] = (if text.is_empty() { "rawKeyDown" } else { "keyDown" }).into();
        if !text.is_empty() {
            event["text"] = text.into();
        }
        self.send("Input.dispatchKeyEvent", event.clone()).await;
        event["type"] = "keyUp".into();
        self.send("Input.dispatchKeyEvent", event).await;
    }

    /// Types text into the focused element.
    pub async fn type_text(&self, text: &str) {
        self.send("Input.insertText", json!({ "text": text })).await;
    }

    /// Sets the size of the window and the colour scheme.
    pub async fn show_as(&self, width: u32, height: u32, scheme: &str) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.send("Emulation.setDeviceMetricsOverride", metrics).await;
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.send("Emulation.setEmulatedMedia", features).await;
    }

    /// Writes a picture of the window.
    pub async fn picture(&self, file: &Path) {
        let picture = self.send("Page.captureScreenshot", json!({ "format": "png" })).await;
        let bytes = STANDARD.decode(picture["data"].as_str().expect("a picture")).expect("base64");
        std::fs::write(file, bytes).expect("a file");
    }

    /// What went wrong in the page: violations of its policy and unhandled errors.
    pub async fn problems(&self) -> Vec<String> {
        serde_json::from_value(self.value("problems").await).expect("a list")
    }

    /// Waits until the focus is on an element whose text or label is `name`, pressing Tab.
    pub async fn tab_to(&self, name: &str) {
        let focused = "(document.activeElement.getAttribute('aria-label') ?? document.activeElement.labels?.[0]?.textContent \
                       ?? document.activeElement.textContent).trim()";
        wait_until(async || {
            self.press("Tab").await;
            self.value(focused).await == name
        })
        .await;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // All processes of the browser, because the others survive the first one for a moment and write to the profile.
        if let Some(id) = self.child.id() {
            let _ = std::process::Command::new("kill").args(["-KILL", "--", &format!("-{id}")]).status();
        }
        while matches!(self.child.try_wait(), Ok(None)) {
            std::thread::yield_now();
        }
        remove_profile(&self.profile);
    }
}
