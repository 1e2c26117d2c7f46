//! A bare HTTP/1.1 connection, for what a proper client would never send and never tell.

use std::io::ErrorKind;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::LIMIT;

pub struct Socket {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// How the other side ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Orderly,
    Reset,
}

/// Status, and headers with their names in lower case.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The value of a header that must be there exactly once.
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

    /// One that takes little before it is read: a slow reader, as long as the test does not read.
    pub async fn connect_slow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(64 << 10).expect("a small buffer");
        Self { stream: socket.connect(address).await.expect("connect"), buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("send");
    }

    /// False if the other side takes no more.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        tokio::time::timeout(LIMIT, self.stream.write_all(bytes)).await.expect("an end within the limit").is_ok()
    }

    /// The next head, and the body its Content-Length announces.
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

    /// The next head alone, as after HEAD.
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

    /// Waits for at least so many bytes that were not taken yet.
    pub async fn wait_for(&mut self, bytes: usize) {
        while self.buffer.len() < bytes {
            assert!(self.read().await, "the stream ended early");
        }
    }

    /// Reads to the end of the stream. What came, and how it ended.
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

    /// Waits until the other side closes, and gives what it still sent.
    pub async fn rest(mut self) -> String {
        while self.read().await {}
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// Whether more came; false at the end of the stream.
    async fn read(&mut self) -> bool {
        let read = tokio::time::timeout(LIMIT, self.stream.read_buf(&mut self.buffer));
        // A reset is an end as well.
        read.await.expect("something within the limit").unwrap_or(0) > 0
    }
}
