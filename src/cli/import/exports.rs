//! The exports of the original backend: read and checked as a whole before anything is imported.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::error::CliError;
use crate::domain::money::{Count, Price, SAFE_MAX};
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::service::{METADATA_TEXT_MAX, Metadata, Registration};
use crate::domain::usage::{Pair, UsageRecord, integer};

/// Problems that are told.
const PROBLEMS_MAX: usize = 100;
/// Longest label of a key, in UTF-16 code units.
const LABEL_MAX: usize = 64;

#[derive(Debug, Default)]
pub struct Exports {
    pub keys: Vec<OldKey>,
    pub services: Vec<OldService>,
    /// What is outstanding, without pairs at zero.
    pub usage: Vec<UsageRecord>,
}

#[derive(Debug, Deserialize)]
pub struct OldKey {
    pub prefix: String,
    pub label: String,
}

#[derive(Debug)]
pub struct OldService {
    pub registration: Registration,
    pub is_disabled: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyList {
    items: Vec<OldKey>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct ServiceList {
    services: Vec<Value>,
}

#[derive(Deserialize)]
struct UsageList {
    items: Vec<Value>,
}

type Problem = String;

impl Exports {
    /// The exports, or what is wrong with them.
    pub fn read(
        keys: Option<&Path>,
        services: &[impl AsRef<Path>],
        usage: Option<&Path>,
    ) -> Result<Result<Self, Vec<Problem>>, CliError> {
        let (mut exports, mut problems) = (Self::default(), Vec::new());
        if let Some(path) = keys {
            let list: KeyList = read(path)?;
            if list.next_cursor.is_some() {
                problems.push(format!("{}: is one page of several: export it without a limit", path.display()));
            }
            take(path, list.items, check_key, &mut exports.keys, &mut problems);
        }
        for path in services {
            let list: ServiceList = read(path.as_ref())?;
            take(path.as_ref(), list.services, parse_service, &mut exports.services, &mut problems);
        }
        if let Some(path) = usage {
            let list: UsageList = read(path)?;
            take(path, list.items, parse_usage, &mut exports.usage, &mut problems);
            exports.usage.retain(|record| !record.requests.is_zero());
        }
        problems.truncate(PROBLEMS_MAX);
        Ok(if problems.is_empty() { Ok(exports) } else { Err(problems) })
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, CliError> {
    let refuse = |error: String| CliError::Refused(format!("{} cannot be read: {error}", path.display()));
    let text = fs::read(path).map_err(|error| refuse(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))
}

fn take<I, T>(
    path: &Path,
    items: Vec<I>,
    parse: fn(I) -> Result<T, String>,
    taken: &mut Vec<T>,
    problems: &mut Vec<Problem>,
) {
    for (number, item) in items.into_iter().enumerate() {
        match parse(item) {
            Ok(item) => taken.push(item),
            Err(problem) => problems.push(format!("{}: item {number}: {problem}", path.display())),
        }
    }
}

fn check_key(key: OldKey) -> Result<OldKey, String> {
    let is_label = (1..=LABEL_MAX).contains(&key.label.encode_utf16().count()) && !key.label.trim().is_empty();
    if is_label { Ok(key) } else { Err(format!("no valid label: {:?}", key.label)) }
}

fn text<'a>(item: &'a Value, name: &str) -> &'a str {
    item.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn service_id(item: &Value) -> Result<ServiceId, String> {
    let text = text(item, "serviceId");
    ServiceId::parse(text).ok_or_else(|| format!("no valid service id: {text:?}"))
}

fn parse_service(item: Value) -> Result<OldService, String> {
    let service_id = service_id(&item)?;
    let price_stroops = item.get("priceStroops").and_then(integer).and_then(Price::new);
    let price_stroops = price_stroops.ok_or_else(|| format!("no valid price of service {service_id}"))?;
    let metadata = item.get("owner").map(|_| {
        let (description, owner) = (text(&item, "description").to_owned(), text(&item, "owner").to_owned());
        let fits = |text: &str| text.encode_utf16().count() <= METADATA_TEXT_MAX;
        let is_valid = fits(&description) && fits(&owner) && !owner.is_empty();
        is_valid.then_some(Metadata { description, owner }).ok_or_else(|| format!("no valid metadata of {service_id}"))
    });
    let metadata = metadata.transpose()?;
    let is_disabled = item.get("disabled") == Some(&Value::Bool(true));
    Ok(OldService { registration: Registration { service_id, price_stroops, metadata }, is_disabled })
}

fn parse_usage(item: Value) -> Result<UsageRecord, String> {
    let (text, service_id) = (text(&item, "agent"), service_id(&item)?);
    let agent = AgentId::parse(text).ok_or_else(|| format!("no valid agent id: {text:?}"))?;
    let total = item.get("total").and_then(integer).filter(|total| (0..=SAFE_MAX as i64).contains(total));
    let requests = total.ok_or_else(|| format!("no valid total of {agent} and {service_id}"))?;
    Ok(UsageRecord { pair: Pair { agent, service_id }, requests: Count(requests) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn items_that_break_a_rule_are_named() {
        let usage =
            |agent: &str, total: Value| parse_usage(json!({ "agent": agent, "serviceId": "s", "total": total }));
        assert_eq!(
            usage("a", json!(9_007_199_254_740_991_i64)).map(|record| record.requests),
            Ok(Count(9_007_199_254_740_991))
        );
        assert_eq!(usage("a b", json!(1)).err().as_deref(), Some("no valid agent id: \"a b\""));
        for total in [json!(-1), json!(1.5), json!("1"), json!(null), json!(1e300)] {
            assert_eq!(usage("a", total).err().as_deref(), Some("no valid total of a and s"));
        }
        let service = |item: Value| parse_service(item).map(|service| service.registration.metadata.is_some());
        assert_eq!(service(json!({ "serviceId": "s", "priceStroops": 0, "disabled": true })), Ok(false));
        assert_eq!(service(json!({ "serviceId": "s", "priceStroops": 1, "owner": "o", "description": "" })), Ok(true));
        for item in [
            json!({ "serviceId": "..", "priceStroops": 1 }),
            json!({ "serviceId": "s", "priceStroops": -1 }),
            json!({ "serviceId": "s", "priceStroops": 1, "owner": "" }),
        ] {
            assert!(service(item.clone()).is_err(), "{item}");
        }
    }
}
