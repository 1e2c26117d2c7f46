//! What an import writes for its tenant. Each write is a request of the HTTP API with an idempotency key that names the
//! import and the service, or the import and a part of the usage.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::error::CliError;
use crate::cli::progress_bar::ProgressBar;
use crate::cli::writer::{Write, Writer};
use crate::command::{Answer, BatchedCommand, Command, Keyed, Reply, TransactionalCommand};
use crate::domain::caller::{Caller, Tenant};
use crate::domain::fingerprint::Fingerprint;
use crate::domain::refusal::Refusal;
use crate::domain::service::{Registration, ServiceEdit};
use crate::domain::usage::UsageRecord;
use crate::store::idempotency::CallerKey;

use super::exports::{Exports, OldService};
use super::report::{Failure, Report};

/// Pairs of one part of the usage. A change would make other parts of an import that was interrupted before it.
const PAIRS_OF_PART: usize = 500;

pub struct Steps<'a> {
    pub writer: &'a Writer,
    pub tenant: &'a Tenant,
    pub name: &'a str,
}

/// A request as the HTTP API would get it.
struct Call<'a> {
    method: &'static str,
    route: &'a str,
    parameters: &'a [(&'a str, &'a str)],
    body: Value,
    command: Command,
}

#[derive(Deserialize)]
struct BulkAnswer {
    results: Vec<ItemAnswer>,
}

#[derive(Deserialize)]
struct ItemAnswer {
    ok: bool,
    error: Option<String>,
}

