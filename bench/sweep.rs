//! How throughput changes with lanes, batch size and connections, so that the defaults can be chosen by looking.

use crate::figures::{self, Line};
use crate::load::{Kind, Load};
use crate::measure::{self, Measurement};
use crate::report::Report;
use crate::service::Service;
use crate::setup::PAIRS;
use crate::{Bench, Result, setup};

const DATABASE: &str = "service";
const LANES: [u32; 4] = [1, 2, 4, 8];
const BATCH_MAX: [u32; 3] = [32, 128, 512];
const CONNECTIONS: [u32; 5] = [1, 8, 16, 64, 256];

pub async fn run(bench: &Bench) -> Result<Report> {
    bench.server.create_database(DATABASE).await?;
    let mut report = Report::new("sweep");
    for round in 1..=bench.rounds {
        for lanes in LANES {
            for batch_max in BATCH_MAX {
                for mut measured in measure_setting(bench, lanes, batch_max).await? {
                    measured.round = round;
                    report.add(measured);
                }
            }
        }
    }
    let line = |lanes: u32| {
        let rate = |connections: u32| report.rate(&name(lanes, 512, connections, ""));
        let points = CONNECTIONS.iter().filter_map(|count| Some((f64::from(*count), rate(*count)?))).collect();
        Line { label: format!("{lanes} lanes"), points }
    };
    let lines: Vec<Line> = LANES.into_iter().map(line).collect();
    report.figures = vec![("lanes.svg", figures::draw_lines("Keyed writes per second", "connections", &lines))];
    Ok(report)
}

async fn measure_setting(bench: &Bench, lanes: u32, batch_max: u32) -> Result<Vec<Measurement>> {
    let (lanes_text, batch_text) = (lanes.to_string(), batch_max.to_string());
    let settings = bench.settings(&[("COMMIT_LANES", &lanes_text), ("COMMIT_BATCH_MAX", &batch_text)]);
    let service = Service::start(&bench.server.url(DATABASE), &settings).await?;
    setup::warm(bench, &service).await?;
    let mut all = Vec::new();
    for connections in CONNECTIONS {
        let load = Load::new(Kind::Usage, connections, PAIRS);
        let name = name(lanes, batch_max, connections, "");
        all.push(measure::service(bench, &name, &[&service], DATABASE, &load).await?);
    }
    let load = Load::new(Kind::Usage, 64, 1);
    let name = name(lanes, batch_max, 64, ", hot pair");
    all.push(measure::service(bench, &name, &[&service], DATABASE, &load).await?);
    service.stop().await?;
    Ok(all)
}

fn name(lanes: u32, batch_max: u32, connections: u32, what: &str) -> String {
    format!("{lanes} lanes, batch ≤ {batch_max}{what}, {connections} connections")
}
