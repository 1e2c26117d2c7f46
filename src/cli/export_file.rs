//! The file that an export writes: CSV with a header, or an array of JSON, one item a line.

use clap::ValueEnum;
use serde::Serialize;

use crate::domain::csv_field::guarded;

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum FileFormat {
    #[default]
    Csv,
    Json,
}

pub struct ExportFile {
    format: FileFormat,
    is_empty: bool,
}

impl ExportFile {
    pub fn new(format: FileFormat) -> Self {
        Self { format, is_empty: true }
    }

    /// `header` has the names of the CSV fields.
    pub fn start(&self, header: &str) -> Vec<u8> {
        match self.format {
            FileFormat::Csv => format!("{header}\n").into_bytes(),
            FileFormat::Json => b"[".to_vec(),
        }
    }

    /// Adds an item to `text`: as JSON, or as CSV fields, which must not be formulas.
    pub fn write<const N: usize>(
        &mut self,
        text: &mut Vec<u8>,
        item: &impl Serialize,
        fields: impl FnOnce() -> [String; N],
    ) {
        match self.format {
            FileFormat::Csv => {
                let mut writer = ::csv::Writer::from_writer(text);
                let fields = fields().map(|field| guarded(&field).into_owned());
                writer.write_record(fields).expect("memory cannot fail");
                writer.flush().expect("memory cannot fail");
            }
            FileFormat::Json => {
                text.extend_from_slice(if self.is_empty { b"\n" } else { b",\n" });
                serde_json::to_writer(text, item).expect("memory cannot fail");
            }
        }
        self.is_empty = false;
    }

    pub fn end(&self) -> &'static [u8] {
        match self.format {
            FileFormat::Csv => b"",
            FileFormat::Json => b"\n]\n",
        }
    }
}
