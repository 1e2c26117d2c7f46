//! The two statements of a batch: what it has to know and does not remember, and all it changes. One round trip each, because under load a
//! batch spends its time on round trips. Whatever was read may change before it is written: the keys' unique index and
//! the counters' versions notice, and then nothing at all is written.

mod read;
mod write;

pub use read::{Known, Wanted, read};
pub use write::{ChangedCounter, Changes, write};
