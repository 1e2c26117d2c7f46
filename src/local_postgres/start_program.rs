//! The program that a start currently runs: initdb, or pg_ctl starting the server. If the start is cancelled, the
//! program continues, and must be ended separately.

use std::io;
use std::process::Output;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::Command;
use tokio::sync::watch;

#[derive(Debug, Default)]
pub(super) struct StartProgram(watch::Sender<Option<Running>>);

#[derive(Clone, Copy, Debug)]
struct Running {
    process: Pid,
    ending: Ending,
}

/// How to end a program completely.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    /// For initdb: kills it and its child processes.
    KillGroup,
    /// For pg_ctl: it also ends the server that it is starting.
    Interrupt,
}

impl StartProgram {
    /// Runs `command` to its end.
    pub(super) async fn run(&self, command: &mut Command, ending: Ending) -> io::Result<Output> {
        // A separate process group, because an interrupt from the terminal must reach only the service.
        let child = command.process_group(0).spawn()?;
        let process = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        self.0.send_replace(process.map(|process| Running { process, ending }));
        let current = self.0.clone();
        let ends = tokio::spawn(async move {
            let output = child.wait_with_output().await;
            current.send_replace(None);
            output
        });
        ends.await.map_err(io::Error::other)?
    }

    /// Ends the program if one runs. Does not wait.
    pub(super) fn end(&self) {
        if let Some(Running { process, ending }) = *self.0.borrow() {
            // The program may have just ended.
            let _ = match ending {
                Ending::KillGroup => kill_process_group(process, Signal::KILL),
                Ending::Interrupt => kill_process(process, Signal::INT),
            };
        }
    }

    /// Waits until no program runs.
    pub(super) async fn ended(&self) {
        let _ = self.0.subscribe().wait_for(Option::is_none).await;
    }
}
