//! A certificate authority of a test, made with the program openssl. Its files go away with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub struct Authority(PathBuf);

/// A certificate and its key, both PEM.
pub struct Issued {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("agentpay-authority-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&dir).expect("a directory");
        let own = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 2 -subj /CN=authority \
                   -keyout root.key -out root.pem";
        openssl(&dir, own);
        Self(dir)
    }

    /// Its own certificate.
    pub fn root(&self) -> PathBuf {
        self.0.join("root.pem")
    }

    /// A certificate for a server of the DNS name `name`, or for a client that calls itself so.
    pub fn issue(&self, name: &str) -> Issued {
        let request = format!(
            "req -new -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN={name} \
             -addext subjectAltName=DNS:{name} -keyout {name}.key -out {name}.csr"
        );
        openssl(&self.0, &request);
        let sign = format!(
            "x509 -req -in {name}.csr -CA root.pem -CAkey root.key -CAcreateserial -copy_extensions copy -days 2 \
             -out {name}.pem"
        );
        openssl(&self.0, &sign);
        Issued { certificate: self.0.join(format!("{name}.pem")), key: self.0.join(format!("{name}.key")) }
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn openssl(dir: &Path, arguments: &str) {
    let mut command = Command::new("openssl");
    command.current_dir(dir).args(arguments.split_whitespace()).stdin(Stdio::null());
    let output = command.output().expect("openssl");
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