impl Steps<'_> {
    pub async fn run(&self, exports: &Exports, report: &mut Report) -> Result<(), CliError> {
        self.register(&exports.services, report).await?;
        self.record(&exports.usage, report).await?;
        // A disabled service takes no usage, and a missing one would be refused for good: the repetition that imports the rest
        // disables them.
        if report.failures.is_empty() {
            self.disable(&exports.services, report).await?;
        }
        Ok(())
    }

    async fn register(&self, services: &[OldService], report: &mut Report) -> Result<(), CliError> {
        let progress = ProgressBar::of(services.len() as u64, "services");
        for OldService { registration, .. } in services {
            let Registration { service_id, price_stroops, metadata } = registration;
            let mut body = json!({ "serviceId": service_id, "priceStroops": price_stroops });
            if let Some(metadata) = metadata {
                body["description"] = metadata.description.clone().into();
                body["owner"] = metadata.owner.clone().into();
            }
            let command = TransactionalCommand::RegisterService(registration.clone()).into();
            let call = Call { method: "POST", route: "/api/v1/services", parameters: &[], body, command };
            match self.submit(&format!("service-{service_id}"), call).await? {
                Ok((_, was_earlier)) => report.services.add(1, was_earlier),
                Err(refusal) => report.failures.push(refused(&format!("service {service_id}"), &refusal)),
            }
            progress.add(1);
        }
        Ok(())
    }

    async fn record(&self, usage: &[UsageRecord], report: &mut Report) -> Result<(), CliError> {
        let progress = ProgressBar::of(usage.len() as u64, "pairs");
        for (number, part) in usage.chunks(PAIRS_OF_PART).enumerate() {
            self.record_part(number, part, report).await?;
            progress.add(part.len());
        }
        Ok(())
    }

    /// Records a part, and what was refused of it once more: the answer of an earlier run stays what it is, so each repetition
    /// has a key of its own.
    async fn record_part(&self, number: usize, part: &[UsageRecord], report: &mut Report) -> Result<(), CliError> {
        let mut records = part.to_vec();
        for repetition in 0_u32.. {
            let key = match repetition {
                0 => format!("usage-{number}"),
                _ => format!("usage-{number}.{repetition}"),
            };
            let (reply, was_earlier) = match self.submit(&key, bulk(&records)).await? {
                Ok(answer) => answer,
                Err(refusal) => return Err(CliError::Refused(refusal.to_string())),
            };
            let body = reply.body.unwrap_or_default();
            let BulkAnswer { results } = serde_json::from_slice(&body).expect("the command's own answer");
            let mut refused = Vec::new();
            for (record, result) in records.into_iter().zip(results) {
                if result.ok {
                    report.pairs.add(1, was_earlier);
                    report.requests.add(record.requests.0, was_earlier);
                } else {
                    refused.push((record, result.error.unwrap_or_default()));
                }
            }
            if refused.is_empty() {
                break;
            }
            if !was_earlier {
                report.failures.extend(refused.into_iter().map(|(record, error)| Failure {
                    item: format!("{} {}: {} requests", record.pair.agent, record.pair.service_id, record.requests),
                    error,
                }));
                break;
            }
            records = refused.into_iter().map(|(record, _)| record).collect();
        }
        Ok(())
    }

    async fn disable(&self, services: &[OldService], report: &mut Report) -> Result<(), CliError> {
        for OldService { registration, .. } in services.iter().filter(|service| service.is_disabled) {
            let service_id = &registration.service_id;
            let edit = Ok(ServiceEdit::Disabled(true));
            let call = Call {
                method: "PATCH",
                route: "/api/v1/services/:serviceId/disabled",
                parameters: &[("serviceId", service_id.as_str())],
                body: json!({ "disabled": true }),
                command: TransactionalCommand::ChangeService { service_id: service_id.clone(), edit }.into(),
            };
            match self.submit(&format!("disable-{service_id}"), call).await? {
                Ok((reply, was_earlier)) if reply.status < 300 => report.disabled_services.add(1, was_earlier),
                Ok((reply, _)) => {
                    let error = format!("status {}", reply.status);
                    report.failures.push(Failure { item: format!("disabling of {service_id}"), error });
                }
                Err(refusal) => report.failures.push(refused(&format!("disabling of {service_id}"), &refusal)),
            }
        }
        Ok(())
    }

    /// Executes a call, or finds its outcome in an earlier run, and reports which.
    async fn submit(&self, key: &str, call: Call<'_>) -> Result<Result<(Reply, bool), Refusal>, CliError> {
        let key = format!("import-{}-{key}", self.name);
        let caller = Caller::Tenant(self.tenant.clone()).to_string();
        let Call { method, route, parameters, body, command } = call;
        let fingerprint = Fingerprint::of(method, route, parameters, &body);
        let path =
            parameters.iter().fold(route.to_owned(), |path, (name, value)| path.replace(&format!(":{name}"), value));
        let keyed = Some(Keyed { id: CallerKey { caller, key: key.clone() }.into(), fingerprint });
        match self.writer.submit(Write { tenant: self.tenant.clone(), keyed, method, path, command }).await {
            Answer::Fresh(reply) => Ok(Ok((reply, false))),
            Answer::Replayed(reply) => Ok(Ok((reply, true))),
            Answer::Refused(Refusal::KeyConflict) => Err(CliError::Refused(format!(
                "an import with this name began with other exports ({key} differs): use those, or another --name to add these"
            ))),
            Answer::Refused(refusal) if refusal.status_and_code().0 >= 500 => {
                Err(CliError::Refused(format!("the import was interrupted ({refusal}): run the same command again")))
            }
            Answer::Refused(refusal) => Ok(Err(refusal)),
        }
    }
}

fn bulk(records: &[UsageRecord]) -> Call<'static> {
    let items = records.iter().map(|UsageRecord { pair, requests }| {
        json!({ "agent": pair.agent, "serviceId": pair.service_id, "requests": requests })
    });
    let body = json!({ "items": items.collect::<Vec<_>>() });
    let command = BatchedCommand::RecordUsageBulk(records.iter().cloned().map(Some).collect()).into();
    Call { method: "POST", route: "/api/v1/usage/bulk", parameters: &[], body, command }
}

fn refused(item: &str, refusal: &Refusal) -> Failure {
    Failure { item: item.to_owned(), error: refusal.to_string() }
}
