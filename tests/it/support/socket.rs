//! A plain TCP connection for HTTP/1.1, to send and read what an HTTP client would not.

use std::io::ErrorKind;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::LIMIT;

pub struct Socket {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// How the other side ended the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Orderly,
    Reset,
}

/// The status, and the headers with lowercase names.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The value of a header that must be present exactly once.
    pub fn header(&self, name: &str) -> &str {
        let mut values = self.headers.iter().filter(|(own, _)| own == name).map(|(_, value)| value.as_str());
        let value = values.next().unwrap_or_else(|| panic!("{name} is missing: {self:?}"));
        assert_eq!(values.next(), None, "{name} is there twice");
        value
    }

    pub fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(own, _)| own == name)
    }
}

impl Socket {
    pub async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.expect("connect"), buffer: Vec::new() }
    }

    /// Connects with small buffers, for tests of slow readers.
    pub async fn connect_slow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(64 << 10).expect("a small buffer");
        Self { stream: socket.connect(address).await.expect("connect"), buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("send");
    }

    /// Returns false if the other side accepts no more.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        tokio::time::timeout(LIMIT, self.stream.write_all(bytes)).await.expect("an end within the limit").is_ok()
    }

    /// Reads the next head, and the body of its Content-Length.
    pub async fn answer(&mut self) -> (Head, String) {
        let head = self.head().await;
        let length =
            if head.has("content-length") { head.header("content-length").parse().expect("a length") } else { 0 };
        while self.buffer.len() < length {
            assert!(self.read().await, "the body ended early");
        }
        let body = self.buffer.drain(..length).collect();
        (head, String::from_utf8(body).expect("UTF-8"))
    }

    /// Reads the next head without a body, for example after HEAD.
    pub async fn head(&mut self) -> Head {
        let end = loop {
            match self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                Some(end) => break end,
                None => assert!(self.read().await, "no answer: {:?}", String::from_utf8_lossy(&self.buffer)),
            }
        };
        let text: Vec<u8> = self.buffer.drain(..end + 4).collect();
        let text = String::from_utf8(text).expect("ASCII");
        let mut lines = text.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status line");
        let headers = lines.filter_map(|line| line.split_once(": "));
        Head { status, headers: headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect() }
    }

    /// Waits for at least this many unread bytes.
    pub async fn wait_for(&mut self, bytes: usize) {
        while self.buffer.len() < bytes {
            assert!(self.read().await, "the stream ended early");
        }
    }

    /// Reads to the end of the stream. Returns the data, and how it ended.
    pub async fn end(mut self) -> (Vec<u8>, End) {
        loop {
            let read = tokio::time::timeout(LIMIT, self.stream.read_buf(&mut self.buffer)).await;
            match read.expect("something within the limit") {
                Ok(0) => return (self.buffer, End::Orderly),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return (self.buffer, End::Reset),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Waits until the other side closes, and returns what it sent.
    pub async fn rest(mut self) -> String {
        while self.read().await {}
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// Reads more. False at the end of the stream.
    async fn read(&mut self) -> bool {
        let read = tokio::time::timeout(LIMIT, self.stream.read_buf(&mut self.buffer));
        // A reset also counts as the end.
        read.await.expect("something within the limit").unwrap_or(0) > 0
    }
}
