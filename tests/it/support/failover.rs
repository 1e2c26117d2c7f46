//! A PostgreSQL that fails over to a standby that is behind: the latest commits are lost, and the pooler in front keeps
//! the connections of its clients.

use std::process::Command;

use agentpay_billing::local_postgres::LocalPostgres;
use sqlx::postgres::PgConnectOptions;

use super::postgres::SETTINGS;
use super::{DataDir, Pooler};

pub struct LossyFailover {
    server: LocalPostgres,
    pooler: Pooler,
    primary: DataDir,
    standby: DataDir,
}

impl LossyFailover {
    pub async fn start() -> Self {
        let (primary, standby) = (DataDir::new(), DataDir::new());
        let server = LocalPostgres::start(primary.path(), &SETTINGS).await.expect("a PostgreSQL");
        let pooler = Pooler::start(server.connect_options("agentpay")).await;
        Self { server, pooler, primary, standby }
    }

    /// Connection options for the current server, through the pooler.
    pub fn options(&self) -> PgConnectOptions {
        self.pooler.options()
    }

    /// Commits from now on do not reach the standby. Clients wait meanwhile.
    pub async fn fall_behind(&self) {
        self.pooler.pause();
        self.server.stop_fast().await.expect("stop");
        std::fs::create_dir(self.standby.path()).expect("a directory");
        let (data, copy) = (self.primary.path().join("postgres"), self.standby.path().join("postgres"));
        let copied = Command::new("cp").arg("-a").args([data, copy]).status();
        assert!(copied.expect("cp").success());
        self.server.start_again().await.expect("start");
        self.pooler.lead_to(self.server.connect_options("agentpay"));
    }

    /// Crashes the primary, and promotes the standby.
    pub async fn fail_over(&mut self) {
        self.pooler.pause();
        self.server.stop_immediately().await.expect("stop");
        self.server = LocalPostgres::start(self.standby.path(), &SETTINGS).await.expect("the standby");
        self.pooler.lead_to(self.server.connect_options("agentpay"));
    }
}
