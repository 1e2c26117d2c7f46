//! A server that accepts connections, swallows what it is sent, and sends only a fixed response.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

pub struct SilentServer {
    pub address: SocketAddr,
}

impl SilentServer {
    pub fn start() -> Self {
        Self::answering(b"")
    }

    /// Sends `answer` after the first bytes of each connection.
    pub fn answering(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        // The threads end with the process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                thread::spawn(move || {
                    let mut buffer = [0; 1024];
                    if stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                        let _ = stream.write_all(answer);
                        while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
                    }
                });
            }
        });
        Self { address }
    }

    /// The address as a DATABASE_URL with these parameters.
    pub fn url(&self, parameters: &str) -> String {
        format!("postgres://somebody:hunter2-secret@{}/billing{parameters}", self.address)
    }
}
