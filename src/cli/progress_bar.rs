//! How far a command is, on standard error. Shown only on a terminal.

use std::time::Duration;

use indicatif::ProgressStyle;

/// How often it is drawn while nothing is added.
const TICK: Duration = Duration::from_millis(200);

/// Removed from the terminal when it is dropped.
pub struct ProgressBar(indicatif::ProgressBar);

impl ProgressBar {
    /// Of work whose end is not known.
    pub fn counting(unit: &'static str) -> Self {
        Self::start(None, &format!("{{spinner}} {{human_pos}} {unit} [{{elapsed}}]"))
    }

    pub fn of(total: u64, unit: &'static str) -> Self {
        Self::start(Some(total), &format!("{{bar:32}} {{human_pos}}/{{human_len}} {unit} [{{elapsed}}, {{eta}} left]"))
    }

    fn start(total: Option<u64>, template: &str) -> Self {
        let bar = match total {
            Some(total) => indicatif::ProgressBar::new(total),
            None => indicatif::ProgressBar::no_length(),
        };
        bar.set_style(ProgressStyle::with_template(template).expect("a template"));
        if !bar.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Self(bar)
    }

    pub fn add(&self, count: usize) {
        self.0.inc(count as u64);
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
