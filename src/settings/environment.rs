//! How a variable is read: trimmed, bounded, and unset if it is empty. A secret may stand in a file instead, whose path is in
//! the variable `NAME_FILE`.

use std::cell::RefCell;
use std::fs;
use std::ops::RangeInclusive;
use std::time::Duration;

use url::Url;

use super::error::SettingsError;
use super::variable::{Source, Variable};

pub(super) struct Environment<'a> {
    read: &'a dyn Fn(&str) -> Option<String>,
    /// Every variable that was read, for operators.
    variables: RefCell<Vec<Variable>>,
}

impl<'a> Environment<'a> {
    pub(super) fn of(read: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { read, variables: RefCell::default() }
    }

    /// The variables that were read, by name.
    pub(super) fn into_variables(self) -> Vec<Variable> {
        let mut variables = self.variables.into_inner();
        variables.sort_by(|left, right| left.name.cmp(&right.name));
        variables
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        let text = self.raw(name);
        self.note(name, text.clone(), if text.is_some() { Source::Environment } else { Source::Default });
        text
    }

    pub(super) fn text_or(&self, name: &str, default: &str) -> String {
        self.text(name).unwrap_or_else(|| {
            self.note(name, Some(default.to_owned()), Source::Default);
            default.to_owned()
        })
    }

    fn raw(&self, name: &str) -> Option<String> {
        (self.read)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    fn note(&self, name: &str, value: Option<String>, source: Source) {
        let mut variables = self.variables.borrow_mut();
        let variable = Variable { name: name.to_owned(), value, source };
        match variables.iter_mut().find(|own| own.name == name) {
            // Only some reads of a variable know its default.
            Some(own) if variable.value.is_some() => *own = variable,
            Some(_) => {}
            None => variables.push(variable),
        }
    }

    /// A value that no error repeats. An empty file is an error: a secret that was not written must not count as unset,
    /// which can mean that no key is required.
    pub(super) fn secret(&self, name: &str) -> Result<Option<String>, SettingsError> {
        self.masked(name, |_| MASK.to_owned())
    }

    /// The same for a URL, of which only the password is a secret.
    pub(super) fn secret_url(&self, name: &str) -> Result<Option<String>, SettingsError> {
        self.masked(name, mask_url)
    }

    fn masked(&self, name: &str, mask: fn(&str) -> String) -> Result<Option<String>, SettingsError> {
        let file = format!("{name}_FILE");
        let source = if self.raw(&file).is_some() { Source::File } else { Source::Environment };
        let value = self.value_or_file(name, &file)?;
        self.note(name, value.as_deref().map(mask), if value.is_some() { source } else { Source::Default });
        Ok(value)
    }

    fn value_or_file(&self, name: &str, file: &str) -> Result<Option<String>, SettingsError> {
        let value = self.raw(name);
        let Some(path) = self.raw(file) else { return Ok(value) };
        if value.is_some() {
            return Err(SettingsError(format!("{name} and {file} are both set: set one of them")));
        }
        let content = fs::read_to_string(&path)
            .map_err(|error| SettingsError(format!("{file} names {path}, which cannot be read: {error}")))?;
        match content.trim() {
            "" => Err(SettingsError(format!("{file} names {path}, which is empty"))),
            text => Ok(Some(text.to_owned())),
        }
    }

    pub(super) fn int(&self, name: &str, default: u64, range: RangeInclusive<u64>) -> Result<u64, SettingsError> {
        let text = self.text_or(name, &default.to_string());
        let accepted = || format!("an integer between {}-{}", range.start(), range.end());
        let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse()
            .ok()
            .filter(|value| is_digits && range.contains(value))
            .ok_or_else(|| refuse(name, &accepted(), &text))
    }

    pub(super) fn ms(
        &self,
        name: &str,
        default: Duration,
        range: RangeInclusive<u64>,
    ) -> Result<Duration, SettingsError> {
        self.int(name, default.as_millis() as u64, range).map(Duration::from_millis)
    }

    pub(super) fn switch(&self, name: &str, default: bool) -> Result<bool, SettingsError> {
        let text = self.text_or(name, if default { "true" } else { "false" });
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err(refuse(name, "true, 1, yes, on, false, 0, no or off", &text)),
        }
    }
}

/// What is shown of a secret.
const MASK: &str = "***";

fn mask_url(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return MASK.to_owned() };
    // A parameter may be the password as well.
    let parameters: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    if !parameters.is_empty() {
        let masked = parameters.iter().map(|(name, value)| (name, if name == "password" { MASK } else { value }));
        url.query_pairs_mut().clear().extend_pairs(masked);
    }
    match url.password().is_some().then(|| url.set_password(Some(MASK))) {
        Some(Err(())) => MASK.to_owned(),
        _ => url.to_string(),
    }
}

pub(super) fn refuse(name: &str, accepted: &str, value: &str) -> SettingsError {
    SettingsError(format!("{name} must be {accepted}, got \"{value}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(pairs: &[(&str, &str)]) -> Result<Option<String>, String> {
        let read = |name: &str| pairs.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned());
        Environment::of(&read).secret("KEY").map_err(|error| error.to_string())
    }

    #[test]
    fn a_secret_is_the_value_or_the_content_of_a_file() {
        let path = std::env::temp_dir().join(format!("agentpay-secret-{}", uuid::Uuid::new_v4()));
        let file = path.to_str().expect("UTF-8");
        let from_file = |content: &[u8]| {
            fs::write(&path, content).expect("a file");
            secret(&[("KEY_FILE", file)])
        };
        assert_eq!(from_file(b"hunter2\n"), Ok(Some("hunter2".to_owned())));
        assert_eq!(from_file(b"hunter2\r\n"), Ok(Some("hunter2".to_owned())));
        assert_eq!(from_file(b"\n"), Err(format!("KEY_FILE names {file}, which is empty")));
        let error = from_file(b"hunter2\xff").expect_err("a refusal");
        assert!(error.starts_with(&format!("KEY_FILE names {file}, which cannot be read: ")), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        let both = secret(&[("KEY", "hunter2"), ("KEY_FILE", file)]);
        assert_eq!(both, Err("KEY and KEY_FILE are both set: set one of them".to_owned()));
        fs::remove_file(&path).expect("the file");
        let error = secret(&[("KEY_FILE", file)]).expect_err("a refusal");
        assert!(error.contains("No such file"), "{error}");
        assert_eq!(secret(&[("KEY", " hunter2 "), ("KEY_FILE", "")]), Ok(Some("hunter2".to_owned())));
        assert_eq!(secret(&[]), Ok(None));
    }

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, shown) in [
            ("postgres://u:hunter2@h:5432/db?sslmode=require", "postgres://u:***@h:5432/db?sslmode=require"),
            ("postgres://h/db?user=u&password=hunter2", "postgres://h/db?user=u&password=***"),
            ("http://proxy:3128", "http://proxy:3128/"),
            ("hunter2", "***"),
        ] {
            assert_eq!(mask_url(url), shown);
        }
    }
}
