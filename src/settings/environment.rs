//! How a variable is read: trimmed, bounded, and unset if it is empty. A secret may stand in a file instead, whose path is in
//! the variable `NAME_FILE`.

use std::fs;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::SettingsError;

pub(super) struct Environment<'a> {
    read: &'a dyn Fn(&str) -> Option<String>,
}

impl<'a> Environment<'a> {
    pub(super) fn of(read: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { read }
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        (self.read)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// A value that no error repeats. An empty file is an error: a secret that was not written must not count as unset,
    /// which can mean that no key is required.
    pub(super) fn secret(&self, name: &str) -> Result<Option<String>, SettingsError> {
        let (value, file) = (self.text(name), format!("{name}_FILE"));
        let Some(path) = self.text(&file) else { return Ok(value) };
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
        let Some(text) = self.text(name) else { return Ok(default) };
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
        let Some(text) = self.text(name) else { return Ok(default) };
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err(refuse(name, "true, 1, yes, on, false, 0, no or off", &text)),
        }
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
}
