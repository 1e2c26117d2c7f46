//! `import`: moves a tenant over from the original backend, by its exports. Everything is written under idempotency keys that
//! follow from the exports, so a repetition, also after a crash, changes nothing twice.

mod exports;
mod keys;
mod report;
mod steps;

use std::path::PathBuf;

use clap::Args;
use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::settings::committer::CommitterSettings;
use crate::store::tenants;

use super::error::CliError;
use super::session::Session;
use super::table::FormatOption;
use super::writer::Writer;
use exports::Exports;
use keys::NewKey;
use report::Report;
use steps::Steps;

/// How long the idempotency records of an import are kept: until then it can be repeated. No janitor evicts a record that
/// expires so late.
const KEPT_MS: i64 = 365 * 24 * 3_600_000;

#[derive(Args, Debug)]
pub struct Import {
    /// The tenant that gets the services and the usage. Without it, the one of the new key.
    #[arg(long)]
    tenant: Option<String>,
    /// The answer of the original to GET /api/v1/api-keys. Each key gets a new tenant and a new key.
    #[arg(long, value_name = "FILE", requires = "new_keys")]
    keys: Option<PathBuf>,
    /// Where the new keys are written, which are shown nowhere else. A repetition needs this file.
    #[arg(long, value_name = "FILE", requires = "keys")]
    new_keys: Option<PathBuf>,
    /// The beginning of the original's key that services and usage were exported with, if there are several.
    #[arg(long, value_name = "PREFIX", requires = "keys", conflicts_with = "tenant")]
    old_key: Option<String>,
    /// The answer to GET /api/v1/services?limit=1000, once for each page.
    #[arg(long, value_name = "FILE")]
    services: Vec<PathBuf>,
    /// The answer to GET /api/v1/usage/export.json.
    #[arg(long, value_name = "FILE")]
    usage: Option<PathBuf>,
    /// Tells apart imports into one tenant: one name, one set of exports.
    #[arg(long, default_value = "original", value_parser = parse_name)]
    name: String,
    #[command(flatten)]
    format: FormatOption,
}

/// A part of idempotency keys, with a service id.
fn parse_name(text: &str) -> Result<String, String> {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    let is_name = (1..=64).contains(&text.len()) && text.chars().all(is_plain);
    is_name.then(|| text.to_owned()).ok_or_else(|| "expected 1 to 64 letters, digits, '.', '_' or '-'".to_owned())
}

impl Import {
    /// False if something could not be imported.
    pub async fn run(&self, session: &Session<'_>) -> Result<bool, CliError> {
        let exports = match Exports::read(self.keys.as_deref(), &self.services, self.usage.as_deref())? {
            Ok(exports) => exports,
            Err(problems) => {
                for problem in &problems {
                    session.print(problem.clone()).await?;
                }
                return Err(CliError::Refused(format!("nothing was imported: problems: {}", problems.len())));
            }
        };
        let needs_tenant = !self.services.is_empty() || self.usage.is_some();
        if !needs_tenant && self.keys.is_none() {
            return Err(CliError::Refused("nothing to import: name --keys, --services or --usage".to_owned()));
        }
        // Before anything is written.
        let old_key = self.old_key_of(&exports, needs_tenant)?;
        let settings = CommitterSettings {
            ttl_ms: KEPT_MS,
            // Usage of a service without a price is outstanding too. It stays so until the service is registered.
            require_registered_services: false,
            ..session.settings.committer.clone()
        };
        let report = self.import(session, &settings, &exports, old_key, needs_tenant).await?;
        self.format.print(session, &report, Report::to_table).await?;
        Ok(report.failures.is_empty())
    }

    /// The place of the key that services and usage belong to; none if another tenant is named.
    fn old_key_of(&self, exports: &Exports, needs_tenant: bool) -> Result<Option<usize>, CliError> {
        if !needs_tenant || self.tenant.is_some() {
            return Ok(None);
        }
        // The original shows 8 characters of a key, or more.
        let is_named = |prefix: &str| {
            self.old_key.as_deref().is_none_or(|named| prefix.starts_with(named) || named.starts_with(prefix))
        };
        let places: Vec<usize> =
            (0..exports.keys.len()).filter(|place| is_named(&exports.keys[*place].prefix)).collect();
        match places.as_slice() {
            [place] => Ok(Some(*place)),
            _ => Err(CliError::Refused(
                "which tenant gets the services and the usage? Name it with --tenant, or one old key with --old-key"
                    .to_owned(),
            )),
        }
    }

    async fn import(
        &self,
        session: &Session<'_>,
        settings: &CommitterSettings,
        exports: &Exports,
        old_key: Option<usize>,
        needs_tenant: bool,
    ) -> Result<Report, CliError> {
        let mut report = Report::default();
        let mut made: Vec<NewKey> = Vec::new();
        if let Some(path) = &self.new_keys {
            let writer = Writer::start(session, settings).await?;
            let imported = keys::import(session, &writer, &exports.keys, path, &mut report.keys).await;
            writer.close().await;
            made = imported?;
        }
        if !needs_tenant {
            return Ok(report);
        }
        let of_key = old_key.and_then(|place| made.get(place)).and_then(|key| key.tenant_id.clone());
        let tenant = Tenant::from_stored(self.tenant.clone().or(of_key).unwrap_or_default());
        let exists = async |connection: &mut PgConnection| tenants::exists(connection, &tenant).await;
        if !session.read(exists).await? {
            return Err(CliError::Refused(format!("no tenant with id {tenant}")));
        }
        let writer = Writer::start(&session.of_tenant(&tenant).await?, settings).await?;
        let steps = Steps { writer: &writer, tenant: &tenant, name: &self.name };
        let imported = steps.run(exports, &mut report).await;
        writer.close().await;
        imported?;
        report.tenant_id = Some(tenant);
        Ok(report)
    }
}
