//! `completions` and `man`: what shells and readers need to know of the commands, generated from their definitions.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::error::CliError;
use super::output::Output;

/// The name of the program in the completions and the manual.
const PROGRAM: &str = "agentpay-billing";

#[derive(Args, Debug)]
pub struct Completions {
    shell: Shell,
}

#[derive(Args, Debug)]
pub struct Man {
    /// Write one page per command into this directory, instead of the first page to standard output.
    dir: Option<PathBuf>,
}

impl Completions {
    pub async fn run<C: CommandFactory>(&self) -> Result<(), CliError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut C::command(), PROGRAM, &mut script);
        Ok(Output::standard()?.write(script).await?)
    }
}

impl Man {
    pub async fn run<C: CommandFactory>(&self) -> Result<(), CliError> {
        let command = C::command();
        if let Some(dir) = &self.dir {
            std::fs::create_dir_all(dir)?;
            return Ok(clap_mangen::generate_to(command, dir)?);
        }
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        Ok(Output::standard()?.write(page).await?)
    }
}
