//! The figures of docs/performance.md as SVG text: bars, and lines over a number of connections.

use crate::report::Report;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 270.0;
const ROW: f64 = 26.0;
const TOP: f64 = 44.0;
const COLOURS: [&str; 5] = ["#2563eb", "#94a3b8", "#f59e0b", "#10b981", "#a855f7"];

/// One bar: its label, its value, and the colour that says whose it is.
pub struct Bar {
    pub label: String,
    pub value: f64,
    pub colour: usize,
}

/// One line: its label and its points (x, y).
pub struct Line {
    pub label: String,
    pub points: Vec<(f64, f64)>,
}

pub fn of_full(report: &Report) -> Vec<(&'static str, String)> {
    let colour = |name: &str| match name {
        name if name.starts_with("service") || name.starts_with("read") => 0,
        name if name.starts_with("textbook") => 1,
        _ => 2,
    };
    let bars = |wanted: &dyn Fn(&str) -> bool, figure: &dyn Fn(&str) -> Option<f64>| -> Vec<Bar> {
        let names = report.names().into_iter().filter(|name| wanted(name));
        names
            .filter_map(|name| Some(Bar { label: name.to_owned(), value: figure(name)?, colour: colour(name) }))
            .collect()
    };
    let throughput = bars(&|name| !name.starts_with("read "), &|name| report.item_rate(name));
    let latency = bars(&|name| name.starts_with("service") || name.starts_with("read "), &|name| {
        report.median(name, |measured| measured.p99_ms)
    });
    let points = |prefix: &str, unit: &str, counts: &[u32]| -> Vec<(f64, f64)> {
        let rate = |count: &u32| Some((f64::from(*count), report.rate(&format!("{prefix}{count} {unit}"))?));
        counts.iter().filter_map(rate).collect()
    };
    let lines = [
        Line { label: "service".to_owned(), points: points("service, ", "connections", &[1, 64, 256]) },
        Line { label: "textbook".to_owned(), points: points("textbook, ", "clients", &[1, 8, 16, 64]) },
        Line {
            label: "textbook, hot pair".to_owned(),
            points: points("textbook, hot pair, ", "clients", &[1, 8, 16, 64]),
        },
    ];
    vec![
        ("throughput.svg", draw_bars("Records of usage per second", &throughput, 0)),
        ("connections.svg", draw_lines("Requests per second over connections", "connections", &lines)),
        ("latency.svg", draw_bars("99th percentile in milliseconds", &latency, 2)),
    ]
}

pub fn draw_bars(title: &str, bars: &[Bar], decimals: usize) -> String {
    let largest = bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
    let height = TOP + ROW * bars.len() as f64 + 12.0;
    let mut body = heading(title);
    for (place, bar) in bars.iter().enumerate() {
        let y = TOP + ROW * place as f64;
        let length = (WIDTH - LEFT - 90.0) * bar.value / largest;
        body += &text(LEFT - 8.0, y + 15.0, "end", &bar.label);
        body += &format!(
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"19\" fill=\"{}\"/>\n",
            COLOURS[bar.colour % COLOURS.len()]
        );
        body += &text(LEFT + length + 6.0, y + 15.0, "start", &format!("{:.decimals$}", bar.value));
    }
    wrap(height, &body)
}

/// The x axis is logarithmic: connections are doubled, not added.
pub fn draw_lines(title: &str, x_title: &str, lines: &[Line]) -> String {
    const HEIGHT: f64 = 380.0;
    let (left, right, bottom) = (80.0, WIDTH - 190.0, HEIGHT - 48.0);
    let all = || lines.iter().flat_map(|line| &line.points);
    let x_largest = all().map(|(x, _)| *x).fold(2.0, f64::max);
    let y_largest = all().map(|(_, y)| *y).fold(f64::MIN_POSITIVE, f64::max) * 1.05;
    let x_of = |x: f64| left + (right - left) * x.log2() / x_largest.log2();
    let y_of = |y: f64| bottom - (bottom - TOP) * y / y_largest;
    let mut body = heading(title);
    for step in 0..=4 {
        let value = y_largest * f64::from(step) / 4.0;
        let y = y_of(value);
        body += &format!("<line x1=\"{left}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#e2e8f0\"/>\n");
        body += &text(left - 8.0, y + 4.0, "end", &format!("{value:.0}"));
    }
    let mut ticks: Vec<f64> = all().map(|(x, _)| *x).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    for x in ticks {
        body += &text(x_of(x), bottom + 18.0, "middle", &format!("{x:.0}"));
    }
    body += &text(f64::midpoint(left, right), bottom + 38.0, "middle", x_title);
    for (place, line) in lines.iter().enumerate().filter(|(_, line)| !line.points.is_empty()) {
        let colour = COLOURS[place % COLOURS.len()];
        let points: Vec<String> = line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_of(*x), y_of(*y))).collect();
        body += &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n",
            points.join(" ")
        );
        for (x, y) in &line.points {
            body += &format!("<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\"/>\n", x_of(*x), y_of(*y));
        }
        let y = TOP + 20.0 * place as f64;
        body += &format!("<rect x=\"{}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\n", right + 20.0);
        body += &text(right + 38.0, y + 11.0, "start", &line.label);
    }
    wrap(HEIGHT, &body)
}

fn heading(title: &str) -> String {
    format!("<text x=\"16\" y=\"26\" font-size=\"16\" font-weight=\"bold\">{title}</text>\n")
}

fn text(x: f64, y: f64, anchor: &str, content: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>\n")
}

fn wrap(height: f64, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"system-ui, sans-serif\" font-size=\"13\" fill=\"#0f172a\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}
