//! Logs: JSON lines, or lines for people on a terminal.

use tracing_subscriber::EnvFilter;

use crate::settings::Settings;

pub fn start(settings: &Settings) {
    let filter = EnvFilter::new(match settings.log_level.as_str() {
        "silent" => "off".to_owned(),
        "fatal" => "error".to_owned(),
        // The drivers below us stay at their own errors, so that no statement's data gets into the log.
        level => format!("error,agentpay_billing={level}"),
    });
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    if settings.log_json {
        log.json().init();
    } else {
        log.init();
    }
}
