//! One operation: the rules that the pipeline applies to it, its handler, and its description for the OpenAPI document.

use axum::routing::MethodRouter;

use crate::api::openapi::description::Description;
use crate::api::state::ApiState;
use crate::domain::api_key::{Scope, Scopes};

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    Open,
    /// A recognised API key, while keys are required.
    Tenant,
    Operator,
    /// The operator or METRICS_TOKEN, while keys are required or the token is set.
    Metrics,
}

/// A row of the table of routes.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub method: &'static str,
    /// With `:name` for a path parameter. Part of every fingerprint (HTTP contract, section 6.2).
    pub pattern: &'static str,
    pub auth: Auth,
    /// A key that is limited to scopes needs one of these, or `admin`. Empty: it needs none.
    pub scopes: Scopes,
    /// Honours `Idempotency-Key`.
    pub idempotent: bool,
    /// Counts against the rate limit.
    pub limited: bool,
    /// Refused while the service is paused.
    pub pausable: bool,
    /// Refuses unknown query parameters.
    pub strict_query: bool,
    /// Refused if the operator acts for a tenant: the audit log does not have these changes.
    pub of_tenant_only: bool,
    /// Works without a database. An API key that cannot be looked up counts as unknown.
    pub needs_no_database: bool,
    /// What the OpenAPI document says beyond these flags.
    pub description: Description,
    pub(super) handler: fn() -> MethodRouter<ApiState>,
}

impl Route {
    pub(super) const fn new(
        method: &'static str,
        pattern: &'static str,
        auth: Auth,
        handler: fn() -> MethodRouter<ApiState>,
        description: Description,
    ) -> Self {
        Self {
            method,
            pattern,
            auth,
            scopes: Scopes::NONE,
            idempotent: false,
            limited: true,
            pausable: false,
            strict_query: false,
            of_tenant_only: false,
            needs_no_database: false,
            description,
            handler,
        }
    }

    /// Whether the response depends on the tenant: on its data or its quota.
    pub fn needs_tenant(&self) -> bool {
        self.limited && self.auth != Auth::Operator
    }

    /// Whether it reads or changes the data of a tenant. Routes that do are those with scopes.
    pub fn uses_tenant(&self) -> bool {
        !self.scopes.is_empty()
    }

    pub(super) const fn scope(self, scope: Scope) -> Self {
        Self { scopes: self.scopes.and(scope), ..self }
    }

    pub(super) const fn strict(self) -> Self {
        Self { strict_query: true, ..self }
    }

    pub(super) const fn of_tenant_only(self) -> Self {
        Self { of_tenant_only: true, ..self }
    }

    pub(super) const fn unlimited(self) -> Self {
        Self { limited: false, ..self }
    }

    pub(super) const fn without_database(self) -> Self {
        Self { needs_no_database: true, ..self }
    }

    pub(super) const fn idempotent(self) -> Self {
        Self { idempotent: true, ..self }
    }

    pub(super) const fn pausable(self) -> Self {
        Self { pausable: true, ..self }
    }
}

/// `pattern` in axum's notation.
pub fn braced(pattern: &str) -> String {
    pattern
        .split('/')
        .map(|segment| segment.strip_prefix(':').map_or(segment.to_owned(), |name| format!("{{{name}}}")))
        .collect::<Vec<_>>()
        .join("/")
}
