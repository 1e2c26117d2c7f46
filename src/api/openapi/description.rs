//! The part of an operation's documentation that does not follow from its row in the table of routes. Every row has
//! one, so no route can be mounted without documentation.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

use crate::domain::money::SAFE_MAX;

/// Does not repeat access, limits, keys, and the refusals that follow from them: the row determines these.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// A verb and a noun. Becomes the name of the method in generated clients.
    pub operation_id: &'static str,
    /// A verb in the imperative, and its object.
    pub summary: &'static str,
    pub details: &'static str,
    pub query: &'static [Parameter],
    pub body: Option<Body>,
    pub answers: [Option<Answer>; 2],
    /// Has an ETag, and can be 304.
    pub is_conditional: bool,
    /// Error codes that only this operation returns.
    pub refusals: &'static [&'static str],
}

#[derive(Clone, Copy, Debug)]
pub struct Body {
    /// A name in [`bodies::schemas`](super::bodies::schemas).
    pub schema: &'static str,
    pub example: &'static str,
    pub is_required: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub status: u16,
    pub content: Content,
    pub example: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub enum Content {
    None,
    Json(fn(&mut SchemaGenerator) -> Schema),
    /// Text of a media type, either a file of this name or shown in place.
    Text(&'static str),
    File(fn(&mut SchemaGenerator) -> Schema, &'static str),
}

impl Description {
    pub const fn of(operation_id: &'static str, summary: &'static str, details: &'static str) -> Self {
        Self {
            operation_id,
            summary,
            details,
            query: &[],
            body: None,
            answers: [None, None],
            is_conditional: false,
            refusals: &[],
        }
    }

    pub const fn query(self, query: &'static [Parameter]) -> Self {
        Self { query, ..self }
    }

    /// The request body, with an example that is accepted.
    pub const fn body(self, schema: &'static str, example: &'static str) -> Self {
        Self { body: Some(Body { schema, example, is_required: true }), ..self }
    }

    pub const fn optional_body(self, schema: &'static str, example: &'static str) -> Self {
        Self { body: Some(Body { schema, example, is_required: false }), ..self }
    }

    /// A response with the JSON of a `T`.
    pub const fn answer<T: JsonSchema>(self, status: u16, example: &'static str) -> Self {
        self.content(status, Content::Json(SchemaGenerator::subschema_for::<T>), example)
    }

    /// A response with 204.
    pub const fn empty(self) -> Self {
        self.content(204, Content::None, "")
    }

    pub const fn content(self, status: u16, content: Content, example: &'static str) -> Self {
        let answer = Some(Answer { status, content, example });
        let answers = match self.answers {
            [None, _] => [answer, None],
            [first, _] => [first, answer],
        };
        Self { answers, ..self }
    }

    pub const fn conditional(self) -> Self {
        Self { is_conditional: true, ..self }
    }

    pub const fn refuses(self, refusals: &'static [&'static str]) -> Self {
        Self { refusals, ..self }
    }
}

/// A query parameter.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    pub name: &'static str,
    pub description: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Clamped to its range. Anything that is not a number counts as absent.
    Bounded {
        default: i64,
        min: i64,
        max: i64,
    },
    Integer,
    Text,
    Pattern(&'static str),
    Flag,
}

pub const fn limit(default: i64, max: i64) -> Parameter {
    let kind = Kind::Bounded { default, min: 1, max };
    Parameter { name: "limit", description: "Maximum number of items to return.", kind }
}

pub const PAGE: Parameter = Parameter {
    name: "page",
    description: "Page to return, from 1. The response then has `page` and `pageCount`.",
    kind: Kind::Bounded { default: 1, min: 1, max: 1 << 40 },
};

pub const OFFSET: Parameter = Parameter {
    name: "offset",
    description: "Number of items to skip. Ignored if `cursor` is given.",
    kind: Kind::Bounded { default: 0, min: 0, max: 1 << 40 },
};

pub const SINCE: Parameter = Parameter {
    name: "since",
    description: "Earliest time to return, in milliseconds since the Unix epoch.",
    kind: Kind::Bounded { default: 0, min: 0, max: SAFE_MAX as i64 },
};

pub const CURSOR: Parameter = Parameter {
    name: "cursor",
    description: "Next cursor of the previous page.",
    kind: Kind::Pattern("^[A-Za-z0-9_-]+$"),
};

pub const fn text(name: &'static str, description: &'static str) -> Parameter {
    Parameter { name, description, kind: Kind::Text }
}

pub const fn identifier(name: &'static str, description: &'static str) -> Parameter {
    Parameter { name, description, kind: Kind::Pattern("^[A-Za-z0-9._-]*$") }
}

pub const fn price(name: &'static str, description: &'static str) -> Parameter {
    Parameter { name, description, kind: Kind::Integer }
}

pub const fn flag(name: &'static str, description: &'static str) -> Parameter {
    Parameter { name, description, kind: Kind::Flag }
}

/// An integer schema with the narrowest format that holds its bounds.
pub fn integer(min: i64, max: i64) -> Value {
    let format = if max > i32::MAX.into() { "int64" } else { "int32" };
    json!({ "type": "integer", "format": format, "minimum": min, "maximum": max })
}

impl Parameter {
    pub fn schema(&self) -> Value {
        match self.kind {
            Kind::Bounded { default, min, max } => {
                let mut schema = integer(min, max);
                schema["default"] = default.into();
                schema
            }
            Kind::Integer => json!({ "type": "integer", "format": "int64" }),
            Kind::Text => json!({ "type": "string" }),
            Kind::Pattern(pattern) => json!({ "type": "string", "pattern": pattern }),
            Kind::Flag => json!({ "type": "boolean" }),
        }
    }

    /// Whether a value that breaks the schema is accepted, either as another value or as absent.
    pub fn is_lenient(&self) -> bool {
        !matches!(self.kind, Kind::Pattern(_))
    }
}
