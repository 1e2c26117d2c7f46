//! Writes log lines to a file descriptor. A separate thread writes, so that no request waits for the reader of the log.
//! The queue is bounded in bytes. A line that does not fit is dropped and counted.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;

use crate::metrics;

/// Maximum number of bytes that wait for the reader, about 30 000 lines. Limited in bytes, because callers influence
/// the length of a line.
const QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Waiting lines are written together, up to about this size.
const CHUNK_BYTES: usize = 64 * 1024;
/// How long the thread waits for further lines after the first one. A thread that is woken for each line takes its core from
/// the requests; one that sleeps costs them nothing.
const GATHER_PAUSE: Duration = Duration::from_millis(5);
/// Pause before a write to a non-blocking descriptor is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// The sending end of the log. It never blocks and never fails.
#[derive(Debug)]
pub struct LogWriter {
    queue: Sender<Message>,
    counts: Arc<Counts>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(Sender<()>),
}

#[derive(Debug, Default)]
struct Counts {
    queued_bytes: AtomicUsize,
    dropped_lines: AtomicU64,
}

impl Counts {
    fn drop_lines(&self, lines: u64) {
        self.dropped_lines.fetch_add(lines, Ordering::Relaxed);
        metrics::log_lines_dropped(lines);
    }
}

impl LogWriter {
    /// Starts the thread that writes to `output`.
    pub fn start(output: impl Write + Send + 'static) -> Self {
        let (queue, messages) = mpsc::channel();
        let counts = Arc::new(Counts::default());
        let writer = Self { queue, counts: counts.clone() };
        // Without the thread every line is dropped and counted.
        let _ = thread::Builder::new().name("log".to_owned()).spawn(move || write_queue(&messages, output, &counts));
        writer
    }

    pub fn flush(&self, limit: Duration) {
        let (answer, flushed) = mpsc::channel();
        if self.queue.send(Message::Flush(answer)).is_ok() {
            let _ = flushed.recv_timeout(limit);
        }
    }

    /// Queues one line.
    pub fn write_line(&self, line: Vec<u8>) {
        let bytes = line.len();
        let queued_before = self.counts.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = queued_before + bytes <= QUEUE_BYTES_MAX;
        if !fits || self.queue.send(Message::Line(line)).is_err() {
            self.counts.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.counts.drop_lines(1);
        }
    }
}

impl Write for &LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_line(line.to_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for &'static LogWriter {
    type Writer = &'a LogWriter;

    fn make_writer(&'a self) -> &'a LogWriter {
        self
    }
}

/// Writes what arrives until the process ends.
fn write_queue(messages: &Receiver<Message>, mut output: impl Write, counts: &Counts) {
    let mut told_lines = 0;
    let mut is_behind = false;
    while let Ok(first) = messages.recv() {
        let mut chunk = Vec::new();
        let mut flushed = Vec::new();
        let mut next = Some(first);
        if !is_behind && matches!(next, Some(Message::Line(_))) {
            thread::sleep(GATHER_PAUSE);
        }
        while let Some(message) = next {
            match message {
                Message::Line(line) => chunk.extend(line),
                Message::Flush(answer) => flushed.push(answer),
            }
            next = if chunk.len() < CHUNK_BYTES { messages.try_recv().ok() } else { None };
        }
        is_behind = chunk.len() >= CHUNK_BYTES;
        let written = write_all_retrying(&mut output, &chunk);
        counts.queued_bytes.fetch_sub(chunk.len(), Ordering::Relaxed);
        match written {
            Ok(()) => {
                let dropped_lines = counts.dropped_lines.load(Ordering::Relaxed);
                if dropped_lines > told_lines && counts.queued_bytes.load(Ordering::Relaxed) < QUEUE_BYTES_MAX / 2 {
                    warn!(lines = dropped_lines - told_lines, "log lines were dropped: their reader was too slow");
                    told_lines = dropped_lines;
                }
            }
            // The reader has closed the pipe. The service continues; if it is a named pipe, another reader may open it.
            Err(_) => counts.drop_lines(chunk.iter().filter(|byte| **byte == b'\n').count() as u64),
        }
        for answer in flushed {
            let _ = answer.send(());
        }
    }
}

/// Like `write_all`, but also works if another process has set the descriptor to non-blocking.
pub fn write_all_retrying(output: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY_PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Refuses the first write, like a full non-blocking pipe, and then accepts a few bytes at a time.
    struct Reluctant {
        refused: bool,
        taken: Sender<Vec<u8>>,
    }

    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if !std::mem::replace(&mut self.refused, true) {
                return Err(ErrorKind::WouldBlock.into());
            }
            let taken = &bytes[..bytes.len().min(3)];
            self.taken.send(taken.to_owned()).expect("a reader");
            Ok(taken.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_arrive_in_order_and_whole_through_a_descriptor_that_does_not_block() {
        let (taken, arrived) = mpsc::channel();
        let writer = LogWriter::start(Reluctant { refused: false, taken });
        for line in ["first\n", "second\n"] {
            (&writer).write_all(line.as_bytes()).expect("a line");
        }
        writer.flush(Duration::from_secs(60));
        assert_eq!(arrived.try_iter().flatten().collect::<Vec<_>>(), b"first\nsecond\n");
    }

    /// Blocks in its first write until the test ends.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_waits_for_a_reader_that_does_not_read_is_bounded_in_bytes() {
        let (_release, stuck) = mpsc::channel();
        let writer = LogWriter::start(Stuck(stuck));
        let line = vec![b'x'; 64 * 1024];
        for _ in 0..1000 {
            (&writer).write_all(&line).expect("a line");
        }
        writer.flush(Duration::ZERO);
        assert!(writer.counts.queued_bytes.load(Ordering::Relaxed) <= QUEUE_BYTES_MAX);
        assert_eq!(writer.counts.dropped_lines.load(Ordering::Relaxed), 1000 - (QUEUE_BYTES_MAX / line.len()) as u64);
    }
}
