//! Starts the private local PostgreSQL, and stops it on Ctrl-C.

use std::path::Path;

use agentpay_billing::local_postgres::LocalPostgres;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let postgres = LocalPostgres::start(Path::new("./.agentpay"), &[]).await?;
    println!("{}", postgres.url("agentpay"));
    tokio::signal::ctrl_c().await?;
    Ok(postgres.stop().await?)
}
